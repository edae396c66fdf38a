"""The published numbers, analysis/paper/published.csv, as frames and as if they were runs."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from relvit.cell import DRLOC, NONE
from relvit.paper import DATASET_NAMES, FAMILIES, METHODS
from relvit.vocabulary import TEST

PUBLISHED = Path(__file__).with_name("published.csv")
AUTHORS = "Camporese et al."  # the paper's own


def family(backbone: str) -> str:
    """The kind of a backbone: "vit" for vit_s4 and vit_xs8 alike."""
    return backbone.partition("_")[0]


def published(table: str) -> pd.DataFrame:
    """The rows of published.csv of a table: dataset, backbone, family, method, tasks, metric, value; and where a value
    comes from: trained_by, split (in the terms of this repository), images of that split, corrected, what its author
    later got, trained_on, the splits where they are others than ours, and others, what people got with its code. images
    and corrected are null, the last two empty where there is none.
    """
    rows = _published()
    return rows[rows["table"] == table].copy()


@cache
def _published() -> pd.DataFrame:
    rows = pd.read_csv(PUBLISHED, keep_default_na=False).astype({"value": float})
    rows = rows.assign(tasks=rows["tasks"].replace({"": NONE}), family=rows["backbone"].map(family))
    return rows.assign(**{name: pd.to_numeric(rows[name]) for name in ("images", "corrected")})


def reservations(row: Mapping[str, Any], split: str = TEST) -> list[str]:
    """Why a published number cannot be held against runs that the paper's recipe trained, with results of `split`."""
    found = []
    if row["split"] != split:
        found.append(f"published on the {row['images']:,.0f} images of the {row['split']} split")
    if row["trained_by"] != AUTHORS:
        on = f" on {row['trained_on']}" if row["trained_on"] else ""
        found.append(f"trained by {row['trained_by']} with another recipe{on}, tested on {row['images']:,.0f} images")
    if pd.notna(row["corrected"]):
        found.append(f"its author later got {row['corrected']:.2f}")
    if row["others"]:
        found.append(f"others got {row['others']} with its code")
    return found


def remark(rows: pd.DataFrame, split: str = TEST) -> str:
    """The reservations about some published numbers in a sentence each, with what they concern."""
    concerned: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        name = f"{METHODS[row['method']]} with {FAMILIES[row['family']]} on {DATASET_NAMES[row['dataset']]}"
        for reason in reservations(row, split):
            concerned.setdefault(reason, []).append(name)
    return " ".join(f"{', '.join(names)}: {reason}." for reason, names in concerned.items())


def paper_backbones(table: str) -> dict[str, dict[str, str]]:
    """By data set of a table, by family, the backbone."""
    rows = published(table)
    result: dict[str, dict[str, str]] = {}
    for dataset, backbone in zip(rows["dataset"], rows["backbone"]):
        result.setdefault(dataset, {})[family(backbone)] = backbone
    return result


PAPER_EPOCHS = 100  # in each phase, section 3.1


def published_runs() -> pd.DataFrame:
    """The accuracies of Tables 2, 3 and 4 as if they were finished runs of seed 0 with section 3.1's recipe.

    Judge them with margin=ROUNDING. Figure 2 prints no numbers and so has no rows.
    """
    rows = _published()
    rows = rows[rows["metric"] == "accuracy"]
    tasks = rows["tasks"].where(rows["method"] != DRLOC, DRLOC)
    first_phase = (rows["protocol"] != "joint").astype(int)
    return rows[["dataset", "backbone", "protocol"]].assign(
        study=rows["table"],
        tasks=tasks,
        seed=0,
        status="FINISHED",
        pretrain_epochs=PAPER_EPOCHS * first_phase,
        epochs=PAPER_EPOCHS,
        train_images=0,
        pretrain_position_embedding=(tasks == NONE) & (first_phase == 1),
        permute_patches=False,
        git_dirty="false",
        test_accuracy=rows["value"],
    )
