"""What is done once to every image before training: corrupt (for studies), denoise, segment, normalise, in this order.

    images = preprocess(images, Preprocessing(denoise="median"))  # uint8 [N, 3, 32, 32] to the same

What happens to an image is a function of the image and its index alone. With a folder, results are kept there: each
step is computed once, verified whenever it is read, and mapped into memory. Light to import; what is off costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cifar10 import filters
from cifar10.config import Preprocessing
from cifar10.filters import CORRUPT, DEFAULT_SEVERITY, DENOISE, Step
from core.cache import LazyArray, digest, key, load_or_compute
from core.cores import cores
from core.errors import UsageError
from core.settings import get_fields

if TYPE_CHECKING:
    from torch import Tensor

ZCA_SIDE = 9  # pixels of the patches whose correlations are removed
ZCA_STRIDE = 7  # pixels from one patch that is fitted to the next
WHITENING = {"zca": 0.5, "zca-half": 0.25}  # the power of the variances that is divided by; 0.5 makes all of them 1
ZCA_EPSILON = 0.1  # as pylearn2 whitened CIFAR-10 (Goodfellow et al. 2013, Maxout Networks)
_REVISION = "1"  # part of the key of what is kept: to be raised when a method or a constant of one changes
# What a method calls beside NumPy, by module; one that is not here calls OpenCV.
LIBRARIES: dict[str, list[str]] = {"fit": [], "image": [], "superpixels": ["skimage"]}
DISTRIBUTIONS = {  # in which packages a library may come
    "cv2": [f"opencv{contrib}-python{headless}" for contrib in ("", "-contrib") for headless in ("-headless", "")],
    "skimage": ["scikit-image"],
}
_CHUNK = 250  # images


def steps(settings: Preprocessing, corrupted: bool) -> dict[str, Step]:
    """What is to be done, by a name that tells method and parameters, in order; without zca, which is fitted."""
    steps: dict[str, Step] = {}
    if corrupted and settings.corrupt != "none":
        severity = settings.severity or DEFAULT_SEVERITY
        level = CORRUPT[settings.corrupt][severity - 1]
        steps[f"corrupt-{settings.corrupt}-{severity}"] = partial(filters.corrupt, settings.corrupt, level)
    if settings.denoise != "none":
        strength = settings.denoise_strength or DENOISE[settings.denoise][0]
        steps[f"denoise-{settings.denoise}-{strength:g}"] = partial(filters.denoise, settings.denoise, strength)
    if settings.segment != "none":
        steps[f"segment-{settings.segment}"] = partial(filters.segment, settings.segment)
    if settings.normalize == "image":
        steps["normalize-image"] = filters.standardize
    if settings.normalize == "contrast":
        steps["normalize-contrast"] = filters.equalize
    return steps


def preprocess(
    images: np.ndarray,
    settings: Preprocessing,
    whitening: np.ndarray | None = None,
    corrupted: bool = False,
    folder: Path | None = None,
) -> np.ndarray:
    """Do to all images what `settings` say.

    Args:
        images: uint8 [N, 3, 32, 32]; fastest when channels lie last in memory.
        whitening: What `fit_whitening` returned; without it zca is left out.
        corrupted: Whether they are to be corrupted first.
        folder: Where results are kept, or found if they were computed before; DataError if it cannot be written.

    Returns:
        uint8 [N, 3, 32, 32], channels last in memory; `images` itself if there is nothing to do.
    """
    return preprocess_lazily(_lazy(images, folder), settings, whitening, corrupted, folder).array


def preprocess_lazily(
    images: LazyArray,
    settings: Preprocessing,
    whitening: np.ndarray | None = None,
    corrupted: bool = False,
    folder: Path | None = None,
) -> LazyArray:
    """As `preprocess`; what is kept in `folder` is found by the identity of `images`, which need not be loaded then."""
    for name, step in steps(settings, corrupted).items():
        images = _mapped(images, name, step, folder)
    if whitening is not None:
        kernels = whitening[:, :-1].reshape(3, 3, ZCA_SIDE, ZCA_SIDE)
        step = partial(filters.filter_channels, kernels, whitening[:, -1])
        images = _mapped(images, f"normalize-zca-{digest(whitening)[:8]}", step, folder)
    return images


def corrupt_lazily(images: LazyArray, version: int, folder: Path | None = None) -> LazyArray:
    """Images each corrupted by `corrupt_at_random`; `folder` as in `preprocess`."""
    return _mapped(images, f"corrupt-random-{version}", partial(filters.corrupt_at_random, version), folder)


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
    if whitening is not None and (whitening.shape, whitening.dtype) != ((3, 3 * ZCA_SIDE**2 + 1), np.float32):
        raise ValueError(f"whitening {whitening.dtype} of shape {whitening.shape}")
    return settings, whitening


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [B, 32, 32, 3] to float32 [B, 3, 32, 32], contiguous, by mean and std, float32 [3], in [0, 255]."""
    planes = pixels.permute(0, 3, 1, 2).contiguous()  # bytes are moved faster than floats, and planes computed with
    return planes.sub(mean[:, None, None]).div_(std[:, None, None])


def before_and_after(
    images: np.ndarray, settings: Preprocessing, whitening: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Images at each stage, to look at: as they are and, where that is on, preprocessed, corrupted, and both.

    All are uint8 [N, 3, 32, 32]; `whitening` as in `preprocess`.
    """
    rows = {"as it is": images}
    if whitening is not None or steps(settings, corrupted=False):
        rows["preprocessed"] = preprocess(images, settings, whitening)
    if settings.corrupt != "none":
        corruption = Preprocessing(corrupt=settings.corrupt, severity=settings.severity)
        rows["corrupted"] = preprocess(images, corruption, corrupted=True)
        if "preprocessed" in rows:
            rows["corrupted, preprocessed"] = preprocess(rows["corrupted"], settings, whitening)
    return rows


def fit_whitening(
    images: np.ndarray | LazyArray, indices: np.ndarray, folder: Path | None = None, method: str = "zca"
) -> np.ndarray:
    """Fit ZCA whitening (Bell and Sejnowski 1997), regularised by ZCA_EPSILON, on the images `indices` alone.

    What is whitened are the patches of ZCA_SIDE x ZCA_SIDE pixels; a pixel becomes the centre of its whitened patch.
    As photographs look alike wherever one cuts them, one filter for all pixels does it.

    Args:
        images: uint8 [N, 3, H, W]; `indices` are int64 [M], and `folder` as in `preprocess`.
        method: Of WHITENING. zca-half takes the square root of the matrix that zca multiplies patches by: fine
            details, where noise lies, are amplified less.

    Returns:
        float32 [3, 3 * ZCA_SIDE**2 + 1]: for each channel of the result the weights of the patch [3, ZCA_SIDE,
        ZCA_SIDE] and an offset, for pixels in [0, 255]. Results have mean 0 and variance 1 over the patches fitted.
    """

    def fit() -> np.ndarray:
        total, products, count = np.zeros(size), np.zeros((size, size)), 0
        for start in tqdm(range(0, len(indices), 1000), "fit-zca", leave=False, disable=None):  # bounds the memory
            chunk = source.array[indices[start : start + 1000]]
            patches = np.lib.stride_tricks.sliding_window_view(chunk, (ZCA_SIDE, ZCA_SIDE), axis=(2, 3))
            patches = patches[:, :, ::ZCA_STRIDE, ::ZCA_STRIDE].transpose(0, 2, 3, 1, 4, 5)
            values = patches.reshape(-1, size).astype(np.float64)
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

    size = 3 * ZCA_SIDE**2
    source = _lazy(images, folder)
    inputs = (source.identity, digest(indices), *_versions("fit"))
    return load_or_compute(folder, f"fit-{method}-{ZCA_SIDE}", inputs, (3, size + 1), np.float32, fit)


def method_versions(settings: Preprocessing) -> tuple[str, ...]:
    """Of the methods in `settings` and of the libraries that they call, for the key of what is computed with them."""
    methods = {settings.corrupt, settings.denoise, settings.segment, settings.normalize} - {"none", "dataset"}
    return tuple(sorted({_REVISION}.union(*map(_versions, methods))))


def whiten(images: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """Whiten images by what `fit_whitening` returned; shapes and types as in `preprocess`."""
    return preprocess(images, Preprocessing(), whitening)


def _lazy(images: np.ndarray | LazyArray, folder: Path | None) -> LazyArray:
    """Images that are there; their identity costs reading them all, and only what is kept needs one."""
    if isinstance(images, LazyArray):
        return images
    return LazyArray(digest(_pixels(images)) if folder else "", images.shape, lambda: images)


def _mapped(images: LazyArray, name: str, step: Step, folder: Path | None) -> LazyArray:
    """Images [N, 3, 32, 32], each after the step."""

    def compute() -> np.ndarray:
        import cv2

        cv2.setNumThreads(1)  # the images are shared out here, which pays more for small ones
        pixels = _pixels(images.array)
        done = np.empty_like(pixels)

        def work(start: int) -> int:
            chunk = _each(step, pixels[start : start + _CHUNK], start)
            done[start : start + _CHUNK] = chunk
            return len(chunk)

        bar = tqdm(total=len(pixels), desc=name, unit=" images", leave=False, disable=None)  # None: only on a terminal
        with ThreadPoolExecutor(cores()) as pool, bar:  # threads, since OpenCV and BLAS release the GIL
            for count in pool.map(work, range(0, len(pixels), _CHUNK)):
                bar.update(count)
        return done

    count, channels, *size = images.shape
    inputs = (images.identity, *_versions(name.split("-")[1]))

    def make() -> np.ndarray:
        return load_or_compute(folder, name, inputs, (count, *size, channels), np.uint8, compute).transpose(0, 3, 1, 2)

    return LazyArray(key(name, inputs), images.shape, make)


def _each(step: Step, chunk: np.ndarray, start: int) -> np.ndarray:
    return np.stack([step(image, start + number) for number, image in enumerate(chunk)])


@cache
def _versions(method: str) -> tuple[str, ...]:
    """Of a method, by its name in `filters`, and of the libraries that it calls."""
    libraries = (f"{name} {_version(name)}" for name in LIBRARIES.get(method, ["cv2"]))
    return (_REVISION, f"numpy {np.__version__}", *libraries)


def _version(library: str) -> str:
    """Of a library, by its module. That is not imported for it, which takes a second from a cold disk."""
    for distribution in DISTRIBUTIONS[library]:
        with suppress(PackageNotFoundError):
            return version(distribution)
    return import_module(library).__version__  # from another kind of package, such as Conda's


def _pixels(images: np.ndarray) -> np.ndarray:
    """[N, 3, 32, 32] as contiguous [N, 32, 32, 3], without a copy where the memory has that order already."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
