"""Eq. 5-7 and the absolute position. Patches of a 3 x 3 grid are numbered 0 1 2 / 3 4 5 / 6 7 8."""

import math

import pytest
import torch

from relvit import targets
from relvit.metrics import majority_rate
from relvit.targets import Targets

GRIDS = [(3, 3), (4, 7), (7, 4), (8, 8)]


def test_spatial_relations_of_a_3_by_3_grid():
    # Row i, column j: where patch i lies as seen from patch j.
    # 0 top left, 1 top, 2 top right, 3 left, 4 same place, 5 right, 6 bottom left, 7 bottom, 8 bottom right.
    expected = torch.tensor(
        [
            [4, 3, 3, 1, 0, 0, 1, 0, 0],
            [5, 4, 3, 2, 1, 0, 2, 1, 0],
            [5, 5, 4, 2, 2, 1, 2, 2, 1],
            [7, 6, 6, 4, 3, 3, 1, 0, 0],
            [8, 7, 6, 5, 4, 3, 2, 1, 0],
            [8, 8, 7, 5, 5, 4, 2, 2, 1],
            [7, 6, 6, 7, 6, 6, 4, 3, 3],
            [8, 7, 6, 8, 7, 6, 5, 4, 3],
            [8, 8, 7, 8, 8, 7, 5, 5, 4],
        ]
    )
    assert targets.spatial_relations(3, 3).equal(expected)


def test_distances_of_a_3_by_3_grid():
    # From the corner patch 0: 0, 1, 2, 1, sqrt 2, sqrt 5, 2, sqrt 5, sqrt 8, and sqrt 8 is the longest.
    from_corner = [-1, -0.292893, 0.414214, -0.292893, 0, 0.581139, 0.414214, 0.581139, 1]
    # From the centre patch 4 the corners are sqrt 2 away, half the longest, and the others 1.
    from_centre = [0, -0.292893, 0, -0.292893, -1, -0.292893, 0, -0.292893, 0]
    result = targets.distances(3, 3)
    torch.testing.assert_close(result[0], torch.tensor(from_corner), atol=1e-6, rtol=0)
    torch.testing.assert_close(result[4], torch.tensor(from_centre), atol=1e-6, rtol=0)


def test_angles_of_a_3_by_3_grid():
    # Patch (row, column) stands at x = column + 1.5, y = row + 1.5; its direction from the origin in degrees:
    #   45.0000 30.9638 23.1986
    #   59.0362 45.0000 35.5377
    #   66.8014 54.4623 45.0000
    # The widest angle, 43.6028, is between patches 2 and 6. From patch 0 the angles are
    #   0, 14.0362, 21.8014, 14.0362, 0, 9.4623, 21.8014, 9.4623, 0;
    # those of patches 4 and 8 are moved off zero by epsilon: acos(1 / (1 + 1e-4 / 7.5)) = 0.29587 degrees and, with
    # 10.5 for 7.5, 0.25006. On the other angles epsilon moves the result by less than 1e-3.
    expected = torch.tensor([-1, -0.35618, 0, -0.35618, -0.98643, -0.56598, 0, -0.56598, -0.98853])
    result = targets.angles(3, 3)
    torch.testing.assert_close(result[0], expected, atol=1e-3, rtol=0)
    assert result[2, 6] == result[6, 2] == result.max() == 1


def test_positions_of_a_3_by_3_grid():
    assert targets.positions(3, 3).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_spatial_relations_equal_a_loop_over_pairs(height, width):
    count = height * width
    expected = torch.empty(count, count, dtype=torch.int64)
    for i in range(count):
        for j in range(count):
            (row_i, col_i), (row_j, col_j) = divmod(i, width), divmod(j, width)
            row = 0 if row_i < row_j else 1 if row_i == row_j else 2
            col = 0 if col_i < col_j else 1 if col_i == col_j else 2
            expected[i, j] = [[0, 1, 2], [3, 4, 5], [6, 7, 8]][row][col]
    assert targets.spatial_relations(height, width).equal(expected)


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_distances_equal_a_loop_over_pairs(height, width):
    count = height * width
    longest = math.sqrt((height - 1) ** 2 + (width - 1) ** 2)
    expected = torch.empty(count, count)
    for i in range(count):
        for j in range(count):
            (row_i, col_i), (row_j, col_j) = divmod(i, width), divmod(j, width)
            expected[i, j] = 2 * math.sqrt((row_i - row_j) ** 2 + (col_i - col_j) ** 2) / longest - 1
    torch.testing.assert_close(targets.distances(height, width), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_angles_equal_a_loop_over_pairs(height, width):
    count = height * width
    radians = [[0.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(count):
            y_i, x_i = i // width + height / 2, i % width + width / 2
            y_j, x_j = j // width + height / 2, j % width + width / 2
            cosine = (x_i * x_j + y_i * y_j) / (math.hypot(x_i, y_i) * math.hypot(x_j, y_j) + 1e-4)
            radians[i][j] = 0.0 if i == j else math.acos(cosine)
    widest = max(max(row) for row in radians)
    expected = torch.tensor([[2 * angle / widest - 1 for angle in row] for row in radians])
    torch.testing.assert_close(targets.angles(height, width), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [*GRIDS, (1, 2), (2, 1), (1, 5)])
def test_distances_and_angles_reach_both_ends_of_their_range_and_are_symmetric(height, width):
    for target in (targets.distances(height, width), targets.angles(height, width)):
        assert target.min() == -1
        assert target.max() == 1
        assert target.equal(target.T)
        assert target.diagonal().eq(-1).all()


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_types_and_shapes(height, width):
    count = height * width
    for make in (targets.spatial_relations, targets.distances, targets.angles):
        assert make(height, width).shape == (count, count)
    assert targets.spatial_relations(height, width).dtype == torch.int64
    assert targets.distances(height, width).dtype == torch.float32
    assert targets.angles(height, width).dtype == torch.float32
    assert targets.positions(height, width).dtype == torch.int64
    assert targets.positions(height, width).shape == (count,)


def test_a_single_patch_has_no_distance_and_no_angle():
    for make in (targets.distances, targets.angles):
        with pytest.raises(ValueError, match="1 x 1 patches has no pair"):
            make(1, 1)


def test_permute_pairs_moves_rows_and_columns_together():
    height, width, batch = 2, 3, 4
    generator = torch.Generator().manual_seed(0)
    permutation = torch.stack([torch.randperm(height * width, generator=generator) for _ in range(batch)])
    target = targets.spatial_relations(height, width)
    permuted = targets.permute_pairs(target, permutation)
    assert permuted.shape == (batch, 6, 6)
    for b in range(batch):
        for i in range(6):
            for j in range(6):
                # The relation is that of the places the two patches came from.
                from_i, from_j = permutation[b, i].item(), permutation[b, j].item()
                assert permuted[b, i, j] == target[from_i, from_j]


def test_targets_of_permuted_images_by_hand():
    # The two patches of a 1 x 2 grid change places: the right one now stands first.
    swapped = Targets(("sprel", "dist", "abspos"), (1, 2))(torch.tensor([[1, 0], [0, 1]]))
    assert swapped["sprel"].tolist() == [[[4, 5], [3, 4]], [[4, 3], [5, 4]]]
    assert swapped["dist"].tolist() == [[[-1, 1], [1, -1]]] * 2
    assert swapped["abspos"].tolist() == [[1, 0], [0, 1]]


def test_targets_of_images_in_order_have_no_batch_dimension():
    in_order = Targets(("sprel", "ang", "abspos"), (2, 3))(None)
    assert list(in_order) == ["sprel", "ang", "abspos"]
    assert in_order["sprel"].equal(targets.spatial_relations(2, 3))
    assert in_order["ang"].equal(targets.angles(2, 3))
    assert in_order["abspos"].equal(targets.positions(2, 3))


def test_the_majority_rate_is_the_share_of_the_most_frequent_class():
    # 2 x 2: 4 of 16 pairs are a patch with itself; the other classes have 2 (straight) or 1 (diagonal) each.
    assert majority_rate(targets.spatial_relations(2, 2)) == 25
    # 3 x 3: nine classes, nine pairs each.
    assert majority_rate(targets.spatial_relations(3, 3)) == pytest.approx(100 / 9)
