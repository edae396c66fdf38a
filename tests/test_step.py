"""The step on its device: nothing comes from the host, nothing waits, and compiled it gives what it gives eagerly."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from relvit import step as step_module
from relvit.augment import Augmentation
from relvit.backbones import build_backbone
from relvit.cell import BACKBONES
from relvit.model import RelViT
from relvit.step import Step

PATCHES = {"patch_crop": 0.75, "jitter_probability": 0.8, "jitter_strength": 0.4, "greyscale_probability": 0.2}
ALL_TASKS = ("sprel", "dist", "ang", "abspos")


def made(backbone="vit_xs4", tasks=ALL_TASKS, *, size=16, classes=10, mega_grid=0, drop_path=0.0, clip=1.0, **options):
    """A step of a fresh model with every transform that its images can have, 8 of them, and their labels."""
    torch.manual_seed(0)
    patch_size = BACKBONES[backbone].patch_size
    built = build_backbone(backbone, mega_grid * patch_size or size, drop_path=drop_path)
    model = RelViT(built, tasks, classes=classes).train()
    augment = Augmentation(
        patch_size=patch_size,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        flip_probability=0.5,
        permute_patches=not mega_grid,
        mega_grid=mega_grid,
        **({"crop_padding": 2} if size < 32 else {"crop_min_area": 0.3}),
        **(PATCHES if patch_size < 32 else {}),
    )
    images = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8)
    rates = {"learning_rate": 1e-3, "weight_decay": 0.1, "gradient_clip": clip, "weights": {"sprel": 0.5}}
    return Step(model, built.grid, augment, device="cpu", **rates, **options), images, torch.arange(8) % max(1, classes)


# What reaches the device from the host, and what makes the host wait for it. A number in an expression is no tensor of
# the host: "fill" and "scalar_tensor" hand it to a kernel.
FROM_HOST = ("lift", "lift_fresh", "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item")


class Trace(TorchDispatchMode):
    """The operations that run, by name."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        moved = name in ("_to_copy", "copy_") and (kwargs or {}).get("device") is not None
        self.names.add(f"{name} to a device" if moved else name)
        return function(*args, **(kwargs or {}))

    @property
    def of_the_host(self):
        return sorted(self.names & {*FROM_HOST, "_to_copy to a device", "copy_ to a device"})


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"size": 32, "mega_grid": 3, "classes": 0},
        {"tasks": ("drloc",), "drop_path": 0.1},
        {"tasks": (), "micro_batches": 2},
        {"backbone": "swin_xs8", "size": 32, "tasks": ("sprel", "abspos")},
        {"backbone": "t2t_xs", "size": 64, "tasks": ("sprel", "abspos")},
    ],
)
def test_a_step_takes_nothing_from_the_host_and_waits_for_nothing(what):
    step, images, labels = made(**what)
    draws = torch.Generator().manual_seed(0)
    step(images, labels, draws)  # the optimiser makes its moments in its first step
    with Trace() as training:
        step.set_rates(0.5e-3, 0.1)
        step(images, labels, draws)
    step.model.eval()
    with Trace() as evaluation, torch.inference_mode():
        step.evaluate(images, labels, step.augment, draws)
    assert "_fused_adamw_" in training.names  # that the trace sees the step
    assert training.of_the_host == []
    assert evaluation.of_the_host == []


def test_the_trace_sees_what_a_step_must_not_do():
    values = torch.ones(3)
    with Trace() as trace:
        values[torch.tensor([0, 1])] + float(values.sum())
        values.to(torch.float64, copy=True)
    assert trace.of_the_host == ["_local_scalar_dense", "lift_fresh"]


def gradients(step):
    return torch.cat([parameter.grad.flatten() for parameter in step.trained])


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"size": 32, "mega_grid": 3, "classes": 0, "tasks": ("sprel", "abspos")},
        {"tasks": ("drloc",), "drop_path": 0.1},
        {"backbone": "swin_xs8", "size": 32, "tasks": ("sprel", "abspos"), "drop_path": 0.1},
        {"backbone": "t2t_xs", "size": 64, "tasks": ("dist", "ang")},
    ],
    ids=["vit, all tasks", "mega-patches", "drloc", "swin", "t2t"],
)
def test_compiled_as_one_graph_a_step_gives_what_it_gives_eagerly(what):
    outcomes = []
    for compile in ("never", "always"):  # "always" refuses a graph break, as it does every failure
        step, images, labels = made(**what, compile=compile)
        draws = torch.Generator().manual_seed(3)
        torch.manual_seed(4)
        losses = [step(images, labels, draws) for _ in range(2)]
        taken = gradients(step)
        step.model.eval()
        with torch.inference_mode():
            losses.append(step.evaluate(images, labels, step.augment, draws))
        assert step.compiled == (compile == "always")
        outcomes.append((losses, taken))
    (eager, eager_gradient), (compiled, gradient) = outcomes
    for before, after in zip(eager, compiled):
        assert list(before) == list(after)
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-5)
    assert (gradient - eager_gradient).norm() <= 1e-5 * eager_gradient.norm()


def test_a_shorter_batch_of_a_compiled_step_is_an_eager_one():
    """The last of an epoch: it is not worth a graph of its own."""
    outcomes = []
    for compile in ("never", "always"):
        step, images, labels = made(tasks=("abspos",), compile=compile)
        draws = torch.Generator().manual_seed(3)
        step(images, labels, draws)
        outcomes.append((step(images[:3], labels[:3], draws), gradients(step)))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-4, atol=1e-5)


# Where it cannot be compiled


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile takes every function and fails when it is first called, as it does without a C++ compiler."""

    def compile(function, **options):
        def fail(*arguments):
            raise RuntimeError("\n  no working C++ compiler was found\nand more lines")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(step_module, "gains_by_compiling", lambda device: True)


def test_a_step_that_cannot_be_compiled_is_taken_eagerly_and_says_so_in_one_line(no_compiler):
    notes = []
    eager, images, labels = made()
    wanted = eager(images, labels, torch.Generator().manual_seed(0))
    step, images, labels = made(compile="auto", note=notes.append)
    assert step(images, labels, torch.Generator().manual_seed(0)) == wanted
    assert not step.compiled
    assert notes == [
        "the step cannot be compiled here (RuntimeError: no working C++ compiler was found): it runs eagerly, with the "
        "same results but for rounding"
    ]


def test_with_always_a_step_that_cannot_be_compiled_is_refused(no_compiler):
    step, images, labels = made(compile="always")
    with pytest.raises(ValueError, match="no working C.. compiler was found.*nothing was trained: use --compile auto"):
        step(images, labels, torch.Generator().manual_seed(0))


def test_compiling_leaves_the_random_numbers_of_the_model_as_they_were():
    """A run that compiles takes the same drop path as one that does not."""
    outcomes = []
    for compile in ("never", "always"):
        step, images, labels = made(tasks=("drloc",), drop_path=0.5, compile=compile)
        torch.manual_seed(7)
        step(images, labels, torch.Generator().manual_seed(0))
        outcomes.append(torch.get_rng_state())
    assert outcomes[0].equal(outcomes[1])


# Precision


def test_tf32_is_refused_without_a_gpu():
    with pytest.raises(ValueError, match="precision=tf32 is of GPUs, and this trial has none: use precision=fp32"):
        made(precision="tf32")
