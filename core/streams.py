"""The random streams of the project: each purpose has a number, so that no two purposes draw the same values.

rng = np.random.default_rng([Stream.ORDER, seed, epoch])
"""

from enum import IntEnum


class Stream(IntEnum):
    """The first part of the key of a random generator. A number must not change: same-seed runs depend on it."""

    AUGMENTATION = 1  # crop, flip, cutout and the choice of corrupted versions, by seed and epoch
    ORDER = 2  # of the training images, by seed and epoch
    CORRUPTION = 3  # of whole splits, by image
    RANDOM_CORRUPTION = 4  # of training images, by version and image
    NETWORK = 5  # draws of networks in training, such as dropout, by seed, epoch and process
