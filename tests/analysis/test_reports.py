"""Reports: tables of predictions, and the report in one file, looked at in a browser."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis import figures, reports

NAMES = ("cat", "dog", "frog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all of its pictures and tables, on made-up predictions."""
    folder = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(0, 2, (300, 3)))
    labels = torch.arange(300) % 3
    shown = random.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    reports.write_tables(folder, logits, labels, NAMES)
    reports.write_predictions(folder, range(300), logits.softmax(1), labels, NAMES)
    drawn = reports.draw(logits, labels, shown, NAMES, "LeNet-5; 300 validation images", temperature=2)
    points = {
        "loss": {epoch: 2 / epoch for epoch in range(1, 31)},
        "acc": {epoch: epoch / 40 for epoch in range(1, 31)},
    }
    curves = figures.Curves(points, points, best=30, clean_acc=0.8)
    matrix = torch.eye(3).long() * 90 + 5
    drawn |= {
        reports.OVERVIEW: figures.plot_overview(curves, matrix, NAMES, "Overview"),
        reports.CLASS_CURVES: figures.plot_curves(curves, "Accuracy of each class"),
        reports.TRAINING_BATCH: figures.plot_sheet(shown[:30], ["cat\n2 up, flipped"] * 30, "A batch"),
        reports.PREPROCESSING: figures.plot_sheet(shown[:20], NAMES, "Preprocessing", 10, ["as it is", "median"]),
        reports.FEATURE_MAPS: figures.plot_curves(curves, "Feature maps"),
        reports.FILTERS: figures.plot_sheet(shown[:9], (), "Filters", 9),
    }
    for name, figure in drawn.items():
        figures.save(folder / name, figure)
    rows = [[epoch, 2 / epoch, None, epoch / 40] for epoch in range(1, 31)]
    reports.write_csv(folder / reports.HISTORY, ["epoch", "train_loss", "val_loss", "train_acc"], rows)
    settings, result = [("network", "LeNet-5"), ("epochs", "30")], [("test accuracy", "78.90%")]
    trend = "| trend | |\n|---|---|\n| advice | more epochs |"
    reports.write_report(folder, "a <b>run</b>", "python train.py", settings, result, "validation", trend)
    return folder


def test_predictions_are_a_row_an_image(tmp_path: Path) -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    reports.write_predictions(tmp_path, ["a.png", "b.png"], probabilities, torch.tensor([1, 2]), NAMES)
    with (tmp_path / reports.PREDICTIONS).open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "true class", "predicted class", *NAMES],
        ["a.png", "dog", "cat", "0.5", "0.25", "0.25"],
        ["b.png", "frog", "frog", "0", "0", "1"],
    ]


def test_precision_recall_and_f1_come_from_the_confusion_matrix(tmp_path: Path) -> None:
    logits = torch.eye(3)[[0, 0, 1, 1]]
    reports.write_tables(tmp_path, logits, torch.tensor([0, 1, 1, 1]), NAMES)
    with (tmp_path / reports.CLASSES).open() as file:
        rows = [[float(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    assert rows[0] == pytest.approx([1 / 2, 1, 2 / 3, 1])
    assert rows[1] == pytest.approx([1, 2 / 3, 4 / 5, 3])
    assert rows[2] == [0, 0, 0, 0]


def test_at_most_three_mistakes_of_a_class_are_shown_the_most_confident_first() -> None:
    logits = torch.tensor([[3.0, 0, 0]] * 5 + [[5.0, 0, 0]] + [[0, 1.0, 0]] * 4)
    labels = torch.tensor([1] * 6 + [0] * 4)
    shown = np.zeros((10, 32, 32, 3), np.uint8)
    figure = reports.draw(logits, labels, shown, NAMES, "")[reports.MISTAKES]
    captions = [text.get_text() for text in figure.texts if "%" in text.get_text()]
    cat, dog = (f"cat {figures.ARROW}\ndog 58%", f"dog {figures.ARROW}\ncat 91%")
    assert captions == [cat] * 3 + [dog.replace("91", "99")] + [dog] * 2


def test_of_a_network_without_mistakes_none_are_drawn_and_its_calibration_error_is_said() -> None:
    shown, labels = np.zeros((3, 32, 32, 3), np.uint8), torch.arange(3)
    drawn = reports.draw(100 * torch.eye(3), labels, shown, NAMES, "", temperature=0.5)
    assert drawn.keys() == {reports.CONFUSION, reports.RELIABILITY}
    title = drawn[reports.RELIABILITY].get_suptitle().replace("\n", " ")
    assert title == "Reliability: expected calibration error 0.0%, 0.0% before temperature scaling"


def test_of_many_epochs_some_are_chosen_with_the_first_and_the_last() -> None:
    chosen = reports.choose(range(1, 91))
    assert len(chosen) == reports.SHOWN_EPOCHS and chosen[0] == 1 and chosen[-1] == 90
    assert reports.choose(range(1, 6)) == [1, 2, 3, 4, 5]


def test_the_report_is_one_file_that_names_no_other(folder: Path) -> None:
    html = (folder / reports.HTML).read_text(encoding="utf-8")
    assert len(html) < 1.5e6
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', html)
    assert len(sources) == 10 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<b>" not in html and "<title>a &lt;b&gt;run" in html  # a name is no HTML


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_loads_all_pictures_without_an_error_and_the_page_fits(
    browser: Any, folder: Path, width: int
) -> None:
    page, said = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((folder / reports.HTML).as_uri())
    widths = page.evaluate("Array.from(document.images, image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) == 10 and min(widths) > 100
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert said == []


def test_the_report_is_printed_on_two_to_four_pages(browser: Any, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / reports.HTML).as_uri())
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", page.pdf())) <= 4
