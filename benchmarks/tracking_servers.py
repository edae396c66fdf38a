"""The same study tracked by an open MLflow server and by ours, which asks for a password: the ratio of their times.

    python benchmarks/tracking_servers.py --rounds 3      16 cells of seconds each

Both on SQLite, each with an account of its own, one after the other in turn; the median of each. Aim: at most 1.15.
"""

import argparse
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("train_images=200", "pretrain_epochs=3", "epochs=3")


def served(folder: Path, secured: bool) -> tuple[subprocess.Popen, str]:
    """A server that answers, and its URI."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir()
    if secured:
        command = [str(ROOT / "sweeps/serve_mlflow.py"), "--folder", str(folder), "--port", str(port)]
    else:
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "a"),
        ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([sys.executable, *command], env=environment, cwd=folder, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    for _ in range(900):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.2)
    return server, f"http://127.0.0.1:{port}"


def study(folder: Path, uri: str, data: Path) -> float:
    """Seconds of the sweep itself, as it says."""
    command = [sys.executable, str(ROOT / "sweeps/ablation.py"), "--storage", str(folder), "--tracking-uri", uri]
    command += ["--data-root", str(data), *(part for each in SMALL for part in ("--set", each))]
    began = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or not re.search("^16 cells finished", result.stdout, re.MULTILINE):
        raise RuntimeError(result.stdout + result.stderr)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: %(default)s)")
    options = parser.parse_args()
    os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": secrets.token_urlsafe(24)}
    took: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="relvit-servers-") as scratch:
        folder = Path(scratch)
        servers = {secured: served(folder / f"server-{secured}", secured) for secured in took}
        try:
            for number in range(options.rounds):
                for secured, (_, uri) in servers.items():
                    took[secured].append(study(folder / f"results-{secured}-{number}", uri, folder / "data"))
        finally:
            for server, _ in servers.values():
                server.terminate()
                server.wait()
    medians = {secured: statistics.median(seconds) for secured, seconds in took.items()}
    print(f"open {medians[False]:.1f} s, with a password {medians[True]:.1f} s: {medians[True] / medians[False]:.2f}")
    print(f"(all: {took[False]}, {took[True]})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
