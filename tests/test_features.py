"""k-NN and logistic regression on frozen features, against hand-worked votes and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from relvit.features import fit_logistic, knn_accuracy


def on_circle(*degrees):
    angle = torch.tensor([math.radians(each) for each in degrees])
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_each_neighbour_votes_with_the_exponential_of_its_cosine():
    known, labels = on_circle(0, 20, 60), torch.tensor([0, 1, 1])
    # At 10 degrees class 0 has exp(cos 10 / 0.07); class 1 has as much from 20 degrees and something from 60.
    assert knn_accuracy(known, labels, on_circle(10), torch.tensor([1]), 2) == 100
    # At 0 degrees class 0 has e^14.286 = 1,602,000, class 1 e^13.424 + e^7.143 = 678,000.
    assert knn_accuracy(known, labels, on_circle(0), torch.tensor([0]), 2) == 100


def test_the_length_of_a_feature_says_nothing():
    known, labels = on_circle(0, 90) * torch.tensor([[1.0], [100.0]]), torch.tensor([0, 1])
    assert knn_accuracy(known, labels, 0.01 * on_circle(40, 50), torch.tensor([0, 1]), 2) == 100


def test_20_neighbours_vote_and_no_more():
    # 20 of class 0 at 1 degree, and 1,000 of class 1 at 2 degrees, which would outvote them.
    known = on_circle(*[1] * 20, *[2] * 1000)
    labels = torch.tensor([0] * 20 + [1] * 1000)
    assert knn_accuracy(known, labels, on_circle(0), torch.tensor([0]), 2) == 100


def test_the_accuracy_counts_over_all_parts():
    known, labels = on_circle(0, 180), torch.tensor([0, 1])
    asked = on_circle(*[10] * 1500, *[170] * 500)
    assert knn_accuracy(known, labels, asked, torch.zeros(2000, dtype=torch.int64), 2) == 75


@pytest.fixture(scope="module")
def clouds():
    """300 points of 3 overlapping classes in 6 dimensions of very different scales, one of them constant."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    centres = rng.normal(size=(3, 6))
    points = (centres[labels] + rng.normal(size=(300, 6))) * [1, 100, 0.01, 1, 5, 0] + [0, 50, 0, -3, 0, 7]
    return torch.tensor(points), torch.tensor(labels)


@pytest.mark.parametrize("strength", [0.01, 1.0, 10.0])
def test_the_fit_is_scikit_learns_on_standardised_features(clouds, strength):
    points, labels = clouds
    ours = fit_logistic(points, labels, 3, strength)
    scaler = StandardScaler().fit(points)
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(scaler.transform(points), labels)
    wanted = theirs.predict_proba(scaler.transform(points))
    torch.testing.assert_close(ours(points).softmax(1), torch.tensor(wanted), atol=2e-3, rtol=0)
    assert ours.loss == pytest.approx(-np.log(wanted[np.arange(300), labels]).mean(), abs=1e-4)


def test_of_two_classes_and_one_that_has_no_image_only_those_two_are_answered(clouds):
    points, labels = clouds
    kept = labels != 1
    fitted = fit_logistic(points[kept], labels[kept], 3)
    answers = fitted(points).argmax(1)
    assert set(answers.tolist()) == {0, 2}
    theirs = LogisticRegression().fit(StandardScaler().fit_transform(points[kept]), labels[kept])
    own = theirs.predict(StandardScaler().fit(points[kept]).transform(points[kept]))
    assert answers[kept].tolist() == own.tolist()
