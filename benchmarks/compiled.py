"""A compiled step against the eager one, for every combination of the paper's tasks and each family of backbones.

    python benchmarks/compiled.py                      16 combinations each with ViT, Swin and T2T in small sizes, joint
                                                       training, through Inductor; claim: losses and gradient agree to
                                                       1e-5. Half an hour or more on two CPUs
    python benchmarks/compiled.py --backend aot_eager  the same graphs run by torch's own kernels, in minutes

Both steps take the same weights, images and draws, augmentation and clipping included. A graph break is an error: the
graph is taken whole or the step refused. Prints the largest difference relative to the eager value, of any loss and of
the gradient as a whole; exit status 1 where one is above 1e-5.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.training_step import CLASSES, MEAN, STD
from relvit.backbones import build_backbone
from relvit.cell import Cell, make_cell, task_combinations
from relvit.model import RelViT
from relvit.step import INDUCTOR, Step
from relvit.train import phase_augmentation, phases
from sweeps.planning.recipes import recipe

BOUND = 1e-5
SIZES = {"vit_xs4": 16, "swin_xs8": 32, "t2t_xs": 64}


def one_step(
    cell: Cell,
    device: torch.device,
    compile: str = "never",
    compiler: Mapping[str, Any] = INDUCTOR,
    augmented: bool = False,
    images: int = 8,
) -> dict[str, torch.Tensor]:
    """Losses of one step, and its gradient, of a model and a batch that are the same on every device. augmented: draws
    of generators differ from device to device."""
    torch.manual_seed(0)
    batch = torch.randint(0, 256, (images, cell.image_size, cell.image_size, 3), dtype=torch.uint8).to(device)
    labels = (torch.arange(images) % CLASSES).to(device)
    phase = phases(cell)[0]
    backbone = build_backbone(cell.backbone, cell.image_size, position_embedding=phase.position_embedding)
    model = RelViT(backbone, phase.tasks, classes=CLASSES if phase.classify else 0).train()
    augment = phase_augmentation(cell, phase, mean=MEAN, std=STD, training=augmented)
    rates = {"learning_rate": 0.0, "weight_decay": 0.0, "gradient_clip": 0.0, "weights": {}}
    step = Step(model, backbone.grid, augment, device=str(device), compile=compile, compiler=compiler, **rates)
    losses = step(batch, labels, torch.Generator(device).manual_seed(0))
    return {**losses, "gradient": torch.cat([parameter.grad.flatten() for parameter in step.trained])}


def differences(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Of each loss and of the gradient, relative to the first."""
    pairs = [(name, value.double().cpu(), other[name].double().cpu()) for name, value in one.items()]
    return {
        name: float((mine - theirs).norm() / mine.norm()) for name, mine, theirs in pairs if name != "gradient_norm"
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("inductor", "aot_eager"), default="inductor")
    parser.add_argument("--backbones", nargs="+", choices=tuple(SIZES), default=list(SIZES), metavar="NAME")
    options = parser.parse_args()
    compiler = INDUCTOR if options.backend == "inductor" else {"backend": options.backend}
    worst = 0.0
    for backbone in options.backbones:
        for tasks in task_combinations():
            size = SIZES[backbone]
            what = {"dataset": "cifar10", "pretrain_dataset": "cifar10", "seed": 0, "batch_size": 8}
            fields = recipe("paper").for_backbone(backbone, size) | {"backbone": backbone, "image_size": size}
            cell = make_cell(**{**fields, **what, "tasks": tasks, "protocol": "joint"})
            started = time.perf_counter()
            eager, compiled = (
                one_step(cell, torch.device("cpu"), compile, compiler, augmented=True)
                for compile in ("never", "always")
            )
            found = differences(eager, compiled)
            gradient = found.pop("gradient")
            worst = max(worst, gradient, *found.values())
            took = time.perf_counter() - started
            print(f"{backbone:9} {tasks:24} losses {max(found.values()):.1e}, gradient {gradient:.1e}  ({took:.0f} s)",
                  flush=True)  # fmt: skip
    print(f"largest difference: {worst:.1e} (claim: at most {BOUND:.0e})")
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
