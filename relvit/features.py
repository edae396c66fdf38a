"""How good frozen features are: k-NN, and logistic regression run to convergence.

n images, D channels, K classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# DINO (Caron et al., ICCV 2021), section 3.2 and its published eval_knn.py: 20 neighbours, temperature 0.07.
NEIGHBOURS, TEMPERATURE = 20, 0.07
# Inverse strengths of the L2 penalty that are tried on validation images; without those 1, scikit-learn's default.
STRENGTHS = (0.01, 0.1, 1.0, 10.0)


class Linear(NamedTuple):
    """weight: [K, D]; bias: [K]; loss: the mean cross-entropy that it reached."""

    weight: Tensor
    bias: Tensor
    loss: float

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, K] of features [n, D]."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias


def knn_accuracy(known: Tensor, known_labels: Tensor, asked: Tensor, labels: Tensor, classes: int) -> float:
    """Accuracy in percent of a vote of the nearest known features, by cosine, weighted with exp(cosine / temperature).

    known: [n, D] with labels int64 [n]; asked: [m, D] with labels int64 [m]. Of fewer than 20 known features all vote.
    """
    known, neighbours, right = F.normalize(known.float(), dim=1), min(NEIGHBOURS, len(known)), 0
    for part, wanted in zip(asked.float().split(1024), labels.split(1024)):
        cosine, nearest = (F.normalize(part, dim=1) @ known.T).topk(neighbours)
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, known_labels[nearest], torch.exp(cosine / TEMPERATURE))
        right += int((votes.argmax(1) == wanted).sum())
    return 100 * right / len(labels)


def fit_logistic(features: Tensor, labels: Tensor, classes: int, strength: float = 1.0) -> Linear:
    """Multinomial logistic regression at its optimum, scikit-learn's, on standardised features.

    features: float [n, D]; labels: int64 [n]; strength: scikit-learn's C, the inverse of the L2 penalty's. The result
    reads features as they came, and lives where they do. A class without an image is never its answer.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    known, wanted = features.cpu().double().numpy(), labels.cpu().numpy()
    scaler = StandardScaler().fit(known)
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(known), wanted)
    weight, bias = torch.zeros(classes, known.shape[1], dtype=torch.float64), torch.full((classes,), -1e4).double()
    there = torch.from_numpy(fitted.classes_)
    bias[there] = 0.0
    rows = there if len(fitted.coef_) > 1 else there[1:]  # of two classes the first one's score is 0
    weight[rows] = torch.from_numpy(fitted.coef_ / scaler.scale_)
    bias[rows] = torch.from_numpy(fitted.intercept_ - (fitted.coef_ / scaler.scale_) @ scaler.mean_)
    weight, bias = weight.to(features.device), bias.to(features.device)
    return Linear(weight, bias, float(F.cross_entropy(features.double() @ weight.T + bias, labels)))
