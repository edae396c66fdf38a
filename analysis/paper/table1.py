"""Table 1: the configurations of the ViTs, computed beside published."""

import numpy as np
import pandas as pd

from analysis.output.typeset import DASH, Column, Entry, Row, Table
from analysis.paper.cost import cost
from analysis.paper.curves import curves
from analysis.paper.entries import Entries, PaperTable
from analysis.paper.numbers import OURS, PAPER
from analysis.paper.published import published
from relvit.cell import BACKBONES, ViTSpec
from relvit.paper import BACKBONE_NAMES


def vit_parameters(spec: ViTSpec, image_size: int) -> int:
    """Learnable numbers of a ViT without a head for classes, class token and position embedding included.

    Patch embedding 3 P^2 D + D; a class token D and an embedding (N + 1) D; each block 12 D^2 + 13 D (queries, keys,
    values and projection 4 D^2 + 4 D, an MLP of 4 D hidden 8 D^2 + 5 D, two norms 4 D); a last norm 2 D.
    """
    dim, patch = spec.dim, spec.patch_size
    tokens = (image_size // patch) ** 2 + 1
    return 3 * patch**2 * dim + dim + dim + tokens * dim + spec.depth * (12 * dim**2 + 13 * dim) + 2 * dim


def layout_table1(entries: Entries, name: str) -> Table:
    """Table 1: the configurations of the ViTs, the paper's three and those of the runs, computed beside published."""
    runs = entries.runs
    paper = published("table1").pivot(index="backbone", columns="metric", values="value")
    used = runs[["backbone", "image_size"]].dropna().drop_duplicates().to_numpy()
    nominal = [(backbone, int(BACKBONES[backbone].image_size)) for backbone in ("vit_s4", "vit_s8", "vit_s32")]
    pairs = dict.fromkeys([*nominal, *sorted((str(backbone), int(size)) for backbone, size in used)])
    parts = {  # metric of published.csv: heading and form
        "image_size": ("Img Res.", "({0:.0f}, {0:.0f})"),
        "blocks": ("Blocks", "{:.0f}"),
        "heads": ("Heads", "{:.0f}"),
        "dim": ("Dim", "{:.0f}"),
        "tokens": ("#Tokens", "{:.0f}"),
        "params_millions": ("#Params", "{:.1f}M"),
    }
    columns = [Column("model", "Model", align="l")]
    columns += [Column(metric, heading, group=OURS) for metric, (heading, _) in parts.items()]
    columns += [Column(f"paper_{metric}", heading, group=PAPER) for metric, (heading, _) in parts.items()]
    rows = []
    for backbone, size in pairs:
        spec = BACKBONES.get(backbone)
        if not isinstance(spec, ViTSpec):
            continue
        values = {
            "image_size": size,
            "blocks": spec.depth,
            "heads": spec.heads,
            "dim": spec.dim,
            "tokens": (size // spec.patch_size) ** 2 + 1,
            "params_millions": vit_parameters(spec, size) / 1e6,
        }
        having = runs[((runs["backbone"] == backbone) & (runs["image_size"] == size)).fillna(False).astype(bool)]
        ids = tuple(sorted(having["run_id"]))
        texts = [Entry(BACKBONE_NAMES.get(backbone, backbone))]
        texts += [
            Entry(form.format(values[metric]), numbers={"value": values[metric]}, runs=ids)
            for metric, (_, form) in parts.items()
        ]
        known = paper.loc[backbone] if (backbone, size) in nominal else pd.Series(dtype=float)
        for metric, (_, form) in parts.items():
            value = known.get(metric, np.nan)
            text = DASH if pd.isna(value) else form.format(value)
            texts.append(Entry(text, numbers={} if text == DASH else {"value": value}, published=text != DASH))
        rows.append(Row(f"{backbone}-{size}", tuple(texts)))
    caption = (
        "Configurations of the ViTs: the three of the paper's Table 1 and those of the runs. #Tokens with the class "
        "token; #Params without a classification head, computed from the configuration."
    )
    return Table(name, "Table 1: configurations", tuple(columns), tuple(rows), caption)


TABLE = PaperTable(
    name="table1",
    title="Table 1",
    layout=layout_table1,
    figures={"-curves": curves, "-cost": cost},
    of_all_runs=True,
)
