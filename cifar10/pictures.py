"""Read picture files of any format as images of the data set's size.

pixels = read_image(Path("photo.jpg"))  # uint8 [32, 32, 3]
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIZE = (32, 32)
BACKGROUND = "white"  # behind transparent pixels, as a browser shows them, and around padded images
DRAFT = (256, 256)  # the least a JPEG is decoded to: eight times SIZE, so that the filter still decides the pixels
PIXELS = 89_478_485  # the most of a file; above, Pillow warns of a decompression bomb
JPEG_PIXELS = 250_000_000  # the most of a JPEG, which is decoded reduced: more than a phone's 200 megapixels
Image.MAX_IMAGE_PIXELS = JPEG_PIXELS  # `read_image` checks the others, and Pillow what is beyond twice as many
FITS = {  # to SIZE; Pillow's bicubic filter widens with the reduction, so it antialiases
    "crop": lambda image: ImageOps.fit(image, SIZE, Image.Resampling.BICUBIC),
    "pad": lambda image: ImageOps.pad(image, SIZE, Image.Resampling.BICUBIC, BACKGROUND),
    "stretch": lambda image: image.resize(SIZE, Image.Resampling.BICUBIC),
}
NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG"}  # Pillow tells these by name, and has no decoder for them
HEIC = {".heic", ".heics", ".heif", ".heifs", ".hif"}
UNKNOWN = "no image that Pillow knows, or damaged"


def label(file: Path) -> str:
    """Return the name of the folder that the file is in, for folders that are named by class."""
    return Path(os.path.abspath(file)).parent.name


def find_images(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files in `paths`, with the images in its folders at any depth, and the files that are skipped there.

    Both lists are sorted and have each file once. Skipped are files without the suffix of an image, and hidden images,
    whose names begin with a dot. Links to folders are followed; hidden folders are not searched. A folder that cannot
    be listed is among the files, and reading it tells why.
    """
    suffixes = Image.registered_extensions()  # loads what fills OPEN
    decoded = Image.OPEN.keys() - NOT_DECODED
    known = {suffix for suffix, name in suffixes.items() if name in decoded} | {".mpo"} | HEIC
    files, skipped, searched = set[Path](), set[Path](), set[str]()
    for path in paths:
        if not path.is_dir():
            files.add(path)
            continue
        for folder, inner, names in os.walk(
            path, onerror=lambda error: files.add(Path(error.filename)), followlinks=True
        ):
            real = os.path.realpath(folder)
            if real in searched:
                inner.clear()
                continue
            searched.add(real)
            inner[:] = [name for name in inner if not name.startswith(".")]
            inner.sort(
                key=lambda name: os.path.islink(os.path.join(folder, name))
            )  # links last: folders keep their names
            for file in [Path(folder, name) for name in names]:
                is_hidden, is_image = file.name.startswith("."), file.suffix.lower() in known
                if file.is_file() and (is_image or not is_hidden):
                    (files if is_image and not is_hidden else skipped).add(file)
    return sorted(files), sorted(skipped - files)


def read_image(path: Path, fit: str = "crop") -> np.ndarray:
    """Read an image file of any format that Pillow reads as uint8 [32, 32, 3]; of several frames the first.

    It is turned upright, put on white where it is transparent, and made square by the entry `fit` of FITS. An image of
    32 x 32 pixels stays as it is. Colour profiles are ignored. Raises whatever Pillow raises for a damaged file, and
    ValueError for one of too many pixels or with a program in it.
    """
    register_heif()
    with Image.open(path) as file:
        reduced = file.format in ("JPEG", "MPO") and "progressive" not in file.info  # which libjpeg holds whole
        if prod(file.size) > (JPEG_PIXELS if reduced else PIXELS):
            raise ValueError(f"{prod(file.size) / 1e6:,.0f} megapixels, which could be a decompression bomb")
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
