import re
import warnings

import pytest
import torch

from bitlm import devices
from bitlm.devices import cuda_fault, find_device, gpu_memory
from bitlm.errors import BitLMError, ConfigError

NOT_DEVICES = ("gpu", "mps", "xpu", "meta", "nonsense", "", "CPU", "cpu:1", "cud", " cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of a machine with two, both of which work."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "cuda_fault", lambda device: None)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_is_all_there_is() -> None:
    assert find_device() == find_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "cuda:7", "cuda:x", "cuda:-1"):
        with pytest.raises(
            ConfigError, match=rf"^device '{name}': torch .* is built without CUDA; choose one of: cpu$"
        ):
            find_device(name)
    for name in NOT_DEVICES:
        with pytest.raises(ConfigError, match=rf"^device '{name}': models do not run on it; choose one of: cpu$"):
            find_device(name)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_chosen_by_number() -> None:
    assert find_device() == find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == torch.device("cpu")
    for name in ("cuda:2", "cuda:7", "cuda:", "cuda:x", "cuda:01"):
        expected = f"device '{name}': there is no such GPU; choose one of: cpu, cuda, cuda:0, cuda:1"
        with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
            find_device(name)
    for name in NOT_DEVICES:
        with pytest.raises(ConfigError, match=r"models do not run on it; choose one of: cpu, cuda, cuda:0, cuda:1$"):
            find_device(name)


def test_a_gpu_that_does_not_work_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_driver() -> bool:
        warnings.warn("CUDA initialization: the driver is too old\n(a link)", stacklevel=1)
        return False

    def for_another_gpu(*args, **kwargs) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with …")

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", without_a_driver)
    fault = cuda_fault(torch.device("cuda"))
    assert fault.endswith("finds no GPU with a working driver (CUDA initialization: the driver is too old)")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", for_another_gpu)
    fault = cuda_fault(torch.device("cuda"))
    assert fault.endswith("cannot compute on it (CUDA error: no kernel image is available)")


def test_a_full_gpu_is_one_line_with_a_remedy() -> None:
    message = r"^the GPU has too little memory \(Tried to allocate 2 GiB\.\): lower it$"
    with pytest.raises(BitLMError, match=message), gpu_memory("lower it"):
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB.\nSee …")
