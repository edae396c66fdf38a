"""Backbones of Tables 1 and 3 and the model around them."""

import itertools
import math

import pytest
import timm
import torch
import torch.nn.functional as F

from relvit.backbones import Backbone, build_backbone, start_as_published
from relvit.cell import BACKBONES, make_cell, parse_tasks, task_combinations
from relvit.losses import classification_loss, total_loss
from relvit.model import RelViT
from relvit.t2t import TokenPerformer, sinusoid
from relvit.targets import Targets
from relvit.tasks import TASKS
from sweeps.planning.recipes import recipe


@pytest.mark.parametrize(
    ("name", "image_size", "parameters", "patches"),
    [
        ("vit_s4", 32, 21_338_496, 64),  # Table 1: 21.3 million, 65 tokens with the class token
        ("vit_s8", 64, 21_393_792, 64),  # 21.4 million, 65 tokens
        ("vit_s32", 224, 22_493_952, 49),  # 22.5 million, 50 tokens
    ],
)
def test_parameters_and_tokens_of_table_1(name, image_size, parameters, patches):
    with torch.device("meta"):  # shapes alone, no memory and no arithmetic
        backbone = build_backbone(name, image_size).eval()
        features = backbone(torch.empty(2, 3, image_size, image_size))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert features.tokens.shape == (2, patches, 384)
    assert features.pooled.shape == (2, 384)
    assert backbone.vit.pos_embed.shape == (1, patches + 1, 384)
    assert backbone.grid == (image_size // BACKBONES[name].patch_size,) * 2
    assert backbone.dim == 384


def test_without_position_embedding_there_is_no_such_parameter():
    with_it = dict(build_backbone("vit_xs4", 16).named_parameters())
    without = dict(build_backbone("vit_xs4", 16, position_embedding=False).named_parameters())
    assert set(with_it) - set(without) == {"vit.pos_embed"}
    assert set(without) < set(with_it)


def permute_pixels(images, permutation):
    """Images [B, 3, 16, 16] whose 4 x 4 patch at place n is the one that was at permutation[n]."""
    moved = torch.empty_like(images)
    for place, source in enumerate(permutation):
        (row, col), (from_row, from_col) = divmod(place, 4), divmod(source, 4)
        moved[:, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = images[
            :, :, 4 * from_row : 4 * from_row + 4, 4 * from_col : 4 * from_col + 4
        ]
    return moved


def test_without_position_embedding_permuted_patches_give_permuted_tokens():
    torch.manual_seed(0)
    backbone = build_backbone("vit_xs4", 16, position_embedding=False).eval()
    images = torch.randn(2, 3, 16, 16)
    permutation = torch.randperm(16).tolist()
    with torch.inference_mode():
        tokens, pooled = backbone(images)
        moved_tokens, moved_pooled = backbone(permute_pixels(images, permutation))
    torch.testing.assert_close(moved_tokens, tokens[:, permutation], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved_pooled, pooled, atol=1e-5, rtol=1e-5)


def test_with_position_embedding_permuted_patches_give_other_tokens():
    torch.manual_seed(0)
    backbone = build_backbone("vit_xs4", 16).eval()
    torch.nn.init.normal_(backbone.vit.pos_embed)
    images = torch.randn(2, 3, 16, 16)
    permutation = torch.randperm(16).tolist()
    with torch.inference_mode():
        tokens = backbone(images).tokens
        moved = backbone(permute_pixels(images, permutation)).tokens
    assert (moved - tokens[:, permutation]).abs().max() > 0.1


def test_tokens_are_numbered_row_by_row():
    torch.manual_seed(0)
    backbone = build_backbone("vit_xs4", 16).eval()
    # Without attention and the layers behind it a token knows its own patch alone.
    backbone.vit.blocks = torch.nn.Identity()
    images = torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[:, :, 4:8, 12:16] += 1  # row 1, column 3: patch 7
    difference = (backbone(changed).tokens - backbone(images).tokens).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [7]


def test_a_pretrained_backbone_keeps_everything_but_the_position_embedding():
    torch.manual_seed(0)
    pretrained = build_backbone("vit_xs4", 16, position_embedding=False).state_dict()
    model = RelViT(build_backbone("vit_xs4", 16), classes=10)
    fresh = model.backbone.vit.pos_embed.clone()
    model.load_backbone(pretrained)
    assert model.backbone.vit.pos_embed.equal(fresh)
    assert fresh.ne(0).any()
    for name, value in pretrained.items():
        assert model.backbone.state_dict()[name].equal(value), name


def test_a_pretrained_position_embedding_is_taken_over():
    torch.manual_seed(0)
    pretrained = build_backbone("vit_xs4", 16)
    model = RelViT(build_backbone("vit_xs4", 16), classes=10)
    model.load_backbone(pretrained.state_dict())
    assert model.backbone.vit.pos_embed.equal(pretrained.vit.pos_embed)


def test_a_backbone_that_does_not_match_is_refused():
    model = RelViT(build_backbone("vit_xs4", 16), classes=10)
    state = build_backbone("vit_xs4", 16).state_dict()
    lacking = {name: value for name, value in state.items() if name != "vit.norm.weight"}
    with pytest.raises(ValueError, match="lacks \\['vit.norm.weight'\\]"):
        model.load_backbone(lacking)
    with pytest.raises(ValueError, match="unknown \\['vit.norm.scale'\\]"):
        model.load_backbone({**state, "vit.norm.scale": torch.zeros(96)})


def every_model() -> list[tuple[str, int, str, bool]]:
    """Tasks, classes, pair head and whether there is a position embedding, of every model that a cell can train.

    Without classes a model is pre-trained, as a ViT mostly is without its embedding; both pair heads where one acts.
    """
    models = []
    for tasks in (*task_combinations(), "drloc"):
        heads = ("bilinear", "low_rank") if set(tasks.split("+")) & {"sprel", "dist", "ang"} else ("none",)
        models += [(tasks, 10, head, True) for head in heads]
        if tasks not in ("none", "drloc"):
            models += [(tasks, 0, head, False) for head in heads]
    return models


def require_gradients(backbone: Backbone, images: torch.Tensor, tasks: str, classes: int, pair_head: str) -> None:
    """Every parameter of the model gets a gradient that is finite and not zero from one step's loss."""
    names = parse_tasks(tasks)
    model = RelViT(backbone, names, classes=classes, pair_head=pair_head)
    predictions = model(images)
    targets = Targets(names, backbone.grid)(None)
    losses = {task: TASKS[task].loss(predictions[task], targets[task]) for task in names}
    if classes:
        losses["classification"] = classification_loss(predictions["classification"], torch.arange(len(images)))
    total_loss(losses, {}).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.ne(0).any(), name


@pytest.mark.parametrize(("tasks", "classes", "pair_head", "position_embedding"), every_model(), ids=str)
@pytest.mark.parametrize(("name", "image_size"), [("vit_xs8", 16), ("swin_xs8", 32), ("t2t_xs", 64)])
def test_every_parameter_of_every_model_gets_a_gradient(
    name, image_size, tasks, classes, pair_head, position_embedding
):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size, position_embedding=position_embedding)
    require_gradients(backbone, torch.randn(2, 3, image_size, image_size), tasks, classes, pair_head)


def test_the_model_predicts_what_it_was_asked_for_and_nothing_else():
    model = RelViT(build_backbone("vit_xs4", 16), ("sprel", "dist", "ang", "abspos"), classes=10)
    shapes = {name: tuple(prediction.shape) for name, prediction in model(torch.randn(2, 3, 16, 16)).items()}
    assert shapes == {
        "sprel": (2, 16, 16, 9),
        "dist": (2, 16, 16, 1),
        "ang": (2, 16, 16, 1),
        "abspos": (2, 16, 16),
        "classification": (2, 10),
    }
    alone = RelViT(build_backbone("vit_xs4", 16), ("abspos",))
    assert list(alone(torch.randn(2, 3, 16, 16))) == ["abspos"]
    assert not any("classifier" in name for name, _ in alone.named_parameters())


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        RelViT(build_backbone("vit_xs4", 16))


def test_an_unknown_backbone_names_the_valid_ones_and_the_nearest():
    with pytest.raises(ValueError) as caught:
        build_backbone("vit_small4", 32)
    assert str(caught.value) == (
        "unknown backbone 'vit_small4': "
        "one of vit_s4, vit_s8, vit_s32, swin_t, t2t_vit_14, vit_xs4, vit_xs8, swin_xs8, t2t_xs, timm/NAME; "
        "did you mean 'vit_s4'?"
    )


def test_drop_path_acts_in_training_only():
    torch.manual_seed(0)
    backbone = build_backbone("vit_xs8", 16, drop_path=0.5)
    images = torch.randn(8, 3, 16, 16)
    assert not backbone(images).pooled.equal(backbone(images).pooled)
    backbone.eval()
    assert backbone(images).pooled.equal(backbone(images).pooled)


# A linear probe


def test_a_probe_trains_its_classifier_and_nothing_else():
    torch.manual_seed(0)
    model = RelViT(build_backbone("vit_xs4", 16), classes=10, probe=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}
    model(torch.randn(2, 3, 16, 16))["classification"].square().sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained


def test_a_probe_keeps_its_backbone_in_evaluation_mode():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 16, 16)
    model = RelViT(build_backbone("vit_xs4", 16, drop_path=0.5), classes=10, probe=True).train()
    assert model.training
    assert not any(module.training for module in model.backbone.modules())
    assert model(images)["classification"].equal(model(images)["classification"])
    # The same backbone in an ordinary model drops paths.
    ordinary = RelViT(build_backbone("vit_xs4", 16, drop_path=0.5), classes=10).train()
    assert not ordinary(images)["classification"].equal(ordinary(images)["classification"])


def test_a_probe_reads_the_mean_of_the_patch_tokens_and_an_ordinary_model_the_class_token():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 16)
    backbone = build_backbone("vit_xs4", 16).eval()
    sequence = backbone.vit.forward_features(images)
    for probe, embedding in ((True, sequence[:, 1:].sum(1) / 16), (False, sequence[:, 0])):
        model = RelViT(backbone, classes=10, probe=probe)
        expected = embedding @ model.classifier.weight.T + model.classifier.bias
        torch.testing.assert_close(model(images)["classification"], expected, atol=1e-5, rtol=1e-5)


# The variants of Table 3. N patches of the tasks, D channels.


def test_swin_t_is_the_published_one():
    with torch.device("meta"):
        backbone = build_backbone("swin_t", 224).eval()
        features = backbone(torch.empty(2, 3, 224, 224))
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    assert parameters == 27_519_354
    assert parameters + 768 * 1000 + 1000 == 28_288_354  # with a head for ImageNet: the published 28.3 million
    assert features.tokens.shape == (2, 49, 768)
    assert features.pooled.shape == (2, 768)
    assert (backbone.grid, backbone.dim) == ((7, 7), 768)


def test_swin_tokens_are_timms_features_and_the_pooled_embedding_is_timms_too():
    torch.manual_seed(0)
    backbone = build_backbone("swin_t", 224).eval()
    with torch.device("meta"):
        theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).eval()
    theirs.load_state_dict(backbone.swin.state_dict(), assign=True)
    # What is not in a state: how windows index their biases, and which windows are masked.
    for name, buffer in backbone.swin.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(theirs.get_submodule(owner), leaf, buffer)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        tokens, pooled = backbone(images)
        expected = theirs.forward_features(images)
        assert expected.shape == (1, 7, 7, 768)
        torch.testing.assert_close(tokens, expected.reshape(1, 49, 768))
        torch.testing.assert_close(pooled, theirs(images))


def test_t2t_vit_14_is_the_published_one():
    backbone = build_backbone("t2t_vit_14", 224).eval()
    trained = sum(parameter.numel() for parameter in backbone.parameters())
    assert trained == 21_080_806
    # Sinusoid of 197 positions, and twice 32 random features of 64 channels: fixed, but counted in the publication.
    constants = sum(buffer.numel() for buffer in backbone.buffers())
    assert constants == 197 * 384 + 2 * 32 * 64
    assert trained + constants + 384 * 1000 + 1000 == 21_545_550  # with a head for ImageNet: the published 21.5 million
    assert (backbone.grid, backbone.dim) == ((7, 7), 384)
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, 224, 224))
    assert features.tokens.shape == (1, 49, 384)
    assert features.pooled.shape == (1, 384)


SMALL_VARIANTS = [("swin_xs8", 16, 64), ("swin_xs8", 32, 64), ("t2t_xs", 64, 96), ("t2t_xs", 96, 96)]


@pytest.mark.parametrize(("name", "image_size", "dim"), SMALL_VARIANTS)
def test_the_grid_of_a_variant_is_that_of_its_cell(name, image_size, dim):
    cell = make_cell(
        **recipe("cpu").for_backbone(name, image_size)
        | {"dataset": "digits", "backbone": name, "protocol": "joint", "tasks": "sprel+abspos"}
        | {"seed": 0, "image_size": image_size, "pretrain_dataset": "none"}
    )
    backbone = build_backbone(name, image_size).eval()
    assert backbone.grid == cell.grid
    with torch.inference_mode():
        features = backbone(torch.randn(2, 3, image_size, image_size))
    assert features.tokens.shape == (2, cell.grid[0] * cell.grid[1], dim)
    assert features.pooled.shape == (2, dim)
    assert backbone.dim == dim


@pytest.mark.parametrize(("name", "image_size"), [("swin_xs8", 64), ("t2t_xs", 128)])
@pytest.mark.parametrize("tasks", ["sprel+dist+ang+abspos", "drloc", "none"])
def test_every_parameter_of_a_variant_gets_a_gradient_from_larger_images_too(name, image_size, tasks):
    torch.manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size)
    require_gradients(build_backbone(name, image_size), images, tasks, 10, "bilinear")


def test_swin_tokens_are_numbered_row_by_row():
    torch.manual_seed(0)
    backbone = build_backbone("swin_xs8", 32).eval()
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 8:16, 24:32] += 1  # row 1, column 3: patch 7
    with torch.inference_mode():
        difference = (backbone(changed).tokens - backbone(images).tokens).abs().sum(-1)[0]
    # Attention tells the others too, but the residual branch keeps it mostly in its place.
    assert difference.argmax() == 7


def test_a_swin_transformer_has_no_position_embedding_to_leave_out():
    with torch.device("meta"):
        with_it = build_backbone("swin_xs8", 32).state_dict()
        without = build_backbone("swin_xs8", 32, position_embedding=False).state_dict()
    assert list(with_it) == list(without)


@pytest.mark.parametrize("name", ["swin_xs8", "t2t_xs"])
def test_drop_path_of_a_variant_acts_in_training_only(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, 64, drop_path=0.5)
    images = torch.randn(8, 3, 64, 64)
    assert not backbone(images).pooled.equal(backbone(images).pooled)
    backbone.eval()
    assert backbone(images).pooled.equal(backbone(images).pooled)


# T2T-ViT


@pytest.fixture(scope="module")
def t2t():
    torch.manual_seed(0)
    return build_backbone("t2t_xs", 96).eval()  # 24, 12 and 6 tokens a side, pooled to 3


@torch.no_grad()
def test_t2t_pooling_is_a_mean_of_3_by_3_tokens_with_stride_2_that_leaves_the_border_out(t2t):
    images = torch.randn(2, 3, 96, 96)
    tokens, pooled = t2t(images)
    sequence = t2t.t2t.forward_features(images)
    assert sequence.shape == (2, 1 + 36, 96)
    assert pooled.equal(sequence[:, 0])
    for row, col in itertools.product(range(3), repeat=2):
        window = [
            sequence[:, 1 + 6 * y + x]
            for y in range(2 * row - 1, 2 * row + 2)
            for x in range(2 * col - 1, 2 * col + 2)
            if 0 <= y < 6 and 0 <= x < 6
        ]
        assert len(window) == (2 if row == 0 else 3) * (2 if col == 0 else 3)
        torch.testing.assert_close(tokens[:, 3 * row + col], torch.stack(window).mean(0))


@torch.no_grad()
def test_t2t_splits_images_softly_to_a_quarter_an_eighth_and_a_sixteenth_of_the_side(t2t):
    seen = {}
    handles = [
        getattr(t2t.t2t, name).register_forward_pre_hook(
            lambda module, arguments, name=name: seen.update({name: arguments[0]})
        )
        for name in ("performer1", "performer2", "project")
    ]
    handles.append(t2t.t2t.performer1.register_forward_hook(lambda *call: seen.update(left=call[2])))
    images = torch.randn(2, 3, 96, 96)
    t2t(images)
    for handle in handles:
        handle.remove()
    left = seen.pop("left")
    shapes = {name: tuple(tokens.shape) for name, tokens in seen.items()}
    assert shapes == {
        "performer1": (2, 24 * 24, 3 * 7 * 7),
        "performer2": (2, 12 * 12, 32 * 3 * 3),
        "project": (2, 6 * 6, 32 * 3 * 3),
    }
    # A token is its square of the image, with two black pixels around the image: row 5, column 23 starts at pixel
    # 4 * 5 - 2 and 4 * 23 - 2 of the image, and ends beyond it.
    bordered = F.pad(images, (2, 2, 2, 2))
    square = bordered[:, :, 20:27, 92:99]
    assert seen["performer1"][:, 24 * 5 + 23].equal(square.flatten(1))
    # In the middle of row 3, column 7 of the second split stands the token of row 6, column 14 of the first.
    assert seen["performer2"][:, 12 * 3 + 7].view(2, 32, 9)[:, :, 4].equal(left[:, 24 * 6 + 14])


@torch.no_grad()
def test_a_token_performer_is_attention_with_the_kernel_of_positive_random_features():
    torch.manual_seed(0)
    performer = TokenPerformer(12, 8)
    tokens = torch.randn(2, 5, 12)
    frequencies = performer.random_features
    assert frequencies.shape == (4, 8)
    # Orthogonal, of squared norm m.
    torch.testing.assert_close(frequencies @ frequencies.T, 4 * torch.eye(4), atol=1e-5, rtol=0)

    def feature(x):
        return [math.exp(float(w @ x) - float(x @ x) / 2) / math.sqrt(4) for w in frequencies]

    def kernel(x, y):
        return sum(a * b for a, b in zip(feature(x), feature(y)))

    expected = torch.empty(2, 5, 8)
    for b in range(2):
        projected = performer.kqv(performer.norm1(tokens[b]))
        keys, queries, values = projected.split(8, dim=1)
        for i in range(5):
            weights = [kernel(queries[i], keys[j]) for j in range(5)]
            mean = sum(weight * values[j] for j, weight in enumerate(weights)) / (sum(weights) + 1e-8)
            token = values[i] + performer.proj(mean)
            expected[b, i] = token + performer.mlp(performer.norm2(token))
    torch.testing.assert_close(performer(tokens), expected, atol=1e-5, rtol=1e-4)


def test_the_sinusoid_is_that_of_vaswani_et_al():
    table = sinusoid(6, 10)
    assert table.shape == (1, 6, 10)
    for position in range(6):
        for i in range(5):
            angle = position / 10000 ** (2 * i / 10)
            assert table[0, position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[0, position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@torch.no_grad()
def test_t2t_adds_the_sinusoid_to_class_token_and_tokens_and_without_it_adds_nothing():
    torch.manual_seed(0)
    with_it = build_backbone("t2t_xs", 64).eval()
    without = build_backbone("t2t_xs", 64, position_embedding=False).eval()
    # It is a constant: nothing that pre-training would leave behind.
    assert list(with_it.state_dict()) == list(without.state_dict())
    assert not any("pos_embed" in name for name in with_it.state_dict())
    without.load_state_dict(with_it.state_dict())
    entering = []
    for backbone in (with_it, without):
        backbone.t2t.blocks.register_forward_pre_hook(lambda module, arguments: entering.append(arguments[0]))
        backbone(torch.ones(1, 3, 64, 64))
    added = entering[0] - entering[1]
    torch.testing.assert_close(added, sinusoid(17, 96), atol=1e-5, rtol=0)
    torch.testing.assert_close(entering[1][:, 0], with_it.t2t.cls_token[:, 0])


# Initial values as in the published code


def test_a_vit_started_as_published_has_a_class_token_of_std_0_02_and_timms_rest():
    torch.manual_seed(0)
    backbone, classifier = build_backbone("vit_s4", 32), torch.nn.Linear(384, 10)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    bias = classifier.bias.clone()
    assert before["vit.cls_token"].std() < 1e-5
    start_as_published(backbone, classifier)
    assert backbone.vit.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    changed = {name for name, value in backbone.state_dict().items() if not value.equal(before[name])}
    assert changed == {"vit.cls_token"}
    assert classifier.bias.equal(bias)


@pytest.mark.parametrize(("name", "size", "epsilon"), [("swin_xs8", 32, 1e-5), ("t2t_xs", 64, 1e-5)])
def test_variants_started_as_published_have_a_classifier_without_bias(name, size, epsilon):
    backbone = build_backbone(name, size)
    classifier = torch.nn.Linear(backbone.dim, 10)
    start_as_published(backbone, classifier)
    assert classifier.bias.eq(0).all()
    assert classifier.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert {module.eps for module in backbone.modules() if isinstance(module, torch.nn.LayerNorm)} == {epsilon}


def test_a_logistic_probe_reads_the_embedding_that_was_chosen():
    torch.manual_seed(0)
    model = RelViT(build_backbone("vit_xs4", 16), classes=10, probe=True, logistic=True).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = model.backbone(images)
        assert model(images)["classification"].equal(model.classifier.pooled(features.pooled))
        model.classifier.reads_patches.fill_(True)
        assert model(images)["classification"].equal(model.classifier.patches(features.tokens.mean(1)))
