"""One POST of JSON to a real server on loopback when a study has ended; a webhook that fails changes nothing."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sweeps.cli.webhook import WEBHOOK, WEBHOOK_FILE, WebhookError, message, notify, webhook


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv(WEBHOOK, raising=False)
    monkeypatch.delenv(WEBHOOK_FILE, raising=False)


class Receiving(BaseHTTPRequestHandler):
    """Keeps what is posted and answers with the server's status."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    server = HTTPServer(("127.0.0.1", 0), Receiving)
    server.received, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


MESSAGE = message("table4", {"finished": 15, "failed": 1, "planned": 0}, 1, 12.34)


def test_what_is_posted():
    assert MESSAGE == {
        "text": "study table4 failed: 15 finished, 1 failed",
        "study": "table4",
        "outcome": "failed",
        "exit_status": 1,
        "counts": {"finished": 15, "failed": 1, "planned": 0},
        "seconds": 12.3,
    }


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(0, "finished"), (1, "failed"), (2, "refused"), (3, "out of budget"), (130, "interrupted"), (139, "failed")],
)
def test_the_outcome_is_told_by_the_exit_status(status, outcome):
    assert message("s", {}, status, 0)["outcome"] == outcome


def test_a_study_that_ended_is_posted_once_as_json(receiver):
    assert notify(f"http://127.0.0.1:{receiver.server_port}/hooks/s3cret", MESSAGE) is None
    assert receiver.received == [("/hooks/s3cret", "application/json", MESSAGE)]


def test_a_webhook_that_refuses_is_said_without_its_secret(receiver):
    receiver.status = 500
    said = notify(f"http://127.0.0.1:{receiver.server_port}/hooks/s3cret", MESSAGE)
    assert "the webhook at 127.0.0.1 was not notified: it answered 500" in said
    assert "the outcome of the study is unchanged" in said
    assert "s3cret" not in said


def test_a_webhook_that_is_not_there_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in notify(f"http://127.0.0.1:{port}/s3cret", MESSAGE)


def test_a_server_that_is_no_http_server_is_said():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"220 mail\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert "was not notified" in notify(f"http://127.0.0.1:{server.getsockname()[1]}/", MESSAGE)


def test_nobody_is_notified_by_default():
    assert webhook() is None


def test_the_url_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    file = tmp_path / "webhook"
    file.write_text("https://chat.example/in-file\n")
    monkeypatch.setenv(WEBHOOK_FILE, str(file))
    assert webhook() == "https://chat.example/in-file"
    monkeypatch.setenv(WEBHOOK, "https://chat.example/in-environment")
    assert webhook() == "https://chat.example/in-environment"


@pytest.mark.parametrize("url", ["chat.example/s3cret", "file:///etc/passwd", "https:///s3cret", "http://[s3cret"])
def test_what_is_no_url_is_refused_without_being_repeated(url, monkeypatch):
    monkeypatch.setenv(WEBHOOK, url)
    with pytest.raises(WebhookError, match=r"\$RELVIT_WEBHOOK does not hold a URL") as error:
        webhook()
    assert "s3cret" not in str(error.value)


def test_a_file_that_is_missing_or_empty_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(WEBHOOK_FILE, str(tmp_path / "nothing"))
    with pytest.raises(WebhookError, match="nothing.*cannot be read"):
        webhook()
    (tmp_path / "empty").touch()
    monkeypatch.setenv(WEBHOOK_FILE, str(tmp_path / "empty"))
    with pytest.raises(WebhookError, match="does not hold a URL"):
        webhook()
