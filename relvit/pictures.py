"""What a trained ViT has learned, as tensors to look at: position embeddings, patch filters, attention.

B images, N patches on a grid of R rows and C columns, D channels, H heads, P pixels a side of a patch. Plain tensors,
on the backbone's device; whoever calls turns them into pictures.
"""

import logging
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from relvit import checkpoint
from relvit.backbones import T2T, Backbone, Swin, ViT, build_backbone, start_as_published
from relvit.cell import Cell
from relvit.files import Location
from relvit.train import phases

logger = logging.getLogger(__name__)


class NoPicture(ValueError):
    """Why a backbone has no such picture, as a sentence without a full stop."""


class Filters(NamedTuple):
    """components: [K, P, P, 3], orthonormal when flattened; explained: [K], each one's share of the filters' variance,
    in [0, 1] and descending."""

    components: Tensor
    explained: Tensor


def trained_backbone(folder: Location, device: str = "cpu") -> tuple[Cell, Backbone]:
    """The cell that was trained in `folder`, and its backbone with the tested weights, in evaluation mode.

    Raises FileNotFoundError where no finished training is there.
    """
    state = checkpoint.load_newest(folder, device, logger.warning)
    if state is None or not state["finished"]:
        raise FileNotFoundError(f"{folder} has no final weights")
    return _backbone(state, device)


def _backbone(state: dict[str, Any], device: str) -> tuple[Cell, Backbone]:
    cell = Cell(**state["cell"])
    last = phases(cell)[-1]
    backbone = build_backbone(
        cell.backbone, last.mega_grid * cell.patch_size or last.image_size, position_embedding=last.position_embedding
    )
    if cell.initialisation == "published":
        start_as_published(backbone, None)  # for the epsilon that T2T-ViT has then
    prefix = "backbone."
    weights = {name.removeprefix(prefix): value for name, value in state["model"].items() if name.startswith(prefix)}
    backbone.load_state_dict(weights)
    return cell, backbone.to(device).eval()


@torch.inference_mode()
def position_similarity(backbone: Backbone) -> Tensor:
    """Cosine similarity of the learned position embeddings of every two patches: [R, C, R, C], in [-1, 1].

    The map at [row, column] is that of the patch there with all others (Dosovitskiy et al., ICLR 2021, Fig. 7). The
    class token's embedding is left out. Raises NoPicture where no position embedding is learned.
    """
    if isinstance(backbone, Swin):
        raise NoPicture("a Swin Transformer has no position embedding: its positions are biases inside attention")
    if isinstance(backbone, T2T):
        raise NoPicture("T2T-ViT's position embedding is a fixed sinusoid: nothing of it is learned")
    embedding = _vit(backbone).pos_embed
    if embedding is None:
        raise NoPicture("this ViT was trained without a position embedding")
    directions = F.normalize(embedding[0, 1:], dim=-1)
    return (directions @ directions.T).unflatten(0, backbone.grid).unflatten(2, backbone.grid)


@torch.inference_mode()
def patch_filters(backbone: Backbone, count: int = 28) -> Filters:
    """The principal components of the D filters that embed a patch (Eq. 1), the strongest `count` of them or all.

    The mean filter is taken off first (Dosovitskiy et al., Fig. 7). A component's sign means nothing; each is given
    that which makes its entry of largest magnitude positive. Raises NoPicture where patches are not embedded by one
    linear map.
    """
    if isinstance(backbone, T2T):
        raise NoPicture("T2T-ViT has no filters of patches: its tokens come from soft splits and attention")
    if isinstance(backbone, Swin):
        raise NoPicture(
            "a Swin Transformer embeds 4 x 4 pixels and merges them later: it has no filters of its patches"
        )
    filters = _vit(backbone).patch_embed.proj.weight.double()
    flat = filters.flatten(1)
    _, scales, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    kept = directions[:count]
    largest = kept.gather(1, kept.abs().argmax(1, keepdim=True))
    components = (kept * largest.sign()).unflatten(1, filters.shape[1:]).permute(0, 2, 3, 1)
    explained = scales.square() / scales.square().sum().clamp_min(torch.finfo(scales.dtype).tiny)
    return Filters(components.float(), explained[:count].float())


@torch.inference_mode()
def attention(backbone: Backbone, images: Tensor) -> Tensor:
    """How much the class token attends to each patch in the last block, by head: [B, H, R, C], in [0, 1].

    images: float [B, 3, S, S], normalised. Over the patches of a head these add up to at most 1; what is missing goes
    to the class token itself. For T2T-ViT the grid is that of its tokens, S / 16 a side. Raises NoPicture where there
    is no class token.
    """
    if isinstance(backbone, Swin):
        raise NoPicture("a Swin Transformer has no class token whose attention could be shown")
    last: object
    if isinstance(backbone, T2T):
        last, grid = backbone.t2t.blocks[-1].attn, (backbone.t2t.side, backbone.t2t.side)
    else:
        last, grid = _vit(backbone).blocks[-1].attn, backbone.grid
    assert isinstance(last, Attention)
    inputs: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        backbone(images)
    finally:
        hook.remove()
    # timm's fused attention does not give its weights away: they are worked out again from the block's input.
    (sequence,) = inputs
    query, key, _ = last.qkv(sequence).unflatten(2, (3, last.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = last.q_norm(query), last.k_norm(key)
    weights = (query[:, :, :1] * last.scale @ key.transpose(2, 3)).softmax(-1)
    return weights[:, :, 0, 1:].unflatten(2, grid)


def _vit(backbone: Backbone) -> Any:
    if not isinstance(backbone, ViT):
        raise NoPicture(f"pictures of a {type(backbone).__name__} are not defined")
    return backbone.vit
