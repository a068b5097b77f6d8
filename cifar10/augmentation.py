"""Augmentation, drawn again in each epoch: random crop, horizontal flip, cutout and corruption of a whole batch.

What happens to an image is a function of (seed, epoch, image index) alone: there is no generator whose state would
have to be saved, and a resumed run, or several processes, see the same images as one uninterrupted process.

Corrupting costs more than a training step. So `filters.corrupt_at_random` makes corrupted versions of all images before
training, and each epoch draws which images one of them takes the place of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from core.streams import Stream

SIDE = 32  # pixels, height and width of an image


@dataclass(frozen=True)
class Draws:
    """What happens to each of N images in one epoch."""

    rows: Tensor  # int64 [N], how far down, in pixels, the crop moves: -crop to crop
    columns: Tensor  # int64 [N], how far right
    flipped: Tensor  # bool [N], horizontally, after the crop
    hole_rows: Tensor  # int64 [N], the centre of the cutout square, in the finished image
    hole_columns: Tensor
    versions: Tensor  # int64 [N], 0 is the image itself, k is its k-th corrupted version


@lru_cache(maxsize=1)  # each batch of an epoch asks for its draws
def draw_epoch(
    seed: int, epoch: int, count: int, crop: int, flip: bool, corrupted: float = 0, versions: int = 1
) -> Draws:
    """Draw what happens in `epoch`, counted from 0, to all `count` images of a data set, whichever of them are used.

    Args:
        crop: Largest shift in pixels, 0 to 31.
        flip: Whether half of the images, at random, are flipped horizontally.
        corrupted: Share of the images that a corrupted version takes the place of.
        versions: How many corrupted versions there are of each image.
    """
    rng = np.random.default_rng([Stream.AUGMENTATION, seed, epoch])
    rows, columns = torch.from_numpy(rng.integers(-crop, crop, size=(2, count), endpoint=True))
    flipped = torch.from_numpy(rng.random(count) < 0.5) if flip else torch.zeros(count, dtype=torch.bool)
    hole_rows, hole_columns = torch.from_numpy(rng.integers(0, SIDE, size=(2, count)))
    chosen = rng.integers(1, versions, count, endpoint=True) * (rng.random(count) < corrupted)
    return Draws(rows, columns, flipped, hole_rows, hole_columns, torch.from_numpy(chosen))


def crop_and_flip(images: Tensor, indices: Tensor, draws: Draws, corrupted: Sequence[Tensor] = ()) -> Tensor:
    """Gather the images `indices`, int64 [B], as uint8 [B, 32, 32, 3], shifted and flipped as drawn.

    Beyond its edge an image is reflected.

    Args:
        images: uint8 [N, 32, 32, 3], contiguous; `draws` are for all of them.
        corrupted: Their versions, from the first on, as `images`.
    """
    line = torch.arange(SIDE)
    rows = _reflect(line + draws.rows[indices, None])  # [B, 32], the source row of each row
    columns = torch.where(draws.flipped[indices, None], line.flip(0), line)
    columns = _reflect(columns + draws.columns[indices, None])
    pixels = (indices[:, None, None] * SIDE + rows[:, :, None]) * SIDE + columns[:, None, :]
    batch = _gather(images, pixels)
    for number, version in enumerate(corrupted, 1):
        chosen = (draws.versions[indices] == number).nonzero()[:, 0]
        batch[chosen] = _gather(version, pixels[chosen])
    return batch


def cutout(batch: Tensor, indices: Tensor, draws: Draws, size: int) -> Tensor:
    """Set a square to 0, the mean of normalised images, in place (DeVries and Taylor 2017); edges may cut it off.

    Args:
        batch: float [B, 3, 32, 32], the images `indices`, int64 [B].
        draws: For all images of the data set.
        size: Side of the square in pixels.
    """
    line = torch.arange(SIDE)

    def covered(centres: Tensor) -> Tensor:
        start = centres[indices, None] - size // 2
        return (line >= start) & (line < start + size)  # [B, 32]

    hole = covered(draws.hole_rows)[:, :, None] & covered(draws.hole_columns)[:, None, :]
    return batch.masked_fill_(hole[:, None], 0.0)


def _gather(images: Tensor, pixels: Tensor) -> Tensor:
    """Gather whole pixels by their place among those of all images, int64 [B, 32, 32]; three times as fast as `[]`."""
    return images.view(-1, 3).index_select(0, pixels.view(-1)).view(-1, SIDE, SIDE, 3)


def _reflect(positions: Tensor) -> Tensor:
    """Fold -31..62 into 0..31 at the edge pixels, which are not repeated."""
    return (SIDE - 1) - ((SIDE - 1) - positions.abs()).abs()
