"""What training leaves, ready for use: from a checkpoint alone to a network that classifies pixels.

Imports no Lightning, which takes longer than all the rest of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from cifar10.config import Preprocessing
from cifar10.preprocessing import normalize
from models.checkpoint import Checkpoint, load_checkpoint
from models.networks import HorizontalFlipAverage


class Classifier(nn.Module):
    """A network with its normalisation before it and the softmax after it.

    Args:
        network: Float images [N, 3, 32, 32] to logits [N, C].
        mean, std: float32 [3], per channel, in [0, 255].
        class_names: Of all C classes, by label.
        preprocessing, whitening: What images must go through before, by `preprocessing.preprocess`.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        std: Tensor,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        whitening: np.ndarray | None,
    ) -> None:
        super().__init__()
        self.network, self.class_names = network, tuple(class_names)
        self.mean, self.std = nn.Buffer(mean.view(3)), nn.Buffer(std.view(3))
        self.preprocessing, self.whitening = preprocessing, whitening

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images, uint8 [N, 3, 32, 32], to probabilities, float32 [N, C]."""
        return self.logits(images).softmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """What `forward` takes, to logits, float32 [N, C]."""
        return self.network(normalize(images.permute(0, 2, 3, 1), self.mean, self.std))


def load_classifier(path: str | Path, tta: bool = False, network: str | None = None) -> Classifier:
    """The classifier of a checkpoint, in evaluation mode.

    Args:
        path, network: As `load_checkpoint` takes them.
        tta: Whether it averages the logits of each image and of its horizontal flip.

    Raises:
        UsageError: As `load_checkpoint`, or the weights are of another network.
    """
    return make_classifier(load_checkpoint(path, network), tta)


def make_classifier(checkpoint: Checkpoint, tta: bool = False) -> Classifier:
    """As `load_classifier`, of a checkpoint that is read already."""
    network = checkpoint.make_network()
    return Classifier(
        HorizontalFlipAverage(network) if tta else network,
        checkpoint.mean,
        checkpoint.std,
        checkpoint.class_names,
        checkpoint.preprocessing,
        checkpoint.whitening,
    ).eval()
