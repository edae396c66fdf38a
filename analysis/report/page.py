"""One HTML page for a study: verdicts, tables, figures and how to reproduce them, in a single file.

The page asks for nothing from outside: pictures are in it, and its content security policy forbids requests and every
script but the one that sorts tables. Whatever comes from runs (names, reasons, paths) is escaped; only tables are taken
as HTML.
"""

import base64
import hashlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from PIL import Image

from analysis.output.provenance import replace_text
from analysis.paper.appendix import with_reservations
from analysis.paper.drawing import COLUMN, kinds
from analysis.paper.entries import Entries
from analysis.paper.numbers import listed
from analysis.paper.registry import TABLES, find
from analysis.paper.rules import NOTHING_TO_COMPARE
from analysis.paper.verdicts import paper_against_itself, sentences
from analysis.runs.comparability import acting_fields, commits
from analysis.runs.splits import split_of
from relvit.cell import FIELDS
from relvit.messages import counted
from relvit.paper import backbone_name, dataset_name
from relvit.vocabulary import DEVICE, GIT_COMMIT, HOST, PACKAGES, PYTHON_VERSION, TEST

_TEMPLATE = "page.html.jinja"
_DASH = "–"
# A verdict's colour; the word says the same. Any other verdict leaves the matter open.
_TONES = {"holds": "good", "reproduced": "good", "contradicted": "bad", "above": "bad", "below": "bad"}
_ORIGIN = {  # columns of runs that come from tags, where the store has them
    GIT_COMMIT: "Commit",
    DEVICE: "Device",
    HOST: "Host",
    PYTHON_VERSION: "Python",
    **{f"{package}_version": package.replace("ray", "Ray") for package in PACKAGES},
}
# What sweeps/ablation.py has an option of its own for.
_OPTIONS = {"dataset": "--dataset", "backbone": "--backbone", "image_size": "--image-size"}
_NOT_SET = {"tasks", "seed", "protocol", *_OPTIONS}


# A click, or Enter, on a heading sorts the table by that column: numbers by value, texts after them, dashes last.
_SORTING = """
const value = cell => parseFloat(cell.textContent.replace(/[<>\\[]/g, ""));
for (const table of document.querySelectorAll(".sortable table")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells], body = table.tBodies[0];
  const sort = column => {
    const sign = heads[column].ariaSort === "descending" ? 1 : -1;
    heads.forEach(head => head.ariaSort = null);
    heads[column].ariaSort = sign > 0 ? "ascending" : "descending";
    const order = (one, other) => {
      const [a, b] = [one.cells[column], other.cells[column]], [x, y] = [value(a), value(b)];
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a.textContent.localeCompare(b.textContent) * -sign;
      return (x - y) * sign;
    };
    body.append(...[...body.rows].sort(order));
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(column));
    head.addEventListener("keydown", event => event.key === "Enter" && sort(column));
  });
}
"""


class TableHtml(NamedTuple):
    """title: plain text. html: trusted markup, whose texts its maker has escaped."""

    title: str
    html: str


def write_page(
    study: str,
    runs: pd.DataFrame,
    out: Path,
    *,
    tables: Sequence[TableHtml] = (),
    behind: Sequence[TableHtml] = (),
    figures: Iterable[Path] = (),
    verdicts: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
    experiment: str = "relvit",
) -> Path:
    """Write the page of a study to `out`, replaced as a whole. Returns `out`.

    runs: those of the study that the tables and figures show, as gathered, finished or not.
    tables come before the figures, those of `behind` after them.
    figures: the paths that `figures.draw` returned; the PNGs among them are shown with the captions they hold.
    verdicts: the rows to be shown, as from `sentences_of`. notes: sentences on what is missing or doubtful.
    """
    shown = [_picture(path) for path in figures if path.suffix == ".png"]
    rows = [] if verdicts is None else verdicts.to_dict("records")
    judged = [{"needs": "", "paper": ""} | row | {"stated": with_reservations(row), "tone": _tone(row)} for row in rows]
    reasons = {row["not_comparable"] for row in rows}  # said once where they are the same for all
    sections = [("verdicts", "Verdicts")] * bool(judged) + [("tables", "Tables")] * bool(tables)
    sections += [("figures", "Figures")] * bool(shown) + [("behind", "Behind the numbers")] * bool(behind)
    sections += [("reproduce", "How to reproduce"), ("runs", "Runs")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    content = environment.get_template(_TEMPLATE).render(
        title=TABLES[study].title if study in TABLES else study,
        subject=_subject(runs),
        summary=_summary(runs),
        sections=sections,
        notes=[note if note.endswith(".") else f"{note}." for note in notes],
        claims=judged,
        script=_SORTING,
        script_digest=base64.b64encode(hashlib.sha256(_SORTING.encode()).digest()).decode(),
        not_comparable=reasons.pop() if len(reasons) == 1 else "",
        tables=tables,
        behind=behind,
        figures=shown,
        commands=commands(study, runs),
        caveats=_caveats(runs),
        recipe=list(shared_fields(runs).items()),
        origin=list(_origin(runs)),
        experiment=experiment,
        runs=_runs(runs),
    )
    replace_text(out, content)
    return out


def sentences_of(shown: Iterable[Entries]) -> pd.DataFrame | None:
    """The paper's sentences that tables decide, judged on their entries as `verdicts.sentences`; in the column "paper"
    the verdict of the paper's own tables. None where the paper says nothing of them."""
    found = []
    for entries in shown:
        if entries.of.claims:
            own = paper_against_itself(entries.of)
            printed = own["verdict"].where(own["note"] != NOTHING_TO_COMPARE, "")
            found.append(sentences(entries).assign(paper=printed))
    return pd.concat(found) if found else None


def _tone(row: Mapping[str, Any]) -> str:
    """Of a verdict's badge: coloured only where it stands without a reservation."""
    return "open" if row["not_comparable"] or row["seeds"] == 1 else _TONES.get(row["verdict"], "open")


def _picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        width, caption = image.width, image.info.get("Description", path.stem)
        # 300 pixels an inch, shown a half larger than in print.
        scale = 96 / 300 * 1.5
        height = round(image.height * scale)
    return {
        "name": path.stem,
        "caption": caption,
        "alt": caption.partition(". ")[0],
        "base64": base64.b64encode(path.read_bytes()).decode(),
        "width": round(width * scale),
        "height": height,
        "wide": width > 1.2 * COLUMN * 300,  # small print on a phone: scrolled rather than shrunk
    }


def _subject(runs: pd.DataFrame) -> str:
    pairs = runs[["dataset", "backbone"]].dropna().drop_duplicates().itertuples(index=False)
    return ", ".join(f"{dataset_name(pair.dataset)} with {backbone_name(pair.backbone)}" for pair in pairs)


def _summary(runs: pd.DataFrame) -> str:
    finished = int((runs["status"] == "FINISHED").sum())
    seeds = listed(int(seed) for seed in runs["seed"].dropna().unique())
    ended = runs["end_time"].dropna() if "end_time" in runs else pd.Series(dtype="datetime64[ns, UTC]")
    newest = f" The newest run ended on {ended.max():%Y-%m-%d %H:%M} UTC." if len(ended) else ""
    done = f"{finished} of {counted(len(runs), 'run')} finished"
    return f"{done}; seeds {seeds}; commit {', '.join(commits(runs))}.{newest}"


def shared_fields(runs: pd.DataFrame) -> dict[str, Any]:
    """Each field of a cell that acts in any of the runs and has but one value where it does."""
    acting = [acting_fields(row) for row in runs.reindex(columns=list(FIELDS)).to_dict("records")]
    values = {name: {row[name] for row in acting if name in row} for name in FIELDS}
    return {name: next(iter(found)) for name, found in values.items() if len(found) == 1}


def commands(study: str, runs: pd.DataFrame) -> str:
    """Shell commands that train the cells of these runs again at their commit, and analyse them.

    Fields in which the runs differ otherwise than the study says come from the recipe "paper": see `_caveats`.
    """
    shared = shared_fields(runs)
    options = [["--study", study], ["--recipe", "paper"]]
    options += [[option, shared[name]] for name, option in _OPTIONS.items() if name in shared]
    options.append(["--seeds", ",".join(str(seed) for seed in sorted(runs["seed"].dropna().unique()))])
    combinations = find(study, runs).combinations
    trained = [tasks for tasks in combinations if (runs["tasks"] == tasks).any()]
    if len(trained) < len(combinations):
        options.append(["--tasks", ",".join(trained)])
    skipped = _NOT_SET | ({"pretrain_dataset"} if shared.get("pretrain_dataset") == shared.get("dataset") else set())
    options += [["--set", f"{name}={value}"] for name, value in shared.items() if name not in skipped]
    sweep = " \\\n    ".join(
        ["python sweeps/ablation.py", *(" ".join(shlex.quote(str(part)) for part in option) for option in options)]
    )
    known = runs.reindex(columns=["git_commit"])["git_commit"].dropna().unique()
    checkouts = [f"git checkout {shlex.quote(str(commit))}" for commit in known if len(known) == 1]
    tables = f"python analysis/make_tables.py --study {shlex.quote(study)}"
    return "\n".join([*checkouts, sweep, tables if split_of(runs) == TEST else f"{tables} --split {split_of(runs)}"])


def _caveats(runs: pd.DataFrame) -> list[str]:
    sentences = []
    origins = commits(runs)
    if len(origins) > 1:
        sentences.append(f"The runs are of several states of the code: {', '.join(origins)}.")
    if any(commit.endswith("+changes") for commit in origins):
        sentences.append("Some runs were made with changes that are in no commit: those cannot be had again.")
    if any(commit.startswith("unknown") for commit in origins):
        sentences.append("Some runs do not say from which commit they are.")
    differing = sorted(_differing(runs))
    if differing:
        sentences.append(
            f"These fields differ between the runs, by the study or by the recipe: {', '.join(differing)}. Where the "
            "recipe was not “paper”, set them by hand."
        )
    return sentences


def _differing(runs: pd.DataFrame) -> set[str]:
    acting = [acting_fields(row) for row in runs.reindex(columns=list(FIELDS)).to_dict("records")]
    named = {name for row in acting for name in row}
    return named - set(shared_fields(runs)) - {"tasks", "seed"}


def _origin(runs: pd.DataFrame) -> Iterable[tuple[str, str]]:
    for column, heading in _ORIGIN.items():
        values = sorted(str(value) for value in runs[column].dropna().unique()) if column in runs else []
        if values:
            yield heading, ", ".join(values)


def _place(row: Mapping[str, Any]) -> Iterator[str]:
    """The names of a run's data set and backbone, as far as it tells."""
    for name, column in ((dataset_name, "dataset"), (backbone_name, "backbone")):
        yield _DASH if pd.isna(row[column]) else name(row[column])


def _runs(runs: pd.DataFrame) -> list[Mapping[str, str]]:
    ordered = runs.assign(kind=kinds(runs)).sort_values(["seed"], kind="stable")
    several = ordered[["dataset", "backbone"]].drop_duplicates().shape[0] > 1
    accuracy = ordered.reindex(columns=["test_accuracy"])["test_accuracy"].astype("Float64")
    return [
        {
            "cell": ", ".join([*_place(row)] * several + [row["kind"]]),
            "seed": _DASH if pd.isna(row["seed"]) else row["seed"],
            "status": str(row["status"]).lower(),
            "accuracy": _DASH if pd.isna(value) else f"{value:.2f}",
            "run_id": row["run_id"],
        }
        for row, value in zip(ordered.to_dict("records"), accuracy)
    ]
