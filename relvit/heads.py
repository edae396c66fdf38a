"""The paper's heads over patch tokens: Eq. 8 for pairs, Eq. 9 for single patches.

B batch, N patches, D channels, K outputs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from relvit.tasks import Task


class BilinearPairHead(nn.Module):
    """K scores for every pair of tokens, a_k = z W_k z^T / sqrt(D) with a full matrix W_k each: Eq. 8."""

    def __init__(self, dim: int, outputs: int):
        super().__init__()
        self.dim, self.outputs = dim, outputs
        self.weight = nn.Parameter(torch.empty(dim, outputs * dim))
        # As nn.Linear starts; tokens leave a LayerNorm with unit variance, so scores start near unit variance.
        nn.init.uniform_(self.weight, -1 / math.sqrt(dim), 1 / math.sqrt(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, N, D]. Returns [B, N, N, K]; entry [b, i, j, k] scores patch i as seen from patch j."""
        batch, patches, dim = tokens.shape
        projected = tokens @ (self.weight / math.sqrt(dim))
        scores = projected.view(batch, patches * self.outputs, dim) @ tokens.transpose(1, 2)
        return scores.view(batch, patches, self.outputs, patches).transpose(2, 3)


class LowRankPairHead(nn.Module):
    """The published code's reading of Eq. 8: W_k = Q_k K_k^T with D // K columns each, scaled by their number."""

    def __init__(self, dim: int, outputs: int):
        super().__init__()
        if outputs > dim:
            raise ValueError(f"a low-rank head with {outputs} outputs needs at least as many channels, not {dim}")
        self.outputs, self.rank = outputs, dim // outputs
        self.query = nn.Linear(dim, outputs * self.rank, bias=False)
        self.key = nn.Linear(dim, outputs * self.rank, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, N, D]. Returns [B, N, N, K]; entry [b, i, j, k] scores patch i as seen from patch j."""
        batch, patches, _ = tokens.shape
        shape = (batch, patches, self.outputs, self.rank)
        query = self.query(tokens).view(shape).transpose(1, 2)
        key = self.key(tokens).view(shape).permute(0, 2, 3, 1)
        return (query @ key / math.sqrt(self.rank)).permute(0, 2, 3, 1)


PAIR_HEADS = {"bilinear": BilinearPairHead, "low_rank": LowRankPairHead}


class TokenHead(nn.Linear):
    """K scores for every token, z W + b: Eq. 9. [B, N, D] to [B, N, K]."""


class PairOffsets(NamedTuple):
    """offset: [B, M, 2], predicted for M pairs of patches; first, second: int64 [B, M], which pairs."""

    offset: Tensor
    first: Tensor
    second: Tensor


class PairOffsetHead(nn.Module):
    """Dense relative localisation (Liu et al., NeurIPS 2021): an MLP on the concatenated tokens of random pairs.

    In evaluation the pairs are always the same, so that epochs can be compared.
    """

    fixed_pairs: Tensor
    PAIRS = 64  # section 5.1, the best of four in table 2a; and the code's --sample_size
    HIDDEN = 512  # of two layers, as in the authors' code; section 4 has one layer and does not say how wide

    def __init__(self, dim: int, patches: int):
        super().__init__()
        fixed = torch.randint(patches, (2, 1, self.PAIRS), generator=torch.Generator().manual_seed(0))
        self.register_buffer("fixed_pairs", fixed, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * dim, self.HIDDEN),
            nn.ReLU(),
            nn.Linear(self.HIDDEN, self.HIDDEN),
            nn.ReLU(),
            nn.Linear(self.HIDDEN, 2),
        )

    def forward(self, tokens: Tensor) -> PairOffsets:
        """tokens: [B, N, D]."""
        batch, patches, dim = tokens.shape
        if self.training:
            pairs = torch.randint(patches, (2, batch, self.PAIRS), device=tokens.device)
        else:
            pairs = self.fixed_pairs.expand(2, batch, self.PAIRS)
        first, second = (tokens.gather(1, index[:, :, None].expand(-1, -1, dim)) for index in pairs)
        return PairOffsets(self.mlp(torch.cat([first, second], dim=-1)), pairs[0], pairs[1])


def task_head(task: Task, dim: int, patches: int, pair_head: str) -> nn.Module:
    """The head of a task for so many channels and patches. pair_head: a key of PAIR_HEADS, for tasks over pairs."""
    if task.head is not None:
        return task.head(dim, patches)
    if task.has_pair_head:
        return PAIR_HEADS[pair_head](dim, task.outputs or patches)
    return TokenHead(dim, task.outputs or patches)
