"""From a checkpoint alone to a network that classifies pixels.

    classifier = load_classifier("checkpoints/lenet5-cifar10.ckpt")

Imports no Lightning, which takes longer to import than a prediction.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cifar10.preprocessing import normalize
from models.checkpoint import Checkpoint, load_checkpoint
from models.networks import HorizontalFlipAverage

BATCH_SIZE = 250  # as fast as larger ones, in less memory


@torch.no_grad()
def compute_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Compute a network's logits, float32 [B, C], in evaluation mode and outside of autocast.

    Float images [B, 3, H, W] are converted to the device and the number format of the weights.
    """
    weight, training = next(network.parameters()), network.training
    network.eval()
    try:
        with torch.autocast(weight.device.type, enabled=False):
            return network(images.to(weight.device, weight.dtype)).float()
    finally:
        network.train(training)


def measure_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of `logits`, float [N, C], whose highest is that of the label, int64 [N]."""
    return (logits.argmax(1) == labels).float().mean().item()


class Classifier(nn.Module):
    """A checkpoint's network between its mean/std normalization and its temperature and softmax, in evaluation mode.

    Images must first go through `preprocessing.preprocess` with its `preprocessing` and `whitening`.
    """

    def __init__(self, checkpoint: Checkpoint, tta: bool = False) -> None:
        super().__init__()
        network = checkpoint.fold().make_network()
        self.network = HorizontalFlipAverage(network) if tta else network
        self.class_names = checkpoint.class_names
        self.mean, self.std = nn.Buffer(checkpoint.mean), nn.Buffer(checkpoint.std)
        self.preprocessing, self.whitening = checkpoint.preprocessing, checkpoint.whitening
        self.temperature = checkpoint.temperature
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities, float32 [N, C], of preprocessed images, uint8 [N, 32, 32, 3]."""
        return (self.network(normalize(images, self.mean, self.std)) / self.temperature).softmax(1)

    def compute_logits(self, images: np.ndarray, progress: str | None = None) -> Tensor:
        """Compute logits, float32 [N, C], of preprocessed images, uint8 [N, 32, 32, 3], in batches.

        `progress` names a progress bar, which a terminal shows.
        """
        batches = torch.from_numpy(images).split(BATCH_SIZE)
        batches = tqdm(batches, progress, leave=False, disable=None if progress else True)
        normalized = (normalize(batch, self.mean, self.std) for batch in batches)
        return torch.cat([compute_logits(self.network, images) for images in normalized])


def load_classifier(path: str | Path, tta: bool = False, network: str | None = None) -> Classifier:
    """Load the classifier of a checkpoint.

    Args:
        path, network: As in `load_checkpoint`.
        tta: Test-time augmentation: average the logits of each image and of its horizontal flip.

    Raises:
        UsageError: As in `load_checkpoint`, or the weights are of another network.
    """
    return Classifier(load_checkpoint(path, network), tta)
