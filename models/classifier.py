"""What training leaves, ready for use: from a checkpoint alone to a network that classifies pixels.

Imports no Lightning, which takes longer than all the rest of an answer.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cifar10.cache import digest, kept
from cifar10.errors import UsageError
from cifar10.filters import BYTES_A_DEVIATION
from cifar10.preprocessing import ZCA_SIDE, Preprocessing, from_state, normalize, preprocess
from cifar10.records import CLASS_NAMES
from models.networks import NETWORKS, Mirrored

LAST = "last.ckpt"  # of the last whole epoch of a run
EXPECTED = {"epoch", "state_dict", "hyper_parameters", "flags", "CIFAR10DataModule"}  # in a checkpoint of train.py


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


class Whitened(nn.Module):
    """A classifier of images that are not whitened yet: what `preprocessing.whiten` does, as part of the network.

    Args:
        classifier: Whose preprocessing is its whitening alone.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        assert classifier.whitening is not None
        self.classifier = classifier
        whitening = torch.from_numpy(classifier.whitening)
        self.kernels = nn.Buffer(whitening[:, :-1].reshape(3, 3, ZCA_SIDE, ZCA_SIDE))
        self.offsets = nn.Buffer(whitening[:, -1])

    def forward(self, images: Tensor) -> Tensor:
        """Images, uint8 [N, 3, 32, 32], to probabilities, float32 [N, C]."""
        padded = F.pad(images.float(), [ZCA_SIDE // 2] * 4, mode="reflect")
        values = F.conv2d(padded, self.kernels, self.offsets)
        return self.classifier((values * BYTES_A_DEVIATION + 127.5).round().clamp(0, 255).to(torch.uint8))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `train.train`, or the `last.ckpt` of a run's folder; nothing in it can run code.

    Raises:
        UsageError: It is not there, damaged, of another program, or would have run code.
    """
    path = path / LAST if path.is_dir() else path
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path}: refused, it holds more than tensors and plain values, or is damaged") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise UsageError(f"{path}: damaged, or no PyTorch checkpoint") from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= EXPECTED:
        raise UsageError(f"{path}: no checkpoint of train.py")
    return checkpoint


def load_teacher(path: Path, flags: Mapping[str, Any], folder: Path) -> Callable[[np.ndarray], Tensor]:
    """What `CIFAR10DataModule` takes as `teacher`, from a checkpoint: the mean of an image's and its mirror's logits.

    Args:
        path: As `load_checkpoint` takes it.
        flags: Of the run that is to be taught.
        folder: Where the logits are kept.

    Raises:
        UsageError: As `load_classifier`, it is not there, or was trained on validation images of that run.
    """
    if not path.exists():
        raise UsageError(f"--teacher {path}: not there; python train.py --config recipes/teacher.yaml trains one")
    classifier, trained = load_classifier(path, tta=True), load_checkpoint(path)["flags"]
    # Of one split seed, a smaller validation part is within a larger one.
    unseen = trained["split_seed"] == flags["split_seed"] and trained["val_size"] >= flags["val_size"]
    if flags["val_size"] and not unseen:
        split = f"--val_size {trained['val_size']} --split_seed {trained['split_seed']}"
        raise UsageError(f"--teacher {path}: was trained with {split}, so it has seen validation images of this run")

    @torch.no_grad()
    def compute(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(preprocess(images, classifier.preprocessing, classifier.whitening))
        batches = tqdm(pixels.split(500), "teacher", leave=False, disable=None)
        return torch.cat([classifier.logits(batch) for batch in batches]).numpy()

    def logits(images: np.ndarray) -> Tensor:
        weights = [digest(value.numpy()) for value in classifier.state_dict().values()]
        whitening = "" if classifier.whitening is None else digest(classifier.whitening)
        inputs = (digest(images), repr(classifier.preprocessing), whitening, *weights, torch.__version__)
        shape = (len(images), len(classifier.class_names))
        return torch.from_numpy(kept(folder, "teacher", inputs, shape, np.float32, lambda: compute(images)))

    return logits


def load_classifier(path: Path, tta: bool = False) -> Classifier:
    """The classifier of a checkpoint, in evaluation mode.

    Args:
        path: As `load_checkpoint` takes it.
        tta: Whether it classifies each image together with its mirror.

    Raises:
        UsageError: As `load_checkpoint`, or the checkpoint's network is none of `networks.NETWORKS`.
    """
    checkpoint = load_checkpoint(path)
    try:
        hparams = checkpoint["hyper_parameters"]
        network = NETWORKS[hparams.get("network", "lenet5")](hparams["width"])
        # In LeNetModule's state the network is `model`.
        network.load_state_dict(
            {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        )
        data, class_names = checkpoint["CIFAR10DataModule"], checkpoint.get("class_names", CLASS_NAMES)
        asked = Mirrored(network) if tta else network
        classifier = Classifier(asked, data["mean"], data["std"], class_names, *from_state(data))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UsageError(f"{path}: does not fit this network: {reason}") from error
    return classifier.eval()
