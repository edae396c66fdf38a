"""The sizes of each backbone, without building it. Standard library only; `relvit.backbones` builds them."""

from dataclasses import dataclass

from relvit.messages import unknown


@dataclass(frozen=True)
class ViTSpec:
    """A Vision Transformer.

    patch_size: pixels a side of what one token sees; image_size: None for the data set's; title: its name in tables.
    """

    dim: int
    depth: int
    heads: int
    patch_size: int
    image_size: int | None = None
    title: str = ""


@dataclass(frozen=True)
class SwinSpec:
    """A Swin Transformer. dim: channels of the first stage, doubled by each of the following."""

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    image_size: int | None = None
    title: str = ""

    @property
    def patch_size(self) -> int:
        """Pixels a side of one of the final tokens: patches of 4, merged 2 x 2 between stages."""
        return 4 * 2 ** (len(self.depths) - 1)


@dataclass(frozen=True)
class T2TSpec:
    """A T2T-ViT. token_dim: channels in its token transformers."""

    dim: int
    depth: int
    heads: int
    token_dim: int
    image_size: int | None = None
    title: str = ""

    @property
    def patch_size(self) -> int:
        """Pixels a side of one token of the tasks: soft splits of stride 4, 2 and 2, then pooling of stride 2."""
        return 32


TIMM = "timm/"  # what the name of a backbone that timm brings begins with


@dataclass(frozen=True)
class TimmSpec:
    """A model of timm at one image size, as `relvit.timm_models` found it.

    dim: channels of its tokens; pooled_dim: of what its classifier reads; prefix_tokens: tokens before those of the
    grid; parameters: without a classifier; has_position_embedding: whether it learns an embedding of places, anywhere
    in it, which can then be left out (relative positions in attention stay); has_drop_path: whether a rate of drop path
    changes it; has_dropout: the same of dropout in its blocks.
    """

    name: str
    dim: int
    pooled_dim: int
    patch_size: int
    image_size: int
    prefix_tokens: int
    layout: str
    parameters: int
    has_position_embedding: bool
    has_drop_path: bool
    has_dropout: bool
    title: str


Spec = ViTSpec | SwinSpec | T2TSpec | TimmSpec

BACKBONES: dict[str, ViTSpec | SwinSpec | T2TSpec] = {
    # Table 1.
    "vit_s4": ViTSpec(dim=384, depth=12, heads=6, patch_size=4, image_size=32, title="ViT-S/4"),
    "vit_s8": ViTSpec(dim=384, depth=12, heads=6, patch_size=8, image_size=64, title="ViT-S/8"),
    "vit_s32": ViTSpec(dim=384, depth=12, heads=6, patch_size=32, image_size=224, title="ViT-S/32"),
    # Table 3: Swin-T (Liu et al., ICCV 2021) and T2T-ViT-14 (Yuan et al., ICCV 2021), both at 224 pixels.
    "swin_t": SwinSpec(dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7, image_size=224, title="Swin-T"),
    "t2t_vit_14": T2TSpec(dim=384, depth=14, heads=6, token_dim=64, image_size=224, title="T2T-ViT-14"),
    # Ours: extra small, for a CPU.
    "vit_xs4": ViTSpec(dim=96, depth=4, heads=3, patch_size=4, title="ViT-XS/4"),
    "vit_xs8": ViTSpec(dim=96, depth=4, heads=3, patch_size=8, title="ViT-XS/8"),
    "swin_xs8": SwinSpec(dim=32, depths=(2, 2), heads=(2, 4), window=4, title="Swin-XS"),
    "t2t_xs": T2TSpec(dim=96, depth=4, heads=3, token_dim=32, image_size=64, title="T2T-ViT-XS"),
}


def backbone_spec(name: str, image_size: int) -> Spec:
    """The sizes of a backbone; those of `timm/NAME` at this image size, for which torch and timm are imported.

    Raises ValueError for an unknown name, and for a model of timm that does not fit.
    """
    if name.startswith(TIMM):
        from relvit.timm_models import timm_spec

        return timm_spec(name, image_size)
    if name not in BACKBONES:
        raise ValueError(unknown("backbone", name, (*BACKBONES, f"{TIMM}NAME")))
    return BACKBONES[name]
