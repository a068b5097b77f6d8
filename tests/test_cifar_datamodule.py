from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from cifar10 import records
from cifar10.config import DataConfig
from cifar_datamodule import CIFAR10DataModule, ShuffledBatches, channel_statistics
from core.errors import DataError


def ready(data_dir: Path, **options: object) -> CIFAR10DataModule:
    datamodule = CIFAR10DataModule(data_dir=data_dir, **({"batch_size": 64, "val_size": 100} | options))  # type: ignore[arg-type]
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def test_batches_are_normalised_float_images_and_labels(data_dir: Path) -> None:
    datamodule = ready(data_dir)
    images, labels = next(iter(datamodule.train_dataloader()))
    assert images.shape == (64, 3, 32, 32) and images.dtype == torch.float32
    assert images.is_contiguous()
    assert labels.shape == (64,) and labels.dtype == torch.int64
    plain = ready(data_dir, crop=0, flip=False, random_corruption=0)
    everything = torch.cat([images for images, _ in plain.train_dataloader()])
    assert everything.mean((0, 2, 3)).abs().max() < 0.05
    assert (everything.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_with_a_teacher_training_batches_have_its_logits_for_their_images_and_validation_batches_have_not(
    data_dir: Path,
) -> None:
    def teacher(images: np.ndarray) -> Tensor:
        assert images.shape == (1000, 32, 32, 3) and images.dtype == np.uint8
        return torch.from_numpy(images.mean((1, 2), dtype=np.float64)).float()

    datamodule = ready(data_dir, crop=0, random_corruption=0, normalize="dataset", teacher=teacher)
    assert datamodule.mean is not None and datamodule.std is not None
    for images, _, logits in datamodule.train_dataloader():
        means = images.mean((2, 3)) * datamodule.std + datamodule.mean
        torch.testing.assert_close(logits, means, atol=0.01, rtol=0)
    assert all(len(batch) == 2 for batch in datamodule.val_dataloader())


def test_a_corrupted_image_keeps_the_teachers_logits_for_the_image_as_it_is(data_dir: Path) -> None:
    def batch(share: float) -> tuple[Tensor, ...]:
        datamodule = ready(data_dir, random_corruption=share, teacher=lambda images: torch.from_numpy(images[:, 0, 0]))
        return datamodule.train_dataloader().dataset[0, torch.arange(64)]

    exact, corrupted = batch(0), batch(1)
    assert not torch.equal(exact[0], corrupted[0]) and torch.equal(exact[2], corrupted[2])


def test_of_several_corrupted_versions_each_epoch_draws_one(data_dir: Path) -> None:
    def seen(versions: int) -> int:
        datamodule = ready(data_dir, random_corruption=1, corruption_versions=versions, crop=0, flip=False)
        dataset = datamodule.train_dataloader().dataset
        return len({dataset[epoch, torch.tensor([0])][0].numpy().tobytes() for epoch in range(30)})

    assert (seen(1), seen(3)) == (1, 3)


def test_after_the_augmented_epochs_images_are_neither_shifted_nor_erased(data_dir: Path) -> None:
    def batch(epoch: int, **options: object) -> Tensor:
        datamodule = ready(data_dir, **options)
        datamodule.trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
        return datamodule.train_dataloader().dataset[epoch, torch.arange(64)][0]

    augmented = {"crop": 4, "cutout": 8}
    plain = {"crop": 0, "cutout": 0}
    assert torch.equal(batch(1, **augmented, plain_epochs=1), batch(1, **augmented))
    assert torch.equal(batch(2, **augmented, plain_epochs=1), batch(2, **plain))
    assert not torch.equal(batch(2, **plain), batch(2, **plain, flip=False))


def test_training_drops_the_last_smaller_batch_and_evaluation_drops_nothing(data_dir: Path) -> None:
    datamodule = ready(data_dir)
    assert [len(labels) for _, labels in datamodule.train_dataloader()] == [64] * (900 // 64)
    assert sum(len(labels) for _, labels in datamodule.val_dataloader()) == 100
    assert sum(len(labels) for _, labels in datamodule.test_dataloader()) == 200


def test_the_split_is_fixed_by_its_own_seed(data_dir: Path) -> None:
    first, second, other = (ready(data_dir, **seeds) for seeds in ({"seed": 1}, {"seed": 2}, {"split_seed": 1}))
    assert torch.equal(first.val_indices, second.val_indices)
    assert not torch.equal(first.val_indices, other.val_indices)


def test_statistics_are_those_of_the_chosen_images_alone() -> None:
    images = torch.randint(0, 256, (30, 32, 32, 3), dtype=torch.uint8)
    indices = torch.arange(0, 30, 2)
    mean, std = channel_statistics(images, indices)
    pixels = images[indices].double().flatten(0, 2)
    torch.testing.assert_close(mean, pixels.mean(0).float())
    torch.testing.assert_close(std, pixels.std(0, correction=0).float())


def epoch(sampler: ShuffledBatches, number: int) -> list[Tensor]:
    sampler.set_epoch(number)
    return [indices for _, indices in sampler]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, number: int) -> list[int]:
        return torch.cat(epoch(ShuffledBatches(torch.arange(100), 10, seed), number)).tolist()

    assert sorted(order(0, 0)) == list(range(100))
    assert order(0, 1) == order(0, 1) not in (order(0, 2), order(1, 1))


def test_processes_share_the_batches_of_one_process() -> None:
    alone = epoch(ShuffledBatches(torch.arange(100), 20, seed=0), 5)
    first, second = (epoch(ShuffledBatches(torch.arange(100), 20, 0, rank, world_size=2), 5) for rank in (0, 1))
    for whole, a, b in zip(alone, first, second, strict=True):
        assert len(a) == len(b) == 10
        assert sorted(whole.tolist()) == sorted(a.tolist() + b.tolist())


class Recorder(pl.LightningModule):
    """Learns nothing, and remembers its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch[0].clone())
        return self.layer(batch[0].mean().view(1)).sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validated.append(batch[0].clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_lightning_gives_every_epoch_its_own_order_and_augmentation(data_dir: Path) -> None:
    def run() -> list[Tensor]:
        module = Recorder()
        quick_trainer(max_epochs=2).fit(module, datamodule=ready(data_dir))
        return module.seen

    first, again = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[len(first) // 2])


def test_overfit_batches_gives_the_same_batches_in_every_epoch(data_dir: Path) -> None:
    module = Recorder()
    quick_trainer(max_epochs=3, overfit_batches=2, num_sanity_val_steps=0).fit(module, datamodule=ready(data_dir))
    expected = list(ready(data_dir).train_dataloader())[:2] * 3
    assert all(torch.equal(seen, images) for seen, (images, _) in zip(module.seen, expected, strict=True))
    ((validation, _),) = ready(data_dir).val_dataloader()
    assert [torch.equal(images, validation) for images in module.validated] == [True] * 3


@pytest.mark.parametrize("folder", [str, Path])
def test_the_argument_may_be_the_data_folder_and_the_test_images_need_no_setup(folder: Any, data_dir: Path) -> None:
    datamodule = CIFAR10DataModule(folder(data_dir), val_size=100)
    assert datamodule.config == DataConfig(data_dir=data_dir, val_size=100)
    (images, labels), (expected, same) = (
        next(iter(module.test_dataloader())) for module in (datamodule, ready(data_dir))
    )
    assert torch.equal(images, expected) and torch.equal(labels, same) and len(labels) == 200


def test_a_setup_before_the_data_is_prepared_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_batch_1\.bin is not there: call prepare_data first"):
        CIFAR10DataModule(tmp_path).setup()


def test_a_read_only_data_folder_with_a_cache_folder_works(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / records.FOLDER).rename(tmp_path / records.FOLDER)  # as if it had been unpacked there
    datamodule = CIFAR10DataModule(data_dir, cache_dir=tmp_path, val_size=100)
    datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.load_split("val").labels) == 100 and len(datamodule.examples()["as it is"]) == 10


def quick_trainer(**options: object) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,  # type: ignore[arg-type]
    )


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="crop"):
        CIFAR10DataModule(crop=32)


def test_without_validation_images_all_train_and_only_the_test_images_can_validate(data_dir: Path) -> None:
    datamodule = ready(data_dir, val_size=0)
    assert len(datamodule.train_indices) == 1000
    assert datamodule.val_dataloader() == []
    judged = ready(data_dir, val_size=0, select_on="test")
    (ours, _), (test, _) = next(iter(judged.val_dataloader())), next(iter(judged.test_dataloader()))
    assert torch.equal(ours, test)
