"""Search spaces: for each hyperparameter of a cell the range that a search draws from, in Ray Tune's domains.

The names are the fields of `relvit.cell.Cell`. A parameter is drawn only where it acts: a task's weight where the task
is on and is not alone, the head's form with a pair task, the strength of colour jitter where jitter is on, mega-patches
where pre-training has no position embedding; `relvit.cell` knows most of this already. What is not drawn keeps the
recipe's value. A space of your own is a Python file with a dict that narrows, widens and extends the built-in one:

    from ray import tune

    space = {
        "learning_rate": tune.loguniform(3e-4, 3e-3),   # another range
        "mega_grid": None,                              # not searched: as the recipe has it
        "gradient_clip": 1.0,                           # not searched: this value
        "flip_probability": tune.choice([0.0, 0.5]),    # searched too
        "backbone": tune.choice(["vit_xs4", "timm/vit_tiny_patch16_224"]),  # of images as large as the recipe's
    }
    replace = False                                     # True: `space` alone, without the built-in one

    python sweeps/hpo.py --space mine.py

A space file is code and runs with your rights: read one before you run it.
"""

import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import BaseTrial
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform, Quantized, Uniform

from relvit.cell import (
    FIELDS,
    HEADS,
    Cell,
    Spec,
    ViTSpec,
    backbone_spec,
    make_cell,
    neutral_fields,
    parse_tasks,
    patch_crop_size,
    type_errors,
)
from relvit.messages import unknown
from relvit.tasks import TASKS
from sweeps.planning.studies import run_file

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution  # what a domain is in Optuna's words

# Fields that are no hyperparameters of a search, and what decides them.
_DECIDED = {
    "dataset": "--dataset",
    "pretrain_dataset": "--dataset",
    "image_size": "--image-size",
    "protocol": "--protocol",
    "backbone": "--backbone, or searched: tune.choice([NAME, NAME])",
    "tasks": "--tasks; a study of its combinations with --per-cell",
    "seed": "--search-seed; luck is no hyperparameter",
    "epochs": "--set epochs=N; epochs are the fidelity by which schedulers stop trials early",
    "train_images": "--set train_images=N; more images are not a setting but other data",
    "labels_per_class": "--set labels_per_class=N; more labels are not a setting but other data",
    "label_share": "--set label_share=X; more labels are not a setting but other data",
    "tasks_digest": "--tasks-file",
}
# Draws that have to give valid cells before anything starts.
_TRIED = 200


class SpaceError(ValueError):
    """All that is wrong with a space, as a list of sentences in `problems`."""

    def __init__(self, problems: list[str]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("; ".join(self.problems))


def default_space(base: Mapping[str, Any], backbones: Sequence[str] = ()) -> dict[str, Domain]:
    """The built-in space around the fields of a cell; around those of any of these backbones, where they are searched.

    Learning rates span two decades around those of the paper (5e-4) and of Swin and DeiT (1e-3); weight decay goes from
    next to none to T2T-ViT's and Swin's 0.05 and beyond; augmentation from off to twice the published code's strength.
    """
    specs = [backbone_spec(name, base["image_size"]) for name in backbones or [base["backbone"]]]
    shortest = min(base[name] for name in ("pretrain_epochs", "epochs") if base[name]) if base["epochs"] else 1
    space: dict[str, Domain] = {
        "warmup_epochs": tune.randint(0, max(1, min(shortest - 1, round(0.2 * shortest))) + 1),
        "batch_size": tune.choice(
            sorted({max(8, base["batch_size"] // 2), base["batch_size"], 2 * base["batch_size"]})
        ),
        "pretrain_learning_rate": tune.loguniform(1e-4, 1e-2),
        "learning_rate": tune.loguniform(1e-4, 1e-2),
        "weight_decay": tune.uniform(0.0, 0.3),  # the paper's 0 is one end
        "gradient_clip": tune.choice([0.0, 0.5, 1.0, 5.0]),
        "drop_path": tune.quniform(0.0, 0.3, 0.05),
        "crop_padding": tune.randint(0, base["image_size"] // 8 + 1),
        "crop_min_area": tune.uniform(0.05, 1.0),
        "pair_head": tune.choice(list(HEADS)),
        **{task.weight_field: tune.loguniform(*task.weight_range) for task in TASKS.values()},
        "permute_patches": tune.choice([False, True]),
        "patch_crop": tune.choice(_patch_crops({spec.patch_size for spec in specs}, base["patch_crop"])),
        "jitter_probability": tune.choice([0.0, 0.4, 0.8]),
        "jitter_strength": tune.quniform(0.1, 0.8, 0.1),
        "greyscale_probability": tune.quniform(0.0, 0.4, 0.1),
    }
    # One of the two ways to crop, the recipe's.
    del space["crop_padding" if base["crop_min_area"] < 1 else "crop_min_area"]
    if shortest < 3:
        del space["warmup_epochs"]
    if base["protocol"] == "joint" and (base["mixup"] or base["cutmix"]):
        del space["permute_patches"]  # a mixed place would have two labels
    sides = _mega_sides(specs, base["image_size"])
    if sides:
        space["mega_grid"] = tune.choice([0, *sides])
    return space


def _patch_crops(patch_sizes: Collection[int], base: float) -> list[float]:
    """Shares of a patch's side, from half of it to all, that leave a whole number of pixels of the smallest and are a
    crop of all: at most five.

    The recipe's own share stands for its number of pixels.
    """
    patch_size = min(patch_sizes)
    pixels = range(max(1, patch_size // 2), patch_size)
    step = max(1, math.ceil(len(pixels) / 4))
    kept = patch_crop_size(patch_size, base)
    return sorted({base, 1.0, *(count / patch_size for count in pixels[::step] if count != kept)})


def _mega_sides(specs: Iterable[Spec], image_size: int) -> list[int]:
    """Those that all ViTs among the backbones can have."""
    sides = [image_size // spec.patch_size for spec in specs if isinstance(spec, ViTSpec)]
    return list(range(2, min([*sides, 5]))) if sides else []


@dataclass(frozen=True)
class Space:
    """What is searched around the fields of one kind of cell.

    base: every field of a cell, as the recipe and the user's settings have them; domains: by field, in the order of
    the cell's fields.
    """

    base: Mapping[str, Any]
    domains: Mapping[str, Domain]

    def suggest(self, trial: BaseTrial) -> Cell:
        """A cell with the values that the trial draws, of the parameters that act. Raises ValueError as `Cell` does."""
        return self._cell(lambda name, domain: _suggest(trial, name, distribution(domain)))

    def describe(self) -> dict[str, str]:
        """Each domain as text, the same for the same range: how one study is told from another."""
        return {name: distribution_to_json(distribution(domain)) for name, domain in self.domains.items()}

    def point(self, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The values of the searched parameters among `fields`, and a sentence for each that is out of its range."""
        point = {name: fields[name] for name in self.domains if name in fields}
        outside = [
            f"{name}={value!r} is outside of {text(self.domains[name])}"
            for name, value in point.items()
            if not _contains(distribution(self.domains[name]), value)
        ]
        return point, outside

    def problems(self) -> list[str]:
        """What is wrong with the cells that it gives: at the ends of each range, and at random."""
        found = [
            error for name in self.domains for value in _ends(self.domains[name]) for error in self._at(name, value)
        ]
        if not found:
            generator = random.Random(0)
            for _ in range(_TRIED):
                values = {name: draw(domain, generator) for name, domain in self.domains.items()}
                try:
                    self._cell(lambda name, _, values=values: values[name])
                except ValueError as error:
                    found.append(f"a draw from the space is no valid cell: {error}")
        return list(dict.fromkeys(found))[:20]

    def _cell(self, value_of: Any) -> Cell:
        fields = dict(self.base)
        for name, domain in self.domains.items():
            idle = self._idle(fields)
            fields[name] = idle[name] if name in idle else value_of(name, domain)
        return make_cell(**fields)

    def _idle(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that do not act, or may not, beside these fields, and what they hold instead."""
        idle = neutral_fields(fields)
        tasks = parse_tasks(fields["tasks"])
        if len(tasks) == 1 and fields["protocol"] != "joint":
            # The weight of the only loss is a scale, which Adam undoes.
            weight = TASKS[tasks[0]].weight_field
            idle[weight] = self.base[weight] or 1.0
        if fields["pretrain_position_embedding"] or not isinstance(_spec(fields), ViTSpec):
            idle["mega_grid"] = 0
        if "crop_padding" in self.domains and fields["crop_padding"]:
            idle["crop_min_area"] = 1.0
        return idle

    def _at(self, name: str, value: Any) -> list[str]:
        """What is wrong with the value of one parameter where the rest is the recipe's."""
        errors = type_errors({name: value})
        if errors or name in self._idle(self.base):
            return errors
        try:
            make_cell(**{**self.base, **self._idle({**self.base, name: value}), name: value})
        except ValueError as error:
            return [f"{name}={value!r} of {text(self.domains[name])}: {error}"]
        return []


def _spec(fields: Mapping[str, Any]) -> Spec | None:
    """The backbone's sizes, or None where images of this size do not fit it, which `Cell` says."""
    try:
        return backbone_spec(fields["backbone"], fields["image_size"])
    except ValueError:
        return None


def make_space(base: Mapping[str, Any], path: Path | None = None, names: list[str] | None = None) -> Space:
    """The built-in space around a cell's fields, changed by a user's file, narrowed to `names`.

    Raises SpaceError with all that is wrong.
    """
    problems: list[str] = []
    own, replace = _read(path) if path is not None else ({}, False)
    choice = own.get("backbone")
    backbones = choice.categories if isinstance(choice, Categorical) and not [*_malformed("backbone", choice)] else ()
    try:
        domains: dict[str, Any] = {} if replace else default_space(base, backbones)
    except ValueError as error:
        raise SpaceError([f"the space file {path}: {error}"]) from error
    fields = dict(base)
    if path is not None:
        for name, entry in own.items():
            wrong = list(_malformed(name, entry))
            problems += [f"the space file {path}: {error}" for error in wrong]
            domains.pop(name, None)
            if wrong or entry is None:
                continue
            if isinstance(entry, Domain):
                domains[name] = entry
            else:
                fields[name] = entry
    if names is not None:
        for name in names:
            if name not in FIELDS:
                problems.append(f"--tune: {unknown('parameter', name, domains)}")
            elif name not in domains:
                problems.append(f"--tune: {name} has no range in this space; its parameters: {', '.join(domains)}")
        domains = {name: domain for name, domain in domains.items() if name in names}
    ordered = {name: domains[name] for name in FIELDS if name in domains}
    space = Space(fields, ordered)
    # Drop parameters that are inactive in every cell of the space.
    acting = {name for name in ordered if not _never_acts(space, name)}
    if path is not None and not problems:
        problems += [
            f"the space file {path}: {name} has no effect with tasks={base['tasks']!r}, protocol={base['protocol']!r}"
            for name, entry in own.items()
            if isinstance(entry, Domain) and name in ordered and name not in acting
        ]
    space = Space(fields, {name: domain for name, domain in ordered.items() if name in acting})
    if not space.domains and not problems:
        problems.append("nothing is left to search: the space is empty")
    problems += space.problems() if not problems else []
    if problems:
        raise SpaceError(problems)
    return space


def _never_acts(space: Space, name: str) -> bool:
    """Whether the parameter is idle whatever the parameters before it are."""
    generator = random.Random(0)
    for _ in range(50):
        values = {each: draw(domain, generator) for each, domain in space.domains.items()}
        fields = dict(space.base)
        for each in space.domains:
            idle = space._idle(fields)
            if each == name:
                if name not in idle:
                    return False
                break
            fields[each] = idle.get(each, values[each])
    return True


def _read(path: Path) -> tuple[Mapping[str, Any], bool]:
    try:
        defined = run_file(path, "space")
    except ValueError as error:
        raise SpaceError([str(error)]) from error
    if not isinstance(defined.get("space"), Mapping):
        raise SpaceError([f"the space file {path} does not define `space`, a dict of domains by field of a cell"])
    return defined["space"], bool(defined.get("replace", False))


def _malformed(name: str, entry: Any) -> Iterator[str]:
    """What is wrong with one entry of a user's space."""
    if name not in FIELDS:
        yield unknown("parameter", name, [each for each in FIELDS if each not in _DECIDED])
        return
    if name in _DECIDED and not (name == "backbone" and isinstance(entry, Categorical)):
        yield f"{name} is not searched: it is set with {_DECIDED[name]}"
        return
    if entry is None:
        return
    if isinstance(entry, Mapping) and "grid_search" in entry:
        yield f"{name}: a grid is not sampled; write tune.choice({entry['grid_search']})"
    elif not isinstance(entry, Domain):
        yield from type_errors({name: entry})
    elif isinstance(entry, Categorical):
        if not entry.categories:
            yield f"{name}: tune.choice of nothing; give at least two values, or one plain value to fix it"
        elif len(set(map(repr, entry.categories))) < len(entry.categories):
            yield f"{name}: tune.choice names a value twice: {entry.categories}"
        else:
            yield from (error for value in entry.categories for error in type_errors({name: value}))
    elif not isinstance(entry, (Float, Integer)):
        yield f"{name}: only ranges and choices can be searched; conditions between parameters are built in"
    else:
        yield from _malformed_range(name, entry)


def _malformed_range(name: str, domain: Float | Integer) -> Iterator[str]:
    kind, log, step = _form(domain)
    if kind is None:
        yield f"{name}: a normal distribution has no range; write tune.uniform(low, high) or tune.loguniform(low, high)"
        return
    low, high = domain.lower, domain.upper - (isinstance(domain, Integer) and step is None)
    if not (math.isfinite(domain.lower) and math.isfinite(domain.upper)):
        yield f"{name}: the range from {domain.lower} to {domain.upper} is not finite"
    elif low > high or (low == high and isinstance(domain, Float)):
        yield (
            f"{name}: the range from {domain.lower} to {domain.upper} is empty; the upper end must be above the lower "
            f"one{', which randint excludes' if isinstance(domain, Integer) else ''}"
        )
    elif log and low <= 0:
        yield f"{name}: a log range must begin above 0, not at {low}"
    elif log and step is not None:
        yield f"{name}: a range has steps or a log scale, not both; write tune.loguniform(low, high)"
    elif FIELDS[name] is int and isinstance(domain, Float):
        yield f"{name} must be of type int: write tune.randint(low, high) or tune.choice([...])"
    elif FIELDS[name] not in (int, float):
        yield f"{name} must be of type {FIELDS[name].__name__}: write tune.choice([...])"


def _form(domain: Domain) -> tuple[type | None, bool, float | None]:
    """The kind of a numeric domain's sampler (None: one without a range), whether it is logarithmic, and its step."""
    sampler, step = domain.get_sampler(), None
    if isinstance(sampler, Quantized):
        step = sampler.q
        sampler = sampler.sampler
    if isinstance(sampler, (Uniform, LogUniform)):
        return type(sampler), isinstance(sampler, LogUniform), step
    return None, False, step


def distribution(domain: Domain) -> Distribution:
    """Ray's domain in Optuna's words. Ray's integers exclude their upper end unless they have steps."""
    if isinstance(domain, Categorical):
        return CategoricalDistribution(domain.categories)
    _, log, step = _form(domain)
    if isinstance(domain, Integer):
        if step is not None:
            return IntDistribution(domain.lower, domain.upper, step=int(step))
        return IntDistribution(domain.lower, domain.upper - 1, log=log)
    assert isinstance(domain, Float)
    return FloatDistribution(domain.lower, domain.upper, log=log, step=step)


def _suggest(trial: BaseTrial, name: str, known: Distribution) -> Any:
    if isinstance(known, CategoricalDistribution):
        return trial.suggest_categorical(name, known.choices)
    if isinstance(known, IntDistribution):
        return trial.suggest_int(name, known.low, known.high, step=known.step, log=known.log)
    return trial.suggest_float(name, known.low, known.high, step=known.step, log=known.log)


def text(domain: Domain) -> str:
    """A range as a person writes it."""
    known = distribution(domain)
    if isinstance(known, CategoricalDistribution):
        return "{" + ", ".join(map(str, known.choices)) + "}"
    step = f", steps of {known.step:g}" if known.step not in (None, 1) else ""
    return f"[{known.low:g}, {known.high:g}{step}{', log' if known.log else ''}]"


def _contains(known: Distribution, value: Any) -> bool:
    try:
        return known._contains(known.to_internal_repr(value))
    except ValueError:
        return False


def _ends(domain: Domain) -> list[Any]:
    known = distribution(domain)
    return list(known.choices) if isinstance(known, CategoricalDistribution) else [known.low, known.high]


def draw(domain: Domain, generator: random.Random) -> Any:
    """A value at random, without a sampler's state."""
    known = distribution(domain)
    if isinstance(known, CategoricalDistribution):
        return generator.choice(known.choices)
    if known.log:
        value = math.exp(generator.uniform(math.log(known.low), math.log(known.high)))
        value = min(max(value, known.low), known.high)
        return round(value) if isinstance(known, IntDistribution) else value
    if known.step is not None:
        return known.low + known.step * generator.randint(0, round((known.high - known.low) / known.step))
    return generator.uniform(known.low, known.high)


def searched_fields(cell: Cell, space: Space) -> dict[str, Any]:
    """The values of a cell's searched fields, of those that act."""
    idle = space._idle(cell.as_dict())
    return {name: getattr(cell, name) for name in space.domains if name not in idle}


def has_numbers(space: Space) -> bool:
    """Whether any parameter has a range of numbers, as some samplers need."""
    return any(not isinstance(domain, Categorical) for domain in space.domains.values())
