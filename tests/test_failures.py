"""How trials fail, told apart, and what is done about each."""

import errno

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError

from sweeps.failures import (
    BAD_DATA,
    CRASH,
    GPU_OOM,
    HOST_OOM,
    NODE_LOST,
    NOT_FINITE,
    RETRIES,
    STORAGE,
    Attempts,
    Setting,
    classify,
    parse_classes,
    pause,
)


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


def test_a_full_storage_is_given_time_and_others_are_not():
    assert [pause(STORAGE, times) for times in (1, 2, 6, 50)] == [2, 4, 60, 60]
    assert pause(CRASH, 3) == 0
