"""What is shown in the page of app.py, as HTML."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import reports, views
from cifar10 import records
from cifar10.filters import CORRUPT
from cifar10.records import CLASS_NAMES
from conftest import made_up_records
from made_up import write_checkpoint
from models.classifier import load_classifier

NAMES = ("cat", "dog", "<b>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's tables of four images: two are taken for another class."""
    logits, labels = torch.eye(3)[[0, 1, 1, 0]] * torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 2])
    reports.write_tables(tmp_path, logits, labels, NAMES)
    reports.write_predictions(tmp_path, [10, 11, 12, 13], logits.softmax(1), labels, NAMES)
    return tmp_path


def decode(html: str) -> list[np.ndarray]:
    """The pictures in a text."""
    files = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files]


def test_pictures_are_shown_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    shown = decode(views.show_sheet(pixels, [""] * 5, map(str, range(5))))
    assert np.array_equal(np.stack(shown), pixels)


def test_the_answer_says_whether_it_is_right_if_the_truth_is_known() -> None:
    probabilities = torch.tensor([0.25, 0.5, 0.25])
    assert "right" in views.show_answer(probabilities, NAMES, "dog")
    wrong = views.show_answer(probabilities, NAMES, "cat")
    assert "wrong, it is: cat" in wrong and "50.0%" in wrong
    unknown = views.show_answer(probabilities, NAMES, None)
    assert "right" not in unknown and "wrong" not in unknown
    assert "<b>" not in re.sub(r'<b style="[^"]*">', "", unknown)  # a class's name is no HTML


def test_what_speaks_for_the_answer_is_red_and_what_speaks_against_it_blue() -> None:
    relevance = torch.zeros(32, 32)
    relevance[3, 4], relevance[20, 21] = 2.0, -1.0
    _, heat = decode(views.show_relevance(np.zeros((32, 32, 3), np.uint8), relevance))
    red, blue = heat[3, 4], heat[20, 21]
    assert red[0] > red[2] and blue[2] > blue[0]
    assert red[3] == 200 and blue[3] == 100 and (heat[..., 3] > 0).sum() == 2


@pytest.mark.parametrize("method", [method for method, levels in CORRUPT.items() if levels])
def test_a_corrupted_picture_is_explained_by_a_network_without_preprocessing(tmp_path: Path, method: str) -> None:
    classifier, pixels = load_classifier(write_checkpoint(tmp_path / "a.ckpt")), np.zeros((32, 32, 3), np.uint8)
    assert "%" in views.show_parts({"a": classifier}, pixels, None, [(method, CORRUPT[method][0])])[0]


def test_a_runs_predictions_are_read_the_most_confident_first(folder: Path, tmp_path: Path) -> None:
    rows, confusion = views.read_predictions(folder), views.read_confusion(folder)
    assert rows is not None and rows["image"].tolist() == [13, 12, 11, 10]
    assert confusion is not None and confusion.columns.tolist() == ["true class", *NAMES]
    assert views.read_predictions(tmp_path / "none") is None and views.read_confusion(tmp_path / "none") is None


def test_what_a_run_lacks_is_said(tmp_path: Path) -> None:
    assert "not finished" in views.read_trend("a", tmp_path) and "No run" in views.read_trend("a", None)


def test_curves_are_those_of_the_runs_table(tmp_path: Path) -> None:
    columns = ["epoch", "train_loss", "train_acc", "val_acc"]
    reports.write_csv(tmp_path / reports.HISTORY, columns, [[1, 2.0, 0.25, 0.5], [2, 1.0, 0.75, None]])
    table = views.read_curves(tmp_path, "accuracy")
    assert table.values.tolist() == [[1, "training", 25], [2, "training", 75], [1, "validation", 50]]
    assert views.read_curves(tmp_path, "loss")["loss"].tolist() == [2, 1]


def test_the_curve_of_a_run_that_was_judged_on_the_test_set_is_shown(tmp_path: Path) -> None:
    reports.write_csv(tmp_path / reports.HISTORY, ["epoch", "train_acc", "test_acc"], [[1, 0.25, 0.5]])
    assert views.read_curves(tmp_path, "accuracy").values.tolist() == [[1, "training", 25], [1, "test", 50]]


def test_a_classs_mistakes_are_test_images_that_the_network_takes_for_another(tmp_path: Path) -> None:
    for seed, name in enumerate(records.FILES):
        (tmp_path / name).write_bytes(made_up_records(seed).tobytes())
    classifier = load_classifier(write_checkpoint(tmp_path / "a.ckpt"))
    images, labels = records.load(tmp_path, train=False)
    predicted = classifier.compute_logits(images).argmax(1).numpy()
    for label in range(10):
        found = re.findall(r'data-pick="test/(\d+)"', views.show_class(classifier, tmp_path, label, mistakes=True))
        expected = np.flatnonzero((labels == label) & (predicted != label))
        assert sorted(map(int, found)) == expected.tolist()[: views.SHOWN]
    pixels, truth = views.read_example(tmp_path, "test/7")
    assert np.array_equal(pixels, images[7]) and truth == CLASS_NAMES[labels[7]]
