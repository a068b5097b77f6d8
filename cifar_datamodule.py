"""CIFAR-10 as whole batches, made in memory: split, statistics, the order of each epoch, loaders.

    datamodule = CIFAR10DataModule(batch_size=128)
    pl.Trainer(use_distributed_sampler=False).fit(any_module, datamodule=datamodule)

A batch is (float32 images [B, 3, 32, 32], contiguous, normalised; int64 labels [B]); with a teacher, training batches
have a third part, its logits, float32 [B, 10]. To predict are the test images, in their order, with their labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cifar10 import download, records
from cifar10.augmentation import Draws, crop_and_flip, cutout, draw_epoch
from cifar10.config import DataConfig, Preprocessing
from cifar10.preprocessing import (
    WHITENING,
    before_and_after,
    corrupt_lazily,
    fit_whitening,
    from_state,
    normalize,
    preprocess_lazily,
)
from core.cache import LazyArray
from core.streams import Stream

EVAL_BATCH_SIZE = 250  # as fast as larger ones, in less memory


class CIFAR10DataModule(pl.LightningDataModule):
    """Loaders over CIFAR-10's 50,000 training images, split for training and validation, and its test set.

    With several processes `batch_size` is the global one: each process gets its share of every batch, and evaluates
    its share of the images. Give the Trainer `use_distributed_sampler=False`.

    Args:
        config: What the loaders give, such as a run's configuration; None takes the defaults.
        teacher: Gives logits, float32 [N, 10], for all 50,000 images as they are, uint8 [N, 3, 32, 32]; asked in
            `setup`.
        flags: Single settings of `DataConfig`, such as `batch_size=64`, instead of those of `config`.

    Raises:
        SettingError: A setting is out of its range.
        DataError: From `prepare_data`, no source gives the data set; later, the data folder cannot be written.
    """

    def __init__(
        self, config: DataConfig | None = None, *, teacher: Callable[[np.ndarray], Tensor] | None = None, **flags: Any
    ) -> None:
        super().__init__()
        # LightningCLI finds its arguments by the call that takes the flags.
        self.config = (DataConfig(**flags) if config is None else config.changed(flags)).group(DataConfig)
        self.save_hyperparameters(self.config.plain(), logger=False)
        self.preprocessing = self.config.group(Preprocessing)
        self.teacher = teacher
        self.mean: Tensor | None = None  # float32 [3], of the training split's pixels, in [0, 255]
        self.std: Tensor | None = None
        self.whitening: np.ndarray | None = None  # of `fit_whitening`, if one of WHITENING is chosen
        self._train: tuple[Tensor, Tensor] | None = None  # all 50,000 images and labels
        self._corrupted: list[Tensor] = []  # versions of the images, for `crop_and_flip`
        self._teacher_logits: Tensor | None = None  # float32 [50,000, 10]
        self._verified = False

    def prepare_data(self) -> None:
        if not self._verified:  # hashing takes a tenth of a second, and each stage asks for it
            download.prepare(self.config.data_dir, self.config.mirror)
            self._verified = True

    def setup(self, stage: str | None = None) -> None:
        """Prepare the images, by the statistics and the whitening of the training split unless a state was loaded."""
        if self._train is not None or (stage in ("test", "predict") and self.mean is not None):
            return
        images = originals = self._images(train=True)
        labels, folder = self._labels(train=True), self.config.cache_folder
        if self.teacher is not None and self._teacher_logits is None:
            self._teacher_logits = self.teacher(originals.array)
        self.train_indices, self.val_indices = stratified_split(labels, self.config.val_size, self.config.split_seed)
        firsts = [int(self.train_indices[labels[self.train_indices] == label][0]) for label in labels.unique()]
        self._examples = records.pick(self._folder, train=True, indices=np.array(firsts))
        corrupted = self.preprocessing.corrupt_on == "both"
        images = preprocess_lazily(images, self.preprocessing, corrupted=corrupted, folder=folder)
        if self.preprocessing.normalize in WHITENING:
            if self.whitening is None:
                self.whitening = fit_whitening(images, self.train_indices.numpy(), folder, self.preprocessing.normalize)
            images = preprocess_lazily(images, Preprocessing(), self.whitening, folder=folder)
        versions = (corrupt_lazily(originals, number, folder) for number in range(self.config.corruption_versions))
        if self.config.random_corruption:  # made first, while there is less in memory
            steps = self.preprocessing, self.whitening, corrupted, folder
            self._corrupted = [_pixels_last(preprocess_lazily(version, *steps).array) for version in versions]
        self._train = _pixels_last(images.array), labels
        if self.mean is None:
            self.mean, self.std = torch.zeros(3), torch.full((3,), 255.0)
            if self.preprocessing.normalize != "none":
                self.mean, self.std = channel_statistics(self._train[0], self.train_indices)

    def train_dataloader(self) -> DataLoader:
        self.setup()  # again, if a state was loaded since
        rank, world_size = self._process()
        if self.config.batch_size % world_size:
            raise ValueError(f"batch_size {self.config.batch_size} does not divide by the {world_size} processes")
        assert self._train is not None and self.mean is not None and self.std is not None
        data = (*self._train, self.mean, self.std)
        augmentation = self.config.crop, self.config.flip, self.config.cutout, self._augmented_epochs()
        corruption = self.config.random_corruption, self._corrupted
        dataset = AugmentedBatches(*data, self.config.seed, *augmentation, self._teacher_logits, *corruption)
        sampler = ShuffledBatches(self.train_indices, self.config.batch_size, self.config.seed, rank, world_size)
        return DataLoader(dataset, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if self.config.select_on == "test":
            return self.test_dataloader()
        if self.config.val_size == 0:
            return []
        self.setup()
        assert self._train is not None
        return self._evaluation_loader(*self._train, self.val_indices)

    def test_dataloader(self) -> DataLoader:
        images, labels = self._images(train=False), self._labels(train=False)
        images = preprocess_lazily(images, self.preprocessing, self.whitening, True, self.config.cache_folder)
        return self._evaluation_loader(_pixels_last(images.array), labels, torch.arange(len(labels)))

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The preprocessing and the statistics: later images have to be treated by the same."""
        state = {"mean": self.mean, "std": self.std, "preprocessing": self.preprocessing.plain()}
        return state | ({} if self.whitening is None else {"whitening": torch.from_numpy(self.whitening)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mean, self.std = state_dict["mean"], state_dict["std"]
        self.preprocessing, self.whitening = from_state(state_dict)
        self._train = None  # Lightning loads a checkpoint after `setup`, which may have prepared them in another way

    def examples(self) -> dict[str, np.ndarray]:
        """What `before_and_after` makes of the first training image of each class; after `setup`."""
        return before_and_after(self._examples, self.preprocessing, self.whitening)

    def validation_pictures(self) -> np.ndarray:
        """The images of the validation loader as they are in the data set, uint8 [N, 32, 32, 3], after `setup`.

        Those of the first process come first, as where the predictions of several are gathered.
        """
        train = self.config.select_on != "test"
        indices = self.val_indices if train else torch.arange(len(self._labels(train)))
        _, world_size = self._process()
        order = torch.cat([indices[rank::world_size] for rank in range(world_size)])
        return records.pick(self._folder, train, order.numpy()).transpose(0, 2, 3, 1)

    @property
    def _folder(self) -> Path:
        return self.config.data_dir / records.FOLDER

    def _images(self, train: bool) -> LazyArray:
        """uint8 [N, 3, 32, 32]; what is made of them may be found without them."""
        shape = (len(self._labels(train)), 3, 32, 32)
        return LazyArray(records.identity(train), shape, lambda: records.load(self._folder, train)[0])

    def _labels(self, train: bool) -> Tensor:
        """int64 [N]."""
        return torch.from_numpy(records.load_labels(self._folder, train))

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _augmented_epochs(self) -> int | None:
        """How many epochs have crop and cutout; None is all, as in a loop that does not say how many there are."""
        epochs = self.trainer.max_epochs if self.trainer else None
        plain = self.config.plain_epochs
        return epochs - plain if plain and epochs is not None and epochs >= 0 else None

    def _evaluation_loader(self, images: Tensor, labels: Tensor, indices: Tensor) -> DataLoader:
        assert self.mean is not None and self.std is not None
        rank, world_size = self._process()
        batches = indices[rank::world_size].split(EVAL_BATCH_SIZE)
        return DataLoader(Batches(images, labels, self.mean, self.std), sampler=list(batches), batch_size=None)


@dataclass(eq=False)
class Batches(Dataset):
    """A data set whose item, for a tensor of indices, is the finished batch of these images."""

    images: Tensor  # uint8 [N, 32, 32, 3]
    labels: Tensor  # int64 [N]
    mean: Tensor  # float32 [3], per channel, in [0, 255], as std
    std: Tensor

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(self.images[indices], self.mean, self.std), self.labels[indices]


@dataclass(eq=False)
class AugmentedBatches(Batches):
    """`Batches` for training; its items are asked for by (epoch, indices)."""

    seed: int
    crop: int
    flip: bool
    cutout: int
    augmented_epochs: int | None = None  # that have crop and cutout; None is all
    teacher_logits: Tensor | None = None  # float32 [N, 10]; with it an item has a third part, those of its images
    random_corruption: float = 0  # share of the images that `corrupted` versions take the place of
    corrupted: Sequence[Tensor] = ()  # as `crop_and_flip` takes them
    _draws: tuple[int, Draws] | None = field(default=None, init=False)  # the latest epoch and its draws

    def __getitem__(self, key: tuple[int, Tensor]) -> tuple[Tensor, ...]:  # type: ignore[override]
        epoch, indices = key
        augmented = self.augmented_epochs is None or epoch < self.augmented_epochs
        if self._draws is None or self._draws[0] != epoch:
            crop = self.crop * augmented
            corruption = self.random_corruption, len(self.corrupted) or 1
            self._draws = epoch, draw_epoch(self.seed, epoch, len(self.labels), crop, self.flip, *corruption)
        draws = self._draws[1]
        images = normalize(crop_and_flip(self.images, indices, draws, self.corrupted), self.mean, self.std)
        if self.cutout and augmented:
            images = cutout(images, indices, draws, self.cutout)
        if self.teacher_logits is None:
            return images, self.labels[indices]
        return images, self.labels[indices], self.teacher_logits[indices]


@dataclass(eq=False)
class ShuffledBatches(Sampler):
    """Yields (epoch, indices of one whole batch); the last, smaller batch of an epoch is dropped.

    The order is a function of (seed, epoch). Lightning calls `set_epoch` before each epoch, as it does for PyTorch's
    DistributedSampler; in a loop of your own, call it yourself.
    """

    indices: Tensor  # int64 [N], what to shuffle
    batch_size: int  # over all processes; process `rank` gets every world_size-th image of each batch
    seed: int  # at least 0
    rank: int = 0
    world_size: int = 1
    epoch: int = field(default=0, init=False)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices) // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        rng = np.random.default_rng([Stream.ORDER, self.seed, self.epoch])
        order = self.indices[torch.from_numpy(rng.permutation(len(self.indices)))]
        for batch in order.split(self.batch_size)[: len(self)]:
            yield self.epoch, batch[self.rank :: self.world_size]


def _pixels_last(images: np.ndarray) -> Tensor:
    """uint8 [N, 32, 32, 3] of images [N, 3, 32, 32], in the same memory."""
    return torch.from_numpy(images).permute(0, 2, 3, 1)


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
    """Mean and population standard deviation per channel, float32 [3] in [0, 255], over all pixels of some images.

    They are those of `images`, uint8 [N, 32, 32, 3], at `indices`, int64 [M].
    """
    total, squares = torch.zeros(2, 3, dtype=torch.float64)
    for chunk in indices.split(1000):  # bounds the memory
        # 256 squares of a byte add up to less than 2^24, where float32 is exact, and float64 holds the totals.
        pixels = images[chunk].view(-1, 256, 3).float()
        total += pixels.sum(1).double().sum(0)
        squares += pixels.square().sum(1).double().sum(0)
    count = len(indices) * images[0, :, :, 0].numel()
    mean = total / count
    return mean.float(), (squares / count - mean.square()).sqrt().float()
