"""The paper's sentences that runs can check, as data, and what runs say about them.

A claim quotes a sentence and holds a function from runs to a judgement: holds, contradicted or undecided, with the
comparisons that decide it. Runs are those of `runs.gather.gather`; their tag "study" says which table or figure
they belong to, and those of one table must be of one setting. Accuracies in percent, differences in percentage points.

From several seeds a difference counts when it is significant at 5 % after Holm's correction over the comparisons of
its claim (`analysis.stats.seeds.compare`). From one seed, as in the paper, the order of the single numbers counts, and
the judgement's note says so. What is missing can leave a claim undecided, but not make it hold; so do runs that differ
in their recipe.

The published figures are judged one by one, by an equivalence test with a stated margin (`figures`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.paper.entries import departures, entry_label, labelled, mixture, of_study
from analysis.paper.published import published
from analysis.paper.rules import (
    NOT_COMPARABLE,
    SIMILAR,
    SOLVED,
    UNDECIDED,
    Claim,
    Judgement,
    all_above,
    all_similar,
    fixed,
    level_above,
    no_help,
    on_every_dataset,
    stated_gains,
)
from analysis.runs.comparability import conform
from analysis.stats.seeds import ABOVE, BELOW, REPRODUCED, SAME, SeveralRuns, by_seed, equivalent
from relvit.cell import DRLOC, NONE, TASKS, task_combinations
from relvit.paper import BEST

# Percentage points. A deviation that does not matter: about the standard error that 10,000 test images leave in the
# difference of two accuracies near 90 %, sqrt(2 x 0.9 x 0.1 / 10,000) = 0.42 %.
MARGIN = 0.5
# A number with two decimals against the difference of two such: 3 x 0.005.
ROUNDING = 0.015


def verdicts(runs: pd.DataFrame, margin: float = MARGIN, table: str | None = None) -> pd.DataFrame:
    """Every claim, or those of one table, judged on the finished runs of its study.

    margin: in percentage points, above 0, within which numbers count as the same.
    Index: claim. Columns: sentence, where, table, verdict, numbers, note; seeds, the most behind any of its comparisons
    (1: the single numbers count and nothing is tested); needs, for an undecided claim how many seeds would decide it,
    if what was seen is what there is; not_comparable, the reasons of `departures` joined by "; " (empty where the runs
    are comparable with the paper's); runs, the ids of those that it rests on. Runs of more than one setting leave a
    claim undecided, with a note.
    """
    rows = {}
    for study in dict.fromkeys(claim.table for claim in CLAIMS if table in (None, claim.table)):
        chosen = of_study(runs, study)
        mixed, reasons = mixture(chosen, study), "; ".join(departures(chosen, study))
        entries = labelled(conform(chosen), study)
        entries = entries[entries["status"] == "FINISHED"]
        for claim in CLAIMS:
            if claim.table == study:
                rows[claim.id] = _judged(claim, chosen, margin, mixed) | {"not_comparable": reasons}
                used = entries[entries["label"].isin(rows[claim.id].pop("labels"))]
                # What could not be compared, as runs of several settings, rests on all entries.
                rows[claim.id]["runs"] = tuple(sorted((used if len(used) else entries)["run_id"]))
    ordered = {claim.id: rows[claim.id] for claim in CLAIMS if claim.id in rows}
    return pd.DataFrame.from_dict(ordered, orient="index").rename_axis("claim")


def _judged(claim: Claim, runs: pd.DataFrame, margin: float, mixed: list[str]) -> dict[str, Any]:
    try:
        judged = claim.judge(runs, margin)
    except SeveralRuns as error:
        judged = Judgement(UNDECIDED, "", str(error), pd.DataFrame())
    needs = judged.needs if judged.verdict == UNDECIDED else ""
    if mixed and not judged.comparisons.empty:
        note, needs = f"runs of mixed settings: {'; '.join(mixed)}", ""
        judged = replace(judged, verdict=UNDECIDED, note=note)
    return {
        "sentence": claim.sentence,
        "where": claim.where,
        "table": claim.table,
        "verdict": judged.verdict,
        "numbers": judged.numbers,
        "note": judged.note,
        "seeds": int(judged.comparisons["n"].max()) if len(judged.comparisons) else 0,
        "needs": needs,
        "labels": set(judged.entries)
        or {name for place in judged.comparisons.index for name in np.atleast_1d(np.array(place, dtype=object))},
    }


def published_numbers(runs: pd.DataFrame, table: str, margin: float = MARGIN) -> pd.DataFrame:
    """Every published number of a table against ours, by the equivalence test of `statistics.equivalent`.

    margin: of accuracies, in points; that of a task's metric is half the spread of its published column where that is
    less, so that it can tell the column's cells apart. Index: number, from 0. Columns: cell (as in the claims'
    numbers), metric (as in published.csv), published, margin, mean, std, n, low, high, p_equivalence; seen, what the
    numbers say: "reproduced", "within noise", "above", "below", or "undecided" where there is no run; verdict, the
    same or "not comparable";
    why, the reasons of `departures`; runs, their ids. From one seed the single number counts: within the margin it is
    reproduced. Raises SeveralRuns.
    """
    entries = conform(labelled(of_study(runs, table), table))
    paper = published(table)
    paper = paper.assign(tasks=paper["tasks"].where(paper["method"] != DRLOC, DRLOC))
    paper["label"] = [entry_label(row, table) for row in paper.to_dict("records")]
    parts = []
    for metric, numbers in paper.groupby("metric", sort=False):
        column = f"test_{metric}"
        here = entries.assign(**{column: entries.get(column, np.nan)})
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


# The sentences


_EVERY_COMBINATION = [tasks for tasks in task_combinations() if tasks != NONE]
_VARIANTS = ("swin", "t2t")
CLAIMS = (
    Claim(
        "best-single-task",
        "Among SSL tasks, the SpRel one is the most performing",
        "section 3.3",
        "table4",
        all_above("table4", fixed(*(("sprel", task) for task in TASKS if task != "sprel"))),
    ),
    Claim(
        "best-combination",
        "the optimal combination of tasks is obtained by learning the SpRel and the AbsPos of the patches",
        "section 3.3",
        "table4",
        all_above("table4", fixed(*((BEST, tasks) for tasks in _EVERY_COMBINATION if tasks != BEST))),
    ),
    Claim(
        "single-tasks-similar",
        "solving, individually, each SSL task leads to similar fine-tuning accuracy",
        "section 3.3",
        "table4",
        all_similar("table4", TASKS, SIMILAR),
    ),
    Claim(
        "single-tasks-improve",
        "solving, individually, each SSL task [improves] the performance w.r.t the supervised baseline",
        "section 3.3",
        "table4",
        all_above("table4", fixed(*((task, NONE) for task in TASKS))),
    ),
    Claim(
        "single-tasks-gain",
        "solving, individually, each SSL task [improves] the supervised baseline of +3.00% on average",
        "section 3.3",
        "table4",
        stated_gains("table4", {"mean of the single tasks": (TASKS, NONE, 3.00)}),
    ),
    Claim(
        "finetuning-every-dataset",
        "Our approach leads to higher accuracy than the supervised one in all datasets",
        "section 3.2",
        "table2",
        all_above("table2", on_every_dataset("table2", "supervised")),
    ),
    Claim(
        "finetuning-gains",
        "gaining +10.01% on Tiny-Imagenet, +6.45% on CIFAR-100 and +4.75% on CIFAR-10",
        "section 3.2",
        "table2",
        stated_gains(
            "table2",
            {
                name: ((f"{name} relvit",), f"{name} supervised", gain)
                for name, gain in (("tiny_imagenet", 10.01), ("cifar100", 6.45), ("cifar10", 4.75))
            },
        ),
    ),
    Claim(
        "joint-almost-all-datasets",
        "this configuration improves the results on almost all the datasets",  # read as: on all but one of the four
        "section 3.2",
        "table3",
        all_above("table3", on_every_dataset("table3", "supervised"), exceptions=1),
    ),
    Claim(
        "joint-gains",
        "up to +4.02% on Flower102, +3.93% on CIFAR-100, and +3.71% on CIFAR-10",
        "section 3.2",
        "table3",
        stated_gains(
            "table3",
            {
                name: ((f"{name} vit relvit",), f"{name} vit supervised", gain)
                for name, gain in (("flowers102", 4.02), ("cifar100", 3.93), ("cifar10", 3.71))
            },
        ),
    ),
    Claim(
        "joint-every-dataset",
        "RelViT shows significant improvement on all the tested datasets and in both scenarios",
        "section 4",  # the other scenario is finetuning-every-dataset
        "table3",
        all_above("table3", on_every_dataset("table3", "supervised")),
    ),
    Claim(
        "variants-above-supervised",
        "we outperform the supervised baselines",
        "section 3.2",
        "table3",
        all_above("table3", on_every_dataset("table3", "supervised", _VARIANTS)),
    ),
    Claim(
        "variants-above-drloc",
        "we outperform [...] also [9] results",
        "section 3.2",
        "table3",
        all_above("table3", on_every_dataset("table3", "drloc", _VARIANTS)),
    ),
    Claim(
        "variants-gains",
        "up to +19.85% and +16.24% on Flower-102, with Swin and T2T-ViT backbones",
        "section 3.2",
        "table3",
        stated_gains(
            "table3",
            {
                f"flowers102 {name}": ((f"flowers102 {name} relvit",), f"flowers102 {name} drloc", gain)
                for name, gain in (("swin", 19.85), ("t2t", 16.24))
            },
        ),
    ),
    Claim(
        "embedding-solves-sprel",
        "if the model uses the PEs without shuffling during the pre-training, it solves the task with 100% of SpRel "
        "accuracy",
        "section 3.3, Figure 2a",
        "figure2",
        level_above("figure2", "test_sprel_accuracy", "embedding", SOLVED),
    ),
    Claim(
        "embedding-does-not-help",
        "reaches a classification accuracy comparable to a randomly initialized network",
        "section 3.3, Figure 2b",
        "figure2",
        no_help("figure2", "embedding", "random"),
    ),
    Claim(
        "shuffling-helps",
        "the shuffling removes the trivial solution and improves the classification accuracy",
        "section 3.3, Figure 2b",
        "figure2",
        all_above("figure2", fixed(("embedding, permuted", "embedding"))),
    ),
    Claim(
        "no-embedding-is-best",
        "we removed PEs from RelViT since, in this way, we obtained the best results",
        "section 3.3, Figure 2b",
        "figure2",
        all_above("figure2", fixed(("no embedding", "embedding"), ("no embedding", "embedding, permuted"))),
    ),
    Claim(
        "shuffling-is-optional",
        "the shuffling is optional due to the permutation equivariance property of the model",
        "section 3.3",
        "figure2",
        all_similar("figure2", ("no embedding", "no embedding, permuted")),
    ),
)
