"""How many trials share a GPU, and what is said of a trial's own memory."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers.accounts import finish

from sweeps.account.account import RUNNING, Account
from sweeps.account.work import work_items
from sweeps.cluster.connection import ClusterError
from sweeps.driver import gpu_packing as packing
from sweeps.driver.gpu_packing import gaining, held_at_once, measured_gpus
from sweeps.driver.usage import Usage
from sweeps.planning.plan import Request, plan_cells


@pytest.mark.parametrize(
    ("peak", "total", "count"),
    [
        (10e9, 80e9, 6),  # 76 GB free for trials of 12 GB
        (1e9, 24e9, 19),  # 22.8 GB for 1.2 GB each
        (19e9, 24e9, 1),  # 22.8 GB for 22.8 GB
        (22e9, 24e9, 1),  # without the margin, but it fits
    ],
)
def test_a_gpu_holds_as_many_trials_as_its_memory_with_a_margin(peak, total, count):
    assert held_at_once(peak, total) == count


def test_a_trial_that_no_gpu_holds_is_refused_with_what_helps():
    with pytest.raises(ClusterError, match="needs 30.0 GB of GPU memory and a GPU has 24.0 GB; try --micro-batches 2"):
        held_at_once(30e9, 24e9)


@pytest.mark.parametrize(
    ("rates", "most", "count", "gain"),
    [
        ({1: 100, 2: 101}, 8, 1, 1.0),  # one trial fills the GPU
        ({1: 100, 2: 180, 4: 185}, 8, 2, 1.8),
        ({1: 100, 2: 180, 4: 300, 6: 330}, 6, 6, 3.3),  # to what memory holds, no power of two
        ({1: 100, 2: 0}, 8, 1, 1.0),  # two at once run out of memory after all
        ({1: 0}, 8, 1, 0.0),  # nothing could be measured
    ],
)
def test_as_many_trials_share_a_gpu_as_do_a_twentieth_more_than_half_as_many(rates, most, count, gain):
    assert gaining(most, rates.__getitem__) == (count, pytest.approx(gain))


@pytest.fixture
def gpu(monkeypatch):
    """A cluster whose GPU has 24 GB, where measuring is a call in this process: returns what is called in its place.
    rates: of so many trials at once, by default as many times what one does."""

    def set_peak(peak_of, rates=lambda count: 100.0 * count):
        measured = []
        monkeypatch.setattr("relvit.calibrate.images_per_second", lambda count, *what, **how: rates(count))

        def measure(cell, phase, **others):
            measured.append((cell.tasks, cell.batch_size))
            peak = peak_of(cell)
            if peak > 24e9:
                raise torch.OutOfMemoryError("CUDA out of memory")
            monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: peak)

        monkeypatch.setattr("relvit.calibrate.measure", measure)
        return measured

    monkeypatch.setattr("sweeps.cluster.connection.gpus_per_trial", lambda asked: 1.0)
    monkeypatch.setattr(packing.ray, "get", lambda value: value)
    monkeypatch.setattr(packing.ray, "remote", lambda **how: lambda function: types.SimpleNamespace(remote=function))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    total = types.SimpleNamespace(total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: total)
    return set_peak


def items(cells, account):
    return work_items(account, dict.fromkeys(cells, ("table4",)))


def test_where_a_step_runs_out_of_memory_each_trial_gets_a_gpu_and_it_is_said(gpu, tmp_path):
    gpu(lambda cell: 30e9 if cell.tasks == "dist" else 1e9)
    cells, notes = plan_cells(Request("table4", "demo", tmp_path, combinations=("sprel", "dist"))), []
    assert measured_gpus(items(cells, Account(tmp_path)), Account(tmp_path), 1, notes.append) == 1.0
    (note,) = notes
    assert note.startswith("a GPU of 24.0 GB does not hold a step of every cell: each trial gets a whole one")


def test_what_is_measured_is_a_micro_batch(gpu, tmp_path):
    measured = gpu(lambda cell: cell.batch_size * 0.1e9)
    (cell,) = plan_cells(Request("table4", "demo", tmp_path, combinations=("sprel",), settings=("batch_size=100",)))
    account = Account(tmp_path)
    assert measured_gpus(items([cell], account), account, 1, print) == 1.0  # 22.8 GB for 12.7 GB each
    assert measured_gpus(items([cell], account), account, 3, print) == 0.25  # for 4.8 GB each
    account.mark(cell, RUNNING, micro_batches=4)  # what it was begun in
    assert (
        measured_gpus(items([cell], account), account, 3, print) == 0.1666
    )  # 3.7 GB each: 6, in Ray's ten-thousandths, rounded down
    assert [size for _, size in measured[::2]] == [100, 34, 25]


def test_what_is_known_of_whole_batches_does_not_stand_for_micro_batches(gpu, tmp_path):
    measured = gpu(lambda cell: 1e9)
    cell, other = plan_cells(Request("table4", "demo", tmp_path, combinations=("sprel",), seeds=(0, 1)))
    account = Account(tmp_path)
    account.plan(dict.fromkeys([cell, other], ("table4",)))
    finish(account, cell, [], peak_gpu_bytes=10_000_000_000)
    assert measured_gpus(items([other], account), account, 1, print) == 1.0
    assert not measured
    assert measured_gpus(items([other], account), account, 2, print) == 0.0909
    assert measured


def test_trials_that_fit_share_a_gpu_only_as_far_as_that_makes_them_faster(gpu, tmp_path):
    # Three of 6 GB with their margin fit.
    cells, notes = plan_cells(Request("table4", "demo", tmp_path, combinations=("sprel",))), []
    auto = lambda: measured_gpus(items(cells, Account(tmp_path)), Account(tmp_path), 1, notes.append)  # noqa: E731
    gpu(lambda cell: 5.4e9, {1: 1000.0, 2: 1040.0}.__getitem__)
    assert auto() == 1.0
    gpu(lambda cell: 5.4e9, {1: 1000.0, 2: 1600.0, 3: 1650.0}.__getitem__)
    assert auto() == 0.5
    gpu(lambda cell: 5.4e9, {1: 1000.0, 2: 1600.0, 3: 2100.0}.__getitem__)
    assert auto() == 0.3333
    assert notes == [
        "a GPU's memory holds 3 trials, but 2 at once gain less than 5% over 1: each trial has one alone",
        "a GPU's memory holds 3 trials, but 3 at once gain less than 5% over 2: 2 share one",
    ]


def test_where_a_process_cannot_train_beside_others_memory_alone_decides(gpu, tmp_path):
    def fail(count):
        raise RuntimeError("of 1 processes at once not all could train")

    gpu(lambda cell: 5.4e9, fail)
    cells, notes = plan_cells(Request("table4", "demo", tmp_path, combinations=("sprel",))), []
    assert measured_gpus(items(cells, Account(tmp_path)), Account(tmp_path), 1, notes.append) == 0.3333
    assert notes == ["what trials gain by sharing a GPU could not be measured: as many share it as its memory holds, 3"]


def test_a_process_on_the_cpu_says_its_own_memory_alone():
    used = Usage(on_gpu=False).now()
    assert set(used) == {"host_memory_bytes"}
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    assert used["host_memory_bytes"] == pytest.approx(resident, rel=0.05)


class Nvml(types.ModuleType):
    """A GPU that this process and another share, as NVML tells it. fails: the functions that it does not have there."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, processes, fails=()):
        super().__init__("pynvml")
        self._processes = processes
        for name in fails:
            setattr(self, name, self._fail)

    def _fail(self, *arguments):
        raise self.NVMLError("Not Supported")

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self._processes]

    def nvmlDeviceGetUtilizationRates(self, handle):
        return types.SimpleNamespace(gpu=87)


def usage_by(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    return Usage(on_gpu=True).now()


@pytest.mark.parametrize(
    ("processes", "memory"),
    [([(1, 7_000), (os.getpid(), 5_000)], 5_000), ([(1, 7_000)], 3_000), ([(os.getpid(), None)], 3_000)],
)
def test_on_a_gpu_nvml_tells_this_process_from_others_and_torch_stands_in_where_it_cannot(
    monkeypatch, processes, memory
):
    used = usage_by(Nvml(processes), monkeypatch)
    assert used["gpu_memory_bytes"] == memory
    assert used["gpu_utilization_percent"] == 87


@pytest.mark.parametrize(
    ("fails", "known"),
    [
        (["nvmlInit"], {"gpu_memory_bytes": 3_000}),  # a container without the library
        (["nvmlDeviceGetHandleByUUID"], {"gpu_memory_bytes": 3_000}),  # a share of a GPU (MIG)
        (["nvmlDeviceGetComputeRunningProcesses"], {"gpu_memory_bytes": 3_000, "gpu_utilization_percent": 87}),
        (["nvmlDeviceGetUtilizationRates"], {"gpu_memory_bytes": 5_000}),
    ],
)
def test_what_nvml_cannot_say_is_left_out_and_ends_no_trial(monkeypatch, fails, known):
    used = usage_by(Nvml([(os.getpid(), 5_000)], fails), monkeypatch)
    assert {name: value for name, value in used.items() if name.startswith("gpu")} == known
