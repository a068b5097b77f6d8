"""CIFAR-10 as whole batches, made in memory: split, statistics, the order of each epoch, loaders.

    datamodule = CIFAR10DataModule(batch_size=128)
    pl.Trainer(use_distributed_sampler=False).fit(any_module, datamodule=datamodule)

A batch is (float32 images [B, 3, 32, 32], contiguous, normalized; int64 labels [B]). With a teacher, training batches
have a third part, its logits, float32 [B, 10].
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset

from cifar10 import download, filters, preprocessing, records
from cifar10.augmentation import Draws, crop_and_flip, cutout, draw_epoch
from cifar10.config import Augmentation, DataConfig, Preprocessing
from cifar10.preprocessing import make_steps, normalize, preprocess_lazily
from core.cache import LazyArray
from core.streams import Stream
from models.classifier import BATCH_SIZE

CLEAN_SIZE = 5_000  # training images that are evaluated as validation images are


@dataclass(frozen=True)
class LabelledImages:
    """N images of one split, in the order of the data set."""

    originals: np.ndarray  # uint8 [N, 32, 32, 3], before preprocessing
    labels: Tensor  # int64 [N]
    indices: Tensor  # int64 [N], among all training or all test images


class CIFAR10DataModule(pl.LightningDataModule):
    """Loaders over CIFAR-10's 50,000 training images, split for training and validation, and its 10,000 test images.

    With several processes `batch_size` is the global one: each process gets its share of every batch, and evaluates
    its share of the images. Give the Trainer `use_distributed_sampler=False`.

    Args:
        config: The settings, such as a run's configuration, or the data folder; None takes the defaults.
        teacher: Gives logits, float32 [N, 10], for all 50,000 original images, uint8 [N, 32, 32, 3]; `setup` calls it.
        flags: Single settings of `DataConfig`, such as `batch_size=64`, instead of those of `config`.

    Raises:
        SettingError: A setting is out of its range.
        DataError: From `prepare_data`, no source gives the data set; later, the cache folder cannot be written.
    """

    def __init__(
        self,
        config: DataConfig | str | Path | None = None,
        *,
        teacher: Callable[[np.ndarray], Tensor] | None = None,
        **flags: Any,
    ) -> None:
        super().__init__()
        if isinstance(config, str | Path):
            config = DataConfig(data_dir=Path(config))
        # LightningCLI finds its arguments by the call that takes the flags.
        self.config = (DataConfig(**flags) if config is None else config.changed(flags)).group(DataConfig)
        self.save_hyperparameters(self.config.plain(), logger=False)
        self.preprocessing = self.config.group(Preprocessing)
        self.teacher = teacher
        self.mean: Any = None  # float32 [3], of the training split's pixels, in [0, 255]
        self.std: Any = None
        self.whitening: np.ndarray | None = None  # of `fit_whitening`, if one of WHITENING is chosen
        self._train: Any = None  # all 50,000: uint8 [N, 32, 32, 3], preprocessed, and labels, int64 [N]
        self._corrupted: list[Tensor] = []  # corrupted versions of these images, for `crop_and_flip`
        self._teacher_logits: Tensor | None = None  # float32 [N, 10]
        self._verified = False

    def prepare_data(self) -> None:
        """Download the data set if it is not there, and check it."""
        if not self._verified:  # hashing takes a tenth of a second, and each stage asks for it
            download.prepare(self.config.data_dir, self.config.mirror, self.config.cache_dir)
            self._verified = True

    def setup(self, stage: str | None = None) -> None:
        """Split and preprocess the training images; compute statistics and whitening unless a state was loaded."""
        if self._train is not None or (stage in ("test", "predict") and self.mean is not None):
            return
        labels, folder = self._labels(train=True), self.config.cache_folder
        originals = self._originals(train=True, count=len(labels))
        if self.teacher is not None and self._teacher_logits is None:
            self._teacher_logits = self.teacher(originals.array)
        self.train_indices, self.val_indices = stratified_split(labels, self.config.val_size, self.config.split_seed)

        settings = self.preprocessing
        corrupted = settings.corrupt_on == "both"
        if settings.normalize in preprocessing.WHITENING and self.whitening is None:
            images = preprocess_lazily(originals, make_steps(settings, None, corrupted), folder)
            indices = self.train_indices.numpy()
            self.whitening = preprocessing.fit_whitening_lazily(images, indices, settings.normalize, folder).array
        steps = make_steps(settings, self.whitening, corrupted)
        # Corrupted versions are made first, while there is less in memory.
        versions = range(self.config.corruption_versions if self.config.random_corruption else 0)
        chains = [[preprocessing.Step(filters.corrupt_at_random, (version,)), *steps] for version in versions]
        self._corrupted = [torch.from_numpy(preprocess_lazily(originals, chain, folder).array) for chain in chains]
        self._train = torch.from_numpy(preprocess_lazily(originals, steps, folder).array), labels
        if self.mean is None:
            self.mean, self.std = torch.zeros(3), torch.full((3,), 255.0)
            if settings.normalize != "none":
                self.mean, self.std = channel_statistics(self._train[0], self.train_indices)

    def train_dataloader(self) -> DataLoader:
        self.setup()  # again, if a state was loaded since
        rank, world_size = self._process()
        if self.config.batch_size % world_size:
            raise ValueError(f"batch_size {self.config.batch_size} does not divide by the {world_size} processes")
        images, labels = self._train
        data, seed, end = (images, labels, self.mean, self.std), self.config.seed, self._augmented_epochs()
        dataset = AugmentedBatches(*data, self.config, seed, end, self._teacher_logits, self._corrupted)
        one_order = bool(self.trainer and self.trainer.overfit_batches)  # type: ignore[attr-defined]
        sampler = ShuffledBatches(self.train_indices, self.config.batch_size, seed, rank, world_size, one_order)
        return DataLoader(dataset, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if self.config.select_on == "test":
            return self.test_dataloader()
        if self.config.val_size == 0:
            return []
        self.setup()
        return self._evaluation_loader(self.val_indices, *self._train)

    def clean_train_dataloader(self) -> DataLoader:
        """Return a loader of CLEAN_SIZE training images, preprocessed as validation images are, so not augmented.

        Which ones is fixed, as many of each class; of fewer training images it gives all.
        """
        self.setup()
        chosen = stratified_split(self._train[1][self.train_indices], CLEAN_SIZE, split_seed=0)[1]
        return self._evaluation_loader(self.train_indices[chosen], *self._train)

    def test_dataloader(self) -> DataLoader:
        self.setup("test")
        images, labels = self.preprocess_split("test", corrupted=True), self._labels(train=False)
        return self._evaluation_loader(torch.arange(len(labels)), torch.from_numpy(images), labels)

    def predict_dataloader(self) -> DataLoader:
        """Return the loader over the test images, in their order."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Return the preprocessing and the statistics, which later images have to be treated by as well."""
        state = {"mean": self.mean, "std": self.std, "preprocessing": self.preprocessing.plain()}
        return state | ({} if self.whitening is None else {"whitening": torch.from_numpy(self.whitening)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Treat later images by the preprocessing and the statistics of `state_dict`."""
        self.mean, self.std = state_dict["mean"], state_dict["std"]
        self.preprocessing, self.whitening = preprocessing.from_state(state_dict)
        self._train = None  # Lightning loads a checkpoint after `setup`, which may have prepared them in another way

    def load_split(self, split: str) -> LabelledImages:
        """Read the split "val" or "test" as it is in the data set; needs no `setup`."""
        train = split == "val"
        labels = self._labels(train)
        indices = torch.arange(len(labels))
        if train:
            _, indices = stratified_split(labels, self.config.val_size, self.config.split_seed)
        originals = records.load_some(self._folder, train, indices.numpy())
        return LabelledImages(originals, labels[indices], indices)

    def preprocess_split(self, split: str, corrupted: bool) -> np.ndarray:
        """Return the images of `load_split` after preprocessing, uint8 [N, 32, 32, 3], and corrupted before that if
        `corrupted`; whitening is that of a loaded state.
        """
        train = split == "val"
        originals = self._originals(train, len(self._labels(train)))
        steps = make_steps(self.preprocessing, self.whitening, corrupted)
        images = preprocess_lazily(originals, steps, self.config.cache_folder).array
        return images[self.load_split("val").indices.numpy()] if train else images

    def examples(self) -> dict[str, np.ndarray]:
        """Return the first training image of each class at each stage of `before_and_after`; after `setup`."""
        labels = self._labels(train=True)[self.train_indices]
        firsts = [int(self.train_indices[labels == label][0]) for label in labels.unique()]
        originals = records.load_some(self._folder, train=True, indices=np.array(firsts))
        return preprocessing.before_and_after(originals, self.preprocessing, self.whitening)

    @property
    def _folder(self) -> Path:
        return records.find_folder(self.config.data_dir, self.config.cache_dir)

    def _originals(self, train: bool, count: int) -> LazyArray:
        """Return the original images, uint8 [count, 32, 32, 3]; they are not read if cached results are."""
        identity, shape = records.identity(train), (count, 32, 32, 3)
        return LazyArray("images", identity, shape, lambda: records.load(self._folder, train)[0])

    def _labels(self, train: bool) -> Tensor:
        """Return the labels, int64 [N]."""
        return torch.from_numpy(records.load_labels(self._folder, train))

    def _process(self) -> tuple[int, int]:
        """Return the number of this process and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _augmented_epochs(self) -> float:
        """Return how many epochs have crop and cutout: all, in a loop that does not say how many it has."""
        epochs = self.trainer.max_epochs if self.trainer else None
        return epochs - self.config.plain_epochs if epochs and epochs > 0 else math.inf

    def _evaluation_loader(self, indices: Tensor, images: Tensor, labels: Tensor) -> DataLoader:
        rank, world_size = self._process()
        batches: Any = indices[rank::world_size].split(BATCH_SIZE)
        return DataLoader(Subset(Batches(images, labels, self.mean, self.std), batches), batch_size=None)


@dataclass(eq=False)
class Batches(Dataset):
    """A data set whose item for indices, int64 [B], is the finished batch of these images."""

    images: Tensor  # uint8 [N, 32, 32, 3]
    labels: Tensor  # int64 [N]
    mean: Tensor  # float32 [3], per channel, in [0, 255], as std
    std: Tensor

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(self.images[indices], self.mean, self.std), self.labels[indices]


@dataclass(eq=False)
class AugmentedBatches(Batches):
    """A data set whose item for (epoch, indices) is the finished batch of these images, augmented."""

    config: Augmentation
    seed: int
    augmented_epochs: float = math.inf  # that have crop and cutout
    teacher_logits: Tensor | None = None  # float32 [N, 10], the third part of an item
    corrupted: Sequence[Tensor] = ()  # versions of the images, as `crop_and_flip` takes them

    def __getitem__(self, key: tuple[int, Tensor]) -> tuple[Tensor, ...]:  # type: ignore[override]
        epoch, indices = key
        draws = self._draw(epoch)
        images = normalize(crop_and_flip(self.images, indices, draws, self.corrupted), self.mean, self.std)
        if self.config.cutout and self._augments(epoch):
            images = cutout(images, indices, draws, self.config.cutout)
        if self.teacher_logits is None:
            return images, self.labels[indices]
        return images, self.labels[indices], self.teacher_logits[indices]

    def describe(self, key: tuple[int, Tensor]) -> list[str]:
        """Return what is done to each image of a batch, in words, such as "2 down, 1 left, flipped"."""
        epoch, indices = key
        draws, hole = self._draw(epoch), bool(self.config.cutout and self._augments(epoch))
        texts = []
        for index in indices.tolist():
            down, right = -int(draws.rows[index]), -int(draws.columns[index])  # the image moves against its crop
            words: dict[str, Any] = {f"{abs(down)} {'down' if down > 0 else 'up'}": down}
            words |= {f"{abs(right)} {'right' if right > 0 else 'left'}": right}
            words |= {"flipped": draws.flipped[index], "corrupted": draws.versions[index], "hole": hole}
            texts.append(", ".join(word for word, is_so in words.items() if is_so))
        return texts

    def _augments(self, epoch: int) -> bool:
        """Return whether an epoch has crop and cutout."""
        return epoch < self.augmented_epochs

    def _draw(self, epoch: int) -> Draws:
        c = self.config
        crop, versions = c.crop * self._augments(epoch), len(self.corrupted) or 1
        return draw_epoch(self.seed, epoch, len(self.labels), crop, c.flip, c.random_corruption, versions)


@dataclass(eq=False)
class ShuffledBatches(SequentialSampler):
    """Yields (epoch, indices of one whole batch); the last, smaller batch of an epoch is dropped.

    The order is a function of (seed, epoch). Lightning calls `set_epoch` before each epoch, as it does for PyTorch's
    DistributedSampler; in a loop of your own, call it yourself. It is a SequentialSampler because Lightning's
    `overfit_batches` puts one of its own in the place of any other.
    """

    indices: Tensor  # int64 [N], what to shuffle
    batch_size: int  # over all processes; process `rank` gets every world_size-th image of each batch
    seed: int  # at least 0
    rank: int = 0
    world_size: int = 1
    one_order: bool = False  # whether each epoch is as the first
    epoch: int = field(default=0, init=False)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose order comes next."""
        self.epoch = 0 if self.one_order else epoch

    def __len__(self) -> int:
        return len(self.indices) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        rng = np.random.default_rng([Stream.ORDER, self.seed, self.epoch])
        order = self.indices[torch.from_numpy(rng.permutation(len(self.indices)))]
        for batch in order.split(self.batch_size)[: len(self)]:
            yield self.epoch, batch[self.rank :: self.world_size]


def stratified_split(labels: Tensor, val_size: int, split_seed: int) -> tuple[Tensor, Tensor]:
    """Choose val_size / 10 images of each class at random for validation, by `labels`, int64 [N], 0 to 9.

    Returns:
        Training and validation indices, int64, each in ascending order.
    """
    rng = np.random.default_rng(split_seed)
    is_val = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero()[:, 0]
        is_val[members[torch.from_numpy(rng.permutation(len(members)))[: val_size // 10]]] = True
    return (~is_val).nonzero()[:, 0], is_val.nonzero()[:, 0]


def channel_statistics(images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and population standard deviation per channel, float32 [3] in [0, 255], of all pixels of the images
    `indices`, int64 [M], of `images`, uint8 [N, 32, 32, 3].
    """
    total, squares = torch.zeros(2, 3, dtype=torch.float64)
    for chunk in indices.split(128):
        # At most 256 squares of a byte add up to less than 2^24, where float32 is exact; float64 holds the totals.
        pixels = images[chunk].flatten(1).float()
        total += pixels.sum(0).double().view(-1, 3).sum(0)
        squares += pixels.square().sum(0).double().view(-1, 3).sum(0)
    count = len(indices) * images[0, :, :, 0].numel()
    mean = total / count
    return mean.float(), (squares / count - mean.square()).sqrt().float()
