"""Pictures of a run: what is drawn, and of which size."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.text import Text
from PIL import Image

from analysis import figures
from cifar10.records import CLASS_NAMES

PHOTOGRAPHS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


def test_pixels_undo_a_normalisation() -> None:
    original = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalised = (original - torch.tensor([120.0, 110.0, 100.0])) / torch.tensor([60.0, 62.0, 66.0])
    np.testing.assert_array_equal(figures.pixels(normalised.permute(0, 3, 1, 2)), original)


def test_a_filter_of_zeros_is_grey_and_a_large_weight_is_bright() -> None:
    weight = torch.zeros(7, 3, 5, 5)
    weight[0, 0, 0, 0] = 2.0
    tiles = figures.filter_tiles(weight, scale=1)
    assert tiles.shape == (7, 5, 5, 3) and tiles.dtype == np.uint8
    assert tiles[0, 0, 0].tolist() == [255, 128, 128] and tiles[1, 1, 1].tolist() == [128, 128, 128]
    assert figures.mosaic(tiles, columns=6, gap=0).shape == (10, 30, 3)


def test_figures_leave_no_trace_in_pyplot() -> None:
    from matplotlib import pyplot

    labels = torch.arange(20) % 10
    figure = figures.plot_reliability(F.one_hot(labels, 10).float(), labels, "Reliability")
    assert Image.open(io.BytesIO(figures.png(figure))).size == (640, 600)
    figures.plot_confusion(torch.eye(10).long(), CLASS_NAMES, "Confusion matrix")
    assert pyplot.get_fignums() == []


def test_a_sheet_shows_each_pixel_as_a_square_of_its_colour() -> None:
    figure = figures.plot_sheet(PHOTOGRAPHS, ["one\ntwo"] * 12, "A title\nof two lines")
    picture = np.asarray(Image.open(io.BytesIO(figures.png(figure))).convert("RGB"))
    scale = figures.SIDE // 32
    first = PHOTOGRAPHS[0].repeat(scale, 0).repeat(scale, 1)
    places = [
        (top, left)
        for top in range(20, 120)
        for left in range(8, 40)
        if np.array_equal(picture[top : top + figures.SIDE, left : left + figures.SIDE], first)
    ]
    assert len(places) == 1
    assert {text.get_text() for text in figure.findobj(Text)} >= {"one\ntwo", "A title\nof two lines"}


def test_no_title_is_wider_than_its_figure() -> None:
    about = (
        "LeNet-5, width 3, 548,878 parameters; mean/std normalization; sgd, lr 0.05, 10 epochs; 5,000 validation images"
    )
    drawn = (
        figures.plot_sheet(PHOTOGRAPHS[:3], (), about, columns=3),
        figures.plot_reliability(torch.eye(10), torch.arange(10), about),
        figures.new_figure(3, 3, f"{about}\n{about}"),
    )
    for figure in drawn:
        figure.draw_without_rendering()
        (title,) = [text for text in figure.findobj(Text) if "LeNet-5" in text.get_text()]
        extent = title.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width


def test_a_reliability_diagram_has_the_mean_confidence_and_the_accuracy_of_each_bin() -> None:
    probabilities = torch.tensor([[0.61, 0.39], [0.65, 0.35], [0.65, 0.35], [1.0, 0.0]])
    axes = figures.plot_reliability(probabilities, torch.tensor([0, 0, 1, 0]), "").axes
    dots = np.asarray(axes[0].collections[0].get_offsets())
    assert dots[0].tolist() == pytest.approx([1.91 / 3, 2 / 3]) and dots[1].tolist() == [1, 1]
    heights = [bar.get_window_extent().height for bar in axes[1].patches]
    assert np.flatnonzero(heights).tolist() == [9, 14] and heights[9] == pytest.approx(3 * heights[14])


def test_a_confusion_matrix_has_counts_and_shares_and_its_zeros_are_pale() -> None:
    matrix = torch.tensor([[3, 1], [0, 4]])
    axes = figures.plot_confusion(matrix, ("cat", "dog"), "Confusion matrix").axes[0]
    cells = {text.get_text(): text.get_color() for text in axes.texts}
    assert cells == {"75%\n3": "white", "25%\n1": "black", "0": "lightgrey", "100%\n4": "white"}
    assert [label.get_rotation() for label in axes.get_xticklabels()] == [0, 0]


@pytest.mark.parametrize("clean_acc", [None, 0.8])
def test_curves_mark_the_best_epoch_and_the_accuracy_on_whole_images(clean_acc: float | None) -> None:
    points = {"loss": {1: 2.0, 2: 1.0}, "acc": {1: 0.5, 2: 0.7}}
    curves = figures.Curves(points, points, best=2, measured="(augmented)", clean_acc=clean_acc)
    figure = figures.plot_curves(curves, "")
    loss, accuracy = (axes.get_legend_handles_labels()[1] for axes in figure.axes)
    assert loss == ["training", "validation", "best epoch, 2"]
    whole = ["training (whole images, not augmented)"] * (clean_acc is not None)
    assert accuracy == ["training (augmented)", "validation", "best epoch, 2", *whole]


def test_an_overview_names_the_easiest_classes_and_the_most_frequent_mistakes_first() -> None:
    points = {"loss": {1: 2.0}, "acc": {1: 0.5}}
    matrix = torch.tensor([[5, 0, 2], [7, 1, 0], [0, 0, 3]])
    figure = figures.plot_overview(figures.Curves(points, points), matrix, ("cat", "dog", "frog"), "")
    classes, labels = ([label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes[2:4])
    assert classes == ["frog", "cat", "dog"]
    assert labels[:2] == [f"dog {figures.ARROW} cat", f"cat {figures.ARROW} frog"]
