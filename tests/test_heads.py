"""Eq. 8, Eq. 9 and the pairs of dense relative localisation against loops.

B 2 images, N 5 patches, D 12 channels, K outputs."""

import math

import pytest
import torch
from scipy import stats

from relvit.heads import PAIR_HEADS, BilinearPairHead, LowRankPairHead, PairOffsetHead, TokenHead


@pytest.fixture
def tokens():
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("outputs", [1, 9])
def test_the_bilinear_head_is_equation_8_with_one_full_matrix_for_each_output(tokens, outputs):
    head = BilinearPairHead(12, outputs)
    scores = head(tokens)
    assert scores.shape == (2, 5, 5, outputs)
    for k in range(outputs):
        matrix = head.weight[:, 12 * k : 12 * (k + 1)]
        for b in range(2):
            expected = tokens[b] @ matrix @ tokens[b].T / math.sqrt(12)
            torch.testing.assert_close(scores[b, :, :, k], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("outputs", [1, 5, 9])
def test_the_low_rank_head_is_a_query_and_a_key_of_d_over_k_columns_for_each_output(tokens, outputs):
    head = LowRankPairHead(12, outputs)
    rank = 12 // outputs  # 12, 2 and 1
    scores = head(tokens)
    assert scores.shape == (2, 5, 5, outputs)
    for k in range(outputs):
        query = head.query.weight[rank * k : rank * (k + 1)].T
        key = head.key.weight[rank * k : rank * (k + 1)].T
        for b in range(2):
            expected = (tokens[b] @ query) @ (tokens[b] @ key).T / math.sqrt(rank)
            torch.testing.assert_close(scores[b, :, :, k], expected, atol=1e-5, rtol=1e-5)


def test_the_token_head_is_equation_9(tokens):
    head = TokenHead(12, 7)
    scores = head(tokens)
    assert scores.shape == (2, 5, 7)
    for b in range(2):
        for n in range(5):
            expected = head.weight @ tokens[b, n] + head.bias
            torch.testing.assert_close(scores[b, n], expected, atol=1e-5, rtol=1e-5)


def test_entry_i_j_reads_patch_i_on_the_left_and_patch_j_on_the_right():
    # Two channels, and W = [[0, 1], [0, 0]]: z_i W z_j^T is the first channel of i times the second of j.
    tokens = torch.tensor([[[2.0, 3.0], [5.0, 7.0]]])
    by_hand = torch.tensor([[2 * 3, 2 * 7], [5 * 3, 5 * 7]])
    bilinear = BilinearPairHead(2, 1)
    low_rank = LowRankPairHead(2, 1)
    with torch.no_grad():
        bilinear.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        low_rank.query.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        low_rank.key.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    for head in (bilinear, low_rank):
        torch.testing.assert_close(head(tokens)[0, :, :, 0] * math.sqrt(2), by_hand.float())


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (BilinearPairHead(12, 9), 9 * 12 * 12),
        (BilinearPairHead(384, 1), 384 * 384),
        (LowRankPairHead(12, 9), 2 * 12 * 9),  # one column each
        (LowRankPairHead(384, 9), 2 * 384 * 378),  # 42 columns each
        (TokenHead(12, 5), 12 * 5 + 5),
        (PairOffsetHead(12, 16), (24 * 512 + 512) + (512 * 512 + 512) + (512 * 2 + 2)),
    ],
)
def test_number_of_parameters(head, count):
    assert sum(parameter.numel() for parameter in head.parameters()) == count


@pytest.mark.parametrize("make", [*PAIR_HEADS.values(), TokenHead])
def test_every_number_of_every_parameter_gets_a_gradient(tokens, make):
    head = make(12, 9)
    head(tokens).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.ne(0).all(), name


def test_scores_of_normalised_tokens_start_with_a_variance_near_one():
    torch.manual_seed(0)
    tokens = torch.randn(4, 16, 96)  # what a LayerNorm puts out
    variance = BilinearPairHead(96, 9)(tokens).var()
    assert 0.2 < variance < 1  # uniform on +-1/sqrt(D) has variance 1/(3 D), so that 1/3 is expected


def test_a_low_rank_head_refuses_more_outputs_than_channels():
    with pytest.raises(ValueError, match="9 outputs needs at least as many channels, not 8"):
        LowRankPairHead(8, 9)


# Pairs of dense relative localisation


@torch.no_grad()
def test_an_offset_is_read_from_the_tokens_of_its_pair_first_then_second(tokens):
    torch.manual_seed(0)
    head = PairOffsetHead(12, 16)
    prediction = head(tokens)
    assert prediction.offset.shape == (2, 64, 2)
    assert prediction.first.shape == prediction.second.shape == (2, 64)
    first, second, third = (layer for layer in head.mlp if isinstance(layer, torch.nn.Linear))
    for b in range(2):
        for m in range(64):
            pair = torch.cat([tokens[b, prediction.first[b, m]], tokens[b, prediction.second[b, m]]])
            hidden = (second.weight @ (first.weight @ pair + first.bias).clamp(min=0) + second.bias).clamp(min=0)
            expected = third.weight @ hidden + third.bias
            torch.testing.assert_close(prediction.offset[b, m], expected, atol=1e-5, rtol=1e-5)


def test_every_parameter_of_the_offset_head_gets_a_gradient(tokens):
    torch.manual_seed(0)
    head = PairOffsetHead(12, 16)
    head(tokens).offset.square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.ne(0).any(), name


def test_evaluation_always_has_the_same_pairs_for_every_image_and_every_head():
    tokens = torch.randn(3, 16, 12)
    torch.manual_seed(0)
    one = PairOffsetHead(12, 16).eval()(tokens)
    torch.manual_seed(1)
    other = PairOffsetHead(12, 16).eval()(tokens)
    assert one.first.equal(other.first)
    assert one.second.equal(other.second)
    for index in (one.first, one.second):
        assert (index == index[0]).all()
    assert not one.first.equal(one.second)
    assert len({*zip(one.first[0].tolist(), one.second[0].tolist())}) > 50  # of 64, drawn out of 256


def test_evaluation_leaves_the_global_generator_alone():
    head = PairOffsetHead(12, 4).eval()
    before = torch.get_rng_state()
    head(torch.zeros(1, 4, 12))
    assert torch.get_rng_state().equal(before)


def test_training_draws_new_pairs_for_every_image_and_every_call():
    torch.manual_seed(0)
    head = PairOffsetHead(12, 16).train()
    tokens = torch.randn(2, 16, 12)
    drawn = [head(tokens) for _ in range(2)]
    pairs = [torch.stack([each.first[b], each.second[b]]) for each in drawn for b in range(2)]
    for i, one in enumerate(pairs):
        assert not one[0].equal(one[1])
        assert not any(one.equal(other) for other in pairs[:i])


def test_pairs_are_drawn_uniformly_from_all_pairs():
    torch.manual_seed(0)
    prediction = PairOffsetHead(2, 4).train()(torch.zeros(500, 4, 2))
    which = prediction.first * 4 + prediction.second
    counts = torch.bincount(which.flatten(), minlength=16)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
