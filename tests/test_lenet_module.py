import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from core.errors import SettingError, UsageError
from lenet_module import LeNetModule
from made_up import own_network
from models.distillation import DISTILLATION_TEMPERATURE, compute_distillation_loss
from models.optimizers import OPTIMIZERS, SCHEDULES


def loader(count: int = 64, batch_size: int = 16) -> DataLoader:
    """Someone else's loader: plain tensors, NCHW, images that tell their label."""
    labels = torch.arange(count) % 10
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    images += labels[:, None, None, None] / 5 - 1
    return DataLoader(TensorDataset(images, labels), batch_size, shuffle=False)


def fit(module: LeNetModule, epochs: int, **options: object) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,  # type: ignore[arg-type]
    )
    trainer.fit(module, loader(), loader())
    return trainer


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_of_someone_elses_loader(optimizer: str) -> None:
    pl.seed_everything(0, verbose=False)
    module = LeNetModule(network="lenet5", width=1, optimizer=optimizer, schedule="constant")
    images, labels = next(iter(loader(batch_size=64)))
    with torch.no_grad():
        before = F.cross_entropy(module(images), labels).item()
    assert fit(module, epochs=8).callback_metrics["val/loss"] < before - 0.02


def test_a_loss_that_is_not_a_number_is_not_left_out_of_the_mean() -> None:
    metric = LeNetModule(width=1).val_metrics["loss"]
    metric.update(torch.tensor(1.0), 250)
    metric.update(torch.tensor(math.nan), 5)
    assert math.isnan(metric.compute().item())


def test_in_training_validation_and_test_a_small_last_batch_counts_as_its_images_do() -> None:
    module = LeNetModule(network="lenet5", width=1, lr=1e-30, schedule="constant")
    with torch.no_grad():
        module.model.fc3.bias[0] = 4.0
    images, labels = torch.randn(36, 3, 32, 32), (torch.arange(36) >= 32).long()  # of the last batch, all are 1
    unequal = DataLoader(TensorDataset(images, labels), batch_size=16)
    with torch.no_grad():
        logits = module(images)
    expected = {
        "loss": F.cross_entropy(logits, labels).item(),
        "acc": (logits.argmax(1) == labels).float().mean().item(),
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(module, unequal, unequal)
    found = dict(trainer.callback_metrics)
    trainer.test(module, unequal, verbose=False)
    found |= trainer.callback_metrics
    for stage in ("train", "val", "test"):
        for name, value in expected.items():
            assert found[f"{stage}/{name}"].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_only_training_steps_are_in_the_number_format_of_the_run(precision: Any) -> None:
    pl.seed_everything(0, verbose=False)
    module, seen = LeNetModule(width=1), set[tuple[bool, torch.dtype]]()
    module.model.register_forward_hook(
        lambda network, images, logits: seen.add((network.training, logits.dtype))  # type: ignore[func-returns-value]
    )
    trainer = fit(module, epochs=1, precision=precision)
    formats = {"bf16-mixed": (torch.bfloat16, torch.float32), "64-true": (torch.float64, torch.float64)}[precision]
    assert seen == set(zip((True, False), formats, strict=True))
    if precision == "bf16-mixed":
        validated = dict(trainer.callback_metrics)
        exact = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        for tester in (trainer, exact):
            tester.test(module, loader(), verbose=False)
            for name in ("loss", "acc"):
                assert tester.callback_metrics[f"test/{name}"] == validated[f"val/{name}"]


def test_onecycle_warms_up_for_a_quarter_and_ends_at_zero() -> None:
    factor = SCHEDULES["onecycle"]
    assert factor(0) == pytest.approx(0.05)
    assert factor(0.25) == pytest.approx(1.0)
    assert factor(0.625) == pytest.approx(0.5)
    assert factor(1) == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_of_the_last_step_is_where_the_schedule_ends(schedule: str) -> None:
    trainer = fit(LeNetModule(width=1, lr=0.01, schedule=schedule), epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * SCHEDULES[schedule](1.0))


def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_learning_rate() -> None:
    module = LeNetModule(width=1, optimizer="sgd", lr=1e30, schedule="constant")
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d+, at learning rate 1e\+30"):
        fit(module, epochs=3)


def test_label_smoothing_changes_the_training_loss_only() -> None:
    plain, smooth = LeNetModule(width=1), LeNetModule(width=1, label_smoothing=0.2)
    smooth.load_state_dict(plain.state_dict())
    trainers = [fit(module, epochs=1, limit_train_batches=1, max_steps=1) for module in (plain, smooth)]
    train, val = ([t.callback_metrics[name].item() for t in trainers] for name in ("train/loss", "val/loss"))
    assert train[0] != pytest.approx(train[1], rel=1e-6)
    assert val[0] == pytest.approx(val[1], rel=1e-2)


def test_distillation_is_the_divergence_of_softened_probabilities_times_the_temperature_squared() -> None:
    logits, taught = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0)).double()
    p, q = (taught / DISTILLATION_TEMPERATURE).softmax(1), (logits / DISTILLATION_TEMPERATURE).softmax(1)
    expected = (p * (p / q).log()).sum(1).mean() * DISTILLATION_TEMPERATURE**2
    torch.testing.assert_close(compute_distillation_loss(logits, taught), expected)
    torch.testing.assert_close(compute_distillation_loss(taught + 3, taught), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(("weight", "learned"), [(1.0, "teacher"), (0.0, "labels")])
def test_the_weight_decides_between_the_labels_and_a_teacher_who_contradicts_them(weight: float, learned: str) -> None:
    images, labels = next(iter(loader(batch_size=64)))
    others = (labels + 1) % 10
    taught = F.one_hot(others, 10).float() * 10
    batches = DataLoader(TensorDataset(images, labels, taught), 16)
    pl.seed_everything(0, verbose=False)
    module = LeNetModule(width=1, optimizer="adam", schedule="constant", teacher_weight=weight)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=10, logger=False, enable_checkpointing=False)
    trainer.fit(module, batches)
    with torch.no_grad():
        by_labels, by_teacher = (F.cross_entropy(module(images), goal).item() for goal in (labels, others))
    assert by_teacher < by_labels if learned == "teacher" else by_labels < by_teacher


def test_in_lower_precision_logits_and_losses_are_float32() -> None:
    module = LeNetModule(width=1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(torch.randn(4, 3, 32, 32))
        loss = compute_distillation_loss(logits, torch.randn(4, 10))
    assert logits.dtype == loss.dtype == torch.float32


class Net(torch.nn.Module):
    """As many a script has it: nothing is passed to it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.LazyLinear(10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.flatten(1))


def saved(module: LeNetModule, path: Path) -> Path:
    fit(module, epochs=1).save_checkpoint(path)
    return path


def test_a_network_that_is_passed_as_an_object_is_trained_and_has_to_be_passed_again(tmp_path: Path) -> None:
    network = Net()
    module = LeNetModule(network=network, optimizer="adam")
    before = network.fc.weight.detach().clone()
    path = saved(module, tmp_path / "own.ckpt")
    assert module.model is network and not torch.equal(network.fc.weight, before)
    with pytest.raises(
        UsageError, match=r"its network is test_lenet_module\.py:Net, and .* pass the network"
    ) as raised:
        LeNetModule.load_from_checkpoint(path, weights_only=True)
    assert "\n" not in str(raised.value)
    for again in (Net(), f"{__file__}:Net"):
        loaded = LeNetModule.load_from_checkpoint(path, network=again, weights_only=True)
        assert torch.equal(loaded.model.fc.weight, network.fc.weight)
        assert (loaded.config.optimizer, loaded.config.network.split("/")[-1]) == ("adam", "test_lenet_module.py:Net")


def test_a_network_that_is_passed_must_give_logits_of_ten_classes() -> None:
    with pytest.raises(UsageError, match=r"makes \[2, 3072\] of images .* not logits \[2, 10\]"):
        LeNetModule(network=torch.nn.Flatten())


@pytest.mark.parametrize("weights_only", [None, True])
def test_no_file_that_only_the_checkpoint_names_is_run(tmp_path: Path, weights_only: bool | None) -> None:
    name = own_network(tmp_path, "Perceptron")
    path = saved(LeNetModule(network=name), tmp_path / "own.ckpt")
    trap = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(trap)!r}, 'w')\n{(tmp_path / 'own.py').read_text()}")
    with pytest.raises(UsageError, match="pass the network"):
        LeNetModule.load_from_checkpoint(path, weights_only=weights_only)
    assert not trap.exists()
    assert LeNetModule.load_from_checkpoint(path, network=name, weights_only=weights_only) and trap.exists()
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        LeNetModule().load_from_checkpoint(path)
    assert LeNetModule(network=name)  # elsewhere, whoever calls is trusted


def test_without_a_last_step_the_rate_is_constant_or_a_line_says_what_is_missing() -> None:
    endless = fit(LeNetModule(width=1, lr=0.01, schedule="constant"), epochs=-1, max_time="00:00:00:01")
    assert endless.global_step and endless.optimizers[0].param_groups[0]["lr"] == 0.01
    with pytest.raises(SettingError, match="schedule onecycle: needs a last step"):
        fit(LeNetModule(width=1), epochs=-1, max_time="00:00:00:01")
