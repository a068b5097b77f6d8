"""The program: `train()` on made-up data, and the command line as a user types it."""

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifar10 import download
from conftest import curves, evaluated, resume, weights
from core.cli import read_recipe
from core.errors import DataError, SettingError, UsageError
from lenet_module import LeNetModule
from made_up import own_network, write_checkpoint
from models.checkpoint import load_checkpoint
from training import run as run_again
from training.evaluation import evaluate
from training.files import find_checkpoints, find_logs


def test_a_run_learns_and_says_where_everything_is(finished: SimpleNamespace) -> None:
    result, name = finished.result, "adam-lr0.0003-bs50-epochs4-width1-median-zca-half-val-size100-seed0"
    losses = [loss for _, loss in curves(result.log_dir)["train/loss"]]
    assert losses[-1] < losses[0] and result.test_loss < math.log(10)  # which is that of a guess
    assert result.log_dir == finished.data_dir.parent / "logs" / name / "version_0"
    folder = finished.data_dir.parent / "checkpoints" / name / "version_0"
    best = f"best-epoch={result.best_epoch:02d}-val_acc={result.val_acc:.4f}.ckpt"
    assert sorted(path.name for path in folder.iterdir()) == [best, "last.ckpt"]
    assert result.checkpoint == folder / best


def test_a_teacher_changes_what_is_learned_and_nothing_else(run: Any, tmp_path: Path) -> None:
    alone, taught = run(epochs=1), run(epochs=1, teacher=write_checkpoint(tmp_path / "teacher.ckpt"))
    assert not torch.equal(weights(alone.checkpoint)["model.fc3.bias"], weights(taught.checkpoint)["model.fc3.bias"])
    assert weights(taught.checkpoint).keys() == weights(alone.checkpoint).keys()


@pytest.mark.parametrize("name", ["AllConvolutional", "Perceptron"])
def test_a_network_in_a_file_of_ones_own_is_trained_evaluated_and_resumed(
    run: Any, data_dir: Path, tmp_path: Path, name: str
) -> None:
    network = own_network(tmp_path / "mine", name)
    result = run(network=network, width=3, epochs=1, pictures=True)
    checkpoint = result.checkpoint
    assert (result.log_dir / "filters.png").exists() == (name == "AllConvolutional")  # has convolutions
    assert (result.log_dir / "00001" / "features").exists() == (name == "Perceptron")  # has linear layers
    again = evaluate(load_checkpoint(checkpoint, network), data_dir)
    assert again.figures["loss"] == pytest.approx(result.test_loss)
    module = LeNetModule.load_from_checkpoint(checkpoint, network=network)
    assert all(torch.equal(value, weights(checkpoint)[name]) for name, value in module.state_dict().items())
    with pytest.raises(UsageError, match="a checkpoint holds no code"):
        load_checkpoint(checkpoint)
    assert resume(checkpoint.parent, network=network, pictures=False).test_loss == result.test_loss


def test_the_configuration_of_a_run_makes_it_again_bit_for_bit_and_another_seed_another_one(run: Any) -> None:
    result = run(optimizer="adam", crop=3, denoise="median", epochs=1, plain_epochs=1)
    flags = read_recipe(str(result.log_dir / "config.yaml"))
    again: Any = run_again.train(**flags)
    assert again.log_dir.name == "version_1" and again.test_loss == result.test_loss
    first, second = weights(result.checkpoint), weights(again.checkpoint)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(run(**flags | {"seed": 1}).checkpoint)
    assert not torch.equal(first["model.conv1.weight"], other["model.conv1.weight"])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_all_figures_are_in_float32_whatever_the_training_was(run: Any, data_dir: Path, precision: str) -> None:
    result = run(precision=precision, epochs=1)
    tested = evaluated(result.checkpoint, data_dir)
    assert (tested["test/acc"], tested["test/loss"]) == (result.test_acc, result.test_loss)
    assert evaluated(result.checkpoint, data_dir, on="val")["val/acc"] == result.val_acc


def test_fast_dev_run_leaves_nothing_behind(run: Any, tmp_path: Path, data_dir: Path) -> None:
    run(fast_dev_run=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [data_dir.name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("devices", "0,"), ("devices", 0), ("devices", -1), ("devices", "x"), ("accelerator", "tpu")),
        *(("accelerator", "nonsense"), ("strategy", "ddp_spawn"), ("num_nodes", 2), ("precision", "nonsense")),
    ],
)
def test_hardware_that_is_not_there_is_refused_by_its_flag_and_leaves_nothing(
    run: Any, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    for variable, text in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "2"}.items():
        monkeypatch.setenv(variable, text)  # of two nodes the second has rank 1
    with pytest.raises(SettingError, match=f"^{name} {value}: .") as raised:
        run(**{name: value})
    assert "Trainer" not in str(raised.value) and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [data_dir]


TASKS = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "9", "SLURM_NTASKS": "4"}
RANKS = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "0"}


@pytest.mark.parametrize(
    ("flags", "environment", "reason"),
    [
        ({"devices": 2}, TASKS, "--ntasks=4"),
        ({"devices": 2}, TASKS | RANKS | {"SLURM_NTASKS_PER_NODE": "4"}, "devices=2"),
        ({"devices": 4}, TASKS | {"SLURM_NTASKS_PER_NODE": "4"}, "SLURM_.* is not set: start the processes with srun"),
        ({"num_nodes": 2}, TASKS | RANKS | {"SLURM_NTASKS": "1"}, "1 processes were started, .* take 2"),
        (
            {"devices": 4},
            PLACE | {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
            "does not match the world size",
        ),
        ({"devices": 2}, {"MASTER_PORT": "abc"}, "^MASTER_ADDR and MASTER_PORT name no place to meet"),
        ({"num_nodes": 2}, PLACE | {"MASTER_ADDR": "no machine"}, "^MASTER_ADDR and MASTER_PORT name no place to meet"),
    ],
)
def test_processes_that_cannot_meet_are_one_line_before_anything_is_started_or_written(
    run: Any,
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    environment: dict[str, str],
    reason: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=reason) as raised:
        run(**flags, batch_size=40)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [data_dir]


def test_a_checkpoint_that_lightning_would_load_on_slurm_is_not_looked_at(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "hpc_ckpt_1.ckpt").write_text("of another job")
    monkeypatch.chdir(tmp_path / "here")
    for name, value in (TASKS | {"SLURM_NTASKS": "1"}).items():
        monkeypatch.setenv(name, value)
    assert run(precision="bf16-true", epochs=1).test_acc > 0  # a Trainer for the training and one for the test
    assert [path.name for path in Path().iterdir()] == ["hpc_ckpt_1.ckpt"]


def test_missing_data_leave_no_folders_behind(
    run: Any, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise DataError("no source")

    monkeypatch.setattr(download, "prepare", fail)
    with pytest.raises(DataError, match="no source"):
        run()
    assert list(tmp_path.iterdir()) == [data_dir]


def test_two_processes_train_lenet5_as_one_does_and_evaluate_exactly(
    run: Any, command: list[str], data_dir: Path, tmp_path: Path
) -> None:
    alone = run(network="lenet5", optimizer="sgd", lr=0.01, precision="32-true")
    flags = "--network lenet5 --devices 2 --threads 1 --precision 32-true --optimizer sgd --lr 0.01"
    flags += " --epochs 2 --batch_size 50 --val_size 100 --width 1 --pictures false"
    folders = ["--log_dir", str(tmp_path / "l"), "--checkpoint_dir", str(tmp_path / "c")]
    done = subprocess.run([*command, *flags.split(), *folders], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "c" / "sgd-lr0.01-bs50-epochs2-width1-val-size100-devices2-seed0" / "version_0"
    one, two = weights(alone.checkpoint.parent / "last.ckpt"), weights(folder / "last.ckpt")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    logged = curves(tmp_path / "l" / folder.relative_to(tmp_path / "c") / "result")
    tested = evaluated(next(folder.glob("best*")), data_dir)
    assert logged["result/test_acc"][-1][1] == pytest.approx(tested["test/acc"])
    summary = json.loads((tmp_path / "l" / folder.relative_to(tmp_path / "c") / "summary.json").read_text())
    assert summary["test_loss"] == pytest.approx(tested["test/loss"], rel=1e-5)
    assert done.stdout.count("test accuracy") == 1


def test_the_log_folder_of_a_run_stands_for_its_checkpoints(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(epochs=1, log_dir="a/logs", checkpoint_dir="b")
    folder = result.checkpoint.parent
    assert find_checkpoints(result.log_dir) == folder and find_checkpoints(folder) == folder
    assert find_checkpoints(result.checkpoint) == result.checkpoint
    monkeypatch.chdir(tmp_path / "a")
    assert find_checkpoints(tmp_path / result.log_dir).resolve() == tmp_path / folder
    assert find_checkpoints(Path("logs", *result.log_dir.parts[-2:])).resolve() == tmp_path / folder
    log_dir = find_logs(load_checkpoint(tmp_path / folder))
    assert log_dir and log_dir.resolve() == tmp_path / result.log_dir
    (tmp_path / "other" / folder).mkdir(parents=True)  # of another run of that name, started there
    monkeypatch.chdir(tmp_path / "other")
    assert find_checkpoints(tmp_path / result.log_dir) == tmp_path / folder
    monkeypatch.chdir(tmp_path / "a")
    (tmp_path / "b").rename(tmp_path / "c")
    with pytest.raises(UsageError, match="is a log folder, and its checkpoints are not in b"):
        find_checkpoints(tmp_path / result.log_dir)
    moved = load_checkpoint(tmp_path / "c" / folder.relative_to("b"))
    assert find_logs(moved) == tmp_path / result.log_dir
    (tmp_path / "a" / "logs").rename(tmp_path / "a" / "elsewhere")
    assert find_logs(moved) is None
