"""What is done once to every image before training: corrupt (for studies), denoise, segment, normalize, in this order.

    images = preprocess(images, Preprocessing(denoise="median"))  # uint8 [N, 32, 32, 3] to the same

The result for an image depends on that image and its index alone. Imports neither PyTorch nor OpenCV until they are
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar10 import filters
from cifar10.config import Preprocessing
from cifar10.filters import CORRUPT, DEFAULT_SEVERITY, DENOISE, ZCA_SIDE
from core.cache import LazyArray, array_sha256
from core.cores import cores
from core.errors import UsageError
from core.files import sha256
from core.settings import get_fields

if TYPE_CHECKING:
    from torch import Tensor

ZCA_STRIDE = 7  # pixels from one patch that whitening is fitted on to the next
ZCA_EPSILON = 0.1  # as pylearn2 whitened CIFAR-10 (Goodfellow et al. 2013, Maxout Networks)
WHITENING = {"zca": 0.5, "zca-half": 0.25}  # the power of the variances that is divided by; 0.5 makes all of them 1
REVISION = "2"  # part of the identity of cached results: to be raised when a method or a constant of one changes
CHUNK = 250  # images


@dataclass(frozen=True)
class Step:
    """One change of every image.

    Attributes:
        method: A function of `filters`; it takes the parameters, an image, uint8 [32, 32, 3], and its index.
        parameters: Names, numbers and arrays.
    """

    method: Callable[..., np.ndarray]
    parameters: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """Return method and parameters in words, such as "denoise median 3.0"."""
        words = [self.method.__name__.replace("_", " ")]
        return " ".join(words + [str(value) for value in self.parameters if not isinstance(value, np.ndarray)])

    @property
    def identity(self) -> str:
        """A text that is equal only for steps that give equal results."""
        values = [array_sha256(value) if isinstance(value, np.ndarray) else repr(value) for value in self.parameters]
        return "\n".join([self.method.__name__, *values, library_versions()])


def make_steps(settings: Preprocessing, whitening: np.ndarray | None = None, corrupted: bool = False) -> list[Step]:
    """Return the steps of `settings`, in order.

    Args:
        whitening: What `fit_whitening` returned; None leaves whitening out.
        corrupted: Whether the images are corrupted first.
    """
    steps = []
    if corrupted and settings.corrupt != "none":
        level = CORRUPT[settings.corrupt][(settings.severity or DEFAULT_SEVERITY) - 1]
        steps.append(Step(filters.corrupt, (settings.corrupt, level)))
    if settings.denoise != "none":
        strength = settings.denoise_strength or DENOISE[settings.denoise][0]
        steps.append(Step(filters.denoise, (settings.denoise, strength)))
    if settings.segment != "none":
        steps.append(Step(filters.segment, (settings.segment,)))
    if settings.normalize in ("image", "contrast"):
        steps.append(Step(filters.normalize, (settings.normalize,)))
    if whitening is not None:
        steps.append(Step(filters.whiten, (whitening,)))
    return steps


def preprocess(
    images: np.ndarray, settings: Preprocessing, whitening: np.ndarray | None = None, corrupted: bool = False
) -> np.ndarray:
    """Apply the steps of `settings`, as of `make_steps`, to images, uint8 [N, 32, 32, 3], in memory.

    Returns:
        uint8 [N, 32, 32, 3]; `images` itself if there are no steps.
    """
    return apply_steps(images, make_steps(settings, whitening, corrupted))


def preprocess_lazily(images: LazyArray, steps: Sequence[Step], folder: Path) -> LazyArray:
    """Return the images after the steps, which are computed when they are needed, and stored in `folder`."""
    if not steps:
        return images
    identity = sha256("\n".join([images.identity, *(step.identity for step in steps)]).encode())
    name = " ".join(map(str, steps))
    return LazyArray(name, identity, images.shape, lambda: apply_steps(images.array, steps), folder=folder)


def apply_steps(images: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Return images, uint8 [N, 32, 32, 3], each after the steps, computed on all cores; `images` if there are none."""
    if not steps:
        return images
    import cv2

    cv2.setNumThreads(1)  # the images are shared out here, which pays more for small ones
    done = np.empty(images.shape, np.uint8)

    def work(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(images))):
            image = images[index]
            for step in steps:
                done[index] = step.method(*step.parameters, image, index)
                image = done[index]

    with ThreadPoolExecutor(cores()) as pool:  # threads, since OpenCV and BLAS release the GIL
        list(pool.map(work, range(0, len(images), CHUNK)))
    return done


def fit_whitening(images: np.ndarray, indices: np.ndarray, method: str = "zca") -> np.ndarray:
    """Fit ZCA whitening (Bell and Sejnowski 1997), regularized by ZCA_EPSILON, on the images `indices` alone.

    The patches of ZCA_SIDE x ZCA_SIDE pixels are whitened; a pixel becomes the centre of its whitened patch.
    Photographs look alike wherever one cuts them, so one filter serves for all pixels.

    Args:
        images: uint8 [N, 32, 32, 3].
        indices: int64 [M].
        method: Of WHITENING. zca-half takes the square root of the matrix that zca multiplies patches by: fine
            details, where noise lies, are amplified less.

    Returns:
        float32 [3, 3 * ZCA_SIDE**2 + 1]: for each channel of the result the weights of the patch [3, ZCA_SIDE,
        ZCA_SIDE] and an offset, for pixels in [0, 255]. Results have mean 0 and variance 1 over the patches fitted.
    """
    size = 3 * ZCA_SIDE**2
    total, products, count = np.zeros(size), np.zeros((size, size)), 0
    for start in range(0, len(indices), 1000):  # bounds the memory
        chunk = images[indices[start : start + 1000]]
        patches = np.lib.stride_tricks.sliding_window_view(chunk, (ZCA_SIDE, ZCA_SIDE), axis=(1, 2))
        values = patches[:, ::ZCA_STRIDE, ::ZCA_STRIDE].reshape(-1, size).astype(np.float64)
        total += values.sum(0)
        products += values.T @ values  # sums of whole numbers, exact in float64 in any order
        count += len(values)
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    scale = max(covariance.trace() / size, 1.0)  # of a pixel, squared grey levels; all images may be of one colour
    variances, directions = np.linalg.eigh(covariance / scale)
    whitening = directions / (variances.clip(0) + ZCA_EPSILON) ** WHITENING[method] @ directions.T
    kernels = whitening[ZCA_SIDE**2 // 2 :: ZCA_SIDE**2]  # of the central pixel, a row a channel
    variance = np.einsum("ij,jk,ik->i", kernels, covariance, kernels).mean()
    kernels = kernels / np.sqrt(variance or 1.0)
    return np.hstack([kernels, -(kernels @ mean)[:, None]]).astype(np.float32)


def fit_whitening_lazily(images: LazyArray, indices: np.ndarray, method: str, folder: Path) -> LazyArray:
    """Return what `fit_whitening` returns, computed when it is needed, and stored in `folder`."""
    identity = sha256("\n".join([images.identity, array_sha256(indices), method, library_versions()]).encode())
    shape = (3, 3 * ZCA_SIDE**2 + 1)
    return LazyArray(
        f"fit {method}", identity, shape, lambda: fit_whitening(images.array, indices, method), np.float32, folder
    )


@cache
def library_versions() -> str:
    """Return the versions of what computes the steps, for the identity of their results."""
    import cv2

    return f"{REVISION} numpy {np.__version__}, opencv {cv2.__version__}, scikit-image {version('scikit-image')}"


def from_state(state: Mapping[str, Any]) -> tuple[Preprocessing, np.ndarray | None]:
    """Return settings and whitening, as `preprocess` takes them, from a data module's state.

    Raises:
        UsageError, KeyError, TypeError, ValueError: They are not what a data module writes.
    """
    stored = state["preprocessing"]
    if unknown := sorted(stored.keys() - get_fields(Preprocessing).keys()):
        raise UsageError(f"has {unknown[0]}, which this version does not know")
    settings = Preprocessing.read(stored)
    whitening = state["whitening"].numpy() if "whitening" in state else None
    if (settings.normalize in WHITENING) != (whitening is not None):
        raise ValueError("whitening belongs to normalize zca and zca-half")
    return settings, whitening


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize uint8 [B, 32, 32, 3] to contiguous float32 [B, 3, 32, 32] by mean and std, float32 [3], in [0, 255]."""
    planes = pixels.permute(0, 3, 1, 2).contiguous()  # bytes are moved faster than floats, and planes computed with
    return planes.sub(mean[:, None, None]).div_(std[:, None, None])


def before_and_after(
    images: np.ndarray, settings: Preprocessing, whitening: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return images, uint8 [N, 32, 32, 3], at each stage, to look at: as they are and, where that is on, preprocessed,
    corrupted, and both; `whitening` as in `make_steps`.
    """
    steps, all_steps = make_steps(settings, whitening), make_steps(settings, whitening, corrupted=True)
    corruption = all_steps[: len(all_steps) - len(steps)]
    rows = {"as it is": images}
    if steps:
        rows["preprocessed"] = apply_steps(images, steps)
    if corruption:
        rows["corrupted"] = apply_steps(images, corruption)
    if steps and corruption:
        rows["corrupted, preprocessed"] = apply_steps(images, all_steps)
    return rows
