"""Backbones by timm's name: which fit, what they are, and that they train like our own."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.accounts import finish
from rich.console import Console

from relvit import data
from relvit.backbones import build_backbone
from relvit.cell import Cell, make_cell
from relvit.model import RelViT
from relvit.specs import TimmSpec, backbone_spec
from relvit.train import train
from sweeps.account.account import Account
from sweeps.cli.plan_view import show_plan
from sweeps.planning.plan import PlanError, Request, plan_cells
from sweeps.planning.recipes import recipe

SIZE = 64
# Nine families, the smallest of each.
TRAINED = (
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "cait_xxs24_224"),
    *("xcit_nano_12_p16_224", "pvt_v2_b0", "convnext_atto", "resnet10t", "mixer_s16_224", "mobilenetv3_small_050"),
)


def cell(backbone: str, **changes) -> Cell:
    fields = recipe("demo").for_backbone(backbone, SIZE) | {
        "dataset": "digits", "pretrain_dataset": "digits", "backbone": backbone, "image_size": SIZE, "seed": 0,
        "protocol": "pretrain_finetune", "tasks": "sprel+abspos", "train_images": 20, "batch_size": 10,
        "pretrain_epochs": 1, "epochs": 1, "warmup_epochs": 0,
    }  # fmt: skip
    return make_cell(**(fields | changes))


def spec(name: str, size: int = SIZE) -> TimmSpec:
    found = backbone_spec(f"timm/{name}", size)
    assert isinstance(found, TimmSpec)
    return found


@pytest.fixture(scope="module")
def digits64(tmp_path_factory):
    """Few images, for models of millions of weights."""
    whole = data.prepare("digits", tmp_path_factory.mktemp("data"), SIZE)
    return dataclasses.replace(whole, train=whole.train.part(np.arange(60)), test=whole.test.part(np.arange(10)))


def planned(**options) -> list[Cell]:
    return plan_cells(Request(study="table4", recipe="demo", data_root=Path("data"), **options))


@pytest.mark.parametrize(
    ("name", "ours", "size", "position_embedding"),
    [
        ("vit_small_patch8_224", "vit_s8", 64, True),
        ("vit_small_patch8_224", "vit_s8", 64, False),
        ("vit_small_patch32_224", "vit_s32", 224, True),
        ("vit_small_patch32_224", "vit_s32", 224, False),
        ("swin_tiny_patch4_window7_224", "swin_t", 224, True),
    ],
)
def test_a_model_that_is_ours_by_definition_is_ours_bit_for_bit(name, ours, size, position_embedding):
    models = []
    for backbone in (f"timm/{name}", ours):
        torch.manual_seed(3)
        models.append(build_backbone(backbone, size, position_embedding=position_embedding, drop_path=0.1).eval())
    theirs, own = (list(model.state_dict().values()) for model in models)
    assert len(theirs) == len(own)
    assert all(torch.equal(a, b) for a, b in zip(theirs, own))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (model(images) for model in models)
    assert torch.equal(found.tokens, expected.tokens)
    if ours == "swin_t":  # means over the same tokens, summed in another order
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-6)
    else:
        assert torch.equal(found.pooled, expected.pooled)


@pytest.mark.parametrize("name", TRAINED)
def test_ten_models_of_nine_families_train_a_pretraining_and_a_finetuning(name, digits64, tmp_path):
    rows = list(train(cell(f"timm/{name}"), digits64, tmp_path / "cell"))
    assert [row["phase"] for row in rows] == ["pretrain", "finetune", "test"]
    assert 0 <= rows[-1]["test_accuracy"] <= 100
    assert {"pretrain_val_sprel_accuracy", "pretrain_val_abspos_accuracy"} <= rows[0].keys()


@pytest.mark.parametrize(
    ("name", "side", "dim", "pooled"),
    [
        ("vit_tiny_patch16_224", 4, 192, 192),  # a sequence with a class token
        ("swin_tiny_patch4_window7_224", 2, 768, 768),  # a map, channels last
        ("pvt_v2_b0", 2, 256, 256),  # a map, channels first
        ("mobilenetv3_small_050", 2, 288, 1024),  # its classifier reads more channels than its grid has
        ("volo_d1_224", 4, 384, 384),  # a class token that is not announced
    ],
)
def test_the_model_says_itself_what_its_grid_is(name, side, dim, pooled):
    found = spec(name)
    assert (SIZE // found.patch_size, found.dim, found.pooled_dim) == (side, dim, pooled)
    backbone = build_backbone(f"timm/{name}", SIZE)
    features = backbone(torch.zeros(2, 3, SIZE, SIZE))
    assert backbone.grid == (side, side)
    assert features.tokens.shape == (2, side * side, dim)
    assert features.pooled.shape == (2, pooled)
    assert found.parameters == sum(each.numel() for each in backbone.parameters())


def test_the_tokens_are_in_the_order_of_the_image():
    """A bright patch moves the token at its own place most, in a model whose receptive field is one patch."""
    torch.manual_seed(0)
    backbone = build_backbone("timm/resmlp_12_224", SIZE).eval()
    dark, bright = torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 3, SIZE, SIZE)
    bright[:, :, 16:32, 32:48] = 3.0  # row 1, column 2 of 4 x 4
    with torch.no_grad():
        change = (backbone(bright).tokens - backbone(dark).tokens).norm(dim=-1)[0]
    assert int(change.argmax()) == 1 * 4 + 2


def test_asking_for_a_spec_draws_no_random_number():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    spec("convnext_atto", 96)
    assert torch.equal(torch.get_rng_state(), before)


PROJECTION = ("pos_embed.token_projection.weight", "pos_embed.token_projection.bias")


@pytest.mark.parametrize(
    ("name", "embeddings", "pads"),
    [
        ("cait_xxs24_224", ("pos_embed",), False),
        ("tnt_s_patch16_224", ("patch_pos", "pixel_pos"), False),
        ("visformer_tiny", ("pos_embed1", "pos_embed2", "pos_embed3"), True),
        ("nest_tiny", ("levels.0.pos_embed", "levels.1.pos_embed", "levels.2.pos_embed"), True),
        ("xcit_nano_12_p16_224", PROJECTION, True),  # of a fixed sinusoid
    ],
)
def test_a_position_embedding_is_left_out_wherever_it_is(name, embeddings, pads):
    """Without it the model is what it is with the embedding at zero; where no convolution pads, every place then looks
    the same."""
    assert spec(name).has_position_embedding
    with_it, without = (build_backbone(f"timm/{name}", SIZE, position_embedding=each).eval() for each in (True, False))
    named = dict(with_it.named_parameters())
    left_out = {f"model.{each}" for each in embeddings}
    assert named.keys() - dict(without.named_parameters()).keys() == left_out
    assert with_it.state_dict().keys() - without.state_dict().keys() == left_out
    with_it.load_state_dict(without.state_dict(), strict=False)
    image = torch.full((1, 3, SIZE, SIZE), 0.7)
    with torch.no_grad():
        assert not torch.equal(with_it(image).tokens, without(image).tokens)
        for each in left_out:
            named[each].zero_()
        tokens = without(image).tokens
        assert torch.equal(with_it(image).tokens, tokens)
    same = torch.allclose(tokens, tokens[:, :1].expand_as(tokens), rtol=0, atol=1e-5)
    assert same is not pads


def test_relative_positions_and_those_of_a_pooling_head_are_no_embedding_to_leave_out():
    for name in ("swin_tiny_patch4_window7_224", "lambda_resnet26rpt_256", "twins_svt_small", "resnet50_clip"):
        assert not spec(name).has_position_embedding


def test_a_model_that_was_pretrained_without_its_position_embedding_goes_on_with_a_fresh_one():
    pretrained = build_backbone("timm/xcit_nano_12_p16_224", SIZE, position_embedding=False).state_dict()
    model = RelViT(build_backbone("timm/xcit_nano_12_p16_224", SIZE), ("sprel",))
    fresh = {each: model.backbone.get_parameter(f"model.{each}").clone() for each in PROJECTION}
    model.load_backbone(pretrained)
    found = model.backbone.state_dict()
    assert all(torch.equal(found[f"model.{each}"], value) for each, value in fresh.items())
    assert all(torch.equal(found[each], value) for each, value in pretrained.items())


def test_fields_that_do_not_act_in_a_model_hold_their_neutral_value():
    assert cell("timm/vgg11", drop_path=0.1).drop_path == 0.0
    assert cell("timm/convnext_atto", drop_path=0.1).drop_path == 0.1
    assert cell("timm/convnext_atto", pretrain_position_embedding=True).pretrain_position_embedding is False
    assert cell("timm/vit_tiny_patch16_224", pretrain_position_embedding=True).pretrain_position_embedding is True
    with pytest.raises(ValueError, match="drop_path"):
        dataclasses.replace(cell("timm/vgg11"), drop_path=0.1)


def test_a_cell_id_is_the_name_of_a_folder():
    assert cell("timm/pvt_v2_b0").cell_id.startswith("digits-timm.pvt_v2_b0-pretrain_finetune-sprel+abspos-s0-")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tinny_patch16_224", rf"timm {timm.__version__} has no model .*; did you mean 'vit_tiny_patch16_224'"),
        (
            "DeiT-tiny",
            r"no model 'DeiT-tiny'; did you mean 'deit_tiny_patch16_224' or 'deit_tiny_distilled_patch16_224'\?",
        ),
        ("patch8_224", r"did you mean 'vit_\w+_patch8_224' or "),  # what contains it
        ("swin", r"did you mean 'swin_\w+' or 'swin_\w+' or 'swin\w+'\?"),
        ("no such thing", r"has no model 'no such thing'; timm.list_models\(\) lists"),
        ("", r"'timm/' lacks the name of a model, as in 'timm/vit_tiny_patch16_224'"),
        ("eva02_tiny_patch14_224", "a token for each 14 pixels.* try --image-size 70"),
        ("levit_128s", "1 x 1 tokens for images of 64 pixels.* give a larger --image-size"),
        ("coat_tiny", "no single grid of tokens"),
        ("crossvit_tiny_240", "does not take images of 64 pixels"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_the_plan_with_the_reason(name, reason):
    with pytest.raises(PlanError, match=reason):
        planned(backbone=f"timm/{name}", image_size=SIZE)


def test_a_model_that_does_not_fit_is_made_once_for_all_cells_of_a_plan(monkeypatch):
    made, create = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: made.append(name) or create(name, **options))
    with pytest.raises(PlanError, match="a token for each 14 pixels"):
        planned(backbone="timm/eva02_tiny_patch14_224", image_size=50)
    assert made == ["eva02_tiny_patch14_224"]


def test_a_plan_with_a_model_of_timm_has_the_cells_of_the_study():
    cells = planned(backbone="timm/pvt_v2_b0", image_size=SIZE)
    assert len(cells) == 16
    assert {each.backbone for each in cells} == {"timm/pvt_v2_b0"}
    assert cells[0].grid == (2, 2)


def test_the_plan_says_the_parameters_and_tokens_of_a_model_of_timm(tmp_path, capsys):
    one = cell("timm/vit_tiny_patch16_224")
    account = Account(tmp_path)
    finish(account, one, [{"phase": "test", "epoch": 2, "test_accuracy": 90.0}])  # nothing is left to be estimated
    assert show_plan(Console(width=200), account, [one], tmp_path / "data", 1, 0) == 0
    patches, places = (16 * 16 * 3 + 1) * 192, (1 + 16 + 1) * 192  # the class token, and a place for it and each patch
    block = 2 * 2 * 192 + (192 + 1) * 3 * 192 + (192 + 1) * 192 + (192 + 1) * 768 + (768 + 1) * 192
    total = patches + places + 12 * block + 2 * 192
    assert (
        f"timm/vit_tiny_patch16_224: {total:,} parameters without heads, 4 x 4 tokens of 192 channels at 64 pixels"
        in capsys.readouterr().out.splitlines()
    )
