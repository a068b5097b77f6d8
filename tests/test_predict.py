"""The main_program to predictions: files of every kind, what is printed, what is refused, released weights, ONNX."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import evaluate
import predict as main_program
import train
from cifar10 import pictures, records
from cifar10.preprocessing import Preprocessing, fit_whitening, preprocess
from cifar10.records import CLASS_NAMES
from cifar_datamodule import CIFAR10DataModule
from conftest import ROOT, evaluated
from core import extras
from core.cli import run_program
from core.errors import UsageError
from lenet_module import LeNetModule
from made_up import own_network, write_checkpoint
from made_up_pictures import OTHER, PICTURE, PIXELS, saved
from models import classifier as engine
from models.classifier import load_classifier
from models.networks import LeNet5
from models.registry import make_network
from training.config import SETTINGS, RunConfig


@pytest.fixture
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "made-up.ckpt")


@pytest.fixture
def call(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    """Runs predict.py on the made-up checkpoint: status, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict.py", "--checkpoint", *map(str, [checkpoint, *arguments])])
        try:
            status = run_program(main_program.main)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


# Which files are read


def test_hidden_files_and_those_with_only_the_suffix_of_an_image_are_counted_in_folders_and_refused_if_named(
    call: Any, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "in" / "a.jpg").parent
    (folder / "._a.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (folder / "notes.jpg").write_text("no image")
    (folder / ".DS_Store").write_bytes(b"no image")
    (folder / "photo.jxl").write_bytes(b"a format that Pillow does not read")
    saved(folder / ".thumbnails" / "a.png")
    status, out, err = call(folder, "--csv")
    assert status == 0 and [row["file"] for row in csv.DictReader(io.StringIO(out))] == [str(folder / "a.jpg")]
    assert err == "predict.py: files skipped in folders, hidden or not an image: 5\n"
    for name in ("._a.jpg", "notes.jpg"):
        status, out, err = call(folder / name)
        assert (status, out) == (2, "") and err.startswith(f"predict.py: {folder / name}: {pictures.UNKNOWN}\n")
    (folder / "a.jpg").unlink()
    status, out, err = call(folder, "--json")
    assert (status, out, err.count("\n")) == (2, "", 1) and "no image files given" in err


# What is printed


def test_test_time_augmentation_is_that_of_the_classifier(call: Any, checkpoint: Path, tmp_path: Path) -> None:
    (answer,) = json.loads(call(saved(tmp_path / "a.png"), "--json", "--tta")[1])
    pixels = torch.from_numpy(PIXELS)[None]
    plain, expected = (load_classifier(checkpoint, tta)(pixels).max().item() for tta in (False, True))
    assert answer["confidence"] == pytest.approx(expected, abs=1e-6) != plain


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize": "zca-half"},
        {"denoise": "bilateral", "segment": "otsu", "normalize": "contrast"},
        {"denoise": "median", "corrupt": "blur", "corrupt_on": "both"},
    ],
    ids=["zca-half", "several", "corrupted"],
)
def test_a_picture_is_preprocessed_as_the_checkpoints_test_images_but_not_corrupted(
    settings: dict[str, Any], call: Any, checkpoint: Path, data_dir: Path, tmp_path: Path
) -> None:
    datamodule = CIFAR10DataModule(
        data_dir=data_dir, batch_size=50, val_size=100, **{"normalize": "dataset"} | settings
    )
    datamodule.prepare_data()
    datamodule.setup()
    write_checkpoint(checkpoint, state=datamodule.state_dict())
    datamodule.preprocessing = datamodule.preprocessing.changed({"corrupt": "none"})
    batches = torch.cat([images for images, _ in datamodule.test_dataloader()])
    expected, labels = load_classifier(checkpoint).network(batches).softmax(1).max(1)

    for number, image in enumerate(records.load(data_dir / records.FOLDER, train=False)[0]):
        saved(tmp_path / "in" / f"{number:03}.png", Image.fromarray(image))
    status, out, err = call(tmp_path / "in", "--json")
    answers = json.loads(out)
    assert (status, err) == (0, "")
    assert [answer["class"] for answer in answers] == [CLASS_NAMES[label] for label in labels]
    assert [answer["confidence"] for answer in answers] == pytest.approx(expected.tolist(), abs=1e-6)


def test_table_json_and_csv_say_the_same_of_every_file_in_sorted_order(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BATCH_SIZE", 4)
    rng = np.random.default_rng(1)
    names = ["z.png", "b/2.PNG", "b/10.png", "b/c/Größe 猫.png", "a,1.png"]
    for name in names:
        saved(tmp_path / "in" / name, Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
    files = [str(path) for path in sorted(tmp_path / "in" / name for name in names)]
    arguments = tmp_path / "in", tmp_path / "in" / "z.png"  # named twice, answered once

    status, out, err = call(*arguments, "--json")
    answers = json.loads(out)
    assert (status, err) == (0, "")
    assert [answer["file"] for answer in answers] == files
    assert len({answer["confidence"] for answer in answers}) == len(files)
    rows = list(csv.DictReader(io.StringIO(call(*arguments, "--csv")[1])))
    lines = call(*arguments)[1].splitlines()
    for answer, row, line in zip(answers, rows, lines, strict=True):
        second, third = answer["next"]
        assert row["file"] == answer["file"] and row["class"] == answer["class"]
        assert float(row["confidence"]) == answer["confidence"]
        assert (row["second"], float(row["third_confidence"])) == (second["class"], third["confidence"])
        assert line.startswith(answer["file"])
        assert line.split()[-6:] == (
            f"{answer['class']} {answer['confidence']:.1%} {second['class']} {second['confidence']:.1%}, "
            f"{third['class']} {third['confidence']:.1%}".split()
        )


def test_a_pattern_that_the_shell_did_not_expand_stands_for_its_matches(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "c.jpg", "[a].png"):
        saved(Path(name), format="PNG")
    for pattern, files in (("*.png", ["[a].png", "a.png", "b.png"]), ("[a].png", ["[a].png"])):
        assert [prediction["file"] for prediction in json.loads(call(pattern, "--json")[1])] == files
    status, out, err = call("*.gif")
    assert (status, out) == (2, "") and err.startswith("predict.py: *.gif: No such file or directory\n")


# What is refused


def test_files_that_cannot_be_read_are_named_and_counted_and_the_rest_go_on(call: Any, tmp_path: Path) -> None:
    whole = saved(tmp_path / "in" / "whole.png", PICTURE.resize((64, 64))).read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "text.gif").write_text("no image")
    (tmp_path / "in" / "thin.png").write_bytes(saved(tmp_path / "thin.png", OTHER.resize((5000, 1))).read_bytes())
    named = [tmp_path / "in" / "empty.jpg", tmp_path / "in" / "text.gif", tmp_path / "missing.png"]
    status, out, err = call(tmp_path / "in", *named, "--fit", "crop")
    assert status == 2
    assert [Path(line.split()[0]).name for line in out.splitlines()] == ["thin.png", "whole.png"]
    reasons = {Path(line.split(": ")[1]).name: line.split(": ", 2)[-1] for line in err.splitlines()}
    assert "truncated" in reasons["cut.png"]
    assert reasons["empty.jpg"] == reasons["text.gif"] == "no image that Pillow knows, or damaged"
    assert reasons["missing.png"] == "No such file or directory"
    assert err.splitlines()[-1] == "predict.py: 4 of 6 files could not be read"


def test_nothing_to_do_and_bad_flags_are_one_line(call: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    write_checkpoint(tmp_path / "run" / "last.ckpt")
    picture = saved(tmp_path / "a.png")
    for arguments, reason in (
        ([], "no image files given"),
        ([tmp_path / "empty"], "no image files given"),
        ([tmp_path / "empty", "--export", tmp_path / "m.onnx"], "no image files given"),
        ([picture, "--json", "--csv"], "not allowed with"),
        ([picture, "--fit", "squeeze"], "--fit"),
        ([picture, "--nonsense"], "--nonsense"),
        ([picture, "--checkpoint", tmp_path / "none.ckpt"], "No such file"),
        ([picture, "--checkpoint", picture], "refused"),
        ([picture, "--export", tmp_path / "none" / "m.onnx"], "No such file"),
        (["https://example.org/a.jpg", picture], "https://example.org/a.jpg: is a URL"),
        ([picture, "--export", tmp_path / "run" / "m.onnx"], "a run has its checkpoints there"),
    ):
        status, out, err = call(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1) and reason in err, err


def test_the_program_imports_no_lightning_and_ends_in_silence_when_nobody_reads_on(
    checkpoint: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, predict; status = predict.run_program(predict.main); "
        "sys.stderr.write(' '.join({'pytorch_lightning', 'torchvision', 'torchmetrics', 'onnx'} & set(sys.modules))); "
        "sys.exit(status)"
    )
    line = [sys.executable, "-c", code, str(saved(tmp_path / "a.png")), "--checkpoint", str(checkpoint)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = subprocess.Popen(line, cwd=ROOT, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout and run.stderr
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait(60) == 1


# What is given away


def test_released_weights_give_the_same_answers_and_say_what_they_are(
    run: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    steps: dict[str, Any] = {"denoise": "median", "corrupt": "gaussian"}
    result = run(tag="my-secret", network="lenet5-bn", epochs=1, **steps)
    target = tmp_path / "new" / "released.ckpt"
    command = ["evaluate.py", str(result.checkpoint), "--data_dir", str(data_dir)]
    monkeypatch.setattr(sys, "argv", [*command, "--release", str(target)])
    evaluate.main()
    assert str(target) in capsys.readouterr().out

    released = torch.load(target, weights_only=True)
    assert "optimizer_states" not in released and str(tmp_path) not in str(released)
    assert "my-secret" not in str(released)
    assert released["test_acc"] == pytest.approx(result.test_acc, abs=1e-6)
    assert "10,000 test images" in released["measured_on"] and released["class_names"] == list(CLASS_NAMES)
    program, script, *words = released["command"].split()
    assert (program, script) == ("python", "train.py")
    given = vars(train.make_parser().parse_args(words))
    flags = RunConfig(**{name: given[name] for name in SETTINGS if name in given}).plain()
    assert flags["network"] == "lenet5-bn"
    # Batch normalisation is folded into the weights: there is no network but LeNet-5.
    assert {name: flags[name] for name in released["flags"]} | {"network": "lenet5"} == released["flags"]
    assert LeNetModule.load_from_checkpoint(target).model.state_dict().keys() == LeNet5().state_dict().keys()
    assert flags["width"] == 1 and flags["val_size"] == 100

    images = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8)
    ours, theirs = load_classifier(target), load_classifier(result.checkpoint)
    assert torch.equal(ours(images), theirs(images)) and ours.preprocessing == theirs.preprocessing
    assert ours.preprocessing == Preprocessing(**steps)
    figures = evaluated(target, data_dir)
    assert figures == evaluated(result.checkpoint, data_dir)
    assert figures["test/loss"] == pytest.approx(result.test_loss, rel=1e-5)
    assert evaluated(target, data_dir, tta=True)["test/loss"] != pytest.approx(result.test_loss)


@pytest.mark.parametrize("flags", [["--tta"], ["--corrupt", "blur"], ["--on", "val"]])
def test_a_release_is_of_the_checkpoint_as_it_is(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "a", "--release", "a.ckpt", *flags])
    with pytest.raises(UsageError, match=f"not with {flags[0]}"):
        evaluate.main()


def test_a_network_of_ones_own_answers_where_it_is_named_and_not_without(
    call: Any, checkpoint: Path, tmp_path: Path
) -> None:
    name, picture = own_network(tmp_path, "Perceptron"), saved(tmp_path / "a.png")
    write_checkpoint(checkpoint, make_network(name), network=name, width=3)
    status, out, err = call(picture)
    assert (status, out, err.count("\n")) == (2, "", 1) and "a checkpoint holds no code" in err
    status, out, err = call(picture, "--network", name, "--tta", "--export", tmp_path / "m.onnx")
    assert (status, err) == (0, "") and str(picture) in out and (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("flags", [[], ["--tta"]])
def test_the_exported_network_agrees_with_pytorch(
    call: Any, checkpoint: Path, tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    status, out, _ = call("--export", tmp_path / "out" / "m.onnx", *flags)
    assert (status, out) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.onnx"]  # no file of weights beside it
    session = onnxruntime.InferenceSession(tmp_path / "out" / "m.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list(CLASS_NAMES)
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [("images", "tensor(uint8)", [3, 32, 32])]
    classifier = load_classifier(checkpoint, tta=bool(flags))
    for count in (1, 2, 3, 250):
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        (probabilities,) = session.run(["probabilities"], {"images": images.numpy()})
        assert probabilities.shape == (count, 10) and probabilities.dtype == np.float32
        expected = classifier(images.permute(0, 2, 3, 1)).detach().numpy()
        assert np.abs(probabilities - expected).max() < 1e-5


def test_a_line_says_how_to_install_what_only_the_export_needs(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert call(saved(tmp_path / "a.png"))[0] == 0
    status, out, err = call("--export", tmp_path / "m.onnx")
    assert (status, out) == (2, "")
    assert err == "predict.py: --export needs onnxscript: pip install -r requirements-extra.txt\n"


def test_a_checkpoint_that_changes_pixels_is_not_exported(call: Any, checkpoint: Path, tmp_path: Path) -> None:
    write_checkpoint(checkpoint, state={"preprocessing": {"denoise": "median"}})
    status, out, err = call("--export", tmp_path / "m.onnx")
    assert (status, out, err.count("\n")) == (2, "", 1) and "denoise median" in err
    assert not (tmp_path / "m.onnx").exists()


def test_whitening_is_part_of_the_exported_network(call: Any, checkpoint: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    whitening = fit_whitening(images, np.arange(50))
    state = {"preprocessing": {"normalize": "zca"}, "whitening": torch.from_numpy(whitening)}
    write_checkpoint(checkpoint, state=state)
    assert call("--export", tmp_path / "m.onnx")[0] == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": images.transpose(0, 3, 1, 2)})
    pixels = preprocess(images, Preprocessing(), whitening)
    expected = load_classifier(checkpoint)(torch.from_numpy(pixels)).detach().numpy()
    differences = np.abs(probabilities - expected).max(1)
    # A value in the middle between two bytes may become either.
    assert (differences < 1e-5).mean() > 0.8 and differences.max() < 0.1
