"""Each method against a small known case, the cache, and preprocessing through the data module and the command line."""

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch

from cifar10 import filters, preprocessing, records
from cifar10.config import Preprocessing
from cifar10.filters import CORRUPT, DENOISE
from cifar10.preprocessing import (
    Step,
    before_and_after,
    fit_whitening,
    library_versions,
    make_steps,
    normalize,
    preprocess,
    preprocess_lazily,
)
from cifar_datamodule import CIFAR10DataModule
from conftest import evaluated
from core.cache import LazyArray, array_sha256
from core.errors import UsageError
from made_up import write_checkpoint

METHODS = [
    *(Preprocessing().changed({"denoise": method}) for method in DENOISE if method != "none"),
    *(Preprocessing().changed({"segment": method}) for method in ("otsu", "grabcut", "superpixels")),
    *(Preprocessing(normalize=method) for method in ("image", "contrast")),
]
CORRUPTIONS = [Preprocessing().changed({"corrupt": method, "severity": 5}) for method in CORRUPT if method != "none"]


def name(settings: Preprocessing) -> str:
    return "-".join(map(str, make_steps(settings, corrupted=True)))


@pytest.fixture
def images() -> np.ndarray:
    """uint8 [7, 32, 32, 3]: smooth colours with a little noise."""
    rng = np.random.default_rng(0)
    smooth = scipy.ndimage.gaussian_filter(rng.normal(128, 400, (7, 32, 32, 3)), (0, 4, 4, 0))
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def one(image: np.ndarray, **settings: Any) -> np.ndarray:
    """An image [32, 32, 3] after preprocessing."""
    return preprocess(image[None], Preprocessing(**settings))[0]


def square(ground: tuple[int, int, int], colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image [32, 32, 3] with a square, both a little noisy, and the square's mask."""
    inside = np.zeros((32, 32), bool)
    inside[10:22, 9:23] = True
    image = np.where(inside[..., None], colour, ground) + np.random.default_rng(0).integers(-6, 7, (32, 32, 1))
    return image.astype(np.uint8), inside


@pytest.mark.parametrize("settings", METHODS + CORRUPTIONS, ids=name)
def test_what_becomes_of_an_image_is_another_one_and_depends_on_nothing_else(
    settings: Preprocessing, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocessing, "CHUNK", 8)
    before = images.copy()
    done = preprocess(images, settings, corrupted=True)
    assert done.shape == images.shape and done.dtype == np.uint8
    assert not np.array_equal(done, images) and np.array_equal(images, before)
    many = preprocess(np.concatenate([images] * 4), settings, corrupted=True)  # several chunks, in several threads
    assert np.array_equal(many[:7], done)
    if settings in METHODS:  # corruption depends on the index
        assert np.array_equal(many, np.concatenate([done] * 4))
        flat = np.broadcast_to(np.array((200, 30, 90), np.uint8), (1, 32, 32, 3))
        assert (preprocess(flat, settings) == preprocess(flat, settings)[:, :1, :1]).all()


def test_gaussian_is_scipys() -> None:
    image = square((60, 80, 100), (200, 150, 50))[0]
    expected = scipy.ndimage.gaussian_filter(image.astype(float), (1, 1, 0), mode="mirror")
    assert np.abs(one(image, denoise="gaussian", denoise_strength=1) - expected).max() < 2


def test_median_is_scipys_and_removes_single_pixels() -> None:
    image = np.full((32, 32, 3), 90, np.uint8)
    image[5, 7], image[20, 20] = 255, 0
    assert (one(image, denoise="median") == 90).all()
    noise = square((60, 80, 100), (200, 150, 50))[0]
    expected = scipy.ndimage.median_filter(noise, (5, 5, 1), mode="nearest")
    assert np.array_equal(one(noise, denoise="median", denoise_strength=5), expected)


@pytest.mark.parametrize("method", ["bilateral", "nlmeans"])
def test_edge_preserving_methods_smooth_the_noise_and_keep_the_edge(method: str) -> None:
    image, inside = square((50, 50, 50), (200, 200, 200))
    done = one(image, denoise=method).astype(float)
    assert done[inside].std() < 0.7 * image[inside].std()
    assert done[inside].min() > 180 and done[~inside].max() < 70


@pytest.mark.parametrize("method", ["otsu", "grabcut"])
@pytest.mark.parametrize("colours", [((60, 60, 60), (220, 190, 160)), ((220, 190, 160), (60, 60, 60))])
def test_segmentation_keeps_the_foreground_and_flattens_the_ground(method: str, colours: Any) -> None:
    image, inside = square(*colours)
    done = one(image, segment=method)
    assert np.array_equal(done[inside], image[inside])
    assert (done[~inside] == np.rint(image[~inside].mean(0))).all()
    assert np.array_equal(one(done, segment="otsu"), done)


def test_superpixels_are_of_one_colour_their_mean() -> None:
    blocks = np.kron(np.random.default_rng(0).integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    assert np.array_equal(one(blocks, segment="superpixels"), blocks)
    image = square((60, 80, 100), (200, 150, 50))[0]
    done = one(image, segment="superpixels")
    assert len(np.unique(done.reshape(-1, 3), axis=0)) <= filters.SUPERPIXELS
    assert np.abs(done.mean((0, 1)) - image.mean((0, 1))).max() < 0.5


def test_image_standardises_each_image_by_itself(images: np.ndarray) -> None:
    done = preprocess(images, Preprocessing(normalize="image")).astype(float)
    values = images.astype(float)
    z = (values - values.mean((1, 2, 3), keepdims=True)) / values.std((1, 2, 3), keepdims=True)
    expected = (z * 255 / 8 + 127.5).clip(0, 255)  # 4 standard deviations on either side
    assert np.abs(done - expected).max() <= 0.501
    twice = preprocess(done.astype(np.uint8), Preprocessing(normalize="image"))
    assert np.abs(twice - done).max() <= 1


def test_contrast_widens_the_lightness_and_keeps_grey_grey() -> None:
    ramp = np.repeat(np.arange(100, 132, dtype=np.uint8)[:, None], 32, 1)
    done = one(np.repeat(ramp[..., None], 3, 2), normalize="contrast").astype(int)
    assert np.ptp(done) > 1.5 * np.ptp(ramp)
    assert np.abs(done - done[..., :1]).max() <= 1


@pytest.fixture
def coloured() -> np.ndarray:
    """uint8 [60, 32, 32, 3], whose neighbouring pixels and channels are alike."""
    rng = np.random.default_rng(0)
    smooth = scipy.ndimage.gaussian_filter(rng.normal(0, 300, (60, 32, 32, 3)), (0, 2, 2, 0.5))
    return (128 + smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


def patches(images: np.ndarray) -> np.ndarray:
    """Those that zca is fitted on, 16 of each image, and their pixels: float64 [16 N, 3, 9, 9]."""
    corners = [(row, column) for row in (0, 7, 14, 21) for column in (0, 7, 14, 21)]
    cut = [images[:, row : row + 9, column : column + 9] for row, column in corners]
    return np.concatenate(cut).astype(float).transpose(0, 3, 1, 2)


def whitened(images: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    return preprocess(images, Preprocessing(), whitening)


@pytest.mark.parametrize(("method", "root"), [("zca", 2), ("zca-half", 4)])
def test_zca_is_the_centre_of_patches_whitened_by_a_singular_value_decomposition(
    method: str, root: int, coloured: np.ndarray
) -> None:
    done = whitened(coloured, fit_whitening(coloured, np.arange(40), method=method))
    fitted = patches(coloured[:40]).reshape(-1, 243)
    mean, scale = fitted.mean(0), np.sqrt(fitted.var(0).mean())
    _, singular, directions = np.linalg.svd((fitted - mean) / scale, full_matrices=False)
    gains = directions.T / (singular**2 / len(fitted) + 0.1) ** (1 / root) @ directions

    def centres(images: np.ndarray) -> np.ndarray:
        return (((patches(images).reshape(-1, 243) - mean) / scale) @ gains).reshape(-1, 3, 81)[:, :, 40]

    expected = centres(coloured) / np.sqrt(centres(coloured[:40]).var(0).mean()) * 255 / 8 + 127.5
    assert np.abs(patches(done)[:, :, 4, 4] - expected.clip(0, 255)).max() < 0.51  # rounded to bytes


def test_what_zca_fits_sees_the_chosen_images_only(coloured: np.ndarray) -> None:
    chosen = np.arange(0, 60, 2)
    fitted = fit_whitening(coloured, chosen)
    assert np.array_equal(fit_whitening(coloured, chosen), fitted)
    assert not np.array_equal(fit_whitening(coloured, chosen[1:]), fitted)
    coloured[1::2] = 0
    assert np.array_equal(fit_whitening(coloured, chosen), fitted)
    flat = np.full((5, 32, 32, 3), 9, np.uint8)
    done = whitened(flat, fit_whitening(flat, np.arange(5)))
    assert np.abs(done.astype(int) - 128).max() <= 1  # and no division by 0


def result_identity(step: Step, folder: Path) -> str:
    return preprocess_lazily(LazyArray("images", "0", (1, 32, 32, 3), pytest.fail), [step], folder).identity


def test_a_stored_result_is_known_by_its_images_method_and_parameters_at_full_precision(
    images: np.ndarray, tmp_path: Path
) -> None:
    def smooth(strength: float, images: np.ndarray = images) -> np.ndarray:
        source = LazyArray("images", array_sha256(images), images.shape, lambda: images)
        steps = make_steps(Preprocessing(denoise="gaussian", denoise_strength=strength))
        return preprocess_lazily(source, steps, tmp_path).array

    first = smooth(1.0)
    expected = preprocess(images, Preprocessing(denoise="gaussian", denoise_strength=1.0))
    assert np.array_equal(first, expected) and np.array_equal(smooth(1.0), expected)
    assert [path.name[:20] for path in tmp_path.glob("*.bin")] == ["denoise-gaussian-1.0"]
    smooth(1.0000001)
    smooth(1.0, images[::-1].copy())
    assert len(list(tmp_path.glob("*.bin"))) == 3
    whitening = np.zeros((3, 244), np.float32)
    steps = [Step(filters.segment, ("otsu",)), Step(filters.segment, ("grabcut",)), Step(filters.denoise, ("otsu",))]
    steps += [Step(filters.whiten, (whitening,)), Step(filters.whiten, (whitening + 1,))]
    steps += [Step(filters.denoise, ("gaussian", strength)) for strength in (1.0, 1.0000001)]
    assert len({result_identity(step, tmp_path) for step in steps}) == len(steps)


def test_another_version_of_a_library_computes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number in ("1.0", "2.0", "2.0"):
        library_versions.cache_clear()
        monkeypatch.setattr(cv2, "__version__", number)
        found.append(result_identity(Step(filters.normalize, ("image",)), tmp_path))
    library_versions.cache_clear()
    assert found[0] != found[1] == found[2]


def test_steps_are_done_in_order_corruption_first(images: np.ndarray, tmp_path: Path) -> None:
    together = Preprocessing(denoise="median", segment="otsu", normalize="image", corrupt="blur")
    assert make_steps(together, corrupted=True) == [
        Step(filters.corrupt, ("blur", 0.7)),
        Step(filters.denoise, ("median", 3.0)),
        Step(filters.segment, ("otsu",)),
        Step(filters.normalize, ("image",)),
    ]
    assert [str(step) for step in make_steps(together)] == ["denoise median 3.0", "segment otsu", "normalize image"]
    step_by_step = preprocess(images, Preprocessing(corrupt="blur"), corrupted=True)
    for settings in (Preprocessing(denoise="median"), Preprocessing(segment="otsu"), Preprocessing(normalize="image")):
        step_by_step = preprocess(step_by_step, settings)
    assert np.array_equal(preprocess(images, together, corrupted=True), step_by_step)
    source = LazyArray("images", array_sha256(images), images.shape, lambda: images)
    stored = preprocess_lazily(source, make_steps(together, corrupted=True), tmp_path)
    assert np.array_equal(stored.array, step_by_step)


def test_corruptions_have_the_published_size() -> None:
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    noise = preprocess(grey, Preprocessing(corrupt="gaussian", severity=5), corrupted=True) - 128.0
    assert noise.std() == pytest.approx(0.1 * 255, rel=0.02) and abs(noise.mean()) < 0.5
    assert not np.array_equal(noise[0], noise[1])
    hit = preprocess(grey, Preprocessing(corrupt="saltpepper", severity=5), corrupted=True)
    assert (hit != 128).mean() == pytest.approx(0.07, rel=0.05)
    assert set(np.unique(hit)) == {0, 128, 255}
    red = np.broadcast_to(np.array([220, 40, 90], np.uint8), (1, 32, 32, 3))
    jpeg = preprocess(red, Preprocessing(corrupt="jpeg"), corrupted=True)
    assert np.abs(jpeg.astype(int) - red).max() < 6  # no channels in each other's place


def test_random_corruption_draws_method_and_level_anew_for_each_image_and_version(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    drawn: list[tuple[str, float]] = []
    monkeypatch.setattr(filters, "_corrupt", lambda method, level, image, rng: drawn.append((method, level)))
    for version in (0, 1, 0):
        for index in range(400):
            filters.corrupt_at_random(version, images[0], index)
    assert drawn[800:] == drawn[:400]
    del drawn[800:]
    assert len(set(drawn)) == 800
    for method, lowest, highest in filters.RANDOM:
        levels = [level for name, level in drawn if name == method]
        assert 110 < len(levels) / sum(method == name for name, *_ in filters.RANDOM) < 210
        assert lowest <= min(levels) < max(levels) <= highest and np.ptp(levels) > 0.9 * (highest - lowest)


def test_what_is_off_costs_nothing(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it fails
    for settings in (Preprocessing(), Preprocessing(normalize="none")):
        assert preprocess(images, settings, corrupted=True) is images


# Through the data module


def ready(data_dir: Path, **settings: Any) -> CIFAR10DataModule:
    small: dict[str, Any] = {"batch_size": 50, "val_size": 100, "normalize": "dataset"}
    small |= {"crop": 0, "flip": False, "random_corruption": 0}
    datamodule = CIFAR10DataModule(data_dir=data_dir, **small | settings)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def all_of(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_batches_hold_preprocessed_images_with_their_own_labels(data_dir: Path) -> None:
    plain, median = ready(data_dir), ready(data_dir, denoise="median")
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        (images, labels), (smooth, same) = all_of(getattr(plain, loader)()), all_of(getattr(median, loader)())
        assert torch.equal(labels, same) and smooth.shape == images.shape
        assert (smooth.diff(dim=3).square().mean() / images.diff(dim=3).square().mean()) < 0.5
    images, _ = all_of(median.train_dataloader())
    assert images.mean((0, 2, 3)).abs().max() < 1e-3 and (images.std((0, 2, 3)) - 1).abs().max() < 1e-3
    datamodule = ready(data_dir, normalize="none")
    expected = torch.from_numpy(datamodule._originals(False, 200).array).permute(0, 3, 1, 2) / 255
    assert torch.equal(all_of(datamodule.test_dataloader())[0], expected)


def test_corruption_reaches_the_test_images_only_unless_asked(data_dir: Path) -> None:
    def changed(loader: str, **settings: Any) -> bool:
        images = [all_of(getattr(ready(data_dir, **chosen), loader)())[0] for chosen in ({}, settings)]
        return not torch.equal(*images)

    for where, seen in (("test", False), ("both", True)):
        settings = {"corrupt": "saltpepper", "corrupt_on": where}
        assert changed("test_dataloader", **settings)
        assert changed("val_dataloader", **settings) == changed("train_dataloader", **settings) == seen


def test_random_corruption_reaches_the_training_images_only_before_all_other_steps(data_dir: Path) -> None:
    settings: dict[str, Any] = {"denoise": "median", "normalize": "zca"}
    exact, corrupted = ready(data_dir, **settings), ready(data_dir, random_corruption=1, **settings)
    median = preprocess(exact._originals(True, 1000).array, Preprocessing(denoise="median"))
    fitted = fit_whitening(median, exact.train_indices.numpy(), method="zca")
    assert exact.whitening is not None and np.array_equal(exact.whitening, fitted) and len(exact.train_indices) == 900
    for loader in ("val_dataloader", "test_dataloader"):
        assert torch.equal(*(all_of(getattr(each, loader)())[0] for each in (exact, corrupted)))
    batch, labels = corrupted.train_dataloader().dataset[3, torch.tensor([7, 500])]
    pixels = exact._originals(True, 1000).array[[7, 500]]
    damaged = np.stack([filters.corrupt_at_random(0, pixels[0], 7), filters.corrupt_at_random(0, pixels[1], 500)])
    assert exact.mean is not None and exact.std is not None
    done = preprocess(damaged, exact.preprocessing, exact.whitening)
    assert torch.equal(batch, normalize(torch.from_numpy(done), exact.mean, exact.std))
    assert torch.equal(labels, exact.train_dataloader().dataset[3, torch.tensor([7, 500])][1])


def test_the_state_alone_treats_the_test_images_alike(data_dir: Path, tmp_path: Path) -> None:
    trained = ready(data_dir, denoise="bilateral", segment="otsu", normalize="zca")
    torch.save(trained.state_dict(), tmp_path / "state")
    loaded = CIFAR10DataModule(data_dir=data_dir)
    loaded.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(all_of(loaded.test_dataloader())[0], all_of(trained.test_dataloader())[0])


def test_a_checkpoint_carries_its_preprocessing_and_test_may_change_it(data_dir: Path, tmp_path: Path) -> None:
    steps = {"denoise": "gaussian", "denoise_strength": 2.0, "corrupt": "gaussian", "severity": 5}
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", state={"preprocessing": steps})
    told_nothing = evaluated(checkpoint, data_dir)
    changed = [
        evaluated(checkpoint, data_dir, **changes)["test/loss"]
        for changes in ({"corrupt": "none"}, {"denoise": "none"}, {"severity": 1}, {"denoise_strength": 0.3})
    ]
    assert len({*changed, told_nothing["test/loss"]}) == 5
    with pytest.raises(UsageError, match="denoise_strength 400: must be above 0 and at most 16"):
        evaluated(checkpoint, data_dir, denoise_strength=400.0)


def test_before_and_after_shows_each_stage_once(images: np.ndarray) -> None:
    stages = before_and_after(images, Preprocessing(denoise="median", corrupt="jpeg"))
    assert list(stages) == ["as it is", "preprocessed", "corrupted", "corrupted, preprocessed"]
    assert len({stage.tobytes() for stage in stages.values()}) == 4
    assert list(before_and_after(images, Preprocessing())) == ["as it is"]


def test_cached_results_are_found_without_loading_the_images(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"denoise": "median", "normalize": "zca", "random_corruption": 0.5}
    first = ready(data_dir, **settings)
    expected = all_of(first.val_dataloader())[0], all_of(first.test_dataloader())[0]
    monkeypatch.setattr(records, "load", lambda *arguments: 1 / 0)
    again = ready(data_dir, **settings)
    assert torch.equal(all_of(again.val_dataloader())[0], expected[0])
    assert torch.equal(all_of(again.test_dataloader())[0], expected[1])
    monkeypatch.setitem(records.FILES, "data_batch_3.bin", "another hash")  # other images
    with pytest.raises(ZeroDivisionError):
        CIFAR10DataModule(data_dir=data_dir, batch_size=50, val_size=100, **settings).setup()


def test_cached_results_lie_in_the_folder_that_is_named(data_dir: Path, tmp_path: Path) -> None:
    ready(data_dir, cache_dir=tmp_path / "cache", normalize="zca-half", random_corruption=0.25)
    assert not (data_dir / "preprocessed").exists()
    names = sorted(path.name[:-21] for path in (tmp_path / "cache").glob("*.bin"))
    assert names == ["corrupt-at-random-0-whiten", "fit-zca-half", "whiten"]


def test_corruptions_follow_each_other_and_those_that_are_off_leave_the_image_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    off = [("gaussian", 0.0), ("blur", 0.0), ("jpeg", 100)]
    assert filters.corrupt_in_turn(off, image) is image
    blurred = filters.corrupt("blur", 1.0, filters.corrupt("gaussian", 0.1, image, 0), 0)
    assert np.array_equal(filters.corrupt_in_turn([("gaussian", 0.1), *off, ("blur", 1.0)], image), blurred)
