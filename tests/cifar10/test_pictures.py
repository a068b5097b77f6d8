"""What becomes of the pixels of a picture file, and which files are found in folders."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from cifar10 import pictures
from conftest import ROOT
from made_up_pictures import OTHER, PICTURE, PIXELS, saved

GREY = np.arange(1024, dtype=np.uint16).reshape(32, 32) // 4


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("a.png", PICTURE, {}),
        ("a.bmp", PICTURE, {}),
        ("a.ppm", PICTURE, {}),
        ("a.tiff", PICTURE, {"compression": "tiff_lzw"}),
        ("a.webp", PICTURE, {"lossless": True}),
        ("opaque.png", PICTURE.convert("RGBA"), {}),
        ("palette.png", PICTURE.quantize(16), {}),
        ("palette.gif", PICTURE.quantize(16), {}),
        ("cmyk.tiff", PICTURE.convert("CMYK"), {}),
        ("animated.gif", PICTURE.quantize(16), {"save_all": True, "append_images": [OTHER]}),
        ("animated.png", PICTURE, {"save_all": True, "append_images": [OTHER]}),
        ("animated.webp", PICTURE, {"save_all": True, "append_images": [OTHER], "lossless": True}),
        ("pages.tiff", PICTURE, {"save_all": True, "append_images": [OTHER]}),
    ],
)
@pytest.mark.parametrize("fit", pictures.FITS)
def test_a_file_of_32_by_32_pixels_is_taken_bit_for_bit(
    tmp_path: Path, name: str, image: Image.Image, options: dict[str, Any], fit: str
) -> None:
    assert np.array_equal(pictures.read_image(saved(tmp_path / name, image, **options), fit), PIXELS)


def test_grey_and_black_and_white_become_rgb(tmp_path: Path) -> None:
    grey, black_or_white = PICTURE.convert("L"), PICTURE.convert("1")
    for image in (grey, black_or_white):
        pixels = pictures.read_image(saved(tmp_path / "a.png", image))
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_16_bits_and_floats_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = Image.fromarray(GREY * 257)
    assert deep.mode == "I;16"
    files = [saved(tmp_path / "a.png", deep), saved(tmp_path / "a.tiff", deep)]
    files += [saved(tmp_path / "i.tiff", Image.fromarray(GREY.astype(np.int32) * 257))]
    files += [
        saved(tmp_path / f"f{white}.tiff", Image.fromarray((GREY / 255 * white).astype(np.float32)))
        for white in (1, 255, 65535)
    ]
    (tmp_path / "a.pgm").write_bytes(b"P5 32 32 65535\n" + (GREY * 257).astype(">u2").tobytes())
    for path in [*files, tmp_path / "a.pgm"]:
        assert np.array_equal(pictures.read_image(path), GREY.astype(np.uint8)[:, :, None].repeat(3, 2)), path.name
    for dark in (Image.fromarray(GREY), Image.fromarray(GREY.astype(np.int32))):
        assert pictures.read_image(saved(tmp_path / "dark.tiff", dark)).max() == 1


@pytest.mark.parametrize("image", [PICTURE, PICTURE.convert("CMYK")], ids=["rgb", "cmyk"])
def test_a_colour_profile_is_ignored_whatever_it_is(tmp_path: Path, image: Image.Image) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"no profile at all", srgb, srgb[:400]):
        assert np.array_equal(pictures.read_image(saved(tmp_path / "a.tiff", image, icc_profile=profile)), PIXELS)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(path: Path, bits: int, colour: int, rows: bytes, **chunks: bytes) -> Path:
    """A PNG of 32 x 32 pixels, of a depth and colour type that Pillow does not write; `rows` without filter types."""
    length = len(rows) // 32
    filtered = b"".join(b"\0" + rows[start : start + length] for start in range(0, len(rows), length))
    content = [(b"IHDR", struct.pack(">2I5B", 32, 32, bits, colour, 0, 0, 0))]
    content += [(name.encode(), chunk) for name, chunk in chunks.items()]
    content += [(b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(png_chunk, *zip(*content, strict=True))))
    return path


def test_transparent_pixels_are_seen_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    image.paste((0, 0, 0, 128), (16, 0, 32, 16))
    for path in (saved(tmp_path / "a.png", image), saved(tmp_path / "a.webp", image, lossless=True)):
        pixels = pictures.read_image(path)
        assert (pixels[:, :16] == 255).all() and (pixels[:16, 16:] == 127).all() and (pixels[16:, 16:] == 0).all()
    palette = PICTURE.quantize(16)
    clear = np.asarray(palette) == 7
    pixels = pictures.read_image(saved(tmp_path / "p.png", palette, transparency=7))
    assert clear.any() and (pixels[clear] == 255).all() and np.array_equal(pixels[~clear], PIXELS[~clear])
    assert (pictures.read_image(saved(tmp_path / "la.png", Image.new("LA", (32, 32), (9, 0)))) == 255).all()


LEFT = np.arange(1024).reshape(32, 32) % 32 < 16  # the left half of an image


@pytest.mark.parametrize(
    ("bits", "colour", "left", "right", "seen"),
    [
        (1, 0, [0], [1], 255),
        (2, 0, [1], [2], 170),
        (4, 0, [3], [10], 170),
        (8, 0, [51], [52], 52),
        (8, 2, [1, 2, 3], [170, 170, 170], 170),
        (16, 2, [0x3344, 0x5566, 0x7788], [0xAAAA] * 3, 170),
        (16, 4, [0x3344, 0], [0xAAAA, 0xFFFF], 170),
        (16, 6, [0x3344, 0x5566, 0x7788, 0], [0xAAAA] * 3 + [0xFFFF], 170),
    ],
)
def test_transparent_pixels_of_each_depth_are_seen_on_white(
    tmp_path: Path, bits: int, colour: int, left: list[int], right: list[int], seen: int
) -> None:
    values = np.where(LEFT[..., None], left, right)
    if bits < 8:
        rows = np.packbits((values >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
    else:
        rows = values.astype(f">u{bits // 8}").tobytes()
    chunks = {} if colour > 2 else {"tRNS": struct.pack(f">{len(left)}H", *left)}
    pixels = pictures.read_image(png(tmp_path / "a.png", bits, colour, rows, **chunks))
    assert (pixels[LEFT] == 255).all() and (pixels[~LEFT] == seen).all()


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "RGBa"])
def test_transparent_pixels_of_each_mode_are_seen_on_white(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    image = Image.new("RGBA", (32, 32), (100, 100, 100, 128))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    palette = image.convert("RGB").quantize(4).convert("PA")
    palette.putalpha(image.getchannel("A"))
    made = {"LA": image.convert("LA"), "PA": palette, "RGBA": image, "RGBa": image.convert("RGBa")}[mode]
    monkeypatch.setattr(Image, "open", lambda _: made)  # Pillow writes few of them to files
    assert made.mode == mode
    pixels = pictures.read_image(tmp_path / "a.tiff")
    assert (pixels[LEFT] == 255).all() and np.abs(pixels[~LEFT].astype(int) - 177).max() <= 1


@pytest.mark.parametrize(("orientation", "turned"), [(3, np.rot90(PIXELS, 2)), (6, np.rot90(PIXELS, -1))])
def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path, orientation: int, turned: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pictures.read_image(saved(tmp_path / "a.png", exif=exif)), turned)


def test_an_oblong_image_is_cropped_padded_or_stretched(tmp_path: Path) -> None:
    image = Image.new("RGB", (128, 64), "blue")
    image.paste("red", (0, 0, 28, 64))  # further out than the filter reaches into the crop
    path = saved(tmp_path / "a.png", image)
    red, blue, white = ([255, 0, 0], [0, 0, 255], [255, 255, 255])
    assert (pictures.read_image(path, "crop") == blue).all()
    padded, stretched = pictures.read_image(path, "pad"), pictures.read_image(path, "stretch")
    assert (padded[:8] == white).all() and (padded[24:] == white).all()
    assert (padded[8:24, :5] == red).all() and (padded[8:24, 10:] == blue).all()
    assert (stretched[:, :5] == red).all() and (stretched[:, 10:] == blue).all()


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.jpg", {"quality": 95})])
@pytest.mark.parametrize("fit", pictures.FITS)
def test_reduction_antialiases(tmp_path: Path, name: str, options: dict[str, Any], fit: str) -> None:
    checkerboard = Image.fromarray((np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8))
    assert abs(pictures.read_image(saved(tmp_path / name, checkerboard, **options), fit).astype(int) - 127).max() <= 2


def test_a_large_jpeg_decoded_small_gives_the_same_picture(tmp_path: Path) -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((2048, 2048))
    read = pictures.read_image(saved(tmp_path / "a.jpg", large, quality=95))
    exact = np.asarray(large.resize((32, 32), Image.Resampling.BICUBIC))
    assert abs(read.astype(int) - exact).max() <= 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    small = saved(tmp_path / "b.jpg", noise)
    with Image.open(small) as whole:  # not much larger than the result: nothing is left out
        assert np.array_equal(pictures.read_image(small), np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC)))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(48, 40), (2048, 1024)])
def test_a_jpeg_beyond_pillows_limit_gives_the_bits_that_it_gives_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("a.jpg", {"exif": exif}), ("a.mpo", {"save_all": True, "append_images": [OTHER]})):
        path = saved(tmp_path / name, PICTURE.resize(size), **options)
        below = pictures.read_image(path)
        for limit in (size[0] * size[1] - 1, 10):  # where Pillow warns, and where it raises
            with monkeypatch.context() as patch:
                patch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
                assert np.array_equal(pictures.read_image(path), below)


# Which files are found


def linked(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("this user may not make links")


def test_each_kind_of_file_that_is_read_when_named_is_found_in_a_folder(tmp_path: Path) -> None:
    saved(tmp_path / "stereo.MPO", save_all=True, append_images=[OTHER])
    for name in ("a.jfif", "a.jpe", "a.jp2", "a.avif", "a.tga", "a.pbm", "a.heic", "a.HIF"):
        (tmp_path / name).touch()
    expected = sorted(tmp_path.iterdir())
    others = ["drawing.svg", "film.mpg", "page.pdf", "photo", "photo.jxl", "photo.nef", "weather.grib", "weights.h5"]
    for name in others:  # Pillow knows some of these names, and reads none
        (tmp_path / name).touch()
    assert pictures.find_images([tmp_path]) == (expected, [tmp_path / name for name in others])
    alone = "import sys; from cifar10.pictures import *; print(len(find_images([Path(sys.argv[1])])[0]))"
    done = subprocess.run([sys.executable, "-c", alone, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) == len(expected)  # also where nothing has loaded Pillow's formats
    assert np.abs(pictures.read_image(tmp_path / "stereo.MPO").astype(int) - PIXELS).mean() < 20


def test_folders_behind_links_are_searched_once_and_without_end(tmp_path: Path) -> None:
    inside, outside = saved(tmp_path / "in" / "sub" / "a.png"), saved(tmp_path / "out" / "b.png")
    for name, target in (("again", "sub"), ("back", "."), ("out", "../out"), ("gone", "nowhere"), ("self", "self")):
        linked(tmp_path / "in" / name, Path(target))
    linked(tmp_path / "out" / "in", tmp_path / "in")
    found = [tmp_path / "in" / "out" / "b.png", inside]
    assert pictures.find_images([tmp_path / "in"]) == (found, [])
    assert pictures.find_images([tmp_path / "in" / "back"])[0][-1] == tmp_path / "in" / "back" / "sub" / "a.png"
    assert pictures.find_images([tmp_path / "out", tmp_path / "in"])[0] == [inside, outside]
