"""A full RelViT training step against the bare supervised step of the same backbone on the same batch.

    python benchmarks/training_step.py                    ViT-S/4, pre-training on SpRel + AbsPos; claims: at most 1.12
                                                          times timm's step; bf16 at least 1.4 times faster than fp32
    python benchmarks/training_step.py --compile          the same, both steps compiled by torch.compile
    python benchmarks/training_step.py --at-224           each backbone of 224 pixels, joint training on classification
                                                          and both tasks; claim: at most 1.10 times

Minutes each on a CPU. Full step: augmentation from uint8, losses, backward, clipping, AdamW, as in relvit.train. Bare
step: timm's model (T2T-ViT, which timm lacks: ours) with a linear classifier on a normalised batch, cross-entropy,
backward, clipping, AdamW. The steps alternate, so that a machine whose speed drifts slows all alike. At 224 pixels the
step is also timed with images that are normalised alone. On a GPU, benchmarks/gpu.py measures more.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from relvit.backbones import build_backbone
from relvit.cell import Cell, make_cell
from relvit.model import RelViT
from relvit.specs import BACKBONES, SwinSpec, ViTSpec
from relvit.step import INDUCTOR, Step, autocast, check_precision
from relvit.train import Phase, phase_augmentation, phases
from sweeps.planning.recipes import recipe

CLASSES, MEAN, STD = 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def paper_cell(backbone: str, protocol: str) -> Cell:
    """The cell of the paper's recipe with SpRel + AbsPos."""
    size = BACKBONES[backbone].image_size
    what = {"dataset": "cifar10", "pretrain_dataset": "cifar10", "backbone": backbone, "tasks": "sprel+abspos"}
    fields = recipe("paper").for_backbone(backbone, size)
    return make_cell(**fields, **what, protocol=protocol, seed=0, image_size=size)


def relvit_step(
    cell: Cell,
    phase: Phase,
    images: Tensor,
    labels: Tensor,
    precision: str = "fp32",
    compile: str = "never",
    augmented: bool = True,
    compiler: Mapping[str, Any] = INDUCTOR,
) -> Callable[[], None]:
    """The step of relvit.train on a batch. augmented: False only normalises it."""
    device = images.device
    backbone = build_backbone(cell.backbone, cell.image_size, position_embedding=phase.position_embedding)
    model = RelViT(backbone, phase.tasks, classes=CLASSES if phase.classify else 0).train()
    step = Step(
        model,
        backbone.grid,
        phase_augmentation(cell, phase, mean=MEAN, std=STD, training=augmented),
        device=str(device),
        learning_rate=5e-4,
        weight_decay=0.0,
        gradient_clip=1.0,
        weights={},
        precision=precision,
        compile=compile,
        compiler=compiler,
    )
    generator = torch.Generator(device).manual_seed(0)
    return lambda: step(images, labels, generator)


def bare_step(
    backbone: str,
    images: Tensor,
    labels: Tensor,
    precision: str = "fp32",
    compile: str = "never",
    compiler: Mapping[str, Any] = INDUCTOR,
) -> Callable[[], None]:
    """The supervised step of the same backbone from timm, without anything of RelViT."""
    spec = BACKBONES[backbone]
    if isinstance(spec, ViTSpec):
        model: nn.Module = VisionTransformer(
            img_size=images.shape[1],
            patch_size=spec.patch_size,
            embed_dim=spec.dim,
            depth=spec.depth,
            num_heads=spec.heads,
            num_classes=CLASSES,
        )
    elif isinstance(spec, SwinSpec):
        model = SwinTransformer(
            img_size=images.shape[1],
            embed_dim=spec.dim,
            depths=spec.depths,
            num_heads=spec.heads,
            window_size=spec.window,
            num_classes=CLASSES,
        )
    else:
        t2t = build_backbone(backbone, images.shape[1]).t2t
        model = nn.Module()
        model.t2t, model.head = t2t, nn.Linear(spec.dim, CLASSES)
        model.forward = lambda batch: model.head(model.t2t.forward_features(batch)[:, 0])
    check_precision(precision, str(images.device))
    model = model.to(images.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0, fused=True)
    batch = ((images.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2).contiguous()

    def loss_of(batch: Tensor, labels: Tensor) -> Tensor:
        with autocast(batch.device.type, precision):
            logits = model(batch)
        return nn.functional.cross_entropy(logits.float(), labels)

    if compile != "never":
        loss_of = torch.compile(loss_of, fullgraph=True, dynamic=False, **compiler)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(batch, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def time_alternately(
    steps: dict[str, Callable[[], None]], rounds: int, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each step in each round, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(repeats):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append((time.perf_counter() - started) / repeats)
    return seconds


def product_steps(rows: int, dim: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """The MLP's first matrix product alone, in both precisions: what the processor itself gains from bf16."""
    left, right = torch.randn(rows, dim, device=device), torch.randn(4 * dim, dim, device=device)
    pairs = {"fp32": (left, right), "bf16": (left.bfloat16(), right.bfloat16())}
    return {name: lambda pair=pair: nn.functional.linear(*pair) for name, pair in pairs.items()}


def attention_steps(batch: int, tokens: int, dim: int, heads: int, device: torch.device) -> dict[str, Callable]:
    """A layer's attention alone, forward and backward, in both precisions: on a CPU, torch's is slower in bf16."""

    def step(dtype: torch.dtype) -> Callable:
        shape = (batch, heads, tokens, dim // heads)
        parts = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
        attend = nn.functional.scaled_dot_product_attention
        return lambda: torch.autograd.grad(attend(*parts), parts, torch.ones_like(parts[0]))

    return {"fp32": step(torch.float32), "bf16": step(torch.bfloat16)}


def ratio(above: list[float], below: list[float]) -> str:
    ratios = [a / b for a, b in zip(above, below)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-224", action="store_true", help="the backbones of 224 pixels instead of ViT-S/4")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, help="default: on a GPU the paper's; on a CPU 64, or 8")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="compile both steps, a minute or more each")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    for backbone in ("vit_s32", "swin_t", "t2t_vit_14") if options.at_224 else ("vit_s4",):
        cell = paper_cell(backbone, "joint" if options.at_224 else "pretrain_finetune")
        on_cpu = 8 if options.at_224 else 64
        batch = options.batch_size or (cell.batch_size if device.type == "cuda" else on_cpu)
        size = cell.image_size
        images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
        labels = torch.randint(0, CLASSES, (batch,), device=device)
        phase = phases(cell)[0]
        compile = "always" if options.compile else "never"
        full = partial(relvit_step, cell, phase, images, labels, compile=compile)
        steps = {"bare": bare_step(backbone, images, labels, compile=compile), "full": full()}
        if options.at_224:
            steps["full, augmentation aside"] = full(augmented=False)
        else:
            steps["full, bf16"] = full(precision="bf16")
        seconds = time_alternately(steps, options.rounds, 20 if device.type == "cuda" else 1, device)
        print(f"{backbone}, batch {batch}, {device.type}, {torch.get_num_threads()} threads, {options.rounds} rounds")
        print("  ms a step: " + ", ".join(f"{name} {statistics.median(s) * 1e3:.0f}" for name, s in seconds.items()))
        claim = "1.10" if options.at_224 else "1.12"
        print(f"  full / bare: {ratio(seconds['full'], seconds['bare'])} (claim: at most {claim})")
        for name, times in seconds.items():
            if name == "full, bf16":
                print(f"  full / full, bf16: {ratio(seconds['full'], times)} (claim: at least 1.4, where the processor "
                      "has units for bf16, as Intel's AMX)")  # fmt: skip
                spec = BACKBONES[backbone]
                rows = batch * (1 + (size // spec.patch_size) ** 2)
                alone = time_alternately(product_steps(rows, spec.dim, device), options.rounds, 20, device)
                print(f"  a matrix product alone, fp32 / bf16: {ratio(alone['fp32'], alone['bf16'])}")
                attention = attention_steps(batch, rows // batch, spec.dim, spec.heads, device)
                alone = time_alternately(attention, options.rounds, 20 if device.type == "cuda" else 2, device)
                print(f"  attention alone, fp32 / bf16: {ratio(alone['fp32'], alone['bf16'])}")
            elif name != "full" and name != "bare":
                print(f"  {name} / bare: {ratio(times, seconds['bare'])}")


if __name__ == "__main__":
    main()
