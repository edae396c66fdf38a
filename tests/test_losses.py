"""Eq. 10-13 and dense relative localisation with values worked out by hand."""

import math

import pytest
import torch

from relvit import losses
from relvit.heads import PairOffsets
from relvit.metrics import accuracy, mse_x100, offset_error_x100
from relvit.targets import Targets, coordinates


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes():
    relations = torch.randint(0, 9, (3, 4, 4))
    assert losses.spatial_relation_loss(torch.zeros(3, 4, 4, 9), relations).item() == pytest.approx(math.log(9))
    places = torch.arange(4)
    assert losses.absolute_position_loss(torch.zeros(3, 4, 4), places).item() == pytest.approx(math.log(4))
    labels = torch.tensor([0, 9, 5])
    assert losses.classification_loss(torch.zeros(3, 10), labels).item() == pytest.approx(math.log(10))


def test_cross_entropy_over_positions_by_hand():
    # Logits log 3 and 0 are shares of 3/4 and 1/4. Patch 0 is right with 3/4, patch 1 is right with 1/4.
    logits = torch.tensor([[[math.log(3), 0.0], [math.log(3), 0.0]]])
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert losses.absolute_position_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(expected)


def test_cross_entropy_over_relations_takes_the_target_of_its_own_pair():
    # One pair (1, 0) of a 1 x 2 grid is sure of class 5; all other logits are zero.
    logits = torch.zeros(1, 2, 2, 9)
    logits[0, 1, 0, 5] = 100
    relations = torch.tensor([[4, 3], [5, 4]])
    assert losses.spatial_relation_loss(logits, relations).item() == pytest.approx(3 * math.log(9) / 4)
    # Seen the other way round it is the pair (0, 1) that would have to say 5, and the sure answer costs 100.
    assert losses.spatial_relation_loss(logits, relations.T).item() == pytest.approx((3 * math.log(9) + 100) / 4)


def test_in_torchs_deterministic_mode_the_mean_over_pairs_is_one_that_a_gpu_can_repeat():
    """On a GPU torch refuses a cross-entropy of more than one dimension there, unless it need not take its mean."""
    logits, relations = torch.randn(2, 3, 3, 9), torch.randint(0, 9, (3, 3))
    found = []
    for is_on in (False, True):
        torch.use_deterministic_algorithms(is_on)
        try:
            given = logits.clone().requires_grad_()
            loss = losses.spatial_relation_loss(given, relations)
            loss.backward()
        finally:
            torch.use_deterministic_algorithms(False)
        found.append((loss.detach(), given.grad, loss.grad_fn.name()))
    (usual, usual_gradient, _), (loss, gradient, name) = found
    torch.testing.assert_close(loss, usual)
    torch.testing.assert_close(gradient, usual_gradient)
    assert name == "MeanBackward0"


@pytest.mark.parametrize("loss", [losses.distance_loss, losses.angle_loss])
def test_squared_error_by_hand(loss):
    prediction = torch.tensor([[0.5, 1.0], [-1.0, 0.0]])[None, :, :, None]
    target = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    # Errors 1.5, 0, -2 and 1: squares 2.25, 0, 4 and 1.
    assert loss(prediction, target).item() == pytest.approx(7.25 / 4)


@pytest.mark.parametrize(
    ("loss", "prediction", "target"),
    [
        (losses.spatial_relation_loss, torch.randn(3, 4, 4, 9), torch.randint(0, 9, (4, 4))),
        (losses.distance_loss, torch.randn(3, 4, 4, 1), torch.randn(4, 4)),
        (losses.angle_loss, torch.randn(3, 4, 4, 1), torch.randn(4, 4)),
        (losses.absolute_position_loss, torch.randn(3, 4, 4), torch.arange(4)),
    ],
)
def test_a_target_for_all_images_is_the_same_as_one_for_each(loss, prediction, target):
    for_each = target.expand(3, *target.shape).clone()
    torch.testing.assert_close(loss(prediction, target), loss(prediction, for_each))
    assert loss(prediction, target).shape == ()


def test_a_batched_target_is_matched_image_by_image():
    # Image 0 is right about both of its patches, image 1 has them the other way round.
    sure = 100 * torch.eye(2).expand(2, 2, 2)
    target = torch.tensor([[0, 1], [1, 0]])
    assert losses.absolute_position_loss(sure, target).item() == pytest.approx(100 / 2)


def test_the_total_is_the_sum_of_the_named_losses():
    parts = {"sprel": torch.tensor(2.0), "dist": torch.tensor(0.5), "classification": torch.tensor(3.0)}
    assert losses.total_loss(parts, {}).item() == 5.5


def test_the_total_counts_each_loss_by_its_weight_and_once_without_one():
    parts = {"sprel": torch.tensor(2.0), "dist": torch.tensor(0.5), "classification": torch.tensor(3.0)}
    assert losses.total_loss(parts, {"sprel": 0.25, "dist": 4.0}).item() == 0.5 + 2 + 3


def test_accuracy_is_in_percent_with_and_without_a_batched_target():
    logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])  # says 1 1 and 0 1
    assert accuracy(logits, torch.tensor([0, 1])).item() == 75
    assert accuracy(logits, torch.tensor([[1, 1], [1, 0]])).item() == 50


def test_the_squared_error_is_printed_times_100():
    prediction = torch.tensor([[[[0.5], [0.0]], [[0.0], [-0.5]]]])
    assert mse_x100(prediction, torch.zeros(2, 2)).item() == pytest.approx(100 * 0.5 / 4)


# Dense relative localisation on a 3 x 3 grid, whose coordinates are 0, 1/3 and 2/3. The pairs, first then second:
# corners 0 and 8, back again, the centre with itself, 5 (row 1, column 2) and 2 (row 0, column 2), corners 2 and 6.
PAIRS = torch.tensor([[0, 8], [8, 0], [4, 4], [5, 2], [2, 6]])
# Thirds of the side without their sign: by row, then by column.
OFFSETS = torch.tensor([[2, 2], [2, 2], [0, 0], [1, 0], [2, 2]]) / 3


def predicted(offset, pairs=PAIRS):
    """A prediction [B, M, 2] for the same pairs of every image."""
    first, second = pairs.T.expand(2, len(pairs)).unbind(0)
    return PairOffsets(offset, first.expand(len(offset), -1), second.expand(len(offset), -1))


def test_coordinates_of_a_3_by_3_grid_and_of_a_wide_one():
    by_hand = torch.tensor([[row / 3, col / 3] for row in range(3) for col in range(3)])
    torch.testing.assert_close(coordinates(3, 3), by_hand)
    assert coordinates(1, 4).tolist() == [[0, 0], [0, 0.25], [0, 0.5], [0, 0.75]]


def test_true_offsets_by_hand():
    true = losses.pair_offsets(predicted(torch.zeros(2, 5, 2)), coordinates(3, 3))
    torch.testing.assert_close(true, OFFSETS.repeat(2, 1, 1))


def test_true_offsets_are_equation_1_of_liu_et_al_on_their_grid():
    every_pair = torch.cartesian_prod(torch.arange(49), torch.arange(49))
    true = losses.pair_offsets(predicted(torch.zeros(1, len(every_pair), 2), every_pair), coordinates(7, 7))
    by_hand = [
        [abs(a // 7 - b // 7) / 7, abs(a % 7 - b % 7) / 7]  # (i, j) and (p, h): |i - p| / k and |j - h| / k
        for a in range(49)
        for b in range(49)
    ]
    torch.testing.assert_close(true[0], torch.tensor(by_hand))


def test_dense_relative_localisation_is_the_mean_absolute_error_of_the_offsets():
    target = coordinates(3, 3)
    assert losses.dense_relative_localisation_loss(predicted(OFFSETS[None]), target).item() == pytest.approx(0)
    # The ten true numbers add up to 13 thirds.
    nothing = predicted(torch.zeros(1, 5, 2))
    assert losses.dense_relative_localisation_loss(nothing, target).item() == pytest.approx(1.3 / 3)
    assert offset_error_x100(nothing, target).item() == pytest.approx(130 / 3)
    # One of ten numbers is wrong by 0.5 in one of two images.
    wrong = OFFSETS.repeat(2, 1, 1)
    wrong[1, 3, 0] += 0.5
    assert losses.dense_relative_localisation_loss(predicted(wrong), target).item() == pytest.approx(0.5 / 20)


def test_the_order_within_a_pair_does_not_matter():
    swapped = predicted(OFFSETS[None], PAIRS.flip(1))
    assert losses.dense_relative_localisation_loss(swapped, coordinates(3, 3)).item() == pytest.approx(0)


def test_permuted_coordinates_move_with_their_patches():
    permutation = torch.tensor([[0, 1, 4, 3, 2, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    target = Targets(("drloc",), (3, 3))(permutation)["drloc"]
    # In image 0 the centre and the corner 2 have changed places: there 5 is one column from the one at place 2, which
    # is one row and one column from corner 6.
    true = losses.pair_offsets(predicted(torch.zeros(2, 5, 2)), target)
    torch.testing.assert_close(true[0], torch.tensor([[2, 2], [2, 2], [0, 0], [0, 1], [1, 1]]) / 3)
    torch.testing.assert_close(true[1], OFFSETS)


def test_offsets_in_bfloat16_are_compared_in_float32():
    loss = losses.dense_relative_localisation_loss(predicted(OFFSETS[None].bfloat16()), coordinates(3, 3))
    assert loss.dtype == torch.float32
    rounding = (OFFSETS.bfloat16().float() - OFFSETS).abs().mean().item()  # thirds are not numbers of bfloat16
    assert loss.item() == pytest.approx(rounding) != 0
