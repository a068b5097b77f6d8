"""Settings of the data: images and split, augmentation, preprocessing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cifar10.filters import DENOISE
from cifar10.records import find_folder
from core.errors import SettingError
from core.settings import Settings, setting

DenoiseName: TypeAlias = Literal["none", "gaussian", "median", "bilateral", "nlmeans"]
SEEDS: dict[str, Any] = {"at_least": 0, "at_most": 2**32 - 1}


@dataclass(frozen=True, kw_only=True)
class Data(Settings):
    """Data: the images, the split and the batches."""

    data_dir: Path = setting(
        Path("data"), "Folder of CIFAR-10; the data set is downloaded if it is not there.", identity=False
    )
    cache_dir: Path | None = setting(
        None,
        "Folder for the cache of preprocessed images and of a teacher's logits; null is data_dir/preprocessed. If it "
        "cannot be written, they are computed in memory.",
        identity=False,
    )
    mirror: str | None = setting(
        None, "URL of an official CIFAR-10 archive to download instead of the known sources.", identity=False
    )
    batch_size: int = setting(
        128, "Images per training step, over all devices together.", named="bs", at_least=1, at_most=50_000
    )
    val_size: int = setting(
        5000,
        "Images of the validation split, a multiple of 10; with 0 there is none, and the last epoch is tested.",
        at_least=0,
        at_most=49_990,
    )
    split_seed: int = setting(0, "Seed of the validation split.", **SEEDS)
    select_on: Literal["val", "test"] = setting(
        "val",
        'Split on which the best epoch is chosen; "test" only serves to show the bias that this has.',
        named="select-",
    )
    seed: int = setting(0, "Seed of the weights, the order of the images and the augmentation.", **SEEDS)

    @property
    def cache_folder(self) -> Path:
        """The folder for results computed from the data set; it may be deleted at any time."""
        return self.cache_dir or find_folder(self.data_dir).parent / "preprocessed"

    def check(self) -> None:
        super().check()
        if self.val_size % 10:
            raise SettingError("val_size", self.val_size, "must be a multiple of 10")
        if self.batch_size > 50_000 - self.val_size:
            raise SettingError("batch_size", self.batch_size, "more than the training images")
        if self.select_on == "test" and self.val_size:
            raise SettingError("select_on", "test", "validates on the test set, so it needs val_size 0")


@dataclass(frozen=True, kw_only=True)
class Augmentation(Settings):
    """Augmentation: random changes of the training images, drawn anew in each epoch."""

    crop: int = setting(2, "Random crop: the largest shift, in pixels; 0 is off.", at_least=0, at_most=31)
    flip: bool = setting(True, "Horizontal flip of half of the images.")
    cutout: int = setting(0, "Cutout: side of the square that is erased, in pixels; 0 is off.", at_least=0, at_most=32)
    random_corruption: float = setting(
        0.0,
        "Share of the training images that are corrupted before all else, by JPEG, Gaussian noise, salt and pepper or "
        "blur. Each epoch draws which images.",
        at_least=0,
        at_most=1,
    )
    corruption_versions: int = setting(
        1,
        "Corrupted versions that are made of each image before training, 150 MB each; an epoch draws one of them.",
        at_least=1,
        at_most=100,
    )
    plain_epochs: int = setting(0, "Number of epochs at the end of the run without crop and cutout.", at_least=0)

    def check(self) -> None:
        super().check()
        if self.corruption_versions > 1 and not self.random_corruption:
            raise SettingError("corruption_versions", self.corruption_versions, "needs random_corruption")


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Settings):
    """Preprocessing: fixed changes of every image, computed once and cached."""

    denoise: DenoiseName = setting("none", "Filter that smooths every image.")
    denoise_strength: float | None = setting(
        None,
        "Strength of the filter: gaussian takes sigma in pixels, median an odd window in pixels, bilateral the "
        "difference in grey levels that counts as an edge, nlmeans the noise in grey levels; null takes the filter's "
        "default.",
        follows="denoise",
        above=0,
    )
    segment: Literal["none", "otsu", "grabcut", "superpixels"] = setting(
        "none", "Segmentation: the background (otsu, grabcut) or each superpixel gets its mean colour."
    )
    normalize: Literal["dataset", "image", "contrast", "zca", "zca-half", "none"] = setting(
        "dataset",
        "Normalization. dataset subtracts the mean of the training split and divides by its standard deviation. The "
        "others do that too, after zca whitening, zca-half whitening (better on corrupted images), standardizing each "
        "image, or equalizing its contrast locally (CLAHE). none only divides pixels by 255.",
    )
    corrupt: Literal["none", "gaussian", "saltpepper", "jpeg", "blur"] = setting(
        "none", "Corruption of whole splits before all else, as in CIFAR-10-C; to test robustness.", named="corrupt-"
    )
    severity: int | None = setting(
        None, "Severity of the corruption, 1 to 5; null takes 3.", follows="corrupt", at_least=1, at_most=5
    )
    corrupt_on: Literal["test", "both"] = setting(
        "test",
        "Which images are corrupted: the test images, or the training and validation images too.",
        named="corrupt-on-",
        follows="corrupt",
    )

    def check(self) -> None:
        super().check()
        if self.denoise_strength is not None:
            given = "denoise_strength", f"{self.denoise_strength:g}"
            if self.denoise == "none":
                raise SettingError(*given, "needs denoise")
            largest = DENOISE[self.denoise][1]
            if self.denoise_strength > largest:
                raise SettingError(*given, f"must be above 0 and at most {largest:g} for {self.denoise}")
            if self.denoise == "median" and self.denoise_strength % 2 != 1:
                raise SettingError(*given, "must be an odd number of pixels for median")
        if self.severity is not None and self.corrupt == "none":
            raise SettingError("severity", self.severity, "needs corrupt")
        if self.corrupt_on == "both" and self.corrupt == "none":
            raise SettingError("corrupt_on", "both", "needs corrupt")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Data, Augmentation, Preprocessing):
    """All settings of `CIFAR10DataModule`."""
