"""Files that are whole or not there, on a disk and in an object store (moto's, on loopback)."""

import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from analysis import make_tables
from relvit import checkpoint
from relvit.files import RemotePath, location, remove_leftovers, write_atomic
from sweeps import ablation, hpo, serve_mlflow
from sweeps.account.account import FAILED, RUNNING, Account
from sweeps.planning.plan import Request, plan_cells


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "results"
    place, _, options = request.getfixturevalue("bucket").partition("?")
    return location(f"{place}/{request.node.name}/results?{options}")


def test_what_a_user_types_is_a_path_or_a_place_in_a_store():
    assert location("results") == Path("results")
    assert location("file:///mnt/results") == Path("/mnt/results")
    place = location("s3://bucket/folder/?region=eu-north-1")
    assert place == RemotePath("s3://bucket/folder", "region=eu-north-1")
    assert str(place / "cells") == "s3://bucket/folder/cells?region=eu-north-1"
    assert location(str(place / "cells")) == place / "cells"


@pytest.mark.parametrize(
    "text", ["s3://key:secret@bucket/folder", "s3://bucket/folder?secret_key=x", "s3://bucket/x?access_key=x"]
)
def test_credentials_in_a_place_are_refused(text):
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY"):
        location(text)


def test_a_place_without_a_bucket_is_refused():
    with pytest.raises(ValueError, match="names no bucket"):
        location("s3:///folder")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("foo://bucket/folder", "foo://... is not supported: give a folder, or s3://BUCKET/FOLDER"),
        ("s3://bucket/folder?bogus=1", "unknown option of s3://bucket/folder 'bogus': one of region, scheme"),
        ("s3://bucket/folder?endpoint=h:1", "did you mean 'endpoint_override'?"),
        ("s3://bucket/folder?scheme=ftp", "scheme must be http or https, not 'ftp'"),
    ],
)
def test_a_place_that_nobody_could_open_is_refused_with_what_would_be_right(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        location(text)


def test_a_file_is_written_read_listed_renamed_and_removed(folder):
    path = folder / "a.json"
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        path.read_text()
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    write_atomic(folder / "below/b.json", b"")
    assert {found.name for found in folder.glob("*.json")} == {"a.json"}
    assert {str(found) for found in folder.glob("*/*.json")} == {str(folder / "below" / "b.json")}
    assert {found.name for found in folder.iterdir()} == {"a.json", "below"}
    path.rename(path.with_suffix(".old"))
    assert not path.exists()
    (folder / "a.old").unlink()
    (folder / "a.old").unlink(missing_ok=True)
    assert (path.name, path.stem, path.parent.name) == ("a.json", "a", "results")
    assert list((folder / "nowhere").glob("*")) == []


def test_checkpoints_are_the_same_on_a_disk_and_in_a_store(folder):
    notes = []
    for epoch in (1, 2, 3):
        checkpoint.save({"weights": torch.full((2,), float(epoch))}, folder, epoch, keep=2)
    assert sorted(path.name[:6] for path in folder.glob("*.pt")) == ["000002", "000003"]
    newest = max(folder.glob("*.pt"), key=lambda path: path.name)
    write_atomic(newest, newest.read_bytes()[:-1])
    assert checkpoint.load_newest(folder, "cpu", notes.append)["weights"].tolist() == [2, 2]
    assert "is damaged" in notes[0]
    checkpoint.save({"weights": torch.zeros(2)}, folder, None, keep=2)
    assert [path.name.split("-")[0] for path in folder.glob("*.pt")] == ["final"]


def test_what_damage_and_killed_processes_left_is_removed_and_no_more(folder):
    kept = ["000012-0123456789abcdef.pt", "state.json", ".state.json.12.tmp"]
    for name in (*kept, "000011-0123456789abcdef.damaged", ".000013-0123456789abcdef.pt.4711.tmp"):
        write_atomic(folder / name, b"")
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    remove_leftovers(folder / "nowhere")


def test_the_account_is_the_same_on_a_disk_and_in_a_store(folder, tmp_path):
    first, second = plan_cells(Request("table4", "demo", tmp_path, combinations=("none", "sprel")))
    account = Account(folder)
    assert account.check() == []
    account.plan({first: ("table4",), second: ("table4",)})
    with account.hold([first, second], lost=lambda: None) as mine:
        assert mine.held == {first.cell_id, second.cell_id}
        account.mark(first, RUNNING)
        account.mark(second, FAILED, "loss is nan", failure="not_finite")
        assert Account(folder).apparently_held() == mine.held
    again = Account(folder)
    assert again.check() == []
    assert again.apparently_held() == set()
    assert again.planned() == {first: ("table4",), second: ("table4",)}
    assert [status.state for status in again.statuses([first, second]).values()] == [RUNNING, FAILED]


def test_a_store_that_is_not_there_is_named_within_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    place = location("s3://sweeps/results?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:9")
    (problem,) = Account(place).check()
    assert problem.startswith("the storage path s3://sweeps/results?")


def test_a_store_that_accepts_and_stays_silent_is_named_within_half_a_minute(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        place = location(f"s3://sweeps/results?region=us-east-1&scheme=http&endpoint_override={address}")
        (problem,) = Account(place).check()
    assert "check endpoint_override" in problem


class Refusing(BaseHTTPRequestHandler):
    """A store that knows nobody by the key that it is given."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        text = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_HEAD = do_GET = do_PUT = do_POST = answer

    def log_message(self, *_):
        pass


def test_a_store_that_refuses_the_keys_is_told_from_a_wrong_place(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
    (problem,) = Account(location(f"s3://sweeps/results?{options}")).check()
    server.shutdown()
    server.server_close()
    assert "AWS_ACCESS_KEY_ID" in problem
    assert "--storage" not in problem


def test_a_bucket_that_is_not_there_is_named(bucket):
    place, _, options = bucket.partition("?")
    (problem,) = Account(location(f"{place}-of-nobody/results?{options}")).check()
    assert "cannot be written" in problem
    assert "make the bucket" in problem


def test_every_entry_reads_a_home_in_a_path_as_a_shell_does(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    entries = (
        (make_tables, "out", "--out=~/x"), (serve_mlflow, "folder", "--folder=~/x"), (hpo, "space", "--space=~/x"),
        (ablation, "data_root", "--data-root=~/x"),
    )  # fmt: skip
    for entry, name, argument in entries:
        assert getattr(entry.parse_arguments([argument]), name) == Path("/home/ann/x")


def test_a_home_and_a_variable_in_a_path_are_read_as_a_shell_reads_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PROJECT", "relvit")
    assert location("~/results") == tmp_path / "results"
    assert location("$HOME/$PROJECT") == tmp_path / "relvit"
    assert str(location("s3://bucket/$PROJECT")) == "s3://bucket/relvit"
    assert location("~nobody-of-this-name/results").name == "results"  # and no traceback
