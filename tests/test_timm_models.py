"""Backbones by timm's name: which fit, what they are, and that they train like our own."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from relvit import data
from relvit.backbones import build_backbone
from relvit.cell import Cell, make_cell
from relvit.specs import TimmSpec, backbone_spec
from relvit.train import train
from sweeps.planning.plan import PlanError, Request, plan_cells
from sweeps.planning.recipes import recipe

SIZE = 64
# Ten families, the smallest of each.
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
    ("name", "ours", "size"),
    [("vit_small_patch8_224", "vit_s8", 64), ("swin_tiny_patch4_window7_224", "swin_t", 224)],
)
@pytest.mark.parametrize("position_embedding", [True, False])
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
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_ten_families_train_a_pretraining_and_a_finetuning(name, digits64, tmp_path):
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


def test_a_left_out_position_embedding_is_no_parameter_and_no_part_of_the_state():
    with_it, without = (build_backbone("timm/cait_xxs24_224", SIZE, position_embedding=each) for each in (True, False))
    assert "model.pos_embed" in with_it.state_dict()
    assert set(with_it.state_dict()) - set(without.state_dict()) == {"model.pos_embed"}


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
        ("vit_tinny_patch16_224", f"timm {timm.__version__} has no model .*; did you mean 'vit_tiny_patch16_224'?"),
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
