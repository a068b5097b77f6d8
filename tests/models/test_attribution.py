"""Where an answer comes from: what hiding a part of the picture does to networks that look into one corner alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10.preprocessing import preprocess
from made_up import write_checkpoint
from models.attribution import PATCH, cover, explain, layer_outputs, occlude
from models.classifier import load_classifier
from models.networks import LeNet5

COLOURS = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))  # of the ten classes
CORNERS = [(0, 0), (0, 24), (24, 0), (24, 24)]


class CornerNetwork(nn.Module):
    """Classifies by the mean colour of 8 x 8 pixels."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.rows, self.columns = slice(row, row + 8), slice(column, column + 8)
        self.colours = nn.Parameter(COLOURS)

    def forward(self, images: Tensor) -> Tensor:
        mean = images[:, :, self.rows, self.columns].mean((2, 3))
        return -4 * (mean[:, None] - self.colours).square().sum(2)


def lies_in(values: Tensor, row: int, column: int) -> bool:
    """Whether the largest value, float [32, 32], is among the 8 x 8 from a place on."""
    place = int(values.argmax())
    return row <= place // 32 < row + 8 and column <= place % 32 < column + 8


def multiply_by_gradient(network: nn.Module, image: Tensor) -> Tensor:
    """Gradient of the highest logit times input, float [32, 32], for comparison."""
    image = image.clone().requires_grad_()
    network(image)[0].max().backward()
    assert image.grad is not None
    return (image * image.grad).sum(1)[0].detach()


@pytest.mark.parametrize("corner", CORNERS)
def test_the_answer_comes_from_the_corner_that_the_network_looks_at(corner: tuple[int, int]) -> None:
    row, column = corner
    network = CornerNetwork(row, column)
    for label in range(10):
        image = torch.randn(1, 3, 32, 32)
        image[:, :, row : row + 8, column : column + 8] = COLOURS[label][:, None, None]
        values = occlude(network, image)
        assert lies_in(values, row, column), f"class {label}"
        far = torch.ones(32, 32, dtype=torch.bool)  # beyond any square that touches the corner
        far[max(row - PATCH, 0) : row + 16, max(column - PATCH, 0) : column + 16] = False
        assert values[far].abs().max() == 0


def test_hiding_finds_a_corner_whose_pixels_are_0_where_gradient_times_input_finds_nothing() -> None:
    image = torch.randn(1, 3, 32, 32)
    image[:, :, :8, :8] = 0
    network = CornerNetwork(0, 0)
    assert multiply_by_gradient(network, image).abs().max() == 0
    assert lies_in(occlude(network, image), 0, 0)


@pytest.mark.slow
def test_in_a_lenet_that_was_trained_on_one_corner_hiding_finds_it_more_often_than_gradient_times_input() -> None:
    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(10, (count,))
        images = F.interpolate(torch.randn(count, 3, 8, 8), size=(32, 32), mode="bilinear")
        for row, column in [(12, 12), *CORNERS]:  # the first corner last: it is that of the class
            other = labels if (row, column) == (0, 0) else torch.randint(10, (count,))
            images[:, :, row : row + 8, column : column + 8] = COLOURS[other][:, :, None, None]
        return images + 0.2 * torch.randn(images.shape), labels

    network = LeNet5(width=1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(300):
        images, labels = draw(128)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    images, labels = draw(100)
    right = [image[None] for image in images[network(images).argmax(1) == labels]]
    assert len(right) >= 80
    hidden, multiplied = (
        sum(lies_in(find(network, image), 0, 0) for image in right) / len(right)
        for find in (occlude, multiply_by_gradient)
    )
    assert hidden >= 0.95 and hidden > multiplied


def test_every_pixel_is_hidden_as_often_as_any_other() -> None:
    for size in (32, 7):
        assert cover(size).sum(0).unique().tolist() == [2]


def test_an_image_of_one_colour_has_no_part_that_matters() -> None:
    values = occlude(LeNet5(width=1), torch.ones(1, 3, 32, 32))
    assert torch.equal(values, torch.zeros(32, 32)) or values.abs().max() < 1e-5


def test_an_explanation_has_each_step_of_the_preprocessing_and_the_probabilities_of_the_classifier(
    tmp_path: Path,
) -> None:
    path = write_checkpoint(
        tmp_path / "a.ckpt", state={"preprocessing": {"denoise": "median", "normalize": "contrast"}}
    )
    classifier = load_classifier(path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = explain(classifier, pixels)
    assert list(found.stages) == ["denoise median 3.0", "normalize contrast"]
    images = preprocess(pixels[None], classifier.preprocessing)
    assert np.array_equal(found.stages["normalize contrast"], images[0])
    with torch.no_grad():
        assert torch.allclose(found.probabilities, classifier(torch.from_numpy(images))[0], atol=1e-6)
    shapes = {name: tuple(values.shape) for name, values in found.maps.items()}
    assert shapes == {"conv1": (6, 28, 28), "conv2": (16, 10, 10), "fc1": (120,), "fc2": (84,)}
    assert found.maps.keys() == layer_outputs(classifier.network, found.image[None]).keys()
