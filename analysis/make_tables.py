"""Gather MLflow runs into Parquet and set the tables of a study, ours beside the paper's.

    python analysis/make_tables.py                       the study of the newest run
    python analysis/make_tables.py --study table3
    python analysis/make_tables.py --explain table4:sprel+abspos
    python analysis/make_tables.py --check

Under --out: the gathered runs and metrics as Parquet; the study's table and what stands behind it (paired differences,
effects of the tasks, verdicts on the published numbers and sentences), each as STUDY....tex, .md and .html;
STUDY-camera.tex, the table as a two-column paper prints it; report.tex,
one document of all that; STUDY-report.html, the same as one page with the figures and how to reproduce them; and
STUDY.provenance.json, which leads from every number to its runs. All are attached to one MLflow run that stands for
the study. Where Table 4's runs have several settings (data sets, backbones, recipes), each gets its table; table4 is
that of the newest run, or the newest that fits --where; of study "full", that of the paper's data set and backbone.

Exit status: 0; 1 where --check found that an output is no longer what the data give, or --strict refused; 2 where the
request is wrong or there is nothing to gather. In the last two cases no output was touched.
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # runs from a checkout that is not installed

import pandas as pd
from rich.console import Console

from analysis.output import provenance, study_run, typeset
from analysis.output.typeset import FORMATS, WRITERS, Table, label, to_html
from analysis.paper import tuned
from analysis.paper.appendix import appendix
from analysis.paper.drawing import metrics_read
from analysis.paper.figures import draw
from analysis.paper.registry import FULL, TABLES, of_study, tables_of
from analysis.report import document, page
from analysis.runs.comparability import NotComparable, commits, conform
from analysis.runs.gather import Gathered, GatherError, gather, read_gathered
from analysis.runs.splits import SPLITS, VAL, on_val, val_metrics
from relvit.cell import parse_value
from relvit.files import folder
from relvit.messages import counted, unknown
from relvit.secrets import CREDENTIALS, holds_password
from relvit.vocabulary import ANALYSIS, GIT_COMMIT, MOST_NOTE, TEST

DIFFERENT, BAD_REQUEST, INTERRUPTED = 1, 2, 130
REPORT = "report"  # the document, beside which a table of a study of that name has another one


def tracking_uri(text: str) -> str:
    """The type of --tracking-uri."""
    if holds_password(text):
        raise argparse.ArgumentTypeError(
            f"the URI holds a password, which ps shows to everyone on this machine: {CREDENTIALS}"
        )
    return text


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make_tables.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"), type=tracking_uri,
        metavar="URI", help="MLflow's database or server (default: $MLFLOW_TRACKING_URI, else %(default)s)",
    )  # fmt: skip
    parser.add_argument("--experiment", default="relvit", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--study", metavar="NAME", help="the study to set (default: that of the newest run)")
    parser.add_argument(
        "--out", type=folder, default=Path("results/analysis"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--format", action="append", default=[], metavar="NAME,...",
        help=f"of {', '.join(FORMATS)} those to write; may be repeated (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE",
        help="only runs with this value, for instance dataset=cifar10; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=SPLITS, default=TEST,
        help="report results of this split, for published numbers that are of val; files are then named "
        "STUDY-val... (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true",
        help="refuse tables whose cells differ in recipe, data, code or precision, instead of footnotes",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help="write no output, but say which (of --study, or of all) were edited or no longer match the runs",
    )  # fmt: skip
    parser.add_argument(
        "--explain", metavar="TABLE[:ROW[:COLUMN]]",
        help="the runs, seeds and commits behind numbers, for instance table4:sprel+abspos",
    )  # fmt: skip
    parser.add_argument(
        "--no-gather", dest="gather", action="store_false",
        help="take the Parquet tables under --out as they are and ask no tracking store, for instance for --check of "
        "outputs that somebody published",
    )  # fmt: skip
    parser.add_argument(
        "--no-attach", dest="attach", action="store_false",
        help="do not log the outputs to the MLflow run that stands for the study",
    )  # fmt: skip
    parser.add_argument(
        "--follow", type=float, metavar="MINUTES",
        help="while runs of the study are RUNNING, set everything again every so many minutes",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.follow is not None and not options.follow > 0:
        parser.error(f"--follow must be above 0, not {options.follow:g}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal's encoding lacks is no reason to stop
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if options.explain:
            return explain(options, console)
        formats = chosen_formats(options.format)
        select(conform(pd.DataFrame()), options.where)  # what is wrong with it is said before a long gather
        if options.check:
            return check(options, console)
        while True:
            gathered = read_runs(options)
            status = make(options, console, gathered, formats)
            if not options.follow or not is_running(options, gathered):
                return status
            say(console, f"runs are going on: again in {options.follow:g} minutes; Ctrl-C ends it")
            time.sleep(60 * options.follow)
    except KeyboardInterrupt:
        return 0 if options.follow else INTERRUPTED
    except NotComparable as error:
        print(error, file=sys.stderr)
        return DIFFERENT
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_REQUEST


def read_runs(options: argparse.Namespace) -> Gathered:
    """The runs as they are now; the Parquet files are brought up to date, unless they are to be taken as they are."""
    if not options.gather:
        return read_gathered(options.out)
    return gather(options.tracking_uri, options.experiment, options.out)


def is_running(options: argparse.Namespace, gathered: Gathered) -> bool:
    """Whether a run of the study that is set has not ended."""
    runs = select(conform(gathered.runs), options.where)
    return bool((of_study(runs, options.study or newest_study(runs))["status"] == "RUNNING").any())


def make(options: argparse.Namespace, console: Console, gathered: Gathered, formats: list[str]) -> int:
    """Set everything in memory, then write it: what goes wrong before leaves the outputs as they were."""
    fitting = select(conform(gathered.runs), options.where)
    if fitting.empty:
        raise GatherError(f"no run fits --where {' '.join(options.where)}")
    study = options.study or newest_study(fitting)
    raw = runs_of(study, fitting, gathered.runs)
    called = provenance.outputs_name(study, options.split)
    if options.split == VAL:
        fitting = on_val(fitting, gathered.history(val_metrics(fitting), set(fitting["run_id"])))
    runs = runs_of(study, fitting, gathered.runs)
    name = f"study-{REPORT}" if label(study) == REPORT else None if called == study else called
    made = tables_of(study, runs, name)
    # Tuned beside untuned, where there are both.
    beside = tuned.beside(fitting, study)
    if options.strict:
        require_comparable([*(one.table for one in made), *beside])
    shown_first = [one for one in made if one.first]
    main_tables = [one.table for one in made]
    behind = [table for one in shown_first for table in appendix(one.entries, one.table.name)]
    main_tables = beside + main_tables if study.endswith(tuned.SUFFIX) else main_tables + beside
    everything = [*main_tables, *behind]
    options.out.mkdir(parents=True, exist_ok=True)
    texts = {f"{label(table.name)}{FORMATS[name]}": WRITERS[name](table) for table in everything for name in formats}
    if "latex" in formats:
        for one in made:
            names = one.entries.of.label_name if one.entries.of.combinations else None  # rows that are combinations
            text = typeset.to_camera_latex(one.table, names)
            texts[f"{label(one.table.name)}-camera.tex"] = text
    shown, notes = made[0].entries, []
    history = gathered.history(metrics_read(), set(shown.runs["run_id"]))
    drawn = draw(shown.of, shown.runs, history, options.out, notes.append, called)
    if "latex" in formats:
        texts[f"{REPORT}.tex"] = document.report(study, runs, everything, document.captions(drawn.paths), notes)
    for name, text in texts.items():
        provenance.replace_text(options.out / name, text)
    report = options.out / f"{label(called)}-report.html"
    if "html" in formats:
        page.write_page(
            study,
            runs if study == FULL else shown.runs,
            report,
            tables=[page.TableHtml(table.title, to_html(table)) for table in main_tables],
            # The sentences have a section of their own.
            behind=[page.TableHtml(table.title, to_html(table)) for table in behind if "-verdicts" not in table.name],
            figures=drawn.paths,
            verdicts=page.sentences_of(one.entries for one in shown_first),
            notes=notes,
            experiment=options.experiment,
        )
    pages = [report] if "html" in formats else []
    outputs = [*(options.out / name for name in texts), *drawn.paths, *pages]
    shown_numbers = [*everything, *drawn.numbers]
    recorded = provenance.record(study, options.where, raw, shown_numbers, outputs, gathered.digests, options.split)
    notes += provenance.write(options.out, recorded)
    show(console, main_tables[0])
    for note in notes:
        say(console, f"note: {note}")
    names = [path.name for path in (*outputs, provenance.sidecar(options.out, called))]
    say(console, f"written to {options.out}: {', '.join(names)}")
    if len(shown_first) < len(made):
        which = "that of the paper's data set and backbone, or the newest" if study == FULL else "the newest setting"
        say(console, f"shown is {which}; --where FIELD=VALUE picks another")
    if options.attach and options.gather:
        attach(
            options, console, called, [*outputs, provenance.sidecar(options.out, called)], runs, pages, main_tables[0]
        )
    return 0


def attach(
    options: argparse.Namespace,
    console: Console,
    study: str,
    files: list[Path],
    runs: pd.DataFrame,
    pages: list[Path],
    table: Table,
) -> None:
    """Log the outputs to the MLflow run that stands for the study. They stay where they are if MLflow takes none."""
    description = document.summary(study, runs)
    for report in pages:
        description += (
            f"\n\n**Open `{ANALYSIS}/{report.name}` under Artifacts**: verdicts, tables, figures and how to "
            "reproduce them."
        )
    shown = f"{description}\n\n{WRITERS['markdown'](table)}"
    description = shown if len(shown) <= MOST_NOTE else description
    try:
        run_id = study_run.attach(
            options.tracking_uri,
            options.experiment,
            study,
            files,
            description=description,
            tags={GIT_COMMIT: ", ".join(commits(runs))},
        )
    except study_run.AttachError as error:
        print(f"the files are written, but {error}", file=sys.stderr)
        return
    say(console, f"attached to the MLflow run {run_id}, which stands for {study}; --no-attach leaves this out")


def require_comparable(made: Iterable[Table]) -> None:
    """Raises NotComparable with everything in which cells of these tables differ."""
    problems = [
        f"{table.name}: {note} ({', '.join(marked(table, letter))})" for table in made for letter, note in table.notes
    ]
    if problems:
        raise NotComparable(
            "--strict: the cells of a table differ, so nothing was written:\n"
            + "\n".join(f"  {one}" for one in problems)
        )


def marked(table: Table, letter: str) -> list[str]:
    """The rows that carry a footnote."""
    return [row.key for row in table.rows if any(letter in entry.marks for entry in row.entries)]


# Which runs


def newest_study(runs: pd.DataFrame) -> str:
    """The study of the run that was started last; of several, the first. Raises GatherError where no run has any."""
    tagged = runs[runs["study"].fillna("") != ""].sort_values("start_time", na_position="first")
    if tagged.empty:
        raise GatherError(
            f"none of the {len(runs)} runs has the tag study, by which tables find their runs: name one with --study "
            "and set the tag, or run the sweep again, which tags the runs of finished cells"
        )
    return str(tagged["study"].iloc[-1]).split(",")[0]


def studies_of(runs: pd.DataFrame) -> list[str]:
    """Every study that any run belongs to."""
    return sorted({name for studies in runs["study"].dropna() for name in studies.split(",") if name})


def runs_of(study: str, fitting: pd.DataFrame, everything: pd.DataFrame) -> pd.DataFrame:
    """The runs of a study. Raises GatherError where there are none, with the studies that there are."""
    chosen = of_study(fitting, study)
    if chosen.empty:
        present = studies_of(conform(everything))
        if study in present:
            raise GatherError(f"no run of study {study!r} fits --where")
        always = [name for name, table in TABLES.items() if table.of_all_runs]
        raise GatherError(f"no runs of this study: {unknown('study', study, [*present, *always])}")
    return chosen


def select(runs: pd.DataFrame, conditions: list[str]) -> pd.DataFrame:
    """The runs that fit all conditions "field=value". Raises ValueError for an unknown field or a value that no field
    of its type has."""
    for condition in conditions:
        name, equals, text = condition.partition("=")
        if not equals:
            raise ValueError(f"--where takes FIELD=VALUE, not {condition!r}")
        value = parse_value(name, text)
        runs = runs[runs[name].map(lambda each, value=value: not pd.isna(each) and each == value).astype(bool)]
    return runs


def chosen_formats(texts: list[str]) -> list[str]:
    """The formats asked for, or all. Raises ValueError with the valid ones and the nearest."""
    names = [name for text in texts for name in text.split(",") if name]
    wrong = [unknown("format", name, FORMATS) for name in names if name not in FORMATS]
    if wrong:
        raise ValueError("; ".join(wrong))
    return list(dict.fromkeys(names)) or list(FORMATS)


# --check and --explain


def check(options: argparse.Namespace, console: Console) -> int:
    """Whether the outputs are what was written, and what the runs still give."""
    problems, sidecars = [], provenance.recorded(options.out, options.study)
    contents = []
    for path in sidecars:
        try:
            contents.append(provenance.read(path))
        except provenance.ProvenanceError as error:
            if options.study and not path.exists():
                raise
            problems.append(str(error))
    for content in contents:
        problems += provenance.edited(content, options.out)
    status = DIFFERENT if problems else 0
    try:
        gathered = read_runs(options)
        runs = conform(gathered.runs)
        for content in contents:
            fitting = select(runs, content["where"])
            found = provenance.outdated(
                content, of_study(fitting, content.get("of", content["study"])), gathered.digests
            )
            problems += [f"{content['study']}: {each}" for each in found]
        status = DIFFERENT if problems else 0
    except GatherError as error:
        problems.append(f"cannot verify the outputs: {error}")
        status = status or BAD_REQUEST
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        outputs = sum(len(content["outputs"]) + len(content["earlier"]) for content in contents)
        say(console, f"{counted(outputs, 'output')} match {counted(len(runs), 'run')}")
    return status


def explain(options: argparse.Namespace, console: Console) -> int:
    """Print what the sidecars know of a number."""
    for entry in provenance.explain(options.out, options.explain):
        values = {name: value for name, value in entry.get("values", {}).items() if value is not None}
        numbers = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        say(console, f"{entry['id']}  {entry['text']}" + f"  ({numbers})" * bool(numbers))
        for note in entry.get("footnotes", ()):
            say(console, f"  note: {note}")
        if entry.get("published"):
            say(console, "  published in the paper (analysis/paper/published.csv)")
        elif not entry["runs"]:
            say(console, "  computed from the configuration: no run of the study has it")
        for run in entry.get("runs", ()):
            changes = ", with uncommitted changes" * run.get("uncommitted_changes", False)
            known = {"seed": "unknown", "commit": "unknown", "cell_id": ""} | run
            about = f"seed {known['seed']}  commit {known['commit']}{changes}  {known['cell_id']}"
            say(console, f"  run {run['run_id']}  {about}")
    return 0


def show(console: Console, table: Table) -> None:
    """A table, its caption and its footnotes at a terminal."""
    for part in typeset.for_terminal(table, console.width):
        console.print(part)
    say(console, table.caption)
    for letter, note in table.notes:
        say(console, f"{letter}) {note}")


def say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
