"""GPUs in Ray's workers: Ray may hand out one that torch cannot use."""

from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.train.torch import TorchConfig, get_device

from bitlm.devices import cuda_fault
from bitlm.errors import ConfigError


def gpu_fault(stage: str, device: torch.device | None = None) -> ConfigError | None:
    """What is wrong with the GPU of this worker, by default with that which Ray Train gives it; None if nothing is."""
    fault = cuda_fault(device or get_device())
    if fault is None:
        return None
    return ConfigError(
        f"{stage}.execution.use_gpu: Ray gives a worker on {ray.util.get_node_ip_address()} a GPU, but {fault}: "
        f"mend torch or the driver there, or set {stage}.execution.use_gpu=false"
    )


class CheckedBackend(TorchConfig().backend_cls):
    """Ray's own, but the GPUs of all workers are looked at before NCCL needs them.

    A fault is told to the monitor, and no process group is made. It is not raised: Ray Train (2.60) would not give back
    the GPUs and CPUs of the workers.
    """

    def on_start(self, worker_group: Any, backend_config: "GpuConfig") -> None:
        """Runs in the controller."""
        faults = [fault for fault in worker_group.execute(gpu_fault, backend_config.stage) if fault is not None]
        if faults:
            backend_config.monitor.report_error.remote(faults[0])
        else:
            super().on_start(worker_group, backend_config)


@dataclass(kw_only=True)
class GpuConfig(TorchConfig):
    """The process group of a training on GPUs."""

    stage: str
    monitor: ActorHandle
    backend: str | None = "cpu:gloo,cuda:nccl"

    @property
    def backend_cls(self) -> type[CheckedBackend]:
        return CheckedBackend
