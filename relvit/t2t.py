"""T2T-ViT (Yuan et al., ICCV 2021) with Performer token transformers, from timm's parts where timm has them.

B batch, T tokens, D channels, S side of the token grid.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

# Kernel, stride and padding of the three soft splits (Fig. 4 of Yuan et al.): 224 to 56, 28 and 14 tokens a side.
SOFT_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))


class TokenPerformer(nn.Module):
    """A transformer layer on many small tokens, linear in their number: Performer's positive random features.

    It changes the channels, so the values stand in for the input on the residual branch, as in the publication.
    """

    random_features: Tensor

    def __init__(self, dim: int, token_dim: int, *, feature_ratio: float = 0.5, epsilon: float = 1e-8):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.kqv = nn.Linear(dim, 3 * token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.norm2 = nn.LayerNorm(token_dim)
        self.mlp = nn.Sequential(nn.Linear(token_dim, token_dim), nn.GELU(), nn.Linear(token_dim, token_dim))
        self.epsilon = epsilon
        features = int(token_dim * feature_ratio)
        # Drawn once and kept: orthogonal rows of norm sqrt(features).
        self.register_buffer(
            "random_features", nn.init.orthogonal_(torch.empty(features, token_dim)) * math.sqrt(features)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, dim] to [B, T, token_dim]."""
        key, query, value = self.kqv(self.norm1(tokens)).chunk(3, dim=-1)
        # Exponentials and their sums over thousands of tokens need float32 under autocast too.
        with torch.autocast(tokens.device.type, enabled=False):
            key, query, value = self._features(key.float()), self._features(query.float()), value.float()
            weight = query @ key.sum(dim=1).unsqueeze(-1)
            attended = query @ (key.transpose(1, 2) @ value) / (weight + self.epsilon)
        tokens = value + self.proj(attended)
        return tokens + self.mlp(self.norm2(tokens))

    def _features(self, x: Tensor) -> Tensor:
        """exp(w x - |x|^2 / 2) / sqrt(m): [B, T, D] to [B, T, m], all positive."""
        features = self.random_features
        return torch.exp(x @ features.T - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(len(features))


class T2TViT(nn.Module):
    """Soft splits and token transformers down to a grid of S x S tokens, then a deep, narrow ViT.

    The position embedding is a fixed sinusoid. Without it (position_embedding=False) nothing is added.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        image_size: int,
        dim: int,
        depth: int,
        heads: int,
        token_dim: int,
        mlp_ratio: float = 3.0,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        position_embedding: bool = True,
    ):
        super().__init__()
        self.side = image_size // 16
        (first, *_), (second, *_), (third, *_) = SOFT_SPLITS
        self.performer1 = TokenPerformer(3 * first**2, token_dim)
        self.performer2 = TokenPerformer(token_dim * second**2, token_dim)
        self.project = nn.Linear(token_dim * third**2, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        table = sinusoid(self.side**2 + 1, dim) if position_embedding else torch.zeros(1)
        self.register_buffer("pos_embed", table, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                Block(dim, heads, mlp_ratio, qkv_bias=False, proj_drop=dropout, drop_path=rate.item())
                for rate in torch.linspace(0, drop_path, depth, device="cpu")
            )
        )
        self.norm = nn.LayerNorm(dim)
        trunc_normal_(self.cls_token, std=0.02)
        self.apply(_init_linear)

    def forward_features(self, images: Tensor) -> Tensor:
        """images: [B, 3, H, W]. Returns [B, 1 + S * S, D], the class token first, normalised."""
        first, second, third = SOFT_SPLITS
        tokens = self.performer1(_soft_split(images, first))
        tokens = self.performer2(_soft_split(_as_image(tokens), second))
        tokens = self.project(_soft_split(_as_image(tokens), third))
        sequence = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.norm(self.blocks(self.dropout(sequence + self.pos_embed)))


def sinusoid(positions: int, dim: int) -> Tensor:
    """The fixed embedding of Vaswani et al. (2017), section 3.5: sine in even channels, cosine in odd; [1, T, D]."""
    channel = torch.arange(dim)
    angle = torch.arange(positions)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())[None]


def _soft_split(images: Tensor, split: tuple[int, int, int]) -> Tensor:
    """Overlapping squares of [B, C, H, W] as tokens [B, T, C * kernel * kernel]."""
    kernel, stride, padding = split
    return F.unfold(images, kernel, stride=stride, padding=padding).transpose(1, 2)


def _as_image(tokens: Tensor) -> Tensor:
    """[B, T, D] to [B, D, sqrt(T), sqrt(T)]."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
