"""What a network's layers make of one image, and which of its pixels the answer comes from."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar10.preprocessing import make_steps, normalize
from models.classifier import Classifier, compute_logits

PATCH, STRIDE = 8, 4  # pixels; one is the side of what is hidden, the other its step


@dataclass(frozen=True, eq=False)
class Explanation:
    """How a classifier gets from one picture to its answer."""

    stages: dict[str, np.ndarray]  # what each step of the preprocessing makes of it, uint8 [32, 32, 3], in order
    image: Tensor  # float32 [3, 32, 32], as the network gets it
    maps: dict[str, Tensor]  # see `layer_outputs`
    relevance: Tensor  # float32 [32, 32], see `occlude`
    probabilities: Tensor  # float32 [C], by the checkpoint's temperature


def explain(classifier: Classifier, pixels: np.ndarray) -> Explanation:
    """Classify one image, uint8 [32, 32, 3], and return what happens to it on the way."""
    stages, processed = {}, pixels
    for step in make_steps(classifier.preprocessing, classifier.whitening):
        processed = stages[str(step)] = step.method(*step.parameters, processed, 0)
    image = normalize(torch.tensor(processed)[None], classifier.mean, classifier.std)
    probabilities = (compute_logits(classifier.network, image)[0] / classifier.temperature).softmax(0)
    maps, relevance = layer_outputs(classifier.network, image), occlude(classifier.network, image)
    return Explanation(stages, image[0], maps, relevance, probabilities)


@torch.no_grad()
def layer_outputs(module: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return what each convolution and linear layer but the last makes of an image, float [1, 3, H, W], before the
    activation: float [channels, h, w] or [units], by the layers' names, in order.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[name.removeprefix("model.")] = output[0].float().cpu()

    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(partial(keep, name)) for name, layer in layers[:-1]]
    try:
        compute_logits(module, image)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def occlude(network: nn.Module, image: Tensor) -> Tensor:
    """Return how much hiding each pixel lowers the log-probability of the network's answer, float [H, W].

    Squares of PATCH x PATCH pixels, STRIDE apart and cut off at the edges, are hidden one at a time (Zeiler and Fergus
    2014, Visualizing and Understanding Convolutional Networks): once by the image's lowest value in each channel, once
    by its highest, since one colour alone may be the very one that the network looks for. A pixel's value is the mean
    over the squares that it lies in; it is negative where hiding the pixel makes the network surer.

    Args:
        image: float [1, 3, H, W], as the network takes it.
    """
    height, width = image.shape[2:]
    rows, columns = cover(height), cover(width)
    hidden = (rows[:, None, :, None] & columns[None, :, None, :]).view(-1, 1, height, width)  # bool [squares, 1, H, W]
    colours = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    images = torch.cat([image, *(torch.where(hidden, colour, image) for colour in colours)])
    scores = compute_logits(network, images).log_softmax(1)
    scores = scores[:, scores[0].argmax()]
    drops = (scores[0] - scores[1:]).view(len(colours), -1).mean(0)  # [squares]
    weights = hidden[:, 0].to(drops)
    return torch.einsum("s,shw->hw", drops, weights) / weights.sum(0)


def cover(size: int) -> Tensor:
    """Return which of `size` pixels in a line each square hides, bool [squares, size]."""
    starts = torch.arange(STRIDE - PATCH, size, STRIDE)[:, None]
    pixels = torch.arange(size)
    return (starts <= pixels) & (pixels < starts + PATCH)
