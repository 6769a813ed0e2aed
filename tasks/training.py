"""Training on Ray Train, for both stages that train: a group of workers that restarts from the newest checkpoint,
progress and faults that reach the driver at once, and a driver that can be interrupted."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

import pyarrow.fs
import ray
import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.work import Work
from bitlm.config import TrainConfig, TrainExecution
from bitlm.errors import ArtifactError, BitLMError, ConfigError
from bitlm.steps import Step
from bitlm.train.loop import Setup, train
from tasks.monitor import Introduce, Monitor, Told

if TYPE_CHECKING:  # workers, which load this module, need no Prefect
    from tasks.run import Run

POLL_SECONDS = 0.5
STOP_SECONDS = 6.0  # for the controller to end its workers and free their resources, before it is ended itself


def fit(
    prepare: Callable[..., Setup], arguments: dict[str, Any], config: TrainConfig, step: Step, run: "Run", work: Work
) -> dict[str, Any]:
    """Train what ``prepare(**arguments, checkpoints=…, out=…)`` says, made anew in each worker. Returns the figures.

    ``prepare`` is a function of a module and ``arguments`` are plain data. A lost worker restarts the group, at most
    ``max_failures`` times. A BitLMError in a worker ends the training at once and is raised as it is.
    """
    run.ray()
    execution = config.execution
    _check_resources(step.stage, execution)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    monitor = Monitor.remote()
    folders = {"checkpoints": storage.join(work.scratch, "checkpoints"), "out": work.out}
    job = {"prepare": prepare, "arguments": arguments | folders, "monitor": monitor, "execution": execution}
    outcome = _in_thread(_trainer(job, step, work, execution).fit)
    try:
        while not wait([outcome], timeout=POLL_SECONDS).done:
            told = _ask(monitor)
            run.progress.update(*_progress(told, config))
        told = _ask(monitor)
        return {**outcome.result().return_value, "restarts": told.starts - 1}
    finally:
        if not outcome.done():
            _stop(ray.get(monitor.told.remote()).controller)
        ray.kill(monitor)


def check_tokenizer(made: Record, tokenizer: Record) -> None:
    """Raises ArtifactError where an artifact was made with another tokenizer than the one given."""
    entry = made.inputs["tokenizer"]
    if entry.fingerprint != tokenizer.fingerprint:
        raise ArtifactError(f"{made.id} was made with {entry.id}, not with {tokenizer.id}: give both from one pipeline")


def _trainer(job: dict[str, Any], step: Step, work: Work, execution: TrainExecution) -> TorchTrainer:
    url = storage.join(work.scratch, "ray")
    filesystem, path = storage.filesystem(url)
    remote = None if storage.is_local(url) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    return TorchTrainer(
        _work,
        train_loop_config={"job": ray.put(job)},  # by reference: the controller would load what the job needs
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if execution.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers, use_gpu=execution.use_gpu, resources_per_worker=_resources(execution)
        ),
        run_config=RunConfig(
            name=f"{step.stage}-{step.name}",
            storage_path=path,
            storage_filesystem=remote,
            failure_config=FailureConfig(max_failures=execution.max_failures),
            callbacks=[Introduce(job["monitor"])],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _work(given: dict[str, Any]) -> dict[str, Any]:
    """Runs in every worker."""
    job = ray.get(given["job"])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    monitor, execution = job["monitor"], job["execution"]
    torch.set_num_threads(execution.cpus_per_worker)
    if execution.use_gpu:
        torch.cuda.set_device(get_device())
    if get_context().get_world_rank() == 0:
        monitor.started.remote()
    try:
        return train(job["prepare"](**job["arguments"]), report=lambda line: monitor.figures.remote(line))
    except BitLMError as fault:
        monitor.failed.remote(fault)
        threading.Event().wait()  # until the driver ends the workers: to raise would make Ray Train start them again
        raise


def _in_thread(function: Callable[[], Any]) -> Future:
    """Ray Train would take the interrupt signal from the main thread for good; in another one it leaves it alone."""
    outcome: Future = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="ray-train", daemon=True).start()
    return outcome


def _ask(monitor: ActorHandle) -> Told:
    told = ray.get(monitor.told.remote())
    if told.fault is not None:
        raise told.fault
    return told


def _stop(controller: ActorHandle | None) -> None:
    """End the workers. A controller that has not started yet ends with the driver."""
    if controller is not None:
        ray.wait([controller.abort.remote()], timeout=STOP_SECONDS)
        ray.kill(controller)


def _resources(execution: TrainExecution) -> dict[str, float]:
    return {"CPU": execution.cpus_per_worker, **({"GPU": 1} if execution.use_gpu else {})}


def _check_resources(stage: str, execution: TrainExecution) -> None:
    """On a session of this machine's own, nothing will ever be added: refuse at once what a cluster may wait for."""
    if os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources()
    for kind, each in _resources(execution).items():
        if each * execution.num_workers > there.get(kind, 0):
            remedy = "cpus_per_worker" if kind == "CPU" else "set use_gpu=false"
            raise ConfigError(
                f"{stage}.execution asks for {execution.num_workers} workers with {each} {kind} each, this machine has "
                f"{there.get(kind, 0):g}: lower num_workers or {remedy}"
            )


def _progress(told: Told, config: TrainConfig) -> tuple[float, str]:
    line = told.figures
    if line is None:
        return 0.0, f"starting {config.execution.num_workers} worker(s)"
    text = (
        f"step {line['step']}/{config.steps} loss {line['loss']:.3f} lr {line['learning_rate']:.1e} "
        f"{line['tokens_per_second']:,.0f} tok/s"
    )
    text += f" val {told.validation:.2f}" if told.validation is not None else ""
    text += f" (restarted {told.starts - 1}×)" if told.starts > 1 else ""
    return line["step"] / config.steps, text
