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

import evaluate as main_program
from cifar10 import records
from cifar10.filters import CORRUPT
from cifar10.records import CLASS_NAMES
from conftest import RECORDS, evaluated
from core.errors import SettingError, UsageError
from made_up import write_checkpoint
from models.checkpoint import load_checkpoint
from models.classifier import load_classifier
from training.evaluation import evaluate

FILES = {
    *("confusion.csv", "classes.csv", "predictions.csv", "report.md", "report.html"),
    *("confusion.png", "mistakes.png", "confused.png", "reliability.png"),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "a.ckpt", val_size=100)


@pytest.fixture
def test_images(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3], and labels."""
    return records.load(data_dir / records.FOLDER, train=False)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder in CIFAR-10-C's format: two corruptions, five severities of eight images."""
    folder, rng = tmp_path / "damaged", np.random.default_rng(0)
    folder.mkdir()
    for name in ("fog", "blur"):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(np.arange(8), 5))
    return folder


@pytest.mark.parametrize("corrupt_on", ["both", "test"])
def test_on_its_validation_images_a_checkpoint_is_as_good_as_when_it_was_chosen(
    run: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corrupt_on: str
) -> None:
    result = run(optimizer="adam", epochs=1, corrupt="gaussian", corrupt_on=corrupt_on)
    load = records.load

    def spare_the_test_set(folder: Path, train: bool) -> Any:
        assert train
        return load(folder, train)

    monkeypatch.setattr(records, "load", spare_the_test_set)
    found = evaluated(result.checkpoint, data_dir, on="val", out=tmp_path / "new" / "out")
    assert found.keys() == {"val/loss", "val/acc", "val/ece"} and found["val/acc"] == result.val_acc
    missing = {"mistakes.png", "confused.png"} if result.val_acc == 1 else set()  # which show what it gets wrong
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == FILES - missing
    page = (tmp_path / "new" / "out" / "report.md").read_text()
    assert "On the 100 validation images" in page and f"{result.val_acc:.2%}" in page


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
    (tmp_path / "mine" / "cat" / "damaged.png").unlink()
    (tmp_path / "mine" / "cat").rename(tmp_path / "mine" / "Cat")
    # The files are read in another order, in which sums round differently.
    assert evaluated(checkpoint, on=str(tmp_path / "mine")) == pytest.approx(mine, abs=1e-5)
    (tmp_path / "mine" / "other").mkdir()
    (tmp_path / "mine" / "Cat").rename(tmp_path / "mine" / "other" / "cat")
    pooled = evaluate(load_checkpoint(checkpoint), None, on=str(tmp_path / "mine"))
    assert pooled.images == f'{RECORDS} "mine" (mine, other) images'
    assert evaluate(load_checkpoint(checkpoint), None, on=str(tmp_path / "mine"), corrupt="none") == pooled
    (tmp_path / "mine" / "other" / "cat").rename(tmp_path / "mine" / "cats")
    with pytest.raises(UsageError, match=r"its folder is not named by a class"):
        evaluated(checkpoint, on=str(tmp_path / "mine"))


def test_of_damaged_images_there_is_a_row_for_each_corruption_and_severity_and_their_mean(
    tmp_path: Path, checkpoint: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(checkpoint), "--on", str(damaged), "--out", str(out)])
    main_program.main()
    with (out / "corruptions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(name, str(severity)) for name in ("blur", "fog") for severity in range(1, 6)]
    assert [(row["corruption"], row["severity"]) for row in rows] == [*expected, ("mean", "")]
    images = np.load(damaged / "fog.npy")[16:24]
    with torch.inference_mode():
        right = load_classifier(checkpoint)(torch.from_numpy(images)).argmax(1) == torch.arange(8)
    assert float(rows[7]["accuracy"]) == right.float().mean().item()
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies[-1] == pytest.approx(np.mean(accuracies[:-1]))
    assert {path.name for path in out.iterdir()} == {"corruptions.csv", "corruptions.png", "report.md", "report.html"}
    assert f"{accuracies[-1]:.1%}" in (out / "report.md").read_text()
    trained, _, _, *printed = capsys.readouterr().out.splitlines()
    assert trained.startswith("Trained LeNet-5, width 1, 62,006 parameters: 10 epochs, batch 128, sgd")
    assert len(printed) == 13 and printed[0].split(maxsplit=1) == ["images", "the images of damaged"]
    assert printed[-1].endswith("report.html")
    assert printed[-2].split("  ")[0] == "mean of corruptions" and printed[-2].endswith(f" {accuracies[-1]:.2%}")


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("fog.npy", np.zeros((40, 32, 32, 3), np.float32), "is float32"),
        ("fog.npy", np.zeros((39, 32, 32, 3), np.uint8), r"is uint8 \[39, 32, 32, 3\], not uint8 \[40, 32, 32, 3\]"),
        ("labels.npy", np.arange(38) % 10, "with the same labels 5 times"),
        ("labels.npy", np.tile(np.arange(8) + 10, 5), "with the same labels 5 times"),
        ("labels.npy", np.arange(40) % 10, "with the same labels 5 times"),
        ("labels.npy", np.empty(0, int), "with the same labels 5 times"),
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


def test_every_corruption_and_severity_of_a_split_is_a_row_of_a_table_and_a_report(
    data_dir: Path, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt", val_size=100, state={"preprocessing": {"denoise": "median"}})
    out = tmp_path / "out"
    found = evaluated(path, data_dir, on="val", corrupt="all", out=out)
    kinds = [f"{name} {severity}" for name in CORRUPT if name != "none" for severity in range(1, 6)]
    assert list(found) == [f"val/{name}" for name in ("clean", "JPEG quality 75", *kinds, "mean of corruptions")]
    assert found["val/clean"] == evaluated(path, data_dir, on="val")["val/acc"]
    for kind in ("gaussian 5", "blur 1"):  # with the noise that each image has when it is corrupted alone
        method, severity = kind.split()
        alone = evaluated(path, data_dir, on="val", corrupt=method, severity=int(severity))
        assert found[f"val/{kind}"] == pytest.approx(alone["val/acc"])
    assert found["val/mean of corruptions"] == pytest.approx(np.mean([found[f"val/{kind}"] for kind in kinds]))
    with (out / "corruptions.csv").open(newline="") as file:
        rows = {(row["corruption"], row["severity"]): float(row["accuracy"]) for row in csv.DictReader(file)}
    assert rows["clean", ""] == pytest.approx(found["val/clean"])
    assert rows["gaussian", "5"] == pytest.approx(found["val/gaussian 5"])
    page = (out / "report.md").read_text()
    assert "100 validation images" in page and f"{found['val/mean of corruptions']:.1%}" in page
    with pytest.raises(UsageError, match="severity 3: not with --corrupt all"):
        evaluated(path, data_dir, corrupt="all", severity=3)


def test_a_corrupted_split_says_by_what(checkpoint: Path, data_dir: Path) -> None:
    found = evaluate(load_checkpoint(checkpoint), data_dir, corrupt="blur")
    assert found.images == f"{RECORDS} test images, blur of severity 3"
    assert evaluate(load_checkpoint(checkpoint), data_dir).images == f"{RECORDS} test images"


def test_weights_are_not_released_over_a_checkpoint_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "last.ckpt")
    before = path.read_bytes()
    for target in (path, tmp_path / "new.ckpt"):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(path), "--release", str(target)])
        with pytest.raises(SettingError, match="a run has its checkpoints there"):
            main_program.main()
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_a_folder_that_has_files_is_not_written_to(checkpoint: Path, damaged: Path) -> None:
    before = {path.name: path.read_bytes() for path in damaged.iterdir()}
    for out in (damaged, damaged / "fog.npy"):
        with pytest.raises(UsageError, match="is there already; name a new folder"):
            evaluated(checkpoint, on=str(damaged), out=out)
    assert {path.name: path.read_bytes() for path in damaged.iterdir()} == before


def test_what_there_is_nothing_to_evaluate_on_is_refused(tmp_path: Path, data_dir: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"odd\.ckpt: has depth, which this version does not know"):
        evaluated(write_checkpoint(tmp_path / "odd.ckpt", depth=9), data_dir)
    with pytest.raises(UsageError, match="its run had no validation images"):
        evaluated(write_checkpoint(tmp_path / "b.ckpt", val_size=0), data_dir, on="val")
    for folder in (tmp_path / "nowhere", data_dir, checkpoint):
        with pytest.raises(UsageError, match="neither val, test nor a folder of images"):
            evaluated(checkpoint, data_dir, on=str(folder))
