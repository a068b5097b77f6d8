"""The two halves in other people's hands: Lightning's own ways of loading, testing and predicting, and notebooks."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

import evaluate
import train as main_program
from cifar10 import records
from cifar_datamodule import CIFAR10DataModule
from conftest import ROOT, SMALL, curves, evaluated, weights
from core.errors import UsageError
from lenet_module import LeNetModule
from models.checkpoint import load_checkpoint
from models.classifier import load_classifier
from training.checkpoints import release

RELEASED = ROOT / "checkpoints" / "lenet5-cifar10.ckpt"


def trainer(**options: Any) -> pl.Trainer:
    options = {"accelerator": "cpu", "logger": False, "use_distributed_sampler": False} | options
    return pl.Trainer(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **options)  # type: ignore[arg-type]


def released(result: Any, target: Path) -> Path:
    release(load_checkpoint(result.checkpoint), target, result.test_acc)
    return target


def test_a_run_and_what_is_released_of_it_load_as_lightning_loads(run: Any, data_dir: Path, tmp_path: Path) -> None:
    result = run(network="lenet5", optimizer="adam", crop=3, split_seed=4)
    for path in (result.checkpoint, released(result, tmp_path / "released.ckpt")):
        module = LeNetModule.load_from_checkpoint(path)
        datamodule = CIFAR10DataModule.load_from_checkpoint(path, data_dir=data_dir)
        assert (module.config.optimizer, module.config.lr) == ("adam", 0.004)
        assert (datamodule.config.crop, datamodule.config.split_seed) == (3, 4)
        (tested,) = trainer().test(module, datamodule, verbose=False)
        (validated,) = trainer().validate(module, datamodule, verbose=False)
        assert (tested["test/acc"], tested["test/loss"]) == (result.test_acc, result.test_loss)
        assert validated["val/acc"] == pytest.approx(result.val_acc)


def test_a_checkpoint_given_to_the_trainer_decides_how_images_are_treated(run: Any, data_dir: Path) -> None:
    result = run(normalize="zca-half")
    halves = LeNetModule(width=1), CIFAR10DataModule(data_dir=data_dir, val_size=100, normalize="zca")
    (tested,) = trainer().test(*halves, ckpt_path=result.checkpoint, verbose=False)
    assert (tested["test/acc"], tested["test/loss"]) == (result.test_acc, result.test_loss)
    (validated,) = trainer().validate(*halves, ckpt_path=result.checkpoint, verbose=False)
    assert validated["val/acc"] == pytest.approx(result.val_acc)


def test_trainer_test_and_validate_return_their_metrics_and_draw_each_once(data_dir: Path, tmp_path: Path) -> None:
    halves = LeNetModule(width=1), CIFAR10DataModule(data_dir=data_dir, val_size=100)
    logger = TensorBoardLogger(tmp_path, "", "")
    fitter = trainer(max_epochs=2, logger=logger)
    fitter.fit(*halves)
    (tested,) = fitter.test(*halves, verbose=False)
    assert tested == {name: value.item() for name, value in fitter.callback_metrics.items()}
    assert tested.keys() == {"test/loss", "test/acc", "step"}
    (validated,) = fitter.validate(*halves, verbose=False)
    assert validated.keys() == {"val/loss", "val/acc", "step"}
    logged = curves(tmp_path)
    for name in ("loss", "acc"):
        assert logged[f"test/{name}"] == [(2, pytest.approx(tested[f"test/{name}"]))]
        assert [epoch for epoch, _ in logged[f"train/{name}"]] == [1, 2]
        # A set: two files written within a second are read in the order of their names.
        points = set(logged[f"val/{name}"])
        assert sorted(epoch for epoch, _ in points) == [1, 2] and dict(points)[2] == validated[f"val/{name}"]
    assert "epoch" not in logged and "step" not in logged


def test_predictions_are_probabilities_of_the_test_images_in_their_order(run: Any, data_dir: Path) -> None:
    result = run()
    module = LeNetModule.load_from_checkpoint(result.checkpoint)
    datamodule = CIFAR10DataModule.load_from_checkpoint(result.checkpoint, data_dir=data_dir)
    predicted = torch.cat(trainer().predict(module, datamodule=datamodule))  # type: ignore[arg-type]
    assert predicted.shape == (200, 10) and predicted.dtype == torch.float32
    torch.testing.assert_close(predicted.sum(1), torch.ones(200))
    labels = torch.cat([labels for _, labels in datamodule.predict_dataloader()])
    assert (predicted.argmax(1) == labels).float().mean().item() == pytest.approx(result.test_acc)


def test_loaders_with_labels_without_and_of_bare_tensors_are_predicted_alike() -> None:
    module, images = LeNetModule(width=1).eval(), torch.randn(20, 3, 32, 32)
    loaders: list[Any] = [
        DataLoader(TensorDataset(images, torch.zeros(20, dtype=torch.int64)), 8),
        DataLoader(TensorDataset(images), 8),
        DataLoader(images, 8),  # type: ignore[arg-type]
    ]
    for loader in loaders:
        predicted = torch.cat(trainer(precision="bf16-mixed").predict(module, loader))  # type: ignore[arg-type]
        with torch.no_grad():
            torch.testing.assert_close(predicted, module(images).softmax(1))


def test_the_script_in_the_readme_trains_what_the_command_trains(
    run: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    last = weights(run(optimizer="adam", precision="32-true").checkpoint.parent / "last.ckpt")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (script,) = [block for block in blocks if "pl.Trainer" in block]
    small = {"max_epochs=10": "max_epochs=2", '"adam"': '"adam", width=1', "Module()": "Module(**small)"}
    for before, after in small.items():
        assert before in script
        script = script.replace(before, after)
    names: dict[str, Any] = {"small": {"data_dir": data_dir, "batch_size": 50, "val_size": 100}}
    exec(script, names)
    trained = names["trainer"].lightning_module.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in last.items())


def cli(monkeypatch: pytest.MonkeyPatch, *words: object) -> LightningCLI:
    """A program of one line, called with these words."""
    monkeypatch.setattr(sys, "argv", ["main.py", *map(str, words)])
    return LightningCLI(LeNetModule, CIFAR10DataModule)


def test_lightnings_command_line_fits_validates_tests_and_predicts(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--data.data_dir", data_dir, "--data.val_size=100", "--trainer.accelerator=cpu"]
    flags = ["--model.optimizer=adam", "--model.lr=null", "--model.width=1", "--trainer.max_epochs=1"]
    fitted = cli(monkeypatch, "fit", *common, *flags, "--data.batch_size=50", "--data.denoise=median")
    path = fitted.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    assert (fitted.model.config.optimizer, fitted.model.config.lr) == ("adam", 0.004)
    assert fitted.datamodule.config.denoise == "median" and fitted.trainer.global_step == 900 // 50
    again = cli(monkeypatch, "fit", "--config", Path(path).parent.parent / "config.yaml")
    assert all(torch.equal(value, weights(path)[name]) for name, value in again.model.state_dict().items())
    loaded = LeNetModule.load_from_checkpoint(path)
    assert loaded.config == fitted.model.config
    for command in ("validate", "test", "predict"):
        done = cli(monkeypatch, command, *common, "--ckpt_path", path)
        assert done.model.config.width == 1 and done.datamodule.preprocessing.denoise == "median"
        assert all(torch.equal(value, weights(path)[name]) for name, value in done.model.state_dict().items())


SCRIPT = """
import pytorch_lightning as pl
import torch
from cifar10 import records
from cifar_datamodule import CIFAR10DataModule
from lenet_module import LeNetModule

records.FILES.update({hashes!r})


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3072, 10)

    def forward(self, images):
        return self.fc(images.flatten(1))


print("runs as", __name__)
datamodule = CIFAR10DataModule(data_dir={data_dir!r}, val_size=100, batch_size=50)
trainer = pl.Trainer(accelerator="cpu", max_epochs=1, use_distributed_sampler=False, enable_progress_bar=False)
trainer.fit(LeNetModule(network="my_script.py:Net"), datamodule=datamodule)
print(trainer.validate(ckpt_path="best", datamodule=datamodule, verbose=False)[0]["val/acc"])
print(trainer.checkpoint_callback.best_model_path)
"""


def test_a_script_trains_a_network_of_its_own_and_its_checkpoint_is_evaluated_and_predicts(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, environment = tmp_path / "my_script.py", os.environ | {"PYTHONPATH": str(ROOT)}
    script.write_text(SCRIPT.format(hashes=records.FILES, data_dir=str(data_dir)))
    line = [sys.executable, "my_script.py"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    runs, accuracy, path = done.stdout.splitlines()[:1] + done.stdout.splitlines()[-2:]
    assert runs == "runs as __main__" and done.stdout.count("runs as") == 1
    for load in (load_checkpoint, load_classifier, LeNetModule.load_from_checkpoint):
        with pytest.raises(UsageError, match=r"is my_script\.py:Net, and .* \(--network my_script.py:Net\)$"):
            load(Path(path))
    text = script.read_text()
    script.write_text(text[: text.index("print")])  # what trains would run again
    named = f"{script}:Net"
    assert evaluated(Path(path), data_dir, on="val", network=named)["val/acc"] == pytest.approx(
        float(accuracy), abs=1e-6
    )
    assert load_classifier(Path(path), network=named)(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 10)
    line = ["evaluate.py", path, "--network", named, "--data_dir", str(data_dir)]
    monkeypatch.setattr(sys, "argv", [*line, "--out", str(tmp_path / "out")])
    evaluate.main()
    assert capsys.readouterr().out.startswith(f"Trained by a script: {named}\n")
    assert named in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*line, "--release", str(tmp_path / "released.ckpt")])
    with pytest.raises(UsageError, match=r"train\.py did not write it"):
        evaluate.main()


class Cell(io.StringIO):
    """A stream that only takes text, as some notebooks and capturing tools put in the place of stdout."""

    isatty = fileno = encoding = property()  # type: ignore[assignment]


def test_in_a_notebook_train_takes_texts_as_paths_and_prints_a_line_an_epoch(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders: dict[str, Any] = {"data_dir": str(data_dir), "log_dir": "x", "checkpoint_dir": "y"}
    out = Cell()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", Cell())
        result: Any = main_program.train(**SMALL, **folders)
    lines = out.getvalue().splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert result.log_dir == Path("x/sgd-lr0.05-bs50-epochs2-width1-val-size100-seed0/version_0")
    assert load_classifier(str(result.checkpoint)).class_names
