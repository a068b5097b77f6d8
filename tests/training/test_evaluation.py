"""A checkpoint on labelled images: which they are, what is written of them, and what is refused."""

import csv
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate as door
from cifar10 import records
from cifar10.records import CLASS_NAMES
from conftest import RECORDS, evaluated
from core.errors import UsageError
from made_up import of_format_2
from models.classifier import load_classifier

FILES = {"confusion.csv", "classes.csv", "confusion.png", "mistakes.png", "reliability.png", "report.md"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return of_format_2(tmp_path / "a.ckpt", val_size=100)


@pytest.fixture
def test_images(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3], and labels."""
    images, labels = records.load(data_dir / records.FOLDER, train=False)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder in CIFAR-10-C's format: two corruptions, five severities of eight images."""
    folder, rng = tmp_path / "damaged", np.random.default_rng(0)
    folder.mkdir()
    for name in ("fog", "blur"):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(np.arange(8), 5))
    return folder


@pytest.mark.parametrize("flags", [{}, {"corrupt": "gaussian", "corrupt_on": "both"}, {"corrupt": "gaussian"}])
def test_on_its_validation_images_a_checkpoint_is_as_good_as_when_it_was_chosen(
    run: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any]
) -> None:
    result = run(optimizer="adam", **flags)
    load = records.load

    def spare_the_test_set(folder: Path, train: bool) -> Any:
        assert train
        return load(folder, train)

    monkeypatch.setattr(records, "load", spare_the_test_set)
    found = evaluated(Path(result["checkpoint"]), data_dir, on="val", out=tmp_path / "new" / "out")
    assert found.keys() == {"val/loss", "val/acc", "val/ece"} and found["val/acc"] == result["val_acc"]
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == FILES
    page = (tmp_path / "new" / "out" / "report.md").read_text()
    assert "On the 100 validation images" in page and f"{result['val_acc']:.2%}" in page


def test_a_folder_of_pictures_is_evaluated_as_the_same_images_of_the_data_set(
    data_dir: Path, tmp_path: Path, checkpoint: Path, test_images: tuple[np.ndarray, np.ndarray]
) -> None:
    for number, (image, label) in enumerate(zip(*test_images, strict=True)):
        folder = tmp_path / "mine" / CLASS_NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    mine = evaluated(checkpoint, data_dir, on=str(tmp_path / "mine"), out=tmp_path / "out")
    official = evaluated(checkpoint, data_dir)
    assert mine["acc"] == official["test/acc"] and mine["loss"] == pytest.approx(official["test/loss"])
    assert f'On the {RECORDS} "mine" images' in (tmp_path / "out" / "report.md").read_text()
    (tmp_path / "mine" / "cat" / "damaged.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"damaged\.png: "):
        evaluated(checkpoint, on=str(tmp_path / "mine"))
    (tmp_path / "mine" / "cat").rename(tmp_path / "mine" / "cats")
    with pytest.raises(UsageError, match=r"its folder is not named by a class"):
        evaluated(checkpoint, on=str(tmp_path / "mine"))


def test_of_damaged_images_there_is_a_row_for_each_corruption_and_severity_and_their_mean(
    tmp_path: Path, checkpoint: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(checkpoint), "--on", str(damaged), "--out", str(out)])
    door.main()
    with (out / "corruptions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(name, str(severity)) for name in ("blur", "fog") for severity in range(1, 6)]
    assert [(row["corruption"], row["severity"]) for row in rows] == [*expected, ("mean", "")]
    images = np.load(damaged / "fog.npy")[16:24].transpose(0, 3, 1, 2)
    with torch.inference_mode():
        right = load_classifier(checkpoint)(torch.from_numpy(images)).argmax(1) == torch.arange(8)
    assert float(rows[7]["accuracy"]) == right.float().mean().item()
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies[-1] == pytest.approx(np.mean(accuracies[:-1]))
    assert {path.name for path in out.iterdir()} == {"corruptions.csv", "corruptions.png", "report.md"}
    assert f"{accuracies[-1]:.1%}" in (out / "report.md").read_text()
    printed = capsys.readouterr().out.splitlines()
    assert (
        len(printed) == 12
        and printed[-1].endswith("report.md")
        and printed[-2].split()
        == [
            "mean",
            f"{accuracies[-1]:.4f}",
        ]
    )


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("fog.npy", np.zeros((40, 32, 32, 3), np.float32), "is float32"),
        ("fog.npy", np.zeros((39, 32, 32, 3), np.uint8), r"is uint8 \[39, 32, 32, 3\]"),
        ("fog.npy", np.zeros((40, 3, 32, 32), np.uint8), r"not uint8 \[40, 32, 32, 3\]"),
        ("labels.npy", np.arange(38) % 10, "no labels of 5 severities"),
        ("labels.npy", np.arange(40), "no labels of 5 severities"),
        ("labels.npy", np.empty(0, int), "no labels of 5 severities"),
        ("fog.npy", pickle.dumps(Harmful()), "fog.npy: "),
        ("labels.npy", np.array([Harmful()], object), "labels.npy: "),
        ("fog.npy", b"", "fog.npy: "),
    ],
)
def test_damaged_images_of_another_form_are_refused_and_no_pickle_is_opened(
    tmp_path: Path,
    checkpoint: Path,
    damaged: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: Any,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (damaged / name).write_bytes(content)
    else:
        np.save(damaged / name, content)
    with pytest.raises(UsageError, match=reason) as raised:
        evaluated(checkpoint, on=str(damaged), out=tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "harmed").exists() and not (tmp_path / "out").exists()


def test_a_folder_that_has_files_is_not_written_to(checkpoint: Path, damaged: Path) -> None:
    before = {path.name: path.read_bytes() for path in damaged.iterdir()}
    for out in (damaged, damaged / "fog.npy"):
        with pytest.raises(UsageError, match="is there already; name a new folder"):
            evaluated(checkpoint, on=str(damaged), out=out)
    assert {path.name: path.read_bytes() for path in damaged.iterdir()} == before


def test_what_there_is_nothing_to_evaluate_on_is_refused(tmp_path: Path, data_dir: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="its run had no validation images"):
        evaluated(of_format_2(tmp_path / "b.ckpt", val_size=0), data_dir, on="val")
    for folder in (tmp_path / "nowhere", data_dir, checkpoint):
        with pytest.raises(UsageError, match="neither val, test nor a folder of images"):
            evaluated(checkpoint, data_dir, on=str(folder))
