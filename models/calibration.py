"""Temperature scaling: one number that brings confidence close to accuracy (Guo et al. 2017)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 20.0  # its inverse is the smallest; beyond them all probabilities are equal, or 0 and 1


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the number by which to divide logits, float [N, C], to minimize the cross-entropy of labels, int64 [N].

    The network must not have trained on these images.
    """
    import torch.nn.functional as F
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    end = math.log(LARGEST)
    return math.exp(minimize_scalar(loss, bounds=(-end, end), method="bounded").x)
