"""Filters: each turns one image, uint8 [32, 32, 3] in RGB, and its index in the data set into another image.

The result depends on the arguments alone; only the noise of a corruption depends on the index.
"""

from collections.abc import Iterable

import numpy as np

from core.streams import Stream

DENOISE = {  # default and largest strength
    "none": (0.0, 0.0),
    "gaussian": (0.5, 16.0),  # standard deviation in pixels
    "median": (3.0, 31.0),  # side of the window in pixels, odd
    "bilateral": (30.0, 255.0),  # difference of colour, in grey levels, that counts as an edge
    "nlmeans": (10.0, 255.0),  # h, about the noise's standard deviation in grey levels
}
# Severities 1 to 5 of CIFAR-10-C (Hendrycks and Dietterich 2019; make_cifar_c.py in github.com/hendrycks/robustness).
CORRUPT = {
    "none": (),
    "gaussian": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, pixels in [0, 1]
    "saltpepper": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of the values; there it is called impulse noise
    "jpeg": (80, 65, 58, 50, 40),  # quality
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels
}
DEFAULT_SEVERITY = 3
RANDOM = (  # what training images are corrupted by, drawn from all alike, with lowest and highest level
    ("jpeg", 40.0, 95.0),
    ("jpeg", 40.0, 95.0),  # twice, which cost nothing elsewhere: it is what people have
    ("gaussian", 0.0, 0.1),
    ("saltpepper", 0.0, 0.07),
    ("blur", 0.3, 1.0),
)
SUPERPIXELS, COMPACTNESS = 64, 10.0  # of about 4 x 4 pixels; scikit-image's default weight of distance against colour
CLIP_LIMIT, TILES = 2.0, (2, 2)  # of CLAHE; a tile has as many pixels as there are grey levels
ZCA_SIDE = 9  # pixels of the patches that are whitened
BYTES_A_DEVIATION = 127.5 / 4  # so 0 and 255 stand for 4 standard deviations on either side of the middle


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Convert values of mean 0 and standard deviation 1 to uint8: 0 becomes the middle; values beyond are clipped."""
    return np.rint(values * BYTES_A_DEVIATION + 127.5).clip(0, 255).astype(np.uint8)


def corrupt(method: str, level: float, image: np.ndarray, index: int) -> np.ndarray:
    """Corrupt an image by a method and a level of CORRUPT; unlike CIFAR-10-C, round to the nearest grey level."""
    return _corrupt(method, level, image, np.random.default_rng([Stream.CORRUPTION, index]))


def corrupt_in_turn(levels: Iterable[tuple[str, float]], image: np.ndarray) -> np.ndarray:
    """Corrupt an image by each method of CORRUPT at its level; 0, and JPEG quality 100, leave it out."""
    for method, level in levels:
        if level and (method, level) != ("jpeg", 100):
            image = corrupt(method, level, image, index=0)
    return image


def corrupt_at_random(version: int, image: np.ndarray, index: int) -> np.ndarray:
    """Corrupt an image by a method and a level that are drawn from RANDOM for each version and index."""
    rng = np.random.default_rng([Stream.RANDOM_CORRUPTION, version, index])
    method, lowest, highest = RANDOM[rng.integers(len(RANDOM))]
    return _corrupt(method, rng.uniform(lowest, highest), image, rng)


def _corrupt(method: str, level: float, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    import cv2

    if method == "gaussian":
        return np.rint(image + rng.normal(0, level * 255, image.shape)).clip(0, 255).astype(np.uint8)
    if method == "saltpepper":
        hit, salt = rng.random((2, *image.shape))
        return np.where(hit < level, np.where(salt < 0.5, 0, 255), image).astype(np.uint8)
    if method == "jpeg":  # OpenCV's colours are blue, green, red
        _, file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(level)])
        return cv2.cvtColor(np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return cv2.GaussianBlur(image, (0, 0), level)


def denoise(method: str, strength: float, image: np.ndarray, index: int) -> np.ndarray:
    """Smooth an image by a method of DENOISE."""
    import cv2

    if method == "gaussian":
        return cv2.GaussianBlur(image, (0, 0), strength)
    if method == "median":
        return cv2.medianBlur(image, int(strength))
    if method == "bilateral":
        return cv2.bilateralFilter(image, d=5, sigmaColor=strength, sigmaSpace=1.5)
    # Patches of 3 pixels, looked for within 11: a third of the image.
    return cv2.fastNlMeansDenoising(image, h=strength, templateWindowSize=3, searchWindowSize=11)


def segment(method: str, image: np.ndarray, index: int) -> np.ndarray:
    """Flatten the background (otsu, grabcut) or each superpixel to its mean colour; a method of SEGMENT.

    otsu (1979) splits by brightness; the side with more of the border is the background. grabcut (Rother et al. 2004)
    starts from the border as background and a square in the middle as foreground. superpixels are those of SLIC
    (Achanta et al. 2012).
    """
    import cv2

    if method == "superpixels":
        from skimage.segmentation import slic

        return _mean_colours(image, slic(image, SUPERPIXELS, COMPACTNESS, start_label=0))
    if method == "otsu":
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        bright = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] == 1
        border = np.concatenate([bright[0], bright[-1], bright[1:-1, 0], bright[1:-1, -1]])
        background = bright if border.mean() > 0.5 else ~bright
    else:
        cv2.setRNGSeed(0)  # of this thread: the colour models start from random clusters
        mask, models = np.zeros(image.shape[:2], np.uint8), np.zeros((2, 1, 65))  # GC_BGD is 0
        mask[1:-1, 1:-1] = cv2.GC_PR_FGD
        mask[12:20, 12:20] = cv2.GC_FGD  # without it, no foreground is found in most images
        cv2.grabCut(image, mask, (0, 0, 32, 32), models[0], models[1], 5, cv2.GC_INIT_WITH_MASK)
        background = np.isin(mask, (cv2.GC_BGD, cv2.GC_PR_BGD))
    flat = _mean_colours(image, background.astype(np.intp))
    return np.where(background[..., None], flat, image)


def _mean_colours(image: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Give every pixel the mean colour of its region; `regions` is int [32, 32], counted from 0."""
    flat = regions.ravel()
    count = np.bincount(flat).clip(1)
    means = [np.bincount(flat, channel.ravel()) / count for channel in image.transpose(2, 0, 1)]
    return np.rint(np.stack(means, 1)).astype(np.uint8)[regions]


def normalize(method: str, image: np.ndarray, index: int) -> np.ndarray:
    """Normalize an image by itself.

    image: mean 0 and standard deviation 1 over all its values, as bytes. contrast: contrast-limited adaptive histogram
    equalization (Zuiderveld 1994) of the lightness.
    """
    if method == "image":
        values = image.astype(np.float32)
        return to_bytes((values - values.mean()) / max(values.std(), 1.0))  # 1.0: an image of one colour
    import cv2

    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(CLIP_LIMIT, TILES).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def whiten(whitening: np.ndarray, image: np.ndarray, index: int) -> np.ndarray:
    """Filter an image with what `preprocessing.fit_whitening` returned; beyond the edge the image is reflected."""
    import cv2

    planes = cv2.split(image.astype(np.float32))
    kernels = whitening[:, :-1].reshape(3, 3, ZCA_SIDE, ZCA_SIDE)  # new channel by old channel
    channels = [
        sum(cv2.filter2D(plane, -1, kernel) for plane, kernel in zip(planes, row, strict=True)) for row in kernels
    ]
    return to_bytes(np.stack(channels, 2) + whitening[:, -1])
