"""Pictures' numbers from ViTs whose weights are set by hand, and attention against timm's own unfused path."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.made_runs import planned

from relvit import checkpoint
from relvit.backbones import ViT, build_backbone
from relvit.model import RelViT
from relvit.pictures import NoPicture, attention, patch_filters, position_similarity, trained_backbone
from relvit.train import train


def small_vit(**changes) -> ViT:
    """2 x 2 patches of 4 x 4 pixels, 8 channels, 2 heads."""
    torch.manual_seed(0)
    return ViT(**{"image_size": 8, "patch_size": 4, "dim": 8, "depth": 2, "heads": 2} | changes).eval()


# Position embeddings


@torch.no_grad()
def test_similarity_is_the_cosine_of_two_patches_embeddings_without_the_class_token():
    vit = small_vit()
    x, y = torch.eye(8)[:2]
    vit.vit.pos_embed.copy_(torch.stack([7 * y, 2 * x, 3 * y, x + y, -x])[None])  # class token first
    similarity = position_similarity(vit)
    assert similarity.shape == (2, 2, 2, 2)
    half = 0.5**0.5
    torch.testing.assert_close(similarity[0, 0], torch.tensor([[1, 0], [half, -1]]))
    torch.testing.assert_close(similarity[1, 0], torch.tensor([[half, half], [1, -half]]))


# Patch filters


@torch.no_grad()
def test_filters_that_mix_two_patterns_have_these_as_components():
    vit = small_vit()
    # Patterns over 4 x 4 pixels in three colours: a red left half against the right, and a green top row.
    left, top = torch.zeros(2, 3, 4, 4)
    left[0, :, :2], left[0, :, 2:] = 1, -1
    top[1, 0] = 1
    # Weights that add up to 0, with 4 and 1 parts of the variance: left has norm 4, top has norm 2.
    mix = torch.tensor([1, -1, 1, -1, 1, -1, 1, -1]), torch.tensor([1, 1, -1, -1, 1, 1, -1, -1])
    mean = torch.rand(3, 4, 4)
    vit.vit.patch_embed.proj.weight.copy_(torch.stack([a * left / 4 * 2 + b * top / 2 + mean for a, b in zip(*mix)]))
    components, explained = patch_filters(vit, count=2)
    assert components.shape == (2, 4, 4, 3)
    assert explained.tolist() == pytest.approx([0.8, 0.2], abs=1e-5)
    expected = torch.stack([left / 4, top / 2]).permute(0, 2, 3, 1)
    # Of equal magnitudes any may count as the largest, so the left half's sign is open.
    assert (components[0] * components[0, 0, 0, 0].sign()).flatten().tolist() == pytest.approx(
        expected[0].flatten().tolist(), abs=1e-5
    )
    assert components[1].flatten().tolist() == pytest.approx(expected[1].flatten().tolist(), abs=1e-5)


def test_components_are_orthonormal_and_there_are_no_more_than_filters_and_pixels_give():
    components, explained = patch_filters(small_vit(), count=28)
    assert len(components) == len(explained) == 8  # of 8 filters
    flat = components.flatten(1)
    # The eighth explains nothing: taking the mean off leaves seven directions.
    torch.testing.assert_close(flat[:7] @ flat[:7].T, torch.eye(7), atol=1e-5, rtol=0)
    assert explained.sum().item() == pytest.approx(1)
    assert explained.tolist() == sorted(explained.tolist(), reverse=True)
    assert explained[7].item() == pytest.approx(0, abs=1e-6)


# Attention


def unfused_attention(vit: ViT, images: torch.Tensor) -> torch.Tensor:
    """[B, H, 1 + N, 1 + N], taken where timm computes it when it may not use the fused kernel."""
    last, seen = vit.vit.blocks[-1].attn, []
    last.fused_attn = False
    hook = last.attn_drop.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.inference_mode():
        vit(images)
    hook.remove()
    last.fused_attn = True
    return seen[0]


def test_attention_is_the_class_tokens_row_of_the_last_block():
    vit, images = small_vit(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        for block in vit.vit.blocks:
            block.attn.qkv.weight.mul_(20)  # so that attention is far from even
    weights = attention(vit, images)
    assert weights.shape == (3, 2, 2, 2)
    expected = unfused_attention(vit, images)[:, :, 0, 1:].unflatten(2, (2, 2))
    torch.testing.assert_close(weights, expected)
    assert weights.flatten(2).std(-1).min() > 0.001


@torch.no_grad()
def test_a_class_token_that_asks_for_nothing_attends_evenly():
    vit = small_vit()
    attn = vit.vit.blocks[-1].attn
    attn.qkv.weight[:8].zero_()  # queries
    attn.qkv.bias[:8].zero_()
    torch.testing.assert_close(attention(vit, torch.randn(1, 3, 8, 8)), torch.full((1, 2, 2, 2), 1 / 5))


def test_attention_leaves_the_model_as_it_was():
    vit, images = small_vit(), torch.randn(1, 3, 8, 8)
    before = vit(images).pooled
    attention(vit, images)
    assert not vit.vit.blocks[-1].attn._forward_pre_hooks
    torch.testing.assert_close(vit(images).pooled, before)


# What other backbones lack


def test_a_vit_without_position_embedding_says_so():
    with pytest.raises(NoPicture, match="without a position embedding"):
        position_similarity(small_vit(position_embedding=False))


def test_swin_has_none_and_says_why():
    swin = build_backbone("swin_xs8", 32).eval()
    with pytest.raises(NoPicture, match="biases inside attention"):
        position_similarity(swin)
    with pytest.raises(NoPicture, match="4 x 4 pixels"):
        patch_filters(swin)
    with pytest.raises(NoPicture, match="no class token"):
        attention(swin, torch.randn(1, 3, 32, 32))


def test_t2t_has_attention_alone():
    t2t = build_backbone("t2t_xs", 64).eval()
    with pytest.raises(NoPicture, match="sinusoid"):
        position_similarity(t2t)
    with pytest.raises(NoPicture, match="soft splits"):
        patch_filters(t2t)
    weights = attention(t2t, torch.randn(2, 3, 64, 64))
    assert weights.shape == (2, 3, 4, 4)  # tokens of 16 pixels
    assert (weights.flatten(2).sum(-1) < 1).all()


# Finished trainings


def test_the_backbone_of_a_finished_training_has_the_tested_weights(digits, tmp_path):
    settings = ("pretrain_epochs=1", "epochs=1", "warmup_epochs=0", "train_images=100")
    (cell,) = planned(tmp_path, "table4", seeds=(0,), combinations=("sprel",), settings=settings)
    list(train(cell, digits, tmp_path / "cell"))
    found, backbone = trained_backbone(tmp_path / "cell")
    assert found == cell
    assert not backbone.training
    kept = checkpoint.load_newest(tmp_path / "cell", "cpu", print)["model"]
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, kept[f"backbone.{name}"])
    # Fine-tuned with a position embedding, which pre-training did not have.
    assert position_similarity(backbone).shape == (4, 4, 4, 4)


def test_the_backbone_of_a_pre_training_has_its_own_positions(tmp_path):
    (cell,) = planned(tmp_path, "table4", seeds=(0,), combinations=("sprel",))
    alone = replace(cell.pretraining(), pretrain_position_embedding=False)
    model = RelViT(build_backbone(cell.backbone, cell.image_size, position_embedding=False), ("sprel",))
    state = {"cell": alone.as_dict(), "finished": True, "model": model.state_dict()}
    checkpoint.save(state, tmp_path, None, 1)
    _, backbone = trained_backbone(tmp_path)
    with pytest.raises(NoPicture, match="without a position embedding"):
        position_similarity(backbone)


@pytest.mark.parametrize("state", [None, {"finished": False}])
def test_a_training_that_is_not_finished_has_no_backbone_to_show(state, tmp_path: Path):
    if state:
        checkpoint.save(state, tmp_path, 3, 1)
    with pytest.raises(FileNotFoundError, match="no final weights"):
        trained_backbone(tmp_path)
