"""Knowledge distillation: a network learns the outputs of a trained one, its teacher, beside the labels.

Hinton, Vinyals, Dean (2015), Distilling the Knowledge in a Neural Network. The teacher's logits of all training images
are computed once, before training, and cached.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar10.config import Data, Preprocessing
from cifar10.preprocessing import make_steps, preprocess
from core.cache import LazyArray, array_sha256
from core.errors import SettingError, UsageError
from core.files import sha256
from models.checkpoint import Checkpoint, load_checkpoint
from models.classifier import Classifier
from models.config import Teacher

DISTILLATION_TEMPERATURE = 4.0  # Hinton et al. report 2.5 to 4 as best for a small network


def compute_distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute the divergence from the teacher's soft targets (Hinton et al. 2015), a scalar, of logits, float [B, C].

    Both are divided by DISTILLATION_TEMPERATURE; its square as a factor keeps gradients as large as cross-entropy's.
    """
    targets = (teacher_logits / DISTILLATION_TEMPERATURE).softmax(1)
    predictions = (logits / DISTILLATION_TEMPERATURE).log_softmax(1)
    return F.kl_div(predictions, targets, reduction="batchmean") * DISTILLATION_TEMPERATURE**2


def compute_teacher_logits(classifier: Classifier, teacher_sha256: str, folder: Path, images: np.ndarray) -> Tensor:
    """Compute the logits, float32 [N, C], of images of the data set, uint8 [N, 32, 32, 3]; they are cached in `folder`.

    Raises DataError if the folder cannot be written.
    """
    preprocessing, whitening = classifier.preprocessing, classifier.whitening
    steps = [step.identity for step in make_steps(preprocessing, whitening)]
    identity = sha256("\n".join([array_sha256(images), teacher_sha256, *steps, torch.__version__]).encode())
    shape = (len(images), len(classifier.class_names))

    def compute() -> np.ndarray:
        return classifier.compute_logits(preprocess(images, preprocessing, whitening), "teacher").numpy()

    return torch.from_numpy(LazyArray("teacher logits", identity, shape, compute, np.float32, folder).array)


def load_teacher(teacher: Teacher, data: Data, folder: Path) -> Callable[[np.ndarray], Tensor]:
    """Return the function of `CIFAR10DataModule` that computes the logits of the teacher of a run with these settings,
    averaged over each image and its flip.

    Raises:
        UsageError: As in `hash_teacher`, or the teacher is another one than `teacher_sha256` says, or was trained on
            validation images of the run.
    """
    path = teacher.teacher
    assert path is not None
    checkpoint = _load_finished(path)
    found = _hash_checkpoint(checkpoint)
    if teacher.teacher_sha256 not in (None, found):
        raise UsageError(
            f"the teacher is another one than that of the run: {path} has SHA-256 {found}, not {teacher.teacher_sha256}"
        )
    # Of one split seed, a smaller validation split is within a larger one.
    trained = checkpoint.data
    if data.val_size and (trained.split_seed != data.split_seed or trained.val_size < data.val_size):
        split = f"val_size {trained.val_size} and split_seed {trained.split_seed}"
        raise SettingError("teacher", path, f"was trained with {split}, so it has seen validation images of this run")
    return partial(compute_teacher_logits, Classifier(checkpoint, tta=True), found, folder)


def hash_teacher(path: Path) -> str:
    """Return the SHA-256 of all that determines a teacher's logits: network, weights, statistics and preprocessing.

    It is the same for a copy elsewhere, and for another checkpoint file of the same weights.

    Raises:
        UsageError: As in `load_checkpoint`, or `path` is the folder of a run that has not ended.
    """
    return _hash_checkpoint(_load_finished(path))


def _load_finished(path: Path) -> Checkpoint:
    if not path.exists():
        raise SettingError("teacher", path, "not there; python train.py --config teacher trains one")
    checkpoint = load_checkpoint(path, last=True)  # runs record the SHA-256 of this one
    epochs = checkpoint.flags.get("epochs", 0)
    if path.is_dir() and checkpoint.epoch + 1 < epochs:
        stopped = f"its run stopped after epoch {checkpoint.epoch + 1} of {epochs}: train.py --resume {path} ends it"
        raise SettingError("teacher", path, stopped)
    return checkpoint


def _hash_checkpoint(checkpoint: Checkpoint) -> str:
    tensors = dict(sorted(checkpoint.state_dict.items()))
    tensors |= {"mean": checkpoint.mean, "std": checkpoint.std}
    if checkpoint.whitening is not None:
        tensors["whitening"] = torch.from_numpy(checkpoint.whitening)
    # A setting that is added later counts only where it does something.
    off = Preprocessing().plain()
    chosen = {name: value for name, value in checkpoint.preprocessing.plain().items() if value != off[name]}
    shapes = [[name, str(value.dtype), list(value.shape)] for name, value in tensors.items()]
    what = {"network": checkpoint.network.network, "preprocessing": chosen, "tensors": shapes}
    contents = [value.reshape(-1).view(torch.uint8).numpy().data for value in tensors.values()]
    return sha256(b"".join([json.dumps(what, sort_keys=True).encode(), *contents]))
