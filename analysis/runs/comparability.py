"""Whether the runs of one table may be compared: in what each differs from the runs that it stands beside.

Compared are the fields of the cell that act in it (epochs, recipe, data, precision, selection rule), the code (tag
source_digest, where that is not known the commit), the images (tag data_fingerprint), and what the engine had to do
differently (tag deviation, for instance micro_batches=4). What an older store does not know of a run is not held
against it.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from relvit.cell import FIELDS, NONE, Cell, neutral_fields
from relvit.vocabulary import (
    CELL_ID,
    DATA_FINGERPRINT,
    DEVIATION,
    GIT_COMMIT,
    GIT_DIRTY,
    IMAGES_OF,
    SOURCE_DIGEST,
    STUDY,
)

# Columns beside the fields of a cell on which tables, footnotes and provenance rest.
_TEXTS = (
    *("run_id", CELL_ID, "status", STUDY, GIT_COMMIT, GIT_DIRTY, SOURCE_DIGEST, DATA_FINGERPRINT, DEVIATION),
    *IMAGES_OF.values(),
)

# A recipe sets these by the data set's images and the backbone (section 3.1: another batch size for the variants), so
# where a table has several of those, only runs of the same must agree.
_BY_DATA_AND_BACKBONE = (
    "pretrain_dataset",
    "image_size",
    "batch_size",
    "crop_padding",
    "crop_min_area",
    "flip_probability",
    "drloc_weight",
    "patch_crop",
    "jitter_probability",
    "jitter_strength",
    "greyscale_probability",
    "mega_grid",
)


_CONFORMS = "conforms"


class NotComparable(ValueError):
    """With --strict: in what the runs of a table differ. Nothing was written."""


def conform(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with every column that the tables need, whatever the schema they were written with.

    What is lacking is null, and so is a result that is infinite; a run without an id goes by its cell's id or its
    number.
    """
    needed = [*_TEXTS, "start_time", *FIELDS]
    if runs.attrs.get(_CONFORMS) and list(runs.columns[: len(needed)]) == needed:
        return runs.reset_index(drop=True)
    result = runs.reindex(columns=[*needed, *runs.columns.difference(needed, sort=False)])
    result = result.astype(dict.fromkeys(_TEXTS, object))
    names = result["run_id"].where(result["run_id"].notna(), result["cell_id"])
    unnamed = names.isna() | names.duplicated()
    result["run_id"] = names.where(~unnamed, [f"run-{number}" for number in range(len(names))])
    result["start_time"] = pd.to_datetime(result["start_time"], utc=True)
    measured = [name for name in result.columns if str(name).startswith("test_")]
    result[measured] = result[measured].replace([np.inf, -np.inf], np.nan)
    result.attrs[_CONFORMS] = True  # which pandas hands on to a selection of the rows
    return result.reset_index(drop=True)


def is_engines(run: Mapping[str, Any]) -> bool:
    """Whether the engine logged a run: it names its commit, and its cell_id is the one that its fields give.

    A run of an older schema lacks fields, so only its commit tells.
    """
    if pd.isna(run.get(GIT_COMMIT)):
        return False
    try:
        fields = {name: kind(run[name]) for name, kind in FIELDS.items() if not pd.isna(run.get(name))}
        return Cell(**fields).cell_id == run.get(CELL_ID)
    except (TypeError, ValueError):
        return True


def acting_fields(run: Mapping[str, Any]) -> dict[str, Any]:
    """The known fields of a run's cell that act in it, without its seed."""
    known = {name: None if pd.isna(run.get(name)) else run[name] for name in FIELDS}
    idle = {"seed", *neutral_fields(known, ask_timm=False)}
    return {name: value for name, value in known.items() if name not in idle and value is not None}


def chosen_fields(run: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that act in a run's cell and could have been others, without its tasks: the supervised baseline always
    has its position embedding (section 3.2)."""
    acting = acting_fields(run)
    fixed = ("tasks", "pretrain_position_embedding") if acting.get("tasks") == NONE else ("tasks",)
    return {name: value for name, value in acting.items() if name not in fixed}


def deviations(runs: pd.DataFrame, varying: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """By run id, in what a finished run differs from most of those that it is compared with; empty if none does.

    varying: the fields in which the table's cells differ by design, beside tasks and seed. What most runs have is
    right, of two that are equally frequent that of the newer run. Where dataset or backbone vary, each combination
    of them has its own images and batch size.
    """
    finished = runs[runs["status"] == "FINISHED"].sort_values("start_time", na_position="first")
    if finished.empty:
        return {}
    acting = {row["run_id"]: chosen_fields(row) for row in finished.to_dict("records")}
    several = bool({"dataset", "backbone"} & set(varying))
    names = finished.set_index("run_id")[["dataset", "backbone"]].astype(object).fillna("")
    place = names["dataset"].astype(str) + " " + names["backbone"].astype(str)
    found: dict[str, list[str]] = {run: [] for run in acting}
    for name in FIELDS:
        if name in varying:
            continue
        values = pd.Series({run: fields[name] for run, fields in acting.items() if name in fields}, dtype=object)
        groups = place if several and name in _BY_DATA_AND_BACKBONE else pd.Series("", index=place.index)
        for run, usual in _unusual(values, groups):
            found[run].append(f"{name} {shown(values[run])} instead of {shown(usual)}")
    indexed = finished.set_index("run_id")
    everywhere = pd.Series("", index=place.index)
    sources, codes = indexed[SOURCE_DIGEST].dropna().astype(object), _code(indexed)
    other_sources = dict(_unusual(sources, everywhere))
    for run, usual in other_sources.items():
        commit = f" (commit {codes[run]})" if run in codes.index else ""
        found[run].append(f"code with sources {sources[run]}{commit} instead of {usual}")
    for run, usual in _unusual(codes, everywhere):
        # Of two commits with the same sources neither is another code, and of one commit with two see above.
        same = run in sources.index and sources[run] in set(sources.reindex(codes.index[codes == usual]))
        if run not in other_sources and not same:
            found[run].append(f"code of commit {codes[run]} instead of {usual}")
    images = indexed["data_fingerprint"].dropna()
    # The digest is of the images as they were decoded, at their sizes.
    sizes = indexed[["pretrain_dataset", "image_size", "finetune_image_size"]].astype(object).fillna("").astype(str)
    for run, _ in _unusual(images, place + " " + sizes.agg(" ".join, axis=1)):
        found[run].append("other images under the data set's name")
    for run, text in indexed.reindex(columns=["left_out"])["left_out"].dropna().items():
        found[run].append(text)
    for run, text in indexed["deviation"].dropna().items():
        if str(text).strip():
            found[run].append(str(text).strip())
    return {run: tuple(reasons) for run, reasons in found.items() if reasons}


def of_recipe(reasons: tuple[str, ...]) -> tuple[str, ...]:
    """Of a run's deviations those in what is trained and how, which make it another experiment."""
    return tuple(reason for reason in reasons if reason.partition(" ")[0] in FIELDS)


def _unusual(values: pd.Series, groups: pd.Series) -> list[tuple[str, Any]]:
    """(run, what its group has) for each run whose value is not that of its group; values from old to new."""
    result = []
    for _, group in values.groupby(groups.reindex(values.index), sort=False):
        counts = group.value_counts()
        if len(counts) > 1:
            most = counts[counts == counts.max()].index
            usual = [value for value in group if value in most][-1]
            result += [(run, usual) for run, value in group.items() if value != usual]
    return result


def _code(runs: pd.DataFrame) -> pd.Series:
    commits = runs["git_commit"].dropna()
    commits = commits[commits != "unknown"]
    changed = np.where(runs.loc[commits.index, "git_dirty"].fillna("") == "true", "+changes", "")
    return commits.str[:10] + pd.Series(changed, index=commits.index, dtype=object)


def shown(value: Any) -> str:
    """A field's value as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def commits(runs: pd.DataFrame) -> list[str]:
    """The commits of runs, each with a mark where there were uncommitted changes; "unknown" where a run has none."""
    origins = runs.reindex(columns=["git_commit", "git_dirty"]).astype("string").fillna("unknown").drop_duplicates()
    return sorted(commit[:10] + ("+changes" if dirty == "true" else "") for commit, dirty in origins.to_numpy())
