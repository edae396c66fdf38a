"""Malformed inputs against the commands: each must be told in a sentence, and cost nothing.

    python benchmarks/fuzz.py --cases 500

Each case damages one thing that users or others can write: a file of the account, a lease, a checkpoint, a recipe, a
study, an image, an archive, a Parquet table, MLflow's parameters and tags, or the command line itself. Then a command
that reads it runs, in a process of its own. It must end by itself, with an exit status that is documented (0 where the
damage does no harm), without a traceback, and, where it refuses, with a sentence that names the file and with every
file as it was. Exit status 1 where a case fails; its line names the seed, and `--only N` runs it alone.
"""

import argparse
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from PIL import Image

from analysis import make_tables
from relvit import checkpoint, data
from relvit.cell import Cell
from relvit.files import location
from relvit.train import train
from sweeps import ablation, hpo, pictures, reconcile
from sweeps.account.account import FINISHED, RUNNING, Account
from sweeps.planning.plan import PlanError, Request, plan, prepare_data

PATIENCE = 60  # seconds that a command may take
STATUSES = {0, 1, 2, 3, 4}  # of docs/cluster.md and make_tables.py; a traceback is looked for apart
SMALL = ("pretrain_epochs=2", "epochs=2", "warmup_epochs=1", "train_images=60")
ARGUMENTS = ["--seeds", "0", *(part for each in SMALL for part in ("--set", each))]


@dataclass(frozen=True)
class Case:
    """What was damaged, the command that reads it, and what the command must name where it refuses."""

    what: str
    command: Callable[[], int]
    arguments: list[str]
    names: tuple[str, ...]


# What is whole, made once and copied for every case


def make_template(folder: Path) -> None:
    """A finished study of three cells in the account and in MLflow, its tables, data sets of each kind."""
    cells = plan(request(folder))
    account = Account(folder / "results")
    assert not account.check()
    account.plan(cells)
    for number, cell in enumerate(list(cells)[:3]):
        account.mark(cell, RUNNING)
        account.keep_history(cell, rows(cell, 80.0 + number))
        account.mark(cell, FINISHED)
    with account.hold(list(cells)[3:4], lost=lambda: None):
        for lease in (folder / "results/drivers").glob("*.json"):
            lease.with_name(f"copy-{lease.name}").write_bytes(lease.read_bytes())
    (folder / "recipe.json").write_text(json.dumps({"recipe": "demo", "fields": {"batch_size": 32, "drop_path": 0.1}}))
    (folder / "mine.py").write_text(
        'cells = [{"dataset": "cifar10", "backbone": "vit_s4", "protocol": "joint", "tasks": each}\n'
        '         for each in ("none", "sprel", "dist+ang")]\n'
    )
    make_data(folder / "data")
    trained = next(cell for cell in cells if cell.tasks == "sprel")
    digits = data.prepare("digits", folder / "data", trained.image_size)
    for _, row in zip(range(3), train(trained, digits, account.folder(trained), keep=2)):
        assert row
    assert (
        call(reconcile.main, ["--storage", f"{folder}/results", "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]) == 0
    )
    assert call(make_tables.main, tables(folder)) == 0


def request(folder: Path) -> Request:
    return Request(study="table4", recipe="demo", data_root=folder / "data", settings=SMALL)


def rows(cell: Cell, accuracy: float) -> list[dict[str, Any]]:
    """A made-up history."""
    told = [
        {
            "epoch": epoch,
            "phase": "pretrain" if epoch <= cell.pretrain_epochs else "finetune",
            "finetune_val_accuracy": accuracy,
            "epoch_seconds": 1.0,
        }
        for epoch in range(1, cell.total_epochs + 1)
    ]
    last = {"epoch": cell.total_epochs, "phase": "test", "test_accuracy": accuracy, "selected_epoch": 2}
    return [*told, {**last, "training_seconds": 4.0}]


def make_data(root: Path) -> None:
    """Class folders of several kinds of images, CIFAR's batches and archive, SVHN's files."""
    from scipy.io import savemat

    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for label in ("cat", "dog"):
            folder = root / "pets" / split / label
            folder.mkdir(parents=True)
            for number, suffix in zip(range(count), ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "png")):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
    batches = root / "cifar10/cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        content = {"data": draw.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}
        (batches / name).write_bytes(pickle.dumps(content))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}))
    (root / "svhn").mkdir()
    for split in ("train", "test"):
        images, labels = draw.integers(0, 256, (32, 32, 3, 12), dtype=np.uint8), np.arange(12)[:, None] % 10 + 1
        savemat(root / f"svhn/{split}_32x32.mat", {"X": images, "y": labels.astype(np.uint8)})
    (root / "packed").mkdir()
    with tarfile.open(root / "packed/cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(batches, "cifar-10-batches-py")


def tables(folder: Path) -> list[str]:
    return [
        "--tracking-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--out",
        f"{folder}/results/analysis",
        "--study",
        "table4",
    ]


# Kinds of damage


def damaged(payload: bytes, draw: random.Random) -> bytes:
    """The bytes after something that happens to files."""
    if not payload:
        return b"\0"
    place = draw.randrange(len(payload))
    kinds = [
        lambda: b"",
        lambda: payload[:place],
        lambda: payload[place:],
        lambda: payload[:place] + bytes([payload[place] ^ (1 << draw.randrange(8))]) + payload[place + 1 :],
        lambda: payload[:place] + draw.randbytes(draw.randrange(1, 40)) + payload[place:],
        lambda: bytes(len(payload)),
        lambda: draw.randbytes(min(len(payload), 4096)),
        lambda: b"<html><body>504 Gateway Time-out</body></html>\n",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        lambda: "\ufeff".encode() + payload,
        lambda: payload + payload,
    ]
    return draw.choice(kinds)()


STRANGE = [
    None,
    True,
    False,
    -1,
    0,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "none",
    "\ud800",
    "../..",
    "x" * 5000,
]
STRANGE += [[], {}, [[]], {"": None}, "0", "1e9", -0.5]


def damaged_json(payload: bytes, draw: random.Random) -> bytes:
    """Valid JSON with one value that is another, one more or one fewer; or as `damaged`."""
    if draw.random() < 0.4:
        return damaged(payload, draw)
    content = json.loads(payload)
    places = [(None, None)]

    def walk(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, key))
            walk(part[key])

    walk(content)
    part, key = draw.choice(places)
    if part is None:
        content = draw.choice(STRANGE)
    elif draw.random() < 0.3:
        del part[key]
    elif draw.random() < 0.3 and isinstance(part, dict):
        part[draw.choice(["", "tasks", "unknown", "form", key + "x"])] = draw.choice(STRANGE)
    else:
        part[key] = draw.choice(STRANGE)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def change(path: Path, draw: random.Random, how: Callable[[bytes, random.Random], bytes] = damaged) -> str:
    """Damage a file, or make it something that is no file. Returns what it is called."""
    if draw.random() < 0.06:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(how(path.read_bytes(), draw))
    return path.name


def pick(folder: Path, pattern: str, draw: random.Random) -> Path:
    return draw.choice(sorted(folder.glob(pattern)))


# What reads it


def planning(folder: Path, *more: str) -> list[str]:
    arguments = ["--storage", f"{folder}/results", "--data-root", f"{folder}/data", "--plan"]
    return [*arguments, *(more or ARGUMENTS)]


def reading_the_account(folder: Path, draw: random.Random) -> tuple[Callable[[], int], list[str]]:
    uri = f"sqlite:///{folder}/mlflow.db"
    return draw.choice(
        [
            (ablation.main, planning(folder)),
            (reconcile.main, ["--storage", f"{folder}/results", "--tracking-uri", uri]),
        ]
    )


def account_file(folder: Path, draw: random.Random) -> Case:
    patterns = ("account.json", "studies/*.json", "cells/*/cell.json", "cells/*/state.json", "cells/*/history.json")
    path = pick(folder / "results", draw.choice(patterns), draw)
    change(path, draw, damaged_json)
    return Case(f"{path.relative_to(folder)}", *reading_the_account(folder, draw), (path.name,))


def lease(folder: Path, draw: random.Random) -> Case:
    path = pick(folder / "results", "drivers/*.json", draw)
    change(path, draw, damaged_json)
    return Case(f"{path.relative_to(folder)}", *reading_the_account(folder, draw), (path.name,))


def a_checkpoint(folder: Path, draw: random.Random) -> Case:
    """Half of them with the checksum of what they hold now, as a person would leave them."""
    path = pick(folder / "results", "cells/*/0*-*.pt", draw)
    if draw.random() < 0.3:
        state = checkpoint.load_newest(path.parent, "cpu", print)
        key = draw.choice(list(state))
        state[key] = draw.choice([value for value in STRANGE if not isinstance(value, str)])
        path.unlink()
        checkpoint.save(state, path.parent, 9, 5)
    elif draw.random() < 0.5:
        payload = damaged(path.read_bytes(), draw)
        path.with_name(f"000009-{hashlib.sha256(payload).hexdigest()[:16]}.pt").write_bytes(payload)
    else:
        change(path, draw)

    def go_on() -> int:
        fields = json.loads(next(path.parent.glob("cell.json"), folder / "cell").read_text())
        cell = Cell(**fields)
        digits = data.load("digits", folder / "data", cell.image_size)
        try:
            for row in train(cell, digits, location(str(path.parent))):
                if row["epoch"] > 3:
                    return 0
        except ValueError as error:  # which sweeps enters as a cell that failed, with this sentence
            print(error, file=sys.stderr)
            return 2
        return 0

    Account(folder / "results").mark(next(c for c in plan(request(folder)) if c.cell_id == path.parent.name), RUNNING)
    return Case(f"{path.relative_to(folder)}", go_on, [], (path.parent.name,))


def recipe(folder: Path, draw: random.Random) -> Case:
    path = folder / "recipe.json"
    change(path, draw, damaged_json)
    # A value that its field does not admit is named by the field.
    return Case(
        "a recipe", ablation.main, planning(folder, "--recipe", str(path)), ("recipe.json", "drop_path", "batch_size")
    )


STATEMENTS = [
    "raise SystemExit(3)",
    "1 / 0",
    "cells = None",
    "cells = [1]",
    "cells = []",
    "cells = 5",
    "import nowhere",
]
STATEMENTS += ["del cells", "cells[0]['tasks'] = 7", "cells[0]['epochs'] = 'many'", "cells *= 2", "feeds = object()"]
STATEMENTS += ["cells = iter(cells)", "cells[0].pop('dataset')", "cells = {1: 2}", "cells[0] = None", "cells[0][3] = 4"]
STATEMENTS += ["cells[0]['dataset'] = ['x']", "cells[0]['backbone'] = ''", "cells = 'abc'"]
STATEMENTS += ["raise BaseException('odd')", "cells = (x for x in [1 / 0 for _ in 'a'])", "cells[0]['seed'] = 1"]


def study(folder: Path, draw: random.Random) -> Case:
    path = folder / "mine.py"
    if draw.random() < 0.4:
        change(path, draw)
    else:
        path.write_text(f"{path.read_text()}{draw.choice(STATEMENTS)}\n")
    return Case(
        "a study file", ablation.main, planning(folder, "--study", str(path)), ("mine.py", "backbone", "data set")
    )


def preparing(folder: Path, name: str, size: int) -> Callable[[], int]:
    def run() -> int:
        request = Request("table4", "demo", folder / "data", dataset=name, image_size=size, backbone="vit_xs8")
        try:
            problems = prepare_data(list(plan(request))[:1], folder / "data", download=False)
        except PlanError as error:
            problems = error.problems
        print("\n".join(problems), file=sys.stderr)
        return 2 if problems else 0

    return run


def image(folder: Path, draw: random.Random) -> Case:
    path = pick(folder, "data/pets/t*/*/*", draw)
    change(path, draw)
    return Case(f"{path.relative_to(folder)}", preparing(folder, "pets", 16), [], (path.name,))


def archive(folder: Path, draw: random.Random) -> Case:
    path = pick(folder / "data", draw.choice(["cifar10/*/*", "svhn/*.mat", "packed/*"]), draw)
    if path.parent.name == "packed":
        shutil.rmtree(folder / "data/cifar10")
        path = path.rename(folder / "data" / path.name)
        (folder / "data/cifar10").mkdir()
        path = path.rename(folder / "data/cifar10" / path.name)
    change(path, draw)
    name = path.relative_to(folder / "data").parts[0]
    return Case(f"{path.relative_to(folder)}", preparing(folder, name, 32), [], (path.name,))


def parquet(folder: Path, draw: random.Random) -> Case:
    paths = [path for path in (folder / "results/analysis").rglob("*") if path.is_file() and not path.is_symlink()]
    path = draw.choice(sorted(path for path in paths if path.suffix in (".parquet", ".json")))
    change(path, draw)
    extra = draw.choice([[], ["--check"], ["--explain", "table4:sprel"], ["--strict"]])
    return Case(
        f"{path.relative_to(folder)} {extra}",
        make_tables.main,
        [*tables(folder), *extra],
        (path.name, "metrics.parquet"),
    )


def mlflow(folder: Path, draw: random.Random) -> Case:
    table, column = draw.choice([("params", "value"), ("params", "key"), ("tags", "value"), ("metrics", "value")])
    strange = draw.choice(
        ["", "nan", "x" * 6000, "-1", "none", "$\\frac{1}{0}$", "<b>&</b>", "a,b", "1e999", "\x1b[31m"]
    )
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        rowid, was = draw.choice(database.execute(f"select rowid, key from {table}").fetchall())
        value = draw.choice([-1e308, 0.0, 1e308]) if table == "metrics" else strange
        database.execute(f"update or replace {table} set {column} = ? where rowid = ?", (value, rowid))
    entries = [(make_tables.main, [*tables(folder), *draw.choice([[], ["--strict"], ["--check"]])])]
    uri = f"sqlite:///{folder}/mlflow.db"
    entries += [(reconcile.main, ["--storage", f"{folder}/results", "--tracking-uri", uri])]
    return Case(f"{table}.{column} of {was} = {value!r:.40}", *draw.choice(entries), ())


VALUES = [
    "",
    "0",
    "-1",
    "nan",
    "inf",
    "1e400",
    "none",
    "x=y",
    "=",
    "tasks=",
    "epochs=-1",
    "epochs=x",
    "../..",
    "/dev/null",
]
VALUES += [
    "s3://",
    "ftp://x/y",
    "sprel+sprel",
    "0,0",
    "1,,2",
    "table4,,",
    "table9",
    "digits",
    "\udcff",
    "a" * 300,
    "%s",
    "{}",
]
VALUES += [
    "sqlite:////nowhere/x.db",
    "http://u:p@127.0.0.1:9",
    "learning_rate=1e999",
    "seed=3",
    "file:///etc/passwd",
    "[1]",
]
OPTIONS = ["--study", "--recipe", "--dataset", "--backbone", "--image-size", "--tasks", "--seeds", "--set", "--only"]
OPTIONS += ["--storage", "--data-root", "--gpus", "--cpus", "--hours", "--retry", "--checkpoint-every", "--nonsense"]
OPTIONS += ["--micro-batches", "--keep-checkpoints", "--gpu-hours", "--checkpoint-minutes", "--address"]
SEARCHING = [
    "--trials",
    "--searcher",
    "--scheduler",
    "--space",
    "--per-cell",
    "--name",
    "--sampler",
    "--hours",
    "--study",
]
SEARCHING += ["--tasks", "--dataset", "--recipe", "--set", "--gpus", "--storage", "--optuna-storage", "--seeds"]
MAKING = ["--tracking-uri", "--experiment", "--study", "--format", "--where", "--explain", "--out"]


def command_line(folder: Path, draw: random.Random) -> Case:
    def drawn(options: list[str]) -> list[str]:
        chosen = draw.sample(options, min(len(options), draw.randrange(1, 4)))
        return [part for option in chosen for part in (option, draw.choice(VALUES))]

    entries = [
        (ablation.main, [*planning(folder), *drawn(OPTIONS)]),
        (hpo.main, [*planning(folder), *drawn(SEARCHING)]),
        (make_tables.main, [*tables(folder), *drawn(MAKING)]),
        (
            pictures.main,
            [*tables(folder)[:2], "--storage", f"{folder}/results", *drawn(["--study", "--images", "--device"])],
        ),
        (reconcile.main, ["--tracking-uri", tables(folder)[1], *drawn(["--storage", "--experiment"])]),
    ]
    command, arguments = draw.choice(entries)
    return Case(f"{command.__module__} {' '.join(arguments[-6:])}", command, arguments, ())


KINDS: dict[str, Callable[[Path, random.Random], Case]] = {
    "account files": account_file,
    "leases": lease,
    "checkpoints": a_checkpoint,
    "recipes": recipe,
    "study files": study,
    "images": image,
    "archives": archive,
    "Parquet tables": parquet,
    "MLflow's values": mlflow,
    "command lines": command_line,
}


# Running and judging


def call(command: Callable[[], int], arguments: list[str]) -> int:
    sys.argv = [command.__module__, *arguments]
    try:
        return command()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


def run_apart(case: Case, folder: Path, said: Path) -> int | None:
    """Run the command in a forked process. Returns its exit status, or None where it had to be ended."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.chdir(folder)
            with said.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace") for number in (1, 2))
            status = call(case.command, case.arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status or 0)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def contents(folder: Path) -> dict[str, str]:
    """Every file by its digest, but for what SQLite and caches keep beside theirs."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not {".relvit-cache", "__pycache__"} & set(path.parts)
    }


def judge(case: Case, status: int | None, text: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is wrong with how it ended."""
    if status is None:
        return [f"no end within {PATIENCE} s"]
    wrong = []
    if "Traceback (most recent call last)" in text:
        wrong.append("a traceback")
    if status not in STATUSES:
        wrong.append(f"exit status {status}")
    if status:
        if not text.strip():
            wrong.append("not a word")
        elif case.names and not any(name in text for name in case.names):
            wrong.append(f"does not name {' or '.join(case.names)}")
        if changed := [name for name in before if after.get(name) != before[name]]:
            wrong.append(f"changed {', '.join(changed[:3])}")
    return wrong


def run_case(seed: int, number: int, template: Path, work: Path) -> tuple[str, str, list[str], str]:
    """One case: its kind, what it is, what is wrong with its end, and what was said."""
    draw = random.Random(f"{seed}/{number}")
    kind = list(KINDS)[number % len(KINDS)]
    folder, said = work / "case", work / "said"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)
    case = KINDS[kind](folder, draw)
    before = contents(folder)
    status = run_apart(case, folder, said)
    text = said.read_text(errors="replace")
    return kind, case.what, judge(case, status, text, before, contents(folder)), text


def campaign(cases: range, seed: int = 0, show: bool = False) -> tuple[Counter[str], list[str]]:
    """Run the cases. Returns how many of each kind ran, and a line for each that failed."""
    ran: Counter[str] = Counter()
    failed = []
    with tempfile.TemporaryDirectory(prefix="relvit-fuzz-") as scratch:
        work = Path(scratch)
        template = work / "template"
        template.mkdir()
        with redirect_stdout(io.StringIO()):
            make_template(template)
        for number in cases:
            kind, what, wrong, text = run_case(seed, number, template, work)
            ran[kind] += 1
            if show:
                print(text)
            if wrong:
                last = (text.strip().splitlines() or [""])[-1]
                failed.append(f"{number} {kind}: {what}: {'; '.join(wrong)}: {last[:200]}")
                print(failed[-1], flush=True)
    return ran, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="N", help="this case alone, with all that it says")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the cases run in forks, in which OpenMP's other threads are missing
    cases = range(options.cases) if options.only is None else range(options.only, options.only + 1)
    ran, failed = campaign(cases, options.seed, show=options.only is not None)
    wrong = Counter(line.split(" ", 1)[1].partition(":")[0] for line in failed)
    for kind, count in ran.items():
        print(f"{kind:<20} {count - wrong[kind]:4d} of {count}")
    print(f"{'all':<20} {ran.total() - len(failed):4d} of {ran.total()} were told as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
