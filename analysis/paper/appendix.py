"""What stands behind a study's table, as tables: paired differences, the tasks' effects, the published numbers and the
paper's sentences with verdicts.

Every function takes the runs that the study's table shows and returns None where they have nothing to say.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd

from analysis.output.typeset import DASH, Column, Entry, Row, Table
from analysis.paper import numbers as tables
from analysis.paper import verdicts as claims
from analysis.runs.comparability import conform
from analysis.stats import effects
from analysis.stats import seeds as statistics
from analysis.stats.seeds import by_seed
from relvit.cell import NONE, task_combinations

_TASK_NAMES = {"sprel": "SpRel", "dist": "Dist", "ang": "Ang", "abspos": "AbsPos", "drloc": "L_drloc"}
_METRIC_NAMES = {
    "accuracy": "Accuracy",
    "sprel_accuracy": "SpRel (Acc)",
    "abspos_accuracy": "AbsPos (Acc)",
    "dist_mse_x100": "Dist (MSE)",
    "ang_mse_x100": "Ang (MSE)",
}


def appendix(study: str, runs: pd.DataFrame, name: str | None = None) -> list[Table]:
    """All tables below that this study's runs have something to say in, their files beginning with `name`."""
    name, runs = name or study, conform(runs)
    made = [differences(study, runs, f"{name}-differences")]
    if study == "table4":
        made.append(task_effects(runs, f"{name}-effects"))
    made += [figure_verdicts(study, runs, f"{name}-published"), sentence_verdicts(study, runs, f"{name}-verdicts")]
    if study != "table1":
        made.append(tables.layout_table1(runs, f"{name}-models"))
    return [table for table in made if table]


def combination_name(tasks: str) -> str:
    """ "SpRel + AbsPos" for "sprel+abspos", "Supervised" for none."""
    return "Supervised" if tasks == NONE else " + ".join(_TASK_NAMES.get(task, task) for task in tasks.split("+"))


# Paired differences


def differences(study: str, runs: pd.DataFrame, name: str) -> Table | None:
    """Every cell against the supervised one of its data set and backbone: over common seeds, corrected by Holm."""
    if study == "table4":
        labelled, pairs = runs.assign(label=runs["tasks"]), [(tasks, NONE) for tasks in task_combinations()[1:]]
        names = {tasks: combination_name(tasks) for tasks in task_combinations()}
    elif study in ("table2", "table3"):
        labelled = claims.labelled(tables.entries_of(runs, study), study)
        baselines = [label for label in labelled["label"].unique() if label.endswith(" supervised")]
        pairs, names = [], {}
        for baseline in baselines:
            group = baseline.removesuffix(" supervised")
            for method in ("drloc", "relvit"):
                if (labelled["label"] == f"{group} {method}").any():
                    pairs.append((f"{group} {method}", baseline))
                    parts = group.split(" ")
                    shown = [tables.DATASET_NAMES.get(parts[0], parts[0]), *map(tables.FAMILIES.get, parts[1:])]
                    names[f"{group} {method}"] = ", ".join([*map(str, shown), tables.METHODS[method]])
    elif study == "figure2":
        labelled = tables.figure2_entries(runs)
        pairs = [(label, "random") for label in tables.FIGURE2_LABELS if label != "random"]
        names = {label: f"SpRel, {label}" for label in tables.FIGURE2_LABELS}
    else:
        return None
    wide = by_seed(labelled, "label")
    compared = statistics.compare(wide, pairs)
    if not compared["n"].any():
        return None
    needed = statistics.seeds_to_find(compared)
    ids = run_ids(labelled, "label")
    # Of what is corrected for their number: all comparisons.
    family = tuple(sorted({run for pair in compared.index for run in _common(wide, ids, pair)}))
    several = bool(compared["low"].notna().any())
    columns = [Column("cell", "Cell", align="l"), Column("difference", "Difference", "(points)")]
    if several:
        columns += [Column("interval", "95 %", "interval"), Column("p", "p"), Column("p_holm", "p", "(Holm)")]
    columns += [Column("n", "Common", "seeds"), Column("seeds", "Seeds", "needed")]
    rows = []
    for (cell, baseline), row in compared.iterrows():
        rests_on = _common(wide, ids, (cell, baseline))
        text = DASH if np.isnan(row["difference"]) else f"{row['difference']:+.2f}"
        keep = {key: row[key] for key in ("std", "n", "low", "high", "p", "p_holm")}
        numbers = {"value": row["difference"], **keep} if rests_on else {}
        entries = [
            Entry(names[cell]),
            Entry(text, numbers=numbers, runs=rests_on, bold=bool(row["p_holm"] < statistics.ALPHA)),
        ]
        if several:
            interval = DASH if np.isnan(row["low"]) else f"[{row['low']:+.2f}, {row['high']:+.2f}]"
            entries.append(beside(interval, rests_on))
            entries += [beside(p_value(row[key]), of, row[key]) for key, of in (("p", rests_on), ("p_holm", family))]
        entries += [beside(str(int(row["n"])), rests_on), beside(needed[cell, baseline], family)]
        rows.append(Row(cell, tuple(entries)))
    baseline = "a random start" if study == "figure2" else "the supervised cell"
    tested = (
        "95 % t intervals, p of the paired t test by each pair's own spread, and p corrected for all rows by Holm; "
        "bold where that is below 5 %."
        if several
        else "One seed: nothing is tested."
    )
    caption = (
        f"Differences in test accuracy to {baseline}, in percentage points, over common seeds. {tested} Seeds needed: "
        "in all, to find the difference seen, if it is what there is, with a power of 80 %."
    )
    made = Table(name, f"Differences to {baseline}", tuple(columns), tuple(rows), caption)
    return tables.footnoted(made, labelled, tables.VARYING.get(study, ()))


def _common(wide: pd.DataFrame, ids: Mapping[tuple[str, int], str], pair: tuple[str, str]) -> tuple[str, ...]:
    """The runs of two cells with the seeds that both have."""
    common = wide.reindex(columns=list(pair)).dropna().index
    return tuple(sorted(ids[label, seed] for label in pair for seed in common))


def beside(text: str, runs: tuple[str, ...], value: float = np.nan) -> Entry:
    """What stands beside a number that has the footnotes."""
    numbers = {} if pd.isna(value) else {"value": value}
    return Entry(text, numbers=numbers, runs=() if text == DASH else runs, noted=False)


def p_value(p: float) -> str:
    """Three decimals, and never 0."""
    return DASH if pd.isna(p) else "<0.001" if p < 0.0005 else f"{p:.3f}"


def run_ids(runs: pd.DataFrame, by: str) -> dict[tuple[str, int], str]:
    """The ids of finished runs by cell and seed."""
    finished = runs[(runs["status"] == "FINISHED") & runs[by].notna() & runs["seed"].notna()]
    return dict(zip(zip(finished[by], finished["seed"].astype(int)), finished["run_id"]))


# Effects


def task_effects(runs: pd.DataFrame, name: str) -> Table | None:
    """Main effects, interactions, what each task adds to the three others, and Shapley values."""
    missing = effects.missing(runs)
    parts = (
        ("main", "Main effect, interaction", effects.main_effects_and_interactions(runs)),
        ("added", "Added to the three others", effects.leave_one_out(runs)),
        ("shapley", "Shapley value", effects.shapley(runs)),
    )
    if not any(part["n"].any() for *_, part in parts):
        return None
    several = any(part["low"].notna().any() for *_, part in parts)
    everything = effects.complete(runs, task_combinations())
    columns = [Column("kind", "Effect", align="l"), Column("task", "Task", align="l"), Column("effect", "Points")]
    columns += [Column("interval", "95 % interval")] * several + [Column("n", "Seeds"), Column("share", "Share")]
    rows = []
    for kind, heading, part in parts:
        for number, (effect, row) in enumerate(part.iterrows()):
            rests_on = everything if kind != "added" else effects.complete(runs, effects.with_and_without(effect))
            text = DASH if np.isnan(row["mean"]) else f"{row['mean']:+.2f}"
            if not np.isnan(row["std"]):
                text += f" ± {row['std']:.2f}"
            numbers = {"value": row["mean"], **{key: row[key] for key in ("std", "n", "low", "high")}}
            share = row.get("share", np.nan)
            bold = bool(row["low"] > 0 or row["high"] < 0)
            entries = [
                Entry("" if number else heading),
                Entry(" × ".join(_TASK_NAMES[task] for task in effect.split(":"))),
                Entry(text, numbers=numbers if row["n"] else {}, runs=rests_on if row["n"] else (), bold=bold),
            ]
            if several:
                interval = DASH if np.isnan(row["low"]) else f"[{row['low']:+.2f}, {row['high']:+.2f}]"
                entries.append(beside(interval, rests_on))
            entries.append(beside(str(int(row["n"])), rests_on))
            entries.append(beside(_share(share), rests_on, share) if kind == "shapley" else Entry())
            rows.append(Row(f"{kind}-{effect}", tuple(entries), rule=number == 0))
    lacking = f" {len(missing)} cells of the design are not finished: their seeds are left out." * (len(missing) > 0)
    caption = (
        "Effects of the tasks on test accuracy after fine-tuning, in percentage points, from the full design of 16 "
        "cells within each seed. Main effect: the 8 cells with the task less the 8 without. Interaction: half of what "
        "one task's effect gains where the other is on. Shapley: the gain of all four over none, split over all orders "
        f"of adding them, and each task's share of it.{lacking} "
        + (
            "Mean ± standard deviation over seeds, 95 % t intervals, not corrected for their number; bold: without 0."
            if several
            else "One seed: no intervals."
        )
    )
    made = Table(name, "Effects of the tasks", tuple(columns), tuple(rows), caption)
    return tables.footnoted(made, runs)


def _share(share: float) -> str:
    return DASH if pd.isna(share) else f"{100 * share:.0f} %"


# Against the paper


def figure_verdicts(study: str, runs: pd.DataFrame, name: str) -> Table | None:
    """Each published number and ours, with a verdict by the equivalence test."""
    if study not in ("table2", "table3", "table4"):
        return None
    judged = claims.figures(runs, study)
    if not judged["n"].any():
        return None
    columns = (
        Column("cell", "Cell", align="l"),
        Column("metric", "Metric", align="l"),
        Column("published", "Published"),
        Column("ours", "Ours"),
        Column("interval", "95 % interval"),
        Column("n", "n"),
        Column("p", "p"),
        Column("verdict", "Verdict", align="l"),
    )
    rows = []
    for row in judged.to_dict("records"):
        keep = {key: row[key] for key in ("std", "n", "low", "high", "p_equivalence")}
        verdict = by_one_seed(row["seen"], row["n"])
        if row["verdict"] == claims.NOT_COMPARABLE:
            verdict = f"not comparable ({verdict})"
        if not row["n"]:
            verdict = "no finished run"
        rests_on = tuple(sorted(row["runs"]))
        interval = DASH if pd.isna(row["low"]) else f"[{row['low']:.2f}, {row['high']:.2f}]"
        entries = (
            Entry(_cell_name(study, row["cell"])),
            Entry(_METRIC_NAMES[row["metric"]]),
            Entry(f"{row['published']:.2f}", numbers={"value": row["published"]}, published=True),
            Entry(
                tables.spread(row["mean"], row["std"]),
                numbers={"value": row["mean"], **keep} if row["n"] else {},
                runs=rests_on,
            ),
            beside(interval, rests_on),
            beside(str(int(row["n"])), rests_on),
            beside(p_value(row["p_equivalence"]), rests_on, row["p_equivalence"]),
            beside(verdict, rests_on),
        )
        rows.append(Row(f"{row['cell']} {row['metric']}", entries))
    reasons = list(dict.fromkeys(reason for why in judged["why"] for reason in why.split("; ") if reason))
    margins = judged.drop_duplicates("metric").set_index("metric")["margin"]
    of_tasks = [f"{_METRIC_NAMES[name]} {margin:.3g}" for name, margin in margins.items() if name != "accuracy"]
    caption = (
        f"The published numbers of Table {study[-1]} and ours. Verdict: reproduced where two one-sided t tests at 5 % "
        "(p) show ours within a margin of the published number; above or below where the 95 % interval lies beyond the "
        f"margin; within noise where neither is shown. Margin: {margins['accuracy']:g} points of accuracy"
        + f"; of a task's metric half the spread of its published column ({', '.join(of_tasks)})" * bool(of_tasks)
        + "."
        + " One seed: the single number counts, nothing is tested." * bool((judged["n"] == 1).any())
        + _reasons(reasons)
    )
    made = Table(name, "The published numbers", columns, tuple(rows), caption)
    return tables.footnoted(made, claims.of_study(runs, study), tables.VARYING.get(study, ()))


def by_one_seed(verdict: str, seeds: int) -> str:
    """The verdict, with what one seed's is worth in front of it."""
    return f"one seed: {verdict}" if seeds == 1 else verdict


def _cell_name(study: str, cell: str) -> str:
    if study == "table4":
        return combination_name(cell)
    dataset, *family, method = cell.split(" ")
    parts = [tables.DATASET_NAMES.get(dataset, dataset), *(tables.FAMILIES[each] for each in family)]
    return ", ".join([*parts, tables.METHODS[method]])


def _reasons(reasons: list[str]) -> str:
    return f" Not comparable with the paper: {'; '.join(reasons)}." if reasons else ""


def sentence_verdicts(study: str, runs: pd.DataFrame, name: str) -> Table | None:
    """The sentences of the paper that this study decides, judged from these runs and from the paper's own numbers."""
    if study not in {claim.table for claim in claims.CLAIMS}:
        return None
    judged = claims.verdicts(runs, table=study)
    columns = (
        Column("sentence", "Sentence", align=4.6),
        Column("verdict", "Verdict", align=2.2),
        Column("numbers", "Decided by", align=4.6),
        Column("paper", "The paper's own numbers", align=3.4),
    )
    rows = []
    for claim, row in judged.iterrows():
        verdict = by_one_seed(row["verdict"], row["seeds"])
        verdict = f"not comparable (here: {verdict})" if row["not_comparable"] else verdict
        needs = f"Seeds needed: {shortened(row['needs'])}." if row["needs"] else ""
        text = f"{shortened(row['numbers'])}. " * bool(row["numbers"]) + f"{row['note'][:1].upper()}{row['note'][1:]}."
        own = paper_against_itself(study).loc[claim]
        against = f"{own['verdict']}: {own['numbers']}" if own["verdict"] == claims.CONTRADICTED else own["verdict"]
        printed = own["note"] != "no finished runs to compare"
        entries = (
            Entry(f"“{row['sentence']}” ({row['where']})"),
            Entry(verdict, runs=row["runs"], bold=not row["not_comparable"] and row["seeds"] > 1),
            Entry(f"{text} {needs}".strip(), runs=row["runs"]),
            Entry(against if printed else "none printed", published=printed),
        )
        rows.append(Row(claim, entries, rule=bool(rows)))
    reasons = list(dict.fromkeys(why for each in judged["not_comparable"] for why in each.split("; ") if why))
    caption = (
        "Sentences of the paper, as these runs judge them. Over several seeds a difference counts where it is "
        "significant at 5 % after Holm's correction; a stated gain, likeness or level holds where tests at 5 % show it "
        f"(gains within {claims.MARGIN:g} points, single tasks within {claims.SIMILAR:g}) and is contradicted where "
        "the interval, Bonferroni's for several, lies beyond. Of one seed the single numbers count, nothing is tested. "
        f"Last: what the paper's own tables say of its sentence.{_reasons(reasons)}"
    )
    made = Table(name, "The paper's sentences", columns, tuple(rows), caption)
    return tables.footnoted(made, claims.of_study(runs, study), tables.VARYING.get(study, ()))


def shortened(numbers: str, most: int = 4) -> str:
    """Of a long enumeration the first, and how many more."""
    parts = numbers.split("; ")
    return numbers if len(parts) <= most + 1 else "; ".join([*parts[:most], f"and {len(parts) - most} more"])


@cache
def paper_against_itself(study: str) -> pd.DataFrame:
    """Verdicts on the paper's sentences from its own numbers, some of which contradict a sentence (section 3.3 calls
    SpRel the best single task; Table 4 has AbsPos and Dist above it)."""
    return claims.verdicts(claims.published_runs(), claims.ROUNDING, study)
