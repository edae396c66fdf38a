"""What runs say about the paper's sentences and published numbers.

A claim quotes a sentence and holds a function from the entries of its table to a judgement: holds, contradicted or
undecided, with the comparisons that decide it. Accuracies in percent, differences in percentage points.

Everything is compared by one error model (`analysis.stats.blocks`), and of one seed nothing is decided. A sentence that
needs several comparisons needs each at 5 %, and is contradicted by one that is corrected for their number. What is
missing can leave a claim undecided, but not make it hold; so do runs that differ in their recipe.

The published numbers are judged one by one, by an equivalence test with a stated margin (`published_numbers`).
"""

from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.paper.entries import Claim, Entries, Judgement, PaperTable, departures
from analysis.paper.published import published, published_runs, remark, reservations
from analysis.paper.rules import NOT_COMPARABLE, UNDECIDED
from analysis.runs.comparability import conform
from analysis.runs.splits import split_of
from analysis.stats.seeds import SeveralRuns, by_seed, equivalent
from relvit.cell import DRLOC

# Percentage points. A deviation that does not matter; of a published accuracy at least the standard error that its test
# images leave in the difference of two such (`margin_of`), which is 0.42 for 10,000 images near 90 %.
MARGIN = 0.5
# A number with two decimals against the difference of two such: 3 x 0.005.
ROUNDING = 0.015


@lru_cache(maxsize=8)
def sentences(entries: Entries, margin: float = MARGIN, printed: bool = False) -> pd.DataFrame:
    """Every sentence of the paper that a table decides, judged on its entries.

    margin: in percentage points, above 0, within which numbers count as the same. printed: the entries are the paper's
    own numbers (`published_runs`), which are not tested but taken as they are printed.
    Index: claim. Columns: sentence, where, table, verdict, numbers, note; seeds, the most behind any of its comparisons
    (1: nothing is tested); needs, for an undecided claim how many seeds would decide it,
    if what was seen is what there is; not_comparable, the reasons of `departures` joined by "; " (empty where the runs
    are comparable with the paper's); runs, the ids of those that it rests on. Runs of more than one setting leave a
    claim undecided, with a note. remark: on the published numbers behind it, who trained them and on which split.
    """
    rows, finished, paper = {}, entries.finished, _published_entries(entries.of)
    for claim in entries.of.claims:
        row = _judged(claim, entries, margin, printed)
        labels = row.pop("labels")
        row["remark"] = remark(paper[paper["label"].isin(labels)], split_of(entries.runs))
        reasons = list(entries.departures)
        if row.pop("stated") and row["remark"] and not printed:
            # A gain that is stated of other images or another recipe is nothing to hold these runs to.
            reasons.append(row["remark"].rstrip("."))
        used = finished[finished["label"].isin(labels)]
        # What could not be compared, as runs of several settings, rests on all entries.
        ids = tuple(sorted((used if len(used) else finished)["run_id"]))
        rows[claim.id] = row | {"not_comparable": "; ".join(reasons), "runs": ids}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("claim")


@cache
def paper_against_itself(table: PaperTable) -> pd.DataFrame:
    """Verdicts on the paper's sentences from its own numbers, some of which contradict a sentence (section 3.3 calls
    SpRel the best single task; Table 4 has AbsPos and Dist above it)."""
    runs = published_runs()
    return sentences(Entries(table, conform(runs[runs["study"] == table.name])), ROUNDING, printed=True)


def _judged(claim: Claim, entries: Entries, margin: float, printed: bool) -> dict[str, Any]:
    try:
        judged = claim.judge(entries, margin, printed)
    except SeveralRuns as error:
        judged = Judgement(UNDECIDED, "", str(error), pd.DataFrame())
    needs = judged.needs if judged.verdict == UNDECIDED else ""
    if entries.mixture and not judged.comparisons.empty:
        note, needs = f"runs of mixed settings: {'; '.join(entries.mixture)}", ""
        judged = replace(judged, verdict=UNDECIDED, note=note)
    return {
        "sentence": claim.sentence,
        "where": claim.where,
        "table": entries.of.name,
        "verdict": judged.verdict,
        "numbers": judged.numbers,
        "note": judged.note,
        "seeds": int(judged.comparisons["n"].max()) if len(judged.comparisons) else 0,
        "needs": needs,
        "stated": judged.stated,
        "labels": set(judged.entries)
        or {name for place in judged.comparisons.index for name in np.atleast_1d(np.array(place, dtype=object))},
    }


def _published_entries(table: PaperTable) -> pd.DataFrame:
    """`published`, with the column label; without what is no entry of the table."""
    paper = published(table.name)
    paper = paper.assign(tasks=paper["tasks"].where(paper["method"] != DRLOC, DRLOC))
    labels = np.array([table.label_of(row) for row in paper.to_dict("records")], dtype=object)
    return paper.assign(label=labels).dropna(subset="label")


def margin_of(accuracy: pd.Series, images: pd.Series) -> pd.Series:
    """The margin of published accuracies in percent: MARGIN, or the standard error that so many test images leave in
    the difference of two such accuracies where that is more."""
    return np.sqrt(2 * accuracy * (100 - accuracy) / images).clip(lower=MARGIN)


def published_numbers(entries: Entries) -> pd.DataFrame:
    """Every published number of a table against ours, by the tests of `analysis.stats.seeds.equivalent`.

    The margin of accuracies is that of `margin_of`; that of a task's metric is MARGIN, or half the spread of its
    published column where that is less, so that it can tell the column's cells apart. Index: number, from 0. Columns:
    cell (as in the claims' numbers), metric (as in published.csv), published, margin, mean, std, n, low, high,
    p_equivalence; seen, what the numbers say: "reproduced", "within noise", "above", "below", or "undecided" with fewer
    than two seeds; verdict, the same or "not comparable"; why, the reasons of `departures` and of `reservations`;
    remark, the latter; runs, their ids. Empty where the paper prints no number of the table's entries. Raises
    SeveralRuns.
    """
    table, runs, paper = entries.of, entries.labelled, _published_entries(entries.of)
    if paper.empty:
        return paper
    parts = []
    for metric, numbers in paper.groupby("metric", sort=False):
        numbers = numbers.set_index("label")
        remarks = {
            label: "; ".join(reservations(row, split_of(runs))) for label, row in numbers.to_dict("index").items()
        }
        column = f"test_{metric}"
        here = runs.assign(**{column: runs.get(column, np.nan)})
        spread = (numbers["value"].max() - numbers["value"].min()) / 2
        if metric == "accuracy":
            within, images = margin_of(numbers["value"], numbers["images"]), numbers["images"]
        else:
            within, images = pd.Series(min(MARGIN, spread) if spread else MARGIN, index=numbers.index), None
        result = equivalent(by_seed(here, "label", column), numbers["value"], within, images)
        finished = here[(here["status"] == "FINISHED") & here[column].notna()]
        ids = finished.groupby("label")["run_id"].agg(tuple)
        reasons = {label: "; ".join(departures(rows, table)) for label, rows in finished.groupby("label")}
        parts.append(
            result.assign(
                cell=result.index,
                metric=metric,
                margin=within,
                seen=result["verdict"],
                remark=[remarks[label] for label in result.index],
                why=["; ".join(filter(None, [reasons.get(label), remarks[label]])) for label in result.index],
                runs=[ids.get(label, ()) for label in result.index],
            )
        )
    found = pd.concat(parts, ignore_index=True)
    found["verdict"] = found["seen"].where(found["why"] == "", NOT_COMPARABLE)
    columns = ["cell", "metric", "published", "margin", "mean", "std", "n", "low", "high", "p_equivalence"]
    return found[[*columns, "seen", "verdict", "why", "remark", "runs"]]
