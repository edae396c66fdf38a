"""What runs say about the paper's sentences and published numbers.

A claim quotes a sentence and holds a function from the entries of its table to a judgement: holds, contradicted or
undecided, with the comparisons that decide it. Accuracies in percent, differences in percentage points.

From several seeds a difference counts when it is significant at 5 % after Holm's correction over the comparisons of
its claim (`analysis.stats.seeds.compare`). From one seed, as in the paper, the order of the single numbers counts, and
the judgement's note says so. What is missing can leave a claim undecided, but not make it hold; so do runs that differ
in their recipe.

The published numbers are judged one by one, by an equivalence test with a stated margin (`published_numbers`).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.paper.entries import Claim, Entries, Judgement, PaperTable, departures
from analysis.paper.published import published, published_runs
from analysis.paper.rules import NOT_COMPARABLE, UNDECIDED
from analysis.runs.comparability import conform
from analysis.stats.seeds import ABOVE, BELOW, REPRODUCED, SAME, SeveralRuns, by_seed, equivalent
from relvit.cell import DRLOC

# Percentage points. A deviation that does not matter: about the standard error that 10,000 test images leave in the
# difference of two accuracies near 90 %, sqrt(2 x 0.9 x 0.1 / 10,000) = 0.42 %.
MARGIN = 0.5
# A number with two decimals against the difference of two such: 3 x 0.005.
ROUNDING = 0.015


@lru_cache(maxsize=8)
def sentences(entries: Entries, margin: float = MARGIN) -> pd.DataFrame:
    """Every sentence of the paper that a table decides, judged on its entries.

    margin: in percentage points, above 0, within which numbers count as the same.
    Index: claim. Columns: sentence, where, table, verdict, numbers, note; seeds, the most behind any of its comparisons
    (1: the single numbers count and nothing is tested); needs, for an undecided claim how many seeds would decide it,
    if what was seen is what there is; not_comparable, the reasons of `departures` joined by "; " (empty where the runs
    are comparable with the paper's); runs, the ids of those that it rests on. Runs of more than one setting leave a
    claim undecided, with a note.
    """
    rows, reasons, finished = {}, "; ".join(entries.departures), entries.finished
    for claim in entries.of.claims:
        row = _judged(claim, entries, margin)
        used = finished[finished["label"].isin(row.pop("labels"))]
        # What could not be compared, as runs of several settings, rests on all entries.
        ids = tuple(sorted((used if len(used) else finished)["run_id"]))
        rows[claim.id] = row | {"not_comparable": reasons, "runs": ids}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("claim")


@cache
def paper_against_itself(table: PaperTable) -> pd.DataFrame:
    """Verdicts on the paper's sentences from its own numbers, some of which contradict a sentence (section 3.3 calls
    SpRel the best single task; Table 4 has AbsPos and Dist above it)."""
    runs = published_runs()
    return sentences(Entries(table, conform(runs[runs["study"] == table.name])), ROUNDING)


def _judged(claim: Claim, entries: Entries, margin: float) -> dict[str, Any]:
    try:
        judged = claim.judge(entries, margin)
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
        "labels": set(judged.entries)
        or {name for place in judged.comparisons.index for name in np.atleast_1d(np.array(place, dtype=object))},
    }


def published_numbers(entries: Entries, margin: float = MARGIN) -> pd.DataFrame:
    """Every published number of a table against ours, by the equivalence test of `statistics.equivalent`.

    margin: of accuracies, in points; that of a task's metric is half the spread of its published column where that is
    less, so that it can tell the column's cells apart. Index: number, from 0. Columns: cell (as in the claims'
    numbers), metric (as in published.csv), published, margin, mean, std, n, low, high, p_equivalence; seen, what the
    numbers say: "reproduced", "within noise", "above", "below", or "undecided" where there is no run; verdict, the
    same or "not comparable"; why, the reasons of `departures`; runs, their ids. From one seed the single number counts:
    within the margin it is reproduced. Empty where the paper prints no number of the table. Raises SeveralRuns.
    """
    table, runs = entries.of, entries.labelled
    paper = published(table.name)
    paper = paper.assign(tasks=paper["tasks"].where(paper["method"] != DRLOC, DRLOC))
    paper["label"] = [table.label_of(row) for row in paper.to_dict("records")]
    paper = paper.dropna(subset="label")
    if paper.empty:
        return paper
    parts = []
    for metric, numbers in paper.groupby("metric", sort=False):
        column = f"test_{metric}"
        here = runs.assign(**{column: runs.get(column, np.nan)})
        spread = (numbers["value"].max() - numbers["value"].min()) / 2
        within = margin if metric == "accuracy" or not spread else min(margin, spread)
        result = equivalent(by_seed(here, "label", column), numbers.set_index("label")["value"], within)
        finished = here[(here["status"] == "FINISHED") & here[column].notna()]
        ids = finished.groupby("label")["run_id"].agg(tuple)
        reasons = {label: "; ".join(departures(rows, table)) for label, rows in finished.groupby("label")}
        seen = [_seen(row, within) for row in result.to_dict("records")]
        parts.append(
            result.assign(
                cell=result.index,
                metric=metric,
                margin=within,
                seen=seen,
                why=[reasons.get(label, "") for label in result.index],
                runs=[ids.get(label, ()) for label in result.index],
            )
        )
    found = pd.concat(parts, ignore_index=True)
    found["verdict"] = found["seen"].where(found["why"] == "", NOT_COMPARABLE)
    columns = ["cell", "metric", "published", "margin", "mean", "std", "n", "low", "high", "p_equivalence"]
    return found[[*columns, "seen", "verdict", "why", "runs"]]


def _seen(row: Mapping[str, Any], margin: float) -> str:
    if row["n"] != 1:
        return row["verdict"]
    off = row["mean"] - row["published"]
    return REPRODUCED if abs(off) <= margin + SAME else ABOVE if off > 0 else BELOW
