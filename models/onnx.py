"""Export of classifiers as ONNX, for programs without Python."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10.filters import BYTES_A_DEVIATION, ZCA_SIDE
from cifar10.preprocessing import make_steps
from core.errors import UsageError
from core.files import write_bytes
from models.classifier import Classifier


def export(classifier: Classifier, path: Path) -> None:
    """Write the classifier as ONNX: `images`, uint8 [N, 3, 32, 32], to `probabilities`, float32 [N, C].

    The file's metadata has `class_names`, a JSON list.

    Raises:
        UsageError: The preprocessing does more than whiten and normalize, or the file cannot be written.
    """
    if steps := make_steps(classifier.preprocessing):
        raise UsageError(f"the checkpoint's preprocessing has no ONNX form: {', '.join(map(str, steps))}")
    if not path.parent.is_dir():  # before the export, which takes seconds
        raise UsageError(f"{path}: No such file or directory")
    program = torch.onnx.export(
        Exported(classifier).eval(),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "N"},),
        verbose=False,
        dynamo=True,
    )
    assert program is not None
    program.model.metadata_props["class_names"] = json.dumps(classifier.class_names)
    try:
        write_bytes(path, program.model_proto.SerializeToString())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


class Exported(nn.Module):
    """A classifier of images with channels first, which whitens them as `filters.whiten` does."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.whitens = classifier.whitening is not None
        whitening = torch.from_numpy(classifier.whitening) if self.whitens else torch.zeros(3, 3 * ZCA_SIDE**2 + 1)
        self.kernels = nn.Buffer(whitening[:, :-1].reshape(3, 3, ZCA_SIDE, ZCA_SIDE))
        self.offsets = nn.Buffer(whitening[:, -1])

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities, float32 [N, C], of images, uint8 [N, 3, 32, 32]."""
        if self.whitens:
            padded = F.pad(images.float(), [ZCA_SIDE // 2] * 4, mode="reflect")
            values = F.conv2d(padded, self.kernels, self.offsets)
            images = (values * BYTES_A_DEVIATION + 127.5).round().clamp(0, 255).to(torch.uint8)
        return self.classifier(images.permute(0, 2, 3, 1))
