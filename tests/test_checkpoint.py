"""Checkpoints that are whole or not there."""

import hashlib
import pickle
import threading
from pathlib import Path

import pytest
import torch

from relvit import checkpoint


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def silent(message):
    raise AssertionError(f"nothing to report, but: {message}")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_what_is_saved_is_loaded(tmp_path):
    state = {"epoch": 3, "name": "a", "rows": [{"loss": 0.5}], "weights": torch.arange(6.0).view(2, 3)}
    checkpoint.save(state, tmp_path, 3, keep=2)
    loaded = checkpoint.load_newest(tmp_path, "cpu", silent)
    assert loaded.pop("weights").equal(state.pop("weights"))
    assert loaded == state


def test_the_name_holds_the_epoch_and_the_checksum_of_the_bytes(tmp_path):
    path = checkpoint.save({"epoch": 12}, tmp_path, 12, keep=2)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path == tmp_path / f"000012-{digest[:16]}.pt"
    assert names(tmp_path) == [path.name]


def test_the_folder_is_made_and_an_absent_one_holds_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    assert checkpoint.load_newest(folder, "cpu", silent) is None
    checkpoint.save({"epoch": 1}, folder, 1, keep=2)
    assert checkpoint.load_newest(folder, "cpu", silent) == {"epoch": 1}


def test_the_newest_two_are_kept(tmp_path):
    for epoch in (9, 10, 11, 100):
        checkpoint.save({"epoch": epoch}, tmp_path, epoch, keep=2)
    assert [name.split("-")[0] for name in names(tmp_path)] == ["000011", "000100"]
    assert checkpoint.load_newest(tmp_path, "cpu", silent) == {"epoch": 100}


def test_the_final_one_replaces_all_others(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint.save({"epoch": epoch}, tmp_path, epoch, keep=3)
    checkpoint.save({"epoch": "final"}, tmp_path, None, keep=3)
    assert [name.split("-")[0] for name in names(tmp_path)] == ["final"]
    assert checkpoint.load_newest(tmp_path, "cpu", silent) == {"epoch": "final"}


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    checkpoint.save({"epoch": 1}, tmp_path, 1, keep=2)
    newest = checkpoint.save({"epoch": 2}, tmp_path, 2, keep=2)
    truncate(newest)
    notes = []
    assert checkpoint.load_newest(tmp_path, "cpu", notes.append) == {"epoch": 1}
    assert len(notes) == 1
    assert str(newest) in notes[0]
    assert "damaged" in notes[0]
    # It is set aside, so that it is reported once and does not count as one of those kept.
    assert newest.with_suffix(".damaged").exists()
    assert checkpoint.load_newest(tmp_path, "cpu", silent) == {"epoch": 1}


def test_one_changed_byte_is_damage(tmp_path):
    path = checkpoint.save({"weights": torch.zeros(100)}, tmp_path, 1, keep=2)
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 1
    path.write_bytes(payload)
    notes = []
    assert checkpoint.load_newest(tmp_path, "cpu", notes.append) is None
    assert len(notes) == 1


def test_where_all_are_damaged_there_is_none(tmp_path):
    for epoch in (1, 2):
        truncate(checkpoint.save({"epoch": epoch}, tmp_path, epoch, keep=2))
    notes = []
    assert checkpoint.load_newest(tmp_path, "cpu", notes.append) is None
    assert len(notes) == 2


def test_a_file_that_was_being_written_when_the_power_went_is_not_seen(tmp_path):
    checkpoint.save({"epoch": 1}, tmp_path, 1, keep=2)
    (tmp_path / ".000002-0123456789abcdef.pt.4711.tmp").write_bytes(b"half of it")
    assert checkpoint.load_newest(tmp_path, "cpu", silent) == {"epoch": 1}


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save({"epoch": 1}, tmp_path, 1, keep=1)
    before = names(tmp_path)

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"epoch": 2}, tmp_path, 2, keep=1)
    assert names(tmp_path) == before
    assert checkpoint.load_newest(tmp_path, "cpu", silent) == {"epoch": 1}


def test_loading_runs_no_code_from_the_file(tmp_path):
    # A path is harmless, but it is pickled as a call, and plain weights hold none.
    checkpoint.save({"folder": Path("here")}, tmp_path, 1, keep=2)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoint.load_newest(tmp_path, "cpu", silent)


@pytest.mark.parametrize("epoch", [3, None])
def test_a_state_written_again_replaces_the_one_before_whatever_their_checksums(tmp_path, epoch):
    for value in range(8):
        checkpoint.save({"value": value}, tmp_path, epoch, keep=2)
        assert checkpoint.load_newest(tmp_path, "cpu", print) == {"value": value}
        assert len(list(tmp_path.glob("*.pt"))) == 1


# Written while the run goes on


@pytest.fixture
def disk(monkeypatch):
    """Lets a write come to its end once it is set."""
    sync, ready = checkpoint.write_atomic, threading.Event()

    def slow(path, payload, permit):
        assert ready.wait(60)
        sync(path, payload, permit)

    monkeypatch.setattr(checkpoint, "write_atomic", slow)
    return ready


def test_a_state_is_written_as_it_was_when_it_was_given(disk, tmp_path):
    weights = torch.zeros(3)
    with checkpoint.Writer(tmp_path, keep=2) as writer:
        writer.save({"weights": weights}, 1)
        weights += 1
        assert not tmp_path.exists() or not names(tmp_path)
        disk.set()
    assert checkpoint.load_newest(tmp_path, "cpu", silent)["weights"].tolist() == [0, 0, 0]


def test_what_was_given_is_there_when_it_was_waited_for(tmp_path):
    with checkpoint.Writer(tmp_path, keep=2) as writer:
        for epoch in (1, 2, 3):
            writer.save({"epoch": epoch}, epoch)
        writer.wait()
        assert [name[:6] for name in names(tmp_path)] == ["000002", "000003"]


def test_a_checkpoint_is_whole_before_the_next_one_is_begun(disk, tmp_path):
    with checkpoint.Writer(tmp_path, keep=2) as writer:
        writer.save({"epoch": 1}, 1)
        second = threading.Thread(target=writer.save, args=({"epoch": 2}, 2))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        disk.set()
        second.join(60)
    assert [name[:6] for name in names(tmp_path)] == ["000001", "000002"]


@pytest.mark.parametrize("then", ["save", "wait", "end"])
def test_a_write_that_failed_is_heard_of_at_the_next_one_at_the_latest(then, tmp_path, monkeypatch):
    def disk_full(path, payload, permit):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomic", disk_full)
    with pytest.raises(OSError, match="No space left"), checkpoint.Writer(tmp_path, keep=2) as writer:
        writer.save({"epoch": 1}, 1)
        if then == "save":
            writer.save({"epoch": 2}, 2)
        if then == "wait":
            writer.wait()


def test_an_error_of_the_run_is_not_hidden_by_one_of_its_last_checkpoint(tmp_path, monkeypatch):
    def disk_full(path, payload, permit):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomic", disk_full)
    with pytest.raises(ArithmeticError), checkpoint.Writer(tmp_path, keep=2) as writer:
        writer.save({"epoch": 1}, 1)
        raise ArithmeticError
