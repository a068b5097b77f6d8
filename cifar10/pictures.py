"""Read picture files of any format as images of the data set's size.

pixels = read_image(Path("photo.jpg"))  # uint8 [32, 32, 3]
"""

import os
import re
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

SIZE = (32, 32)
BACKGROUND = "white"  # behind transparent pixels, as a browser shows them, and around padded images
DRAFT = (256, 256)  # the least a JPEG is decoded to: eight times SIZE, so that the filter still decides the pixels
JPEG_PIXELS = 250_000_000  # the most of a JPEG, which is decoded reduced: more than a phone's 200 megapixels
FITS = {  # to SIZE; Pillow's bicubic filter widens with the reduction, so it antialiases
    "crop": lambda image: ImageOps.fit(image, SIZE, Image.Resampling.BICUBIC),
    "pad": lambda image: ImageOps.pad(image, SIZE, Image.Resampling.BICUBIC, BACKGROUND),
    "stretch": lambda image: image.resize(SIZE, Image.Resampling.BICUBIC),
}
NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG"}  # Pillow tells these by name, and has no decoder for them
# Those of MPO, which Pillow opens as JPEG, and of what it opens with a plugin or in some versions.
MORE_SUFFIXES = {".mpo", ".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs"}
HEIC = re.compile(rb".{4}ftyp(?!avi).*?(heic|heix|hevc|mif1|msf1)", re.DOTALL)  # brands of ISO/IEC 23008-12
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
    known = {suffix for suffix, name in suffixes.items() if name in decoded} | MORE_SUFFIXES
    waiting = deque(path for path in paths if path.is_dir())
    files, skipped, searched = set(paths) - set(waiting), set[Path](), set[Path]()
    while waiting:
        folder = waiting.popleft()
        if (real := folder.resolve()) in searched:
            continue
        searched.add(real)
        try:
            inside = list(folder.iterdir())
        except OSError:
            files.add(folder)
            continue
        for path in inside:
            is_hidden, is_image = path.name.startswith("."), path.suffix.lower() in known
            if path.is_dir() and not is_hidden:
                waiting.insert(len(waiting) if path.is_symlink() else 0, path)  # links last: folders keep their names
            elif path.is_file() and (is_image or not is_hidden):
                (files if is_image and not is_hidden else skipped).add(path)
    return sorted(files), sorted(skipped - files)


def read_image(path: Path, fit: str = "crop") -> np.ndarray:
    """Read an image file of any format that Pillow reads as uint8 [32, 32, 3]; of several frames the first.

    It is turned upright, put on white where it is transparent, and made square by the entry `fit` of FITS. An image of
    32 x 32 pixels stays as it is. Colour profiles are ignored. Raises whatever Pillow raises for a damaged file.
    """
    with open_image(path) as file:
        if file.format == "EPS":  # Pillow would have Ghostscript run it
            raise ValueError("EPS is a program, and none is run")
        file.draft(None, DRAFT)
        scale_transparent_colour(file)
        file.load()
        image: Image.Image = file
        with suppress(Exception):  # damaged EXIF tells no orientation
            image = ImageOps.exif_transpose(file)
        image = reduce_to_8_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
        return np.asarray(FITS[fit](image.convert("RGB")))


def open_image(path: Path) -> Image.Image:
    """Open a file without decoding a pixel.

    Raises:
        DecompressionBombError: It has more pixels than Pillow allows, or than `JPEG_PIXELS` if it is a JPEG that is not
            progressive; DecompressionBombWarning likewise, where warnings are errors.
    """
    register_heif()
    try:
        return Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        with suppress(SyntaxError):  # not a JPEG
            file = JpegImageFile(path)  # without the check
            if prod(file.size) <= JPEG_PIXELS and "progressive" not in file.info:  # which libjpeg holds whole
                return file
            file.close()
        raise


@cache
def register_heif() -> None:
    """Let Pillow read HEIC too, where pillow-heif, an optional package, is installed."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()


def scale_transparent_colour(file: Image.Image) -> None:
    """Give a PNG's transparent colour the scale of its pixels: Pillow scales those of 2, 4 and 3 x 16 bits alone."""
    stored = file.tile[0][3] if file.format == "PNG" and file.tile else None  # type: ignore[attr-defined]
    if "transparency" in file.info and stored in ("L;2", "L;4"):
        file.info["transparency"] *= {"L;2": 85, "L;4": 17}[stored]
    elif "transparency" in file.info and stored == "RGB;16B":
        file.info["transparency"] = tuple(value >> 8 for value in file.info["transparency"])


def reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image of more than 8 bits a pixel to 8, where Pillow's own conversion would clip it at 255.

    White is 65535 for whole numbers, and for floats the least of 1, 255 and 65535 that none is above. Return any other
    image as it is.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float32))
    white = min((top for top in (1, 255, 65535) if top >= pixels.max()), default=pixels.max())
    white = white if image.mode == "F" else max(white, 65535)
    return Image.fromarray((pixels.clip(0) * (255 / white)).round().astype(np.uint8))


def read_or_reason(path: Path, fit: str) -> np.ndarray | str:
    """Return what `read_image` returns, or the reason why the file cannot be read."""
    try:
        return read_image(path, fit)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            is_heic = HEIC.match(file.read(64)) and "HEIF" not in Image.OPEN
        return "HEIC: to read it, pip install pillow-heif" if is_heic else UNKNOWN
    except Exception as error:  # Pillow's many decoders raise whatever they trip over
        reason = error.strerror if isinstance(error, OSError) else None
        return reason or f"not decoded: {str(error) or type(error).__name__}"
