"""A study of your own: does the pair head matter? Eq. 8's bilinear product against the published code's low-rank one.

    python sweeps/ablation.py --study examples/heads.py --plan
    python sweeps/ablation.py --study examples/heads.py --seeds 0,1,2
    python analysis/make_tables.py --study heads

Four cells and three seeds on the embedded digits: some seven minutes on two cores. A study names what is trained; the
recipe (`--recipe`) fills in the rest, `--seeds` multiplies. Any field of `relvit.cell.Cell` may stand in a cell, and a
field that would have no effect there is refused.
"""

from relvit.cell import HEADS

cells = [
    {
        "dataset": "digits",
        "backbone": "vit_xs4",
        "protocol": "pretrain_finetune",
        "tasks": tasks,
        "pair_head": head,
    }
    for tasks in ("sprel", "sprel+abspos")
    for head in HEADS
]
