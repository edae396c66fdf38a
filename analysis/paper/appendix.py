"""What stands behind a study's table, as tables: paired differences, the tasks' effects, the published numbers and the
paper's sentences with verdicts.

Every function takes the entries of the study's table and returns None where they have nothing to say.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.typeset import DASH, Column, Entry, Row, Table
from analysis.paper.entries import Entries
from analysis.paper.numbers import (
    beside,
    interval_text,
    metric_title,
    p_value,
    plus_minus,
    published_entry,
    reasons_in,
    tested_numbers,
)
from analysis.paper.rules import CONTRADICTED, NOT_COMPARABLE, NOTHING_TO_COMPARE, SIMILAR, compare_entries
from analysis.paper.table1 import layout_table1
from analysis.paper.verdicts import MARGIN, paper_against_itself, published_numbers, sentences
from analysis.runs.splits import split_of
from analysis.stats.seeds import ALPHA, seeds_to_find


def appendix(entries: Entries, name: str | None = None) -> list[Table]:
    """All tables behind a table that its entries have something to say in, their files beginning with `name`."""
    name = name or entries.of.name
    made = [differences(entries, f"{name}-differences"), *entries.of.behind(entries, name)]
    made += [number_verdicts(entries, f"{name}-published"), sentence_verdicts(entries, f"{name}-verdicts")]
    if not entries.of.of_all_runs:
        made.append(layout_table1(entries, f"{name}-models"))
    return [table for table in made if table]


# Paired differences


def differences(entries: Entries, name: str) -> Table | None:
    """Every cell against its baseline, the supervised one of its data set and backbone, corrected as bold in the table
    itself."""
    known = entries.labelled
    pairs = entries.of.pairs(list(known["label"].unique()))
    wide = entries.wide()
    group_of = entries.of.group
    compared = compare_entries(wide, pairs, group_of)
    if not compared["difference"].notna().any():
        return None
    groups = pd.Series([group_of(label) for label in wide.columns]).value_counts()
    needed = {}
    for group, part in compared.groupby(np.array([group_of(cell) for cell, _ in compared.index]), sort=False):
        needed |= seeds_to_find(part, int(groups[group]))
    ids = run_ids(known, "label")
    # Every comparison rests on all cells of its group: they tell the spread, and are what is corrected for.
    family = {group: _runs_of(ids, lambda label, of=group: group_of(label) == of) for group in groups.index}
    several = bool(compared["low"].notna().any())
    columns = [Column("cell", "Cell", align="l"), Column("difference", "Difference", "(points)")]
    if several:
        columns += [Column("interval", "95 %", "interval"), Column("p", "p"), Column("p_family", "p", "(all pairs)")]
    columns += [Column("n", "Seeds"), Column("seeds", "Seeds", "needed")]
    rows = []
    for (cell, baseline), row in compared.iterrows():
        pair, group = (cell, baseline), group_of(cell)
        rests_on = _runs_of(ids, lambda label, pair=pair: label in pair) if pd.notna(row["difference"]) else ()
        text = DASH if np.isnan(row["difference"]) else f"{row['difference']:+.2f}"
        numbers = tested_numbers(row["difference"], row) if rests_on else {}
        texts = [
            Entry(entries.of.label_name(cell)),
            Entry(text, numbers=numbers, runs=rests_on, bold=bool(row["p_family"] < ALPHA)),
        ]
        if several:
            texts.append(beside(interval_text(row["low"], row["high"], "+"), rests_on))
            texts += [beside(p_value(row[key]), family[group], row[key]) for key in ("p", "p_family")]
        texts += [beside(str(int(row["n"])), rests_on), beside(needed[pair], family[group])]
        rows.append(Row(cell, tuple(texts)))
    baseline = entries.of.baseline
    by_knn = " (of a pre-training alone k-NN's)" * bool((known["protocol"] == "pretrain").any())
    tested = (
        "95 % intervals and p, each the more cautious of two: by the spread of all cells, seeds as blocks, and by that "
        "of the pair; and p corrected for all pairs of cells, as bold in the table itself; bold where it is below 5 %."
        if several
        else "One seed: nothing is tested."
    )
    caption = (
        f"Differences in {split_of(entries.runs)} accuracy{by_knn} to {baseline}, in percentage points. {tested} Seeds "
        "needed: in all, to find the difference seen, if it is what there is, with a power of 80 %."
    )
    made = Table(name, f"Differences to {baseline}", tuple(columns), tuple(rows), caption)
    return entries.footnoted(made)


def _runs_of(ids: Mapping[tuple[str, int], str], counts: Callable[[str], bool]) -> tuple[str, ...]:
    """The runs of the cells that count."""
    return tuple(sorted(run for (label, _), run in ids.items() if counts(label)))


def run_ids(runs: pd.DataFrame, by: str) -> dict[tuple[str, int], str]:
    """The ids of finished runs by cell and seed."""
    finished = runs[(runs["status"] == "FINISHED") & runs[by].notna() & runs["seed"].notna()]
    return dict(zip(zip(finished[by], finished["seed"].astype(int)), finished["run_id"]))


# Against the paper


def number_verdicts(entries: Entries, name: str) -> Table | None:
    """Each published number and ours, with a verdict by the equivalence test."""
    judged = published_numbers(entries)
    if judged.empty or not judged["n"].any():
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
        verdict = f"one seed: {row['mean'] - row['published']:+.2f}, undecided" if row["n"] == 1 else row["seen"]
        if row["verdict"] == NOT_COMPARABLE:
            verdict = f"not comparable ({verdict})"
        if not row["n"]:
            verdict = "no result"
        rests_on = tuple(sorted(row["runs"]))
        texts = (
            Entry(entries.of.label_name(row["cell"])),
            Entry(metric_title(row["metric"])),
            published_entry(row["published"], remark=row["remark"]),
            Entry(
                plus_minus(row["mean"], row["std"]),
                numbers={"value": row["mean"], **keep} if row["n"] else {},
                runs=rests_on,
            ),
            beside(interval_text(row["low"], row["high"]), rests_on),
            beside(str(int(row["n"])), rests_on),
            beside(p_value(row["p_equivalence"]), rests_on, row["p_equivalence"]),
            beside(verdict, rests_on),
        )
        rows.append(Row(f"{row['cell']} {row['metric']}", texts))
    reasons = reasons_in(judged["why"])
    margins = judged.drop_duplicates("metric").set_index("metric")["margin"]
    of_tasks = [f"{metric_title(name)} {margin:.3g}" for name, margin in margins.items() if name != "accuracy"]
    most = judged.loc[judged["metric"] == "accuracy", "margin"].max()
    larger = f", or where it is more (up to {most:.2g}) what the number's test images leave in a difference"
    caption = (
        f"The published numbers of {entries.of.title} and ours. Verdict: reproduced where two one-sided t tests at 5 % "
        "(p) show our mean within a margin of the number as printed; above or below where ours is off by more than the "
        "margin even though a published number is one draw, from a test set of known size (95 % prediction interval); "
        f"within noise where neither is shown. Margin: {MARGIN:g} points of accuracy{larger * bool(most > MARGIN)}"
        + f"; of a task's metric half the spread of its published column ({', '.join(of_tasks)})" * bool(of_tasks)
        + "."
        + " One seed: how far it is off; nothing is tested." * bool((judged["n"] == 1).any())
        + _reasons(reasons)
    )
    made = Table(name, "The published numbers", columns, tuple(rows), caption)
    return entries.footnoted(made)


def by_one_seed(verdict: str, seeds: int) -> str:
    """The verdict, with what one seed's is worth in front of it."""
    return f"one seed: {verdict}" if seeds == 1 else verdict


def with_reservations(row: Mapping[str, Any]) -> str:
    """The verdict on a sentence, with what limits it: one seed, or runs that are not comparable with the paper's."""
    verdict = by_one_seed(row["verdict"], row["seeds"])
    return f"not comparable (here: {verdict})" if row["not_comparable"] else verdict


def _reasons(reasons: list[str]) -> str:
    return f" Not comparable with the paper: {'; '.join(reasons)}." if reasons else ""


def sentence_verdicts(entries: Entries, name: str) -> Table | None:
    """The sentences of the paper that this study decides, judged from these runs and from the paper's own numbers."""
    if not entries.of.claims:
        return None
    judged, itself = sentences(entries), paper_against_itself(entries.of)
    columns = (
        Column("sentence", "Sentence", align=4.6),
        Column("verdict", "Verdict", align=2.2),
        Column("numbers", "Decided by", align=4.6),
        Column("paper", "The paper's own numbers", align=3.4),
    )
    rows = []
    for claim, row in judged.iterrows():
        verdict = with_reservations(row)
        needs = f"Seeds needed: {shortened(row['needs'])}." if row["needs"] else ""
        text = f"{shortened(row['numbers'])}. " * bool(row["numbers"]) + f"{row['note'][:1].upper()}{row['note'][1:]}."
        own = itself.loc[claim]
        against = f"{own['verdict']}: {own['numbers']}" if own["verdict"] == CONTRADICTED else own["verdict"]
        against += f". {own['remark']}" * bool(own["remark"])
        printed = own["note"] != NOTHING_TO_COMPARE
        texts = (
            Entry(f"“{row['sentence']}” ({row['where']})"),
            Entry(verdict, runs=row["runs"], bold=not row["not_comparable"] and row["seeds"] > 1),
            Entry(f"{text} {needs}".strip(), runs=row["runs"]),
            Entry(against if printed else "none printed", published=printed),
        )
        rows.append(Row(claim, texts, rule=bool(rows)))
    reasons = reasons_in(judged["not_comparable"])
    caption = (
        "Sentences of the paper, as these runs judge them, by the error model of the table itself. A sentence holds "
        "where each of its differences is significant at 5 %, and is contradicted where one of the opposite sign is at "
        "5 % for all pairs together. A stated gain, likeness or level holds where tests at 5 % show it (gains within "
        f"{MARGIN:g} points, single tasks within {SIMILAR:g}), and is contradicted where the interval, for several "
        "Bonferroni's, lies beyond, for gains with the error of the single runs that they were published from. One "
        f"seed decides nothing. Last: what the paper's own tables say of its sentence, as printed.{_reasons(reasons)}"
    )
    made = Table(name, "The paper's sentences", columns, tuple(rows), caption)
    return entries.footnoted(made)


def shortened(numbers: str) -> str:
    """Of an enumeration of more than five the first four, and how many more."""
    parts = numbers.split("; ")
    return numbers if len(parts) <= 5 else "; ".join([*parts[:4], f"and {len(parts) - 4} more"])
