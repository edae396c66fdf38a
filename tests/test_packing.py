"""How many trials share a GPU, and what is said of a trial's own memory."""

import os
import sys
import types
from pathlib import Path

import pytest

from sweeps.cluster import ClusterError
from sweeps.packing import gpus_for
from sweeps.usage import Usage


@pytest.mark.parametrize(
    ("peak", "total", "gpus"),
    [
        (10e9, 80e9, 0.1666),  # 76 GB free for trials of 12 GB: 6, and Ray counts in ten-thousandths, rounded down
        (1e9, 24e9, 0.0526),  # 22.8 GB for 1.2 GB each: 19
        (19e9, 24e9, 1.0),  # 22.8 GB for 22.8 GB
        (22e9, 24e9, 1.0),  # without the margin, but it fits
    ],
)
def test_a_gpu_is_shared_by_as_many_as_its_memory_holds(peak, total, gpus):
    assert gpus_for(peak, total) == gpus
    assert gpus == 1 or int(1 / gpus) * peak < total


def test_a_trial_that_no_gpu_holds_is_refused_with_what_helps():
    with pytest.raises(ClusterError, match="needs 30.0 GB of GPU memory and a GPU has 24.0 GB; try --micro-batches 2"):
        gpus_for(30e9, 24e9)


def test_a_process_on_the_cpu_says_its_own_memory_alone():
    used = Usage(on_gpu=False).now()
    assert set(used) == {"host_memory_bytes"}
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    assert used["host_memory_bytes"] == pytest.approx(resident, rel=0.05)


class Nvml(types.ModuleType):
    """A GPU that this process and another share, as NVML tells it."""

    def __init__(self, processes):
        super().__init__("pynvml")
        self._processes = processes

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self._processes]

    def nvmlDeviceGetUtilizationRates(self, handle):
        return types.SimpleNamespace(gpu=87)


@pytest.mark.parametrize(
    ("processes", "memory"),
    [([(1, 7_000), (os.getpid(), 5_000)], 5_000), ([(1, 7_000)], 3_000), ([(os.getpid(), None)], 3_000)],
)
def test_on_a_gpu_nvml_tells_this_process_from_others_and_torch_stands_in_where_it_cannot(
    monkeypatch, processes, memory
):
    import torch

    monkeypatch.setitem(sys.modules, "pynvml", Nvml(processes))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    used = Usage(on_gpu=True).now()
    assert used["gpu_memory_bytes"] == memory
    assert used["gpu_utilization_percent"] == 87
