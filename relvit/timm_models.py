"""Any model of timm as a backbone, by the name `timm/NAME`. The model itself is asked whether it fits.

It fits if, at the asked image size, its `forward_features` gives a square grid of at least 2 x 2 tokens, as a sequence
[B, prefix + h * w, D] or as a map [B, D, h, w] or [B, h, w, D], and its `forward_head` one embedding of each image.
Weights are always fresh: everything here is trained from scratch.
"""

import difflib
import math
from functools import cache
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from relvit.backbones import Backbone, Features, is_position_embedding
from relvit.messages import first_line
from relvit.specs import TIMM, TimmSpec

_SEQUENCE, _CHANNELS_FIRST, _CHANNELS_LAST = "sequence", "channels first", "channels last"


class TimmBackbone(Backbone):
    """A model of timm. The tasks read its last grid, classification reads what the model's own classifier would read.

    Without position_embedding its learned embeddings of places are left out: they are no parameters and add nothing.
    Raises ValueError with the reason for a model that does not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        position_embedding: bool = True,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.spec = timm_spec(name, image_size)
        self.dim, self.pooled_dim = self.spec.dim, self.spec.pooled_dim
        self.grid = (image_size // self.spec.patch_size, image_size // self.spec.patch_size)
        self.model = _create(_own_name(name), image_size, drop_path, position_embedding, dropout)

    def forward(self, images: Tensor) -> Features:
        """images: float [B, 3, H, W], normalised."""
        output = self.model.forward_features(images)
        if self.spec.layout == _CHANNELS_FIRST:
            tokens = output.flatten(2).transpose(1, 2)
        elif self.spec.layout == _CHANNELS_LAST:
            tokens = output.flatten(1, 2)
        else:
            tokens = output[:, self.spec.prefix_tokens :]
        return Features(tokens=tokens, pooled=self.model.forward_head(output, pre_logits=True))


def timm_spec(name: str, image_size: int) -> TimmSpec:
    """What `timm/NAME` is at this image size; takes no memory for weights. Raises ValueError where it does not fit."""
    found = _known_spec(name, image_size)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@cache
def _known_spec(name: str, image_size: int) -> TimmSpec | str:
    """`timm_spec`, or why there is none: a plan asks for either once a cell, and each answer takes a model or three."""
    try:
        return _ask(name, image_size)
    except ValueError as error:
        return str(error)


def _ask(name: str, image_size: int) -> TimmSpec:
    own = _own_name(name)
    try:
        # Its own random state: what is asked of a model must not change what is drawn for one.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = _create(own, image_size, 0.0, True).eval()
            with torch.no_grad():
                images = torch.empty(2, 3, image_size, image_size)
                output = model.forward_features(images)
                pooled = model.forward_head(output, pre_logits=True)
    except Exception as error:  # whatever a model raises is why it does not take images of this size
        raise ValueError(f"{name} does not take images of {image_size} pixels: {first_line(error)}") from error
    if not isinstance(output, Tensor) or not isinstance(pooled, Tensor) or pooled.dim() != 2:
        raise ValueError(f"{name} gives no single grid of tokens with one embedding of each image")
    layout, dim, sides, prefix = _read_shape(name, model, tuple(output.shape))
    if sides[0] != sides[1] or sides[0] < 2:
        raise ValueError(
            f"{name} gives {sides[0]} x {sides[1]} tokens for images of {image_size} pixels; the tasks need a "
            "square grid of at least 2 x 2: give a larger --image-size"
        )
    reduction = _reduction(model) or image_size // sides[0]
    if reduction * sides[0] != image_size:
        near = max(2, round(image_size / reduction)) * reduction
        raise ValueError(
            f"{name} has a token for each {reduction} pixels, and {sides[0]} of them a side do not cover images of "
            f"{image_size} pixels: try --image-size {near}"
        )
    return TimmSpec(
        name=name,
        dim=dim,
        pooled_dim=pooled.shape[1],
        patch_size=image_size // sides[0],
        image_size=image_size,
        prefix_tokens=prefix,
        layout=layout,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        has_position_embedding=any(is_position_embedding(parameter) for parameter, _ in model.named_parameters()),
        has_drop_path=_takes(own, image_size, DropPath, drop_path=0.5),
        has_dropout=_takes(own, image_size, nn.Dropout, dropout=0.5),
        title=own,
    )


def _own_name(name: str) -> str:
    """timm's name. Raises ValueError with the nearest ones where timm has no such model."""
    own = name.removeprefix(TIMM)
    if not timm.is_model(own):
        raise ValueError(_unknown(own))
    return own


def _unknown(own: str) -> str:
    models = sorted(timm.list_models(), key=len)
    if not own:
        return f"{TIMM!r} lacks the name of a model, as in '{TIMM}vit_tiny_patch16_224'; timm.list_models() lists them"
    typed = own.lower().replace("-", "_")
    starting = [each for each in models if each.startswith(typed)]
    containing = [each for each in models if typed in each]
    near = list(dict.fromkeys(starting + containing))[:3] or difflib.get_close_matches(typed, models)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "timm.list_models() lists what it has"
    return f"timm {timm.__version__} has no model {own!r}; {hint}"


def _create(own: str, image_size: int, drop_path: float, position_embedding: bool = True, dropout: float = 0.0) -> Any:
    """A fresh model without a classifier. What a model does not know is left out: `timm_spec` says what acts."""
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if dropout:
        options["proj_drop_rate"] = dropout
    tries: list[dict[str, Any]] = [{"img_size": image_size}, {}]
    if not position_embedding:
        tries.insert(0, {"img_size": image_size, "pos_embed": "none"})
    for number, more in enumerate(tries):
        try:
            model = timm.create_model(own, **options, **more)
            break
        except TypeError:
            if number == len(tries) - 1:
                raise
    for name, parameter in [] if position_embedding else list(model.named_parameters()):
        if is_position_embedding(name):
            owner, _, own_name = name.rpartition(".")
            module = model.get_submodule(owner)
            delattr(module, own_name)
            module.register_buffer(own_name, torch.zeros_like(parameter, requires_grad=False), persistent=False)
    return model


def _takes(
    own: str, image_size: int, kind: type[DropPath | nn.Dropout], drop_path: float = 0.0, dropout: float = 0.0
) -> bool:
    """Whether a rate of drop path, or of dropout, changes the model, which then has modules of this kind with one."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = _create(own, image_size, drop_path, True, dropout)
    except TypeError:
        return False
    rates = (getattr(each, "drop_prob", getattr(each, "p", 0)) for each in model.modules() if isinstance(each, kind))
    return any(rate > 0 for rate in rates)


def _read_shape(name: str, model: Any, shape: tuple[int, ...]) -> tuple[str, int, tuple[int, int], int]:
    """Layout, D, (h, w) and the number of tokens before the grid's, from the shape of the model's features."""
    features = model.num_features
    if len(shape) == 4 and shape[1] == features:
        return _CHANNELS_FIRST, features, (shape[2], shape[3]), 0
    if len(shape) == 4 and shape[3] == features:
        return _CHANNELS_LAST, features, (shape[1], shape[2]), 0
    if len(shape) == 3:
        prefix = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
        side = math.isqrt(shape[1] - prefix)
        if side * side == shape[1] - prefix:
            return _SEQUENCE, shape[2], (side, side), prefix
    raise ValueError(f"{name} gives features of shape {list(shape)}, which hold no square grid of tokens")


def _reduction(model: nn.Module) -> int | None:
    """Pixels a side of a token of the last grid, where the model says so."""
    stages = getattr(model, "feature_info", None)
    return int(stages[-1]["reduction"]) if isinstance(stages, list) and stages and "reduction" in stages[-1] else None
