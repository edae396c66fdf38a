"""How trials fail, told apart, and what is done about each."""

import errno

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError

from sweeps.account.failures import (
    BAD_DATA,
    CRASH,
    GPU_OOM,
    HOST_OOM,
    NODE_LOST,
    NOT_FINITE,
    NOT_STARTED,
    RETRIES,
    STORAGE,
    Attempts,
    DiedError,
    Setting,
    classify,
    parse_classes,
    pause,
)

# As pyarrow 25 and Ray 2.60 put it.
AWAY = (
    "When initiating multiple part upload for key 'results/x' in bucket 'sweeps': AWS Error NETWORK_CONNECTION during "
    "CreateMultipartUpload operation: curlCode: 7, Could not connect to server"
)
MEMORY_MONITOR = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 45ea) was "
    "1.81GB used / 23.54GB limit (0.076850)"
)
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed "
    "unexpectedly due to SIGSEGV or another unexpected error."
)
NODE_DEAD = "Task failed because the node it was running on is dead or unavailable. Node IP: 192.0.2.2, node ID: 45ea."


def died(text):
    error = ActorDiedError()
    error.error_msg = text
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ActorDiedError(), CRASH),
        (RuntimeError("CUDA error: an illegal memory access"), CRASH),
        (OutOfMemoryError("the node ran low on memory"), HOST_OOM),
        (MemoryError(), HOST_OOM),
        (NodeDiedError("its node died"), NODE_LOST),
        (OSError(errno.ENOSPC, "No space left on device"), STORAGE),
        (FileNotFoundError(errno.ENOENT, "No such file"), CRASH),
        (RayTaskError("step", "traceback", OSError(errno.ENOSPC, "No space left on device")), STORAGE),
        (RayTaskError("step", "traceback", OSError(AWAY)), STORAGE),
        (OSError("cannot identify image file"), CRASH),
        (DiedError(MEMORY_MONITOR), HOST_OOM),
        (RuntimeError(MEMORY_MONITOR), CRASH),  # a program's own words
        (died(KILLED), CRASH),  # which the kernel's OOM killer cannot be told from
        (died("The actor died because its node has died. Node Id: 0123"), NODE_LOST),
        (DiedError(NODE_DEAD), NODE_LOST),
        (died(f"{KILLED}\nThe actor never ran - it was cancelled before it started running."), NOT_STARTED),
    ],
)
def test_errors_are_told_apart(error, failure):
    assert classify(error) == failure


def test_retry_takes_classes_and_groups():
    assert parse_classes("failed") == set(RETRIES)
    assert parse_classes("oom,bad_data") == {HOST_OOM, GPU_OOM, BAD_DATA}
    assert parse_classes("none") == set()
    with pytest.raises(ValueError, match="unknown class of failure 'ooom'.*did you mean 'oom'"):
        parse_classes("ooom")


@pytest.mark.parametrize("failure", [NOT_FINITE, BAD_DATA])
def test_what_would_only_repeat_itself_is_not_tried_again(failure):
    assert not Attempts(Setting(1, 1)).again(failure, 64)


def test_a_crash_is_tried_again_three_times_whatever_else_happens():
    attempts = Attempts(Setting(1, 1))
    answers = [attempts.again(failure, 64) for failure in (CRASH, NODE_LOST, CRASH, HOST_OOM, CRASH, CRASH)]
    assert answers == [True, True, True, True, True, False]
    assert attempts.setting == Setting(1, 1)


def test_out_of_gpu_memory_is_tried_alone_and_then_in_ever_smaller_parts():
    attempts, settings = Attempts(Setting(1, 0.25)), []
    while attempts.again(GPU_OOM, batch_size=6):
        settings.append((attempts.setting.gpus, attempts.setting.micro_batches))
    assert settings == [(1.0, 1), (1.0, 2), (1.0, 4), (1.0, 6)]
    assert attempts.setting.deviation == "micro_batches=6"


def test_being_alone_on_a_gpu_is_no_deviation():
    assert Setting(1, 1.0).deviation == ""


@pytest.mark.parametrize("failure", [STORAGE, NOT_STARTED])
def test_a_full_storage_and_a_machine_that_starts_no_process_are_given_time_and_others_are_not(failure):
    assert [pause(failure, times) for times in (1, 2, 6, 50)] == [2, 4, 60, 60]
    assert pause(CRASH, 3) == 0
