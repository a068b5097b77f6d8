"""What training leaves, ready for use: from a checkpoint alone to a network that classifies pixels.

Imports no Lightning, which takes longer than all the rest of an answer.
"""

from pathlib import Path

from torch import Tensor, nn

from cifar10.preprocessing import normalize
from models.checkpoint import Checkpoint, load_checkpoint
from models.networks import HorizontalFlipAverage


class Classifier(nn.Module):
    """The network of a checkpoint with its normalisation before it, its temperature and the softmax after it.

    Before it, images must go through `preprocessing.preprocess` with its `preprocessing` and `whitening`.
    """

    def __init__(self, checkpoint: Checkpoint, tta: bool = False) -> None:
        super().__init__()
        network = checkpoint.folded().make_network()
        self.network = HorizontalFlipAverage(network) if tta else network
        self.class_names = checkpoint.class_names
        self.mean, self.std = nn.Buffer(checkpoint.mean), nn.Buffer(checkpoint.std)
        self.preprocessing, self.whitening = checkpoint.preprocessing, checkpoint.whitening
        self.temperature = checkpoint.temperature

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images, uint8 [N, 3, 32, 32], to probabilities, float32 [N, C]."""
        return (self.logits(images) / self.temperature).softmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """What `forward` takes, to logits, float32 [N, C], as the network gives them."""
        return self.network(normalize(images.permute(0, 2, 3, 1), self.mean, self.std))


def load_classifier(path: str | Path, tta: bool = False, network: str | None = None) -> Classifier:
    """The classifier of a checkpoint, in evaluation mode; with `tta` it averages the logits of each image and of its
    horizontal flip. UsageError as of `load_checkpoint`, or if the weights are of another network.
    """
    return make_classifier(load_checkpoint(path, network), tta)


def make_classifier(checkpoint: Checkpoint, tta: bool = False) -> Classifier:
    """As `load_classifier`, of a checkpoint that is read already."""
    return Classifier(checkpoint, tta).eval()
