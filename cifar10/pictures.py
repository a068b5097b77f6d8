"""Picture files as people have them, made into images of the data set's size: any format, any colours, upright."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

SIZE = (32, 32)
BACKGROUND = "white"  # behind transparent pixels, as a browser shows them, and around padded images
DRAFT = (256, 256)  # the least a JPEG is decoded to: eight times SIZE, so that the filter still decides the pixels
FITS = {  # to SIZE; Pillow's bicubic filter widens with the reduction, so it antialiases
    "crop": lambda image: ImageOps.fit(image, SIZE, Image.Resampling.BICUBIC),
    "pad": lambda image: ImageOps.pad(image, SIZE, Image.Resampling.BICUBIC, BACKGROUND),
    "stretch": lambda image: image.resize(SIZE, Image.Resampling.BICUBIC),
}
PROFILED = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # the mode that a profile of this colour space converts from


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and those in its folders, at any depth, whose suffix Pillow knows; sorted, each once."""
    files = {path for path in paths if not path.is_dir()}
    for folder in set(paths) - files:
        known = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
        files |= {path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file()}
    return sorted(files)


def read_image(path: Path, fit: str = "crop") -> np.ndarray:
    """An image file, its first frame if there are several, as uint8 [32, 32, 3]; one of 32 x 32 pixels as it is.

    Args:
        path: Of any format that Pillow reads.
        fit: How it becomes a square: a name of `FITS`.

    Raises:
        Exception: Whatever Pillow raises for a damaged file.
    """
    with Image.open(path) as file:
        if file.format == "EPS":  # Pillow would have Ghostscript run it
            raise ValueError("EPS is a program, and none is run")
        file.draft(None, DRAFT)
        file.load()
        image: Image.Image = file
        with suppress(Exception):  # damaged EXIF tells no orientation
            image = ImageOps.exif_transpose(file)
        alpha = None
        if image.has_transparency_data and not image.mode.startswith(("I", "F")):
            image, alpha = opaque(image)
        image = to_srgb(image, file.info.get("icc_profile"))
        if alpha:
            image.putalpha(alpha)
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
        return np.asarray(FITS[fit](image))


def opaque(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """An image that has transparent pixels as one that has none, grey if it was, and how opaque each is, mode L."""
    filled = image.convert("RGBA")
    return filled.convert("L" if is_grey(image) else "RGB"), filled.getchannel("A")


def is_grey(image: Image.Image) -> bool:
    return Image.getmodebase(image.mode) == "L"


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image without transparency as RGB of 8 bits, its colours converted from its file's ICC profile to sRGB.

    Colours stay as they are relative to white; those that sRGB does not have become its nearest. Without a profile, or
    with one that is damaged or of another kind of image, values are taken for sRGB's.
    """
    with suppress(Exception):  # Pillow raises whatever LittleCMS trips over
        source = ImageCms.ImageCmsProfile(BytesIO(profile or b""))
        mode = PROFILED[source.profile.xcolor_space]
        own = "CMYK" if image.mode == "CMYK" else "L" if is_grey(image) else "RGB"
        if mode == own or (mode, own) == ("RGB", "L"):
            # LittleCMS's short cut is up to 10 levels off for a linear grey profile, and less than one for colours.
            flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
            if (mode, image.mode) != ("L", "I;16"):  # 16 bits go straight in: in 8, dark values may be far apart
                image = eight_bits(image).convert(mode)
            intent, target = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, target, intent, "RGB", flags=flags) or image
    return eight_bits(image).convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits a pixel scaled to 8, where Pillow's own conversion would clip it at 255.

    Whole numbers are taken to reach 65535, floats to reach 1, 255 or 65535, the least of these that none is above. Any
    other image is given back as it is.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float32))
    white = min((top for top in (1, 255, 65535) if top >= pixels.max()), default=pixels.max())
    white = white if image.mode == "F" else max(white, 65535)
    return Image.fromarray((pixels.clip(0) * (255 / white)).round().astype(np.uint8))


def read_or_reason(path: Path, fit: str) -> np.ndarray | str:
    """What `read_image` gives, or why it gives nothing."""
    try:
        return read_image(path, fit)
    except UnidentifiedImageError:
        return "no image that Pillow knows, or damaged"
    except Exception as error:  # Pillow's many decoders raise whatever they trip over
        reason = error.strerror if isinstance(error, OSError) else None
        return reason or f"not decoded: {str(error) or type(error).__name__}"
