"""The step on its device: nothing comes from the host, nothing waits, and compiled it gives what it gives eagerly."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from relvit import step as step_module
from relvit.augment import Augmentation
from relvit.backbones import build_backbone
from relvit.cell import BACKBONES
from relvit.model import RelViT
from relvit.step import INDUCTOR, Step

PATCHES = {"patch_crop": 0.75, "jitter_probability": 0.8, "jitter_strength": 0.4, "greyscale_probability": 0.2}
ALL_TASKS = ("sprel", "dist", "ang", "abspos")


STRONG = {"auto_augment": "randaugment", "erase_probability": 0.25, "mixup": 0.8, "cutmix": 1.0}


def made(
    backbone="vit_xs4",
    tasks=ALL_TASKS,
    *,
    size=16,
    classes=10,
    mega_grid=0,
    drop_path=0.0,
    clip=1.0,
    strong=False,
    **options,
):
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
        permute_patches=not mega_grid and not strong,
        mega_grid=mega_grid,
        **({"crop_padding": 2} if size < 32 else {"crop_min_area": 0.3}),
        **(PATCHES if patch_size < 32 else {}),
        **(STRONG if strong else {}),
    )
    images = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8)
    rates = {"learning_rate": 1e-3, "weight_decay": 0.1, "gradient_clip": clip, "weights": {"sprel": 0.5}}
    rates |= {"label_smoothing": 0.1} if strong else {}
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
        {"strong": True, "size": 32, "micro_batches": 2},
    ],
)
def test_a_step_takes_nothing_from_the_host_and_waits_for_nothing(what):
    step, images, labels = made(**what)
    draws = torch.Generator().manual_seed(0)
    step(images, labels, draws)  # the optimiser makes its moments in its first step
    # What is made without being told where is on a device of its own, which goes with no other.
    with torch.device("meta"), Trace() as training:
        step.set_rates(0.5e-3, 0.1)
        step(images, labels, draws)
    step.model.eval()
    with torch.device("meta"), Trace() as evaluation, torch.inference_mode():
        step.evaluate(images, labels, step.augment, draws)
    assert "_fused_adamw_" in training.names  # that the trace sees the step
    assert training.of_the_host == []
    assert evaluation.of_the_host == []


def test_the_trace_sees_what_a_step_must_not_do():
    values = torch.ones(3)
    with Trace() as trace:
        values[torch.tensor([0, 1])] + float(values.sum())
        values.to(torch.float64, copy=True)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta"):
        values + torch.arange(3)
    assert trace.of_the_host == ["_local_scalar_dense", "lift_fresh"]


def gradients(step):
    return torch.cat([parameter.grad.flatten() for parameter in step.trained])


GRAPH = {"backend": "aot_eager"}  # one graph as for Inductor, whose C++ takes a minute, run by torch's own kernels


@pytest.mark.parametrize(
    ("what", "compiler"),
    [
        ({"backbone": "vit_xs8", "tasks": ("sprel", "abspos")}, INDUCTOR),
        ({}, GRAPH),
        ({"size": 32, "mega_grid": 3, "classes": 0, "micro_batches": 2}, GRAPH),
        ({"tasks": ("drloc",), "drop_path": 0.5}, GRAPH),
        ({"backbone": "swin_xs8", "size": 32, "tasks": ("sprel", "abspos"), "drop_path": 0.5}, GRAPH),
        ({"backbone": "t2t_xs", "size": 64}, GRAPH),
        ({"strong": True, "size": 32}, GRAPH),
    ],
    ids=["inductor", "vit", "mega-patches", "drloc", "swin", "t2t", "strong"],
)
def test_compiled_as_one_graph_a_step_gives_what_it_gives_eagerly(what, compiler):
    """Two full batches, the short one at an epoch's end, which is an eager step, and an evaluation. The generator of
    drop path ends where it ends without compiling, which takes a step of its own on the first batch."""
    outcomes = []
    for compile in ("never", "always"):  # "always" refuses a graph break, as it does every failure
        step, images, labels = made(**what, compile=compile, compiler=compiler)
        draws = torch.Generator().manual_seed(3)
        torch.manual_seed(4)
        losses = [step(images[:size], labels[:size], draws) for size in (8, 8, 3)]
        taken, after = gradients(step), torch.get_rng_state()
        step.model.eval()
        with torch.inference_mode():
            losses.append(step.evaluate(images, labels, step.augment, draws))
        assert step.compiled == (compile == "always")
        outcomes.append((losses, taken, after))
    (eager, eager_gradient, eager_random), (compiled, gradient, random) = outcomes
    for expected, found in zip(eager, compiled):
        assert list(expected) == list(found)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    assert (gradient - eager_gradient).norm() <= 1e-4 * eager_gradient.norm()  # after two steps of AdamW
    assert random.equal(eager_random)


def test_what_a_captured_graph_leaves_is_taken_out_before_the_next_graph_takes_its_memory(monkeypatch):
    """As on a GPU, where a captured function's output lies where the next captured function writes."""
    given = []

    def captured(function, **options):
        def call(*arguments):
            for earlier in given:
                earlier.fill_(torch.nan)
            outputs = function(*arguments)
            values = outputs.values() if isinstance(outputs, dict) else [outputs]
            given[:] = [value for value in values if not value.requires_grad]
            return outputs

        return call

    eager, images, labels = made()
    wanted = eager(images, labels, torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "compile", captured)
    step, images, labels = made(compile="always", compiler={"options": {"triton.cudagraphs": True}})
    assert step(images, labels, torch.Generator().manual_seed(0)) == wanted
    step.model.eval()
    with torch.inference_mode():
        first = step.evaluate(images, labels, step.augment, torch.Generator().manual_seed(0))
        step.evaluate(images, labels, step.augment, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(value) for value in first.values())


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


def test_an_evaluation_that_runs_out_of_memory_is_not_taken_for_one_that_cannot_be_compiled(monkeypatch):
    def compile(function, **options):
        def call(*arguments):
            if not torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory")
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    step, images, labels = made(compile="always")
    step(images, labels, torch.Generator().manual_seed(0))
    step.model.eval()
    with pytest.raises(torch.OutOfMemoryError), torch.inference_mode():
        step.evaluate(images, labels, step.augment, torch.Generator().manual_seed(0))


# Precision


def test_tf32_is_refused_without_a_gpu():
    with pytest.raises(ValueError, match="precision=tf32 is of GPUs, and this trial has none: use precision=fp32"):
        made(precision="tf32")
