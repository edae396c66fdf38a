"""Search spaces: what is drawn where, that every draw is a cell, and what a user's file may and may not say."""

import optuna
import pytest
from helpers.searches import base
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ray import tune

from sweeps.planning.recipes import RECIPES
from sweeps.search.space import SpaceError, default_space, distribution, make_space, text


def write(tmp_path, content):
    path = tmp_path / "mine.py"
    path.write_text(f"from ray import tune\n{content}\n")
    return path


def draws(space, count=100):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        trial = study.ask()
        yield space.suggest(trial), trial.params


@pytest.mark.parametrize(
    "fields",
    [
        {"tasks": "none"},
        {"tasks": "sprel"},
        {"tasks": "sprel+dist+ang+abspos"},
        {"tasks": "none", "protocol": "joint"},
        {"tasks": "abspos", "protocol": "joint"},
        {"tasks": "drloc", "protocol": "joint", "backbone": "swin_xs8"},
        {"tasks": "sprel", "backbone": "t2t_xs", "image_size": 64, "protocol": "joint"},
        {"tasks": "sprel", "backbone": "vit_s32", "image_size": 224, "crop_padding": 0, "crop_min_area": 0.08},
    ],
    ids=str,
)
def test_every_draw_is_a_cell_that_has_the_drawn_values(fields):
    space = make_space(base(**fields))
    cells = set()
    for cell, params in draws(space, 40):
        cells.add(cell)
        assert {name: getattr(cell, name) for name in params} == params
        untouched = cell.as_dict().keys() - space.domains.keys()
        assert all(getattr(cell, name) == space.base[name] for name in untouched)
    assert len(cells) == 40


@pytest.mark.parametrize("recipe", ["paper", "reference", "demo", "cpu"])
def test_the_recipe_s_own_configuration_lies_in_the_space(recipe):
    fields = RECIPES[recipe].for_backbone("vit_s4", 32) | {"backbone": "vit_s4", "image_size": 32, "dataset": "cifar10"}
    space = make_space(base("sprel+dist+ang+abspos", **fields))
    point, outside = space.point(space.base)
    assert outside == []
    assert point.keys() == space.domains.keys()


# Conditions


def test_a_weight_is_searched_where_its_task_is_on_and_not_alone():
    weights = {"sprel_weight", "dist_weight", "ang_weight", "abspos_weight", "drloc_weight"}

    def searched(**fields):
        return weights & make_space(base(**fields)).domains.keys()

    assert searched(tasks="sprel+abspos") == {"sprel_weight", "abspos_weight"}
    assert searched(tasks="sprel") == set()  # the only loss: a scale that Adam undoes
    assert searched(tasks="sprel", protocol="joint") == {"sprel_weight"}  # beside classification
    assert searched(tasks="none") == set()


def test_the_head_is_searched_with_a_pair_task_and_patches_where_they_are_augmented():
    assert "pair_head" in make_space(base("dist")).domains
    assert "pair_head" not in make_space(base("abspos")).domains
    supervised = make_space(base("none")).domains
    assert {"patch_crop", "jitter_probability", "jitter_strength", "permute_patches", "mega_grid"}.isdisjoint(
        supervised
    )


def test_the_strength_of_jitter_is_drawn_only_where_there_is_jitter():
    seen = {(params["jitter_probability"] > 0, "jitter_strength" in params) for _, params in draws(make_space(base()))}
    assert seen == {(True, True), (False, False)}


def test_mega_patches_are_not_drawn_beside_a_position_embedding(tmp_path):
    path = write(tmp_path, "space = {'pretrain_position_embedding': tune.choice([False, True])}")
    seen = {
        (params["pretrain_position_embedding"], "mega_grid" in params) for _, params in draws(make_space(base(), path))
    }
    assert seen == {(True, False), (False, True)}


def test_a_backbone_is_drawn_before_what_depends_on_it(tmp_path):
    path = write(tmp_path, "space = {'backbone': tune.choice(['vit_xs4', 'swin_xs8', 'timm/vit_tiny_patch16_224'])}")
    space = make_space(base(image_size=32), path)
    assert next(iter(space.domains)) == "backbone"
    drawn = {}
    for cell, params in draws(space):
        drawn.setdefault(cell.backbone, set()).update(params)
    assert drawn.keys() == {"vit_xs4", "swin_xs8", "timm/vit_tiny_patch16_224"}
    # Mega-patches are of ViTs alone; the shares of a patch are crops of patches of 4, 8 and 16 pixels.
    assert [name for name in drawn if "mega_grid" in drawn[name]] == ["vit_xs4"]
    assert space.domains["patch_crop"].categories == [0.5, base()["patch_crop"], 1.0]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("'vit_xs4', 'vit_xs5'", "unknown backbone 'vit_xs5'.*did you mean 'vit_xs8'"),
        ("'vit_xs4', 'vit_s32'", "backbone='vit_s32' of .*patches of 32 pixels .vit_s32. do not divide an image_size"),
        ("'vit_xs4', 'timm/levit_128s'", "timm/levit_128s"),
    ],
)
def test_a_backbone_that_cannot_have_these_images_is_refused(tmp_path, names, said):
    path = write(tmp_path, f"space = {{'backbone': tune.choice([{names}])}}")
    with pytest.raises(SpaceError, match=said):
        make_space(base(), path)


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_patches_are_not_permuted_where_images_are_mixed_beside_the_tasks(mix):
    joint = base(protocol="joint", permute_patches=False, **mix)
    assert "permute_patches" not in make_space(joint).domains
    assert "permute_patches" in make_space(base(**mix)).domains  # in a phase of its own


def test_one_phase_has_no_learning_rate_of_a_first_one():
    assert "pretrain_learning_rate" not in make_space(base("none", protocol="joint")).domains


# Ray's domains in Optuna's words


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (tune.uniform(0.0, 0.5), FloatDistribution(0.0, 0.5)),
        (tune.loguniform(1e-4, 1e-2), FloatDistribution(1e-4, 1e-2, log=True)),
        (tune.quniform(0.0, 0.3, 0.1), FloatDistribution(0.0, 0.3, step=0.1)),
        (tune.randint(0, 5), IntDistribution(0, 4)),  # Ray's upper end is excluded
        (tune.lograndint(1, 65), IntDistribution(1, 64, log=True)),
        (tune.qrandint(16, 64, 16), IntDistribution(16, 64, step=16)),
        (tune.choice(["bilinear", "low_rank"]), CategoricalDistribution(["bilinear", "low_rank"])),
    ],
)
def test_domains_keep_their_meaning(domain, expected):
    assert distribution(domain) == expected


def test_ranges_are_written_for_people():
    assert text(tune.loguniform(1e-4, 1e-2)) == "[0.0001, 0.01, log]"
    assert text(tune.quniform(0.0, 0.3, 0.1)) == "[0, 0.3, steps of 0.1]"
    assert text(tune.choice([0, 2, 3])) == "{0, 2, 3}"


# A user's own


def test_a_user_s_file_narrows_removes_fixes_and_extends(tmp_path):
    path = write(
        tmp_path,
        "space = {'learning_rate': tune.loguniform(1e-3, 2e-3), 'mega_grid': None, 'gradient_clip': 2.0,\n"
        "         'flip_probability': tune.choice([0.0, 0.5])}",
    )
    space = make_space(base(), path)
    known = default_space(base()).keys()
    assert text(space.domains["learning_rate"]) == "[0.001, 0.002, log]"
    assert {"mega_grid", "gradient_clip"} <= known - space.domains.keys()
    assert space.base["gradient_clip"] == 2.0
    assert "flip_probability" in space.domains.keys() - known
    assert list(space.domains) == [name for name in base() if name in space.domains]  # in the cell's order


def test_a_file_may_replace_the_built_in_space_and_names_may_narrow_it(tmp_path):
    path = write(tmp_path, "space = {'learning_rate': tune.loguniform(1e-3, 1e-2)}\nreplace = True")
    assert list(make_space(base(), path).domains) == ["learning_rate"]
    assert list(make_space(base(), names=["weight_decay", "learning_rate"]).domains) == [
        "learning_rate",
        "weight_decay",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{'learning_rat': tune.uniform(0.1, 1.0)}", "unknown parameter 'learning_rat'.*did you mean 'learning_rate'"),
        ("{'weight_decay': tune.uniform(0.3, 0.1)}", "weight_decay: the range from 0.3 to 0.1 is empty"),
        ("{'warmup_epochs': tune.randint(3, 3)}", "warmup_epochs: the range from 3 to 3 is empty.*randint excludes"),
        ("{'learning_rate': tune.loguniform(0.0, 0.1)}", r"in line 2 \(.*loguniform\(0.0, 0.1\).*greater than 0"),
        ("{'learning_rate': tune.qloguniform(0.1, 1.0, 0.1)}", "steps or a log scale, not both"),
        ("{'learning_rate': tune.randn(0.1, 0.01)}", "a normal distribution has no range"),
        ("{'pair_head': tune.choice([])}", "tune.choice of nothing"),
        ("{'pair_head': tune.grid_search(['bilinear'])}", "a grid is not sampled"),
        ("{'batch_size': tune.uniform(32, 64)}", "batch_size must be of type int"),
        ("{'drop_path': tune.uniform(0.0, 1.2)}", "drop_path must be at least 0 and below 1, not 1.2"),
        ("{'pair_head': tune.choice(['bilinear', 'low-rank'])}", "did you mean 'low_rank'"),
        ("{'seed': tune.randint(0, 5)}", "seed is not searched.*luck is no hyperparameter"),
        ("{'epochs': tune.randint(1, 5)}", "epochs are the fidelity"),
        ("{'tasks': tune.choice(['sprel', 'dist'])}", "tasks is not searched.*--per-cell"),
        ("{'drloc_weight': tune.uniform(0.1, 1.0)}", "drloc_weight has no effect with tasks='sprel"),
        ("{'learning_rate': None}\nreplace = True", "the space is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_what_would_be_right(content, problem, tmp_path):
    with pytest.raises(SpaceError, match=problem):
        make_space(base(), write(tmp_path, f"space = {content}"))


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    path = write(tmp_path, "space = {'seed': 3, 'weight_decay': tune.uniform(1.0, 0.0), 'epoch': 5}")
    with pytest.raises(SpaceError) as caught:
        make_space(base(), path, names=["learningrate"])
    assert len(caught.value.problems) == 4


def test_a_file_that_is_missing_or_defines_nothing_is_refused(tmp_path):
    with pytest.raises(SpaceError, match="does not exist"):
        make_space(base(), tmp_path / "none.py")
    with pytest.raises(SpaceError, match="does not define `space`"):
        make_space(base(), write(tmp_path, "spaces = {}"))
