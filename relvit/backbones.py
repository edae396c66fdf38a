"""Backbones behind one seam: images in, patch tokens and one pooled embedding out.

B batch, N patches, D channels.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from relvit.specs import SwinSpec, T2TSpec, TimmSpec, backbone_spec
from relvit.t2t import T2TViT

_POSITION_EMBEDDING = re.compile(
    r"^(?!.*\b(head|attn_pool)\.)(.*\.)?(pos_embe?d\w*|patch_pos|pixel_pos|position_embedding_table)(\.token_projection\.\w+)?$"
)


class Features(NamedTuple):
    """tokens: [B, N, D], row-major over the grid; pooled: [B, D], what classification reads."""

    tokens: Tensor
    pooled: Tensor


class Backbone(nn.Module):
    """What every backbone has: `dim` (D), `grid` (rows, columns of its patch tokens), forward to `Features`.

    pooled_dim: channels of the pooled embedding where these are not D.
    """

    dim: int
    grid: tuple[int, int]
    pooled_dim: int | None = None

    def forward(self, images: Tensor) -> Features:
        """images: float [B, 3, H, W], normalised."""
        raise NotImplementedError


class ViT(Backbone):
    """timm's Vision Transformer, Eq. 1-4; the class token is the pooled embedding (Eq. 4).

    Without position_embedding, E_pos is left out of Eq. 1, as section 3.2 does in pre-training; there is then no
    such parameter, and fine-tuning starts it fresh.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        position_embedding: bool = True,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dim = dim
        self.vit = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            num_classes=0,
            pos_embed="learn" if position_embedding else "none",
            drop_path_rate=drop_path,
            pos_drop_rate=dropout,
            proj_drop_rate=dropout,
        )
        self.grid = self.vit.patch_embed.grid_size

    def forward(self, images: Tensor) -> Features:
        """images: float [B, 3, H, W], normalised."""
        sequence = self.vit.forward_features(images)
        return Features(tokens=sequence[:, 1:], pooled=sequence[:, 0])


class Swin(Backbone):
    """timm's Swin Transformer; the tokens of its last stage, and their mean as the pooled embedding."""

    def __init__(self, spec: SwinSpec, *, image_size: int, drop_path: float = 0.0, dropout: float = 0.0):
        super().__init__()
        self.swin = SwinTransformer(
            img_size=image_size,
            patch_size=4,
            embed_dim=spec.dim,
            depths=spec.depths,
            num_heads=spec.heads,
            window_size=spec.window,
            num_classes=0,
            drop_path_rate=drop_path,
            proj_drop_rate=dropout,
        )
        self.dim = self.swin.num_features
        self.grid = (image_size // spec.patch_size, image_size // spec.patch_size)

    def forward(self, images: Tensor) -> Features:
        """images: float [B, 3, H, W], normalised."""
        tokens = self.swin.forward_features(images).flatten(1, 2)
        return Features(tokens=tokens, pooled=tokens.mean(1))


class T2T(Backbone):
    """T2T-ViT; its class token is the pooled embedding. The tasks read its tokens averaged 3 x 3 with stride 2.

    So does the published code of RelViT, which brings 14 x 14 tokens to 7 x 7; borders average what is there.
    """

    def __init__(
        self,
        spec: T2TSpec,
        *,
        image_size: int,
        position_embedding: bool = True,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dim = spec.dim
        self.t2t = T2TViT(
            image_size=image_size,
            dim=spec.dim,
            depth=spec.depth,
            heads=spec.heads,
            token_dim=spec.token_dim,
            drop_path=drop_path,
            dropout=dropout,
            position_embedding=position_embedding,
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.grid = (image_size // spec.patch_size, image_size // spec.patch_size)

    def forward(self, images: Tensor) -> Features:
        """images: float [B, 3, H, W], normalised."""
        sequence = self.t2t.forward_features(images)
        side = self.t2t.side
        plane = sequence[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return Features(tokens=self.pool(plane).flatten(2).transpose(1, 2), pooled=sequence[:, 0])


def is_position_embedding(name: str) -> bool:
    """Whether a parameter of this name is all or part of a learned embedding of places, which the tokens then hold.

    Names as in timm: `pos_embed`, `levels.0.pos_embed`, TNT's `patch_pos`, XCiT's projection of a sinusoid. Relative
    positions in attention and convolutions as positions (`pos_embed.proj`) are none; nor is a pooling head's own.
    """
    return _POSITION_EMBEDDING.search(name) is not None


def fitted(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """A backbone's state for one of another image size: learned position embeddings interpolated to its grid, as timm
    does (bicubic, antialiased). Raises ValueError naming whatever else has another shape.
    """
    own, result = backbone.state_dict(), dict(state)
    rows, columns = backbone.grid
    for name in sorted(own.keys() & state.keys()):
        value, wanted = state[name], own[name].shape
        if value.shape == wanted:
            continue
        prefix = wanted[1] - rows * columns if value.dim() == 3 else -1
        before = value.shape[1] - prefix if value.dim() == 3 else 0
        if not name.endswith("pos_embed") or prefix < 0 or math.isqrt(max(0, before)) ** 2 != before:
            raise ValueError(f"{name} is {list(value.shape)} at one image size and {list(wanted)} at the other")
        result[name] = resample_abs_pos_embed(value, [rows, columns], num_prefix_tokens=prefix)
    return result


def resize_problem(name: str, image_size: int, finetune_image_size: int) -> str:
    """Why a backbone that was pre-trained at one image size cannot go on at another; "" where it can."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        before, after = (build_backbone(name, size) for size in (image_size, finetune_image_size))
        try:
            fitted(before.state_dict(), after)
        except ValueError as error:
            return f"finetune_image_size={finetune_image_size}: {name} cannot change its image size: {error}"
    return ""


def start_as_published(backbone: Backbone, classifier: nn.Module | None) -> None:
    """Give a fresh backbone and classifier the initial values of the code published with the paper, where timm's or
    torch's differ: a class token of std 0.02 in ViT (timm: 1e-6), a LayerNorm epsilon of 1e-5 in T2T-ViT's blocks, and
    in Swin and T2T-ViT a classifier of std 0.02 without bias.
    """
    if isinstance(backbone, ViT):
        assert backbone.vit.cls_token is not None
        nn.init.trunc_normal_(backbone.vit.cls_token, std=0.02)
        return
    if isinstance(classifier, nn.Linear):
        nn.init.trunc_normal_(classifier.weight, std=0.02)
        nn.init.zeros_(classifier.bias)
    if isinstance(backbone, T2T):
        for module in backbone.t2t.blocks.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5


def build_backbone(
    name: str, image_size: int, *, position_embedding: bool = True, drop_path: float = 0.0, dropout: float = 0.0
) -> Backbone:
    """The backbone of that name for square images. Raises ValueError as `relvit.specs.backbone_spec`.

    A Swin Transformer has no position embedding to leave out: its positions are biases inside attention. dropout: after
    the position embedding of a ViT or T2T-ViT, and after attention and MLP of each block, those of token transformers
    left out.
    """
    spec = backbone_spec(name, image_size)
    rates = {"drop_path": drop_path, "dropout": dropout}
    if isinstance(spec, TimmSpec):
        from relvit.timm_models import TimmBackbone

        return TimmBackbone(name, image_size=image_size, position_embedding=position_embedding, **rates)
    if isinstance(spec, SwinSpec):
        return Swin(spec, image_size=image_size, **rates)
    if isinstance(spec, T2TSpec):
        return T2T(spec, image_size=image_size, position_embedding=position_embedding, **rates)
    return ViT(
        image_size=image_size,
        patch_size=spec.patch_size,
        dim=spec.dim,
        depth=spec.depth,
        heads=spec.heads,
        position_embedding=position_embedding,
        **rates,
    )
