"""Where every number comes from: a sidecar beside a study's outputs, STUDY.provenance.json.

study, where     what the outputs were made of; with results of another split than test also that, and of, the study
rows             by run id a digest of what the outputs use of it, over all runs of the study
outputs          by file name, the digest of its content
earlier          by file name, its digest and that of the data it was made of, for outputs that an earlier call wrote
                 and the last one did not (another --format, a figure that could not be drawn again)
runs             by run id, cell_id, seed and commit
numbers          one for each number of every table and figure: id (TABLE:ROW:COLUMN), text as printed, values
                 unrounded, and the ids of its runs; footnotes that it carries; published numbers, with no runs, say so
seal             a digest of all of this, so that the sidecar itself cannot be edited unseen
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.typeset import Table, label
from analysis.runs.comparability import conform
from relvit.cell import FIELDS
from relvit.messages import unknown
from relvit.vocabulary import (
    CELL_ID,
    DATA_FINGERPRINT,
    DEVIATION,
    DEVICE,
    GIT_COMMIT,
    GIT_DIRTY,
    HOST,
    IMAGES_OF,
    PROCESSOR_SECONDS,
    SOURCE_DIGEST,
    TEST,
    TRAINING_SECONDS,
    VERSIONS,
)

_ENDING = ".provenance.json"
_TAGS = (
    *(CELL_ID, "status", GIT_COMMIT, GIT_DIRTY, SOURCE_DIGEST, DATA_FINGERPRINT, DEVIATION),
    *IMAGES_OF.values(),
    *(HOST, DEVICE, *VERSIONS),  # on the page
)
_VERSION = "2"  # of what a sidecar holds and of how its digests are made


class ProvenanceError(ValueError):
    """There is no sidecar, or it cannot be read, or it knows no such number."""


def sidecar(folder: Path, study: str) -> Path:
    """The sidecar of a study."""
    return folder / f"{label(study)}{_ENDING}"


def outputs_name(study: str, split: str = TEST) -> str:
    """With what the names of a study's outputs begin."""
    return study if split == TEST else f"{study}-{split}"


def record(
    study: str,
    where: Iterable[str],
    runs: pd.DataFrame,
    tables: Iterable[Table],
    outputs: Iterable[Path],
    histories: Mapping[str, str] | None = None,
    split: str = TEST,
) -> dict[str, Any]:
    """What the sidecar of a study holds; split: that its results are of, where it is another, the name of the outputs
    ends in it.

    runs: all of the study that fit `where`. tables: also what figures show, as tables. histories: by run id, a digest
    that changes with the run's metrics.
    """
    runs = conform(runs)
    by_id = {row["run_id"]: row for row in runs.to_dict("records")}
    return {
        "version": _VERSION,
        "study": outputs_name(study, split),
        **({} if split == TEST else {"of": study, "split": split}),
        "where": list(where),
        "rows": {run: row_digest(row, (histories or {}).get(run, "")) for run, row in by_id.items()},
        "outputs": {path.name: file_digest(path) for path in outputs},
        "earlier": {},
        "runs": {run: _run(row) for run, row in by_id.items()},
        "numbers": [entry for table in tables for entry in _numbers(table)],
    }


def write(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """Write the sidecar, as a whole. Files that another study's sidecar names too are this study's from now on, and
    those that an earlier call left stay known. Returns which of the latter other data gave, one sentence each."""
    path = sidecar(folder, content["study"])
    for other in sorted(folder.glob(f"*{_ENDING}")):
        try:
            theirs = read(other)
        except ProvenanceError:
            continue  # `check` says that it is damaged
        if other == path:
            data = _data_digest(theirs["where"], theirs["rows"])
            left = theirs["earlier"] | {name: [digest, data] for name, digest in theirs["outputs"].items()}
            left = {name: each for name, each in left.items() if (folder / name).exists()}
            content = {**content, "earlier": _without(left, content["outputs"])}
            continue
        kept = {key: _without(theirs[key], content["outputs"]) for key in ("outputs", "earlier")}
        if any(len(kept[key]) < len(theirs[key]) for key in kept):
            _replace(other, {**theirs, **kept})
    _replace(path, content)
    return _stale(content, content["rows"])


def _without(files: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in files.items() if name not in others}


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    content = {key: value for key, value in content.items() if key != "seal"}
    content["seal"] = _seal(content)
    replace_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def replace_text(path: Path, content: str) -> None:
    """Write a file as a whole: whoever reads it meanwhile has the old one."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(content, encoding="utf-8")
    scratch.replace(path)


def read(path: Path) -> dict[str, Any]:
    """A sidecar. Raises ProvenanceError where it is missing, broken or was edited."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        seal = content.pop("seal")
        whole = seal == _seal(content) and {"study", "where", "rows", "outputs", "numbers"} <= set(content)
        known = content.get("version") == _VERSION
    except FileNotFoundError:
        raise ProvenanceError(f"there is no {path}: make the tables of the study first") from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ProvenanceError(f"{path} cannot be read ({error}): make the tables of the study again") from error
    if not whole:
        raise ProvenanceError(f"{path} was edited by hand: make the tables of the study again")
    if not known:
        raise ProvenanceError(f"{path} is of another version of this project: make the tables of the study again")
    return content


def recorded(folder: Path, study: str | None = None) -> list[Path]:
    """The sidecars in a folder, or that of one study. Raises ProvenanceError where there is none."""
    if study:
        return [sidecar(folder, study)]
    found = sorted(folder.glob(f"*{_ENDING}"))
    if not found:
        raise ProvenanceError(f"no tables were made in {folder} yet: there is no *{_ENDING}")
    return found


def _numbers(table: Table) -> Iterable[dict[str, Any]]:
    notes = dict(table.notes)
    for row in table.rows:
        for column, entry in zip(table.columns, row.entries):
            if not (entry.runs or entry.numbers or entry.published):
                continue
            yield {
                "id": f"{table.name}:{row.key}:{column.key}",
                "text": entry.text,
                **({"below": entry.below} if entry.below else {}),
                **({"values": _plain(entry.numbers)} if entry.numbers else {}),
                **({"footnotes": [notes[mark] for mark in entry.marks]} if entry.marks else {}),
                **({"published": True} if entry.published else {"runs": list(entry.runs)}),
            }


def _plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(float(value)) else float(value) for name, value in numbers.items()}


def _run(row: Mapping[str, Any]) -> dict[str, Any]:
    seed = row.get("seed")
    return {
        "cell_id": None if pd.isna(row.get("cell_id")) else row["cell_id"],
        "seed": None if seed is None or pd.isna(seed) else int(seed),
        "commit": "unknown" if pd.isna(row.get("git_commit")) else str(row["git_commit"]),
        **({"uncommitted_changes": True} if row.get("git_dirty") == "true" else {}),
    }


# Digests


def row_digest(run: Mapping[str, Any], history: str = "") -> str:
    """Of what the outputs use of a run: its cell, its tags, its status, its results on the test split and its time.

    history: a digest of its metrics, which count once it is finished: before, no output shows them.
    """
    used = {name: run.get(name) for name in (*FIELDS, *_TAGS)}
    used |= {name: value for name, value in run.items() if _is_result(name)}
    known = {name: _canonical(name, value) for name, value in used.items() if not pd.isna(value)}
    finished = run.get("status") == "FINISHED"
    return _hash(json.dumps({**known, "history": history if finished else ""}, sort_keys=True).encode())


def _is_result(name: str) -> bool:
    return str(name).startswith("test_") or name in (TRAINING_SECONDS, PROCESSOR_SECONDS)


def _canonical(name: str, value: Any) -> Any:
    """One value, whatever type a store or a file format gave it."""
    return FIELDS.get(name, float if _is_result(name) else str)(value)


def file_digest(path: Path) -> str:
    """Of a file's content."""
    return _hash(path.read_bytes())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _data_digest(where: list[str], rows: Mapping[str, str]) -> str:
    return _hash(json.dumps([where, rows], sort_keys=True).encode())


def _seal(content: Mapping[str, Any]) -> str:
    return _hash(json.dumps(content, sort_keys=True).encode())


# Questions


def edited(content: Mapping[str, Any], folder: Path) -> list[str]:
    """Which outputs are missing or are no longer what was written, one sentence each."""
    problems = [f"{name} is missing" for name in content["outputs"] if not (folder / name).exists()]
    digests = content["outputs"] | {name: digest for name, (digest, _) in content["earlier"].items()}
    for name, digest in digests.items():
        # One of an earlier call may be deleted.
        if (folder / name).exists() and file_digest(folder / name) != digest:
            problems.append(f"{name} was edited by hand, or is half-written")
    return problems


def _stale(content: Mapping[str, Any], rows: Mapping[str, str]) -> list[str]:
    """Which outputs of earlier calls were made of other data than these rows, one sentence each."""
    data = _data_digest(content["where"], rows)
    return [
        f"{name} is of an earlier call, with other runs or another --where: delete it or make it again"
        for name, (_, made_of) in content["earlier"].items()
        if made_of != data
    ]


def outdated(content: Mapping[str, Any], runs: pd.DataFrame, histories: Mapping[str, str] | None = None) -> list[str]:
    """In what the runs of the study are no longer those that the outputs were made of, one sentence each.

    runs: all of the study that fit the recorded `where`, as gathered now. histories: as in `record`.
    """
    now = {row["run_id"]: row for row in conform(runs).to_dict("records")}
    was, digests = content["rows"], {run: row_digest(row, (histories or {}).get(run, "")) for run, row in now.items()}
    problems = []
    for run, row in now.items():
        if run not in was:
            problems.append(f"run {run} ({row['cell_id']}) is new")
        elif was[run] != digests[run]:
            problems.append(f"run {run} ({row['cell_id']}) has changed; on it rest: {_resting_on(content, run)}")
    problems += [f"run {run} is gone; on it rest: {_resting_on(content, run)}" for run in was if run not in now]
    if problems:
        problems.append(f"so these no longer match the data: {', '.join(content['outputs'])}")
    return problems + _stale(content, digests)


def _resting_on(content: Mapping[str, Any], run: str) -> str:
    ids = [entry["id"] for entry in content["numbers"] if run in entry.get("runs", ())]
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "") or "no number"


def explain(folder: Path, question: str) -> list[dict[str, Any]]:
    """The numbers that "table4", "table4:sprel+abspos" or "table4:sprel+abspos:accuracy" asks for, their runs in full.

    Raises ProvenanceError for a name that no sidecar in the folder has, with the valid ones and the nearest.
    """
    numbers = []
    for content in map(read, recorded(folder)):
        runs = {run: {"run_id": run, **about} for run, about in content["runs"].items()}
        for entry in content["numbers"]:
            rests_on = {"runs": [runs.get(run, {"run_id": run}) for run in entry["runs"]]} if "runs" in entry else {}
            numbers.append({**entry, **rests_on})
    found = _asked_for(numbers, question)
    if not found and "+" in question:
        # Tasks in another order: "table4:abspos+sprel".
        table, _, rest = question.partition(":")
        row, colon, column = rest.partition(":")
        rows = {entry["id"].split(":")[1] for entry in numbers if entry["id"].startswith(f"{table}:")}
        same = [each for each in rows if sorted(each.split("+")) == sorted(row.split("+"))]
        found = [entry for each in same for entry in _asked_for(numbers, f"{table}:{each}{colon}{column}")]
    if found:
        return found
    levels: dict[int, dict[str, None]] = {1: {}, 2: {}, 3: {}}
    for entry in numbers:
        parts = entry["id"].split(":")
        for depth in levels:
            levels[depth][":".join(parts[:depth])] = None
    asked = question.split(":")
    table = asked[0]
    if table not in levels[1] or len(asked) == 1:
        raise ProvenanceError(unknown("table", table, levels[1]))
    row = ":".join(asked[:2])
    if row not in levels[2]:
        raise ProvenanceError(_unknown_part("row", asked[1], table, levels[2]))
    raise ProvenanceError(_unknown_part("column", asked[2], row, levels[3]))


def _asked_for(numbers: list[dict[str, Any]], question: str) -> list[dict[str, Any]]:
    return [entry for entry in numbers if entry["id"] == question or entry["id"].startswith(f"{question}:")]


def _unknown_part(kind: str, name: str, parent: str, ids: Iterable[str]) -> str:
    known = [each.removeprefix(f"{parent}:") for each in ids if each.startswith(f"{parent}:")]
    return f"{parent}: {unknown(kind, name, known)}"
