"""Read picture files of any format as images of the data set's size.

pixels = read_image(Path("photo.jpg"))  # uint8 [32, 32, 3]
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIZE = (32, 32)
BACKGROUND = "white"  # behind transparent pixels, as a browser shows them, and around padded images
DRAFT = (256, 256)  # the least a JPEG is decoded to: eight times SIZE, so that the filter still decides the pixels
Image.MAX_IMAGE_PIXELS = 125_000_000  # Pillow refuses a file of more than twice as many: a decompression bomb
FITS = {  # to SIZE; Pillow's bicubic filter widens with the reduction, so it antialiases
    "crop": lambda image: ImageOps.fit(image, SIZE, Image.Resampling.BICUBIC),
    "pad": lambda image: ImageOps.pad(image, SIZE, Image.Resampling.BICUBIC, BACKGROUND),
    "stretch": lambda image: image.resize(SIZE, Image.Resampling.BICUBIC),
}
HEIC = {".heic", ".heics", ".heif", ".heifs", ".hif"}
UNKNOWN = "no image that Pillow knows, or damaged"


def label(file: Path) -> str:
    """Return the name of the folder that the file is in, for folders that are named by class."""
    return Path(os.path.abspath(file)).parent.name


def find_images(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files in `paths`, with the images in its folders at any depth, and the files that are skipped there.

    Both lists are sorted and have each file once. Skipped are files without the suffix of an image, and files whose
    names, or whose folders' names, begin with a dot.
    """
    suffixes = Image.registered_extensions()  # loads what fills OPEN
    known = {suffix for suffix, name in suffixes.items() if name in Image.OPEN} | {".mpo"} | HEIC
    files, skipped = set[Path](), set[Path]()
    for path in paths:
        if not path.is_dir():
            files.add(path)
            continue
        for file in filter(Path.is_file, path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            (skipped if hidden or file.suffix.lower() not in known else files).add(file)
    return sorted(files), sorted(skipped - files)


def read_image(path: Path, fit: str = "crop") -> np.ndarray:
    """Read an image file of any format that Pillow reads as uint8 [32, 32, 3]; of several frames the first.

    It is turned upright, put on white where it is transparent, and made square by the entry `fit` of FITS. An image of
    32 x 32 pixels stays as it is. Colour profiles are ignored. Raises whatever Pillow raises for a damaged file, and
    ValueError for one with a program in it.
    """
    register_heif()
    with Image.open(path) as file:
        if file.format == "EPS":  # Pillow would have Ghostscript run it
            raise ValueError("EPS is a program, and none is run")
        file.draft(None, DRAFT)
        file.load()
        image: Image.Image = file
        with suppress(Exception):  # damaged EXIF tells no orientation
            image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # of 16 bits, which Pillow's own conversion would clip at 255
            image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
        return np.asarray(FITS[fit](image.convert("RGB")))


@cache
def register_heif() -> None:
    """Let Pillow read HEIC too, where pillow-heif, an optional package, is installed."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()


def read_or_reason(path: Path, fit: str) -> np.ndarray | str:
    """Return what `read_image` returns, or the reason why the file cannot be read."""
    try:
        return read_image(path, fit)
    except UnidentifiedImageError:
        is_heic = path.suffix.lower() in HEIC and "HEIF" not in Image.OPEN
        return "HEIC: to read it, pip install pillow-heif" if is_heic else UNKNOWN
    except Exception as error:  # Pillow's many decoders raise whatever they trip over
        reason = error.strerror if isinstance(error, OSError) else None
        return reason or f"not decoded: {str(error) or type(error).__name__}"
