"""The door: `train()` on made-up data, and the command line as a user types it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train as door
from cifar10 import download
from cifar10.errors import DataError, UsageError
from conftest import ROOT, curves, weights
from training.cli import check


def test_a_run_learns_and_says_where_everything_is(run: Any, tmp_path: Path) -> None:
    result = run(optimizer="adam", epochs=4)
    assert result["test_acc"] > 0.3
    assert Path(result["log_dir"]) == tmp_path / "logs" / "adam-lr0.002-bs50-seed0" / "version_0"
    folder = tmp_path / "checkpoints" / "adam-lr0.002-bs50-seed0" / "version_0"
    best = f"best-epoch={result['best_epoch']:02d}-val_acc={result['val_acc']:.4f}.ckpt"
    assert sorted(path.name for path in folder.iterdir()) == [best, "last.ckpt"]
    assert Path(result["checkpoint"]) == folder / best


def test_epoch_curves_are_over_epochs_and_step_curves_over_steps(run: Any) -> None:
    logged = curves(run(epochs=3)["log_dir"])
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert [epoch for epoch, _ in logged[name]] == [1, 2, 3]
    assert [epoch for epoch, _ in logged["test/acc"]] == [3]
    for name in ("lr", "train/loss_step"):
        assert [step for step, _ in logged[name]] == [19, 39]


def test_the_hparams_tab_has_the_flags_and_the_scores(run: Any) -> None:
    result = run()
    events = EventAccumulator(result["log_dir"]).Reload()
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optimizer" in data and b"split_seed" in data
    logged = curves(result["log_dir"])
    assert logged["whole_run/best_acc"][0][1] == pytest.approx(result["val_acc"])
    assert logged["whole_run/test_acc"][0][1] == pytest.approx(result["test_acc"])


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(run: Any) -> None:
    first, again, other = (weights(run(seed=seed)["checkpoint"]) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.conv1.weight"], other["model.conv1.weight"])


def test_two_runs_of_the_same_flags_keep_apart(run: Any) -> None:
    first, second = run(), run()
    assert Path(first["checkpoint"]).parent.name == "version_0"
    assert Path(second["checkpoint"]).parent.name == Path(second["log_dir"]).name == "version_1"


def test_without_validation_the_last_epoch_is_tested(run: Any) -> None:
    result = run(val_size=0)
    assert result["best_epoch"] is None and result["val_acc"] is None
    assert Path(result["checkpoint"]).name == "last.ckpt"
    assert "val/acc" not in curves(result["log_dir"])


def test_a_teacher_is_a_run_of_its_own_and_changes_what_is_learned(run: Any) -> None:
    teacher = Path(run(network="resnet", width=3, tag="teacher")["checkpoint"]).parent
    alone, taught, again = run(), run(teacher=teacher), run(teacher=teacher / "last.ckpt")
    assert not torch.equal(
        weights(alone["checkpoint"])["model.fc3.bias"], weights(taught["checkpoint"])["model.fc3.bias"]
    )
    assert weights(taught["checkpoint"]).keys() == weights(alone["checkpoint"]).keys()
    assert all(
        torch.equal(value, weights(again["checkpoint"])[name]) for name, value in weights(taught["checkpoint"]).items()
    )


@pytest.mark.parametrize("split", [{"val_size": 200}, {"split_seed": 1}])
def test_a_teacher_that_has_seen_validation_images_is_refused(run: Any, split: dict[str, int]) -> None:
    teacher = Path(run()["checkpoint"])
    with pytest.raises(UsageError, match="has seen validation images"):
        run(teacher=teacher, **split)
    run(teacher=teacher, val_size=0)  # there are none
    run(teacher=teacher, val_size=50)  # they are among those that the teacher did not see


def test_selection_on_the_test_set_is_logged_as_what_it_is(run: Any) -> None:
    result = run(val_size=0, select_on="test", epochs=3)
    logged = curves(result["log_dir"])
    assert [epoch for epoch, _ in logged["test/acc"]] == [1, 2, 3]
    assert result["test_acc"] == pytest.approx(max(value for _, value in logged["test/acc"]))
    assert "test_acc" in Path(result["checkpoint"]).name


def test_a_checkpoint_tested_again_gives_the_same_figures(run: Any, data_dir: Path) -> None:
    result = run()
    again = door.test(Path(result["checkpoint"]), data_dir)
    assert again["test/acc"] == pytest.approx(result["test_acc"])
    assert again["test/loss"] == pytest.approx(result["test_loss"])


def test_fast_dev_run_leaves_nothing_behind(run: Any, tmp_path: Path, data_dir: Path) -> None:
    run(fast_dev_run=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [data_dir.name]


def test_missing_data_leave_no_folders_behind(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "prepare", fail := Failing(DataError("no source")))
    with pytest.raises(DataError):
        run()
    assert fail.called and not (tmp_path / "logs").exists() and not (tmp_path / "checkpoints").exists()


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error, self.called = error, False

    def __call__(self, *args: Any) -> None:
        self.called = True
        raise self.error


def test_a_diverging_run_keeps_the_last_good_checkpoint(run: Any, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) in epoch \d+, step \d+, at learning rate"):
        run(optimizer="sgd", lr=1e20, schedule="constant", epochs=3)


def typed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=os.environ | environment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "foo"], "--optimizer foo: must be one of 'sgd', 'adam'"),
        (["--schedule", "foo"], "--schedule foo: must be one of 'onecycle'"),
        (["--lr", "0"], "--lr 0.0: must be above 0"),
        (["--lr", "nan"], "--lr nan: must be a number"),
        (["--lr", "inf"], "--lr inf: must be a number"),
        (["--epochs", "1.5"], "--epochs 1.5: must be a whole number"),
        (["--flip", "maybe"], "--flip maybe: must be true or false"),
        (["--network", "resnet", "--width", "1"], "--width 1: is of --network lenet5 alone"),
        (["--epochs", "3", "--plain_epochs", "4"], "--plain_epochs 4: more than the run's 3 epochs"),
        (["--teacher_weight", "2"], "--teacher_weight 2.0: must be from 0 to 1"),
        (
            ["--teacher", "nowhere.ckpt"],
            "--teacher nowhere.ckpt: not there; python train.py --config recipes/teacher.yaml trains",
        ),
        (["--crop", "32"], "--crop 32: must be from 0 to 31"),
        (["--val_size", "7"], "--val_size 7: must be a multiple of 10"),
        (["--select_on", "test"], "needs --val_size 0"),
        (["--learning_rate", "1"], "unrecognized arguments: --learning_rate"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_bad_flag_gets_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = typed(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    "content",
    [
        b"lr: &a [1, 2]\nmirror: [*a, *a]\n",
        b"lr: !!python/object/apply:os.getcwd []\n",
        b"learning_rate: 0.1\n",
        b"epochs: ten\n",
        b"lr: [1, 2\n",
        b"- lr\n- 0.1\n",
        b"",
        bytes(range(256)),
    ],
)
def test_a_bad_recipe_gets_one_line_and_status_2(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    done = typed("--config", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("train.py: ")


def test_help_explains_every_flag() -> None:
    text = " ".join(typed("--help", COLUMNS="200").stdout.split())
    flags = set(door.train.__annotations__) - {"return"} | {"config", "test"}
    for flag in flags:
        assert f"--{flag} " in text
    assert text.count("default: ") == len(flags) - 1  # of each but config


def test_the_recipes_are_valid() -> None:
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        check(door.parser().parse_args(["--config", str(recipe)]).as_dict())


def test_two_processes_train_as_one_does_and_evaluate_exactly(
    run: Any, command: list[str], data_dir: Path, tmp_path: Path
) -> None:
    alone = run(optimizer="sgd", lr=0.01)
    flags = "--devices 2 --threads 1 --optimizer sgd --lr 0.01 --epochs 2 --batch_size 50 --val_size 100 --width 1"
    folders = ["--log_dir", str(tmp_path / "l"), "--checkpoint_dir", str(tmp_path / "c")]
    done = subprocess.run([*command, *flags.split(), *folders], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "c" / "sgd-lr0.01-bs50-seed0" / "version_0"
    one, two = weights(Path(alone["checkpoint"]).parent / "last.ckpt"), weights(folder / "last.ckpt")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    logged = curves(tmp_path / "l" / folder.relative_to(tmp_path / "c"))
    tested = door.test(next(folder.glob("best*")), data_dir)
    assert logged["test/acc"][-1][1] == pytest.approx(tested["test/acc"])
    assert logged["test/loss"][-1][1] == pytest.approx(tested["test/loss"], rel=1e-5)
    assert done.stdout.count("test accuracy") == 1
