"""Training on Ray Train, for both stages that train: a group of workers that restarts from the newest checkpoint,
progress and errors that reach the driver at once, and a driver that can be interrupted."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
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
from bitlm.devices import gpu_memory
from bitlm.errors import ArtifactError, BitLMError
from bitlm.steps import Step
from bitlm.train.loop import Folders, Setup, train
from bitlm_tasks.gpu import GpuConfig
from bitlm_tasks.monitor import Monitor, TrainingStatus
from bitlm_tasks.registration import ControllerRegistration
from bitlm_tasks.resources import Demand, check_room

if TYPE_CHECKING:  # workers, which load this module, need no Prefect
    from bitlm_tasks.run import Run

POLL_SECONDS = 0.5
STOP_SECONDS = 6.0  # for the controller to end its workers and free their resources, before it is ended itself


@dataclass(frozen=True)
class Job:
    """What each worker is sent."""

    stage: str
    prepare: Callable[[Folders], Setup]
    folders: Folders
    execution: TrainExecution
    monitor: ActorHandle


def fit(prepare: Callable[[Folders], Setup], config: TrainConfig, step: Step, run: "Run", work: Work) -> dict[str, Any]:
    """Train what ``prepare``, called in each worker, returns. Returns the figures of ``bitlm.train.loop.train``.

    ``prepare`` is sent to the workers: a function of a module with plain data as its arguments. A lost worker restarts
    the group, at most ``max_failures`` times. A BitLMError in a worker ends the training and is raised as it is.
    """
    run.ray()
    execution = config.execution
    check_room(Demand.of_training(step.stage, execution))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    monitor = Monitor.remote()
    job = Job(step.stage, prepare, Folders(storage.join(work.scratch, "checkpoints"), work.out), execution, monitor)
    outcome = _in_thread(_trainer(job, step, work).fit)
    try:
        while not wait([outcome], timeout=POLL_SECONDS).done:
            run.progress.update(*_progress(_status(monitor), config))
        status = _status(monitor)
        return {**outcome.result().return_value, "restarts": status.starts - 1}
    finally:
        if not outcome.done():
            _stop(ray.get(monitor.status.remote()).controller)
        ray.kill(monitor)


def check_tokenizer(artifact: Record, tokenizer: Record) -> None:
    """Raises ArtifactError if ``artifact`` was made with another tokenizer."""
    entry = artifact.inputs["tokenizer"]
    if entry.fingerprint != tokenizer.fingerprint:
        raise ArtifactError(
            f"{artifact.id} was made with {entry.id}, not with {tokenizer.id}: give both from one pipeline"
        )


def _trainer(job: Job, step: Step, work: Work) -> TorchTrainer:
    execution = job.execution
    url = storage.join(work.scratch, "ray")
    filesystem, path = storage.filesystem(url)
    remote = None if storage.is_local(url) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
    return TorchTrainer(
        _train_worker,
        train_loop_config={"job": ray.put(job)},  # by reference: the controller would load what the job needs
        torch_config=(
            GpuConfig(stage=step.stage, monitor=job.monitor) if execution.use_gpu else TorchConfig(backend="gloo")
        ),
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers, use_gpu=execution.use_gpu, resources_per_worker=_resources(execution)
        ),
        run_config=RunConfig(
            name=f"{step.stage}-{step.name}",
            storage_path=path,
            storage_filesystem=remote,
            failure_config=FailureConfig(max_failures=execution.max_failures),
            callbacks=[ControllerRegistration(job.monitor)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Runs in every worker."""
    job: Job = ray.get(loop_config["job"])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(job.execution.cpus_per_worker)
    if job.execution.use_gpu:
        if not torch.distributed.is_initialized():
            threading.Event().wait()  # a GPU is at fault, as the monitor knows: until the driver ends the workers
        torch.cuda.set_device(get_device())
    if get_context().get_world_rank() == 0:
        job.monitor.count_start.remote()
    try:
        with gpu_memory(f"lower {job.stage}.execution.micro_batch_size, or use more workers"):
            return train(job.prepare(job.folders), report=job.monitor.report.remote)
    except BitLMError as error:
        job.monitor.report_error.remote(error)
        threading.Event().wait()  # until the driver ends the workers: if this raised, Ray Train would restart them
        raise


def _in_thread(function: Callable[[], Any]) -> Future:
    """Run in a thread: Ray Train replaces the handler of the interrupt signal when it runs in the main thread."""
    outcome: Future = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="ray-train", daemon=True).start()
    return outcome


def _status(monitor: ActorHandle) -> TrainingStatus:
    """Raises the error that a worker reported."""
    status: TrainingStatus = ray.get(monitor.status.remote())
    if status.error is not None:
        raise status.error
    return status


def _stop(controller: ActorHandle | None) -> None:
    """End the workers. A controller that has not started yet ends with the driver."""
    if controller is not None:
        ray.wait([controller.abort.remote()], timeout=STOP_SECONDS)
        ray.kill(controller)


def _resources(execution: TrainExecution) -> dict[str, float]:
    return {"CPU": execution.cpus_per_worker, **({"GPU": 1} if execution.use_gpu else {})}


def _progress(status: TrainingStatus, config: TrainConfig) -> tuple[float, str]:
    """Fraction of the steps that are done, and a line of text."""
    line = status.metrics
    if line is None:
        return 0.0, f"starting {config.execution.num_workers} worker(s)"
    text = (
        f"step {line['step']}/{config.steps} loss {line['loss']:.3f} lr {line['learning_rate']:.1e} "
        f"{line['tokens_per_second']:,.0f} tok/s"
    )
    text += f" val {status.validation:.2f}" if status.validation is not None else ""
    text += f" (restarted {status.starts - 1}×)" if status.starts > 1 else ""
    return line["step"] / config.steps, text
