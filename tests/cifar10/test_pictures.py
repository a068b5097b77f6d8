"""What becomes of the pixels of a picture file, and which files are found in folders."""

import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from cifar10 import pictures
from cifar10.pictures import read_or_reason
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


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = Image.fromarray(GREY * 257)
    assert deep.mode == "I;16"
    files = [saved(tmp_path / "a.png", deep), saved(tmp_path / "a.tiff", deep)]
    files += [saved(tmp_path / "i.tiff", Image.fromarray(GREY.astype(np.int32) * 257))]
    (tmp_path / "a.pgm").write_bytes(b"P5 32 32 65535\n" + (GREY * 257).astype(">u2").tobytes())
    for path in [*files, tmp_path / "a.pgm"]:
        assert np.array_equal(pictures.read_image(path), GREY.astype(np.uint8)[:, :, None].repeat(3, 2)), path.name


@pytest.mark.parametrize("image", [PICTURE, PICTURE.convert("CMYK")], ids=["rgb", "cmyk"])
def test_a_colour_profile_is_ignored_whatever_it_is(tmp_path: Path, image: Image.Image) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"no profile at all", srgb, srgb[:400]):
        assert np.array_equal(pictures.read_image(saved(tmp_path / "a.tiff", image, icc_profile=profile)), PIXELS)


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_phones_200_megapixels_are_read_and_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    content = bytearray(saved(tmp_path / "a.jpg").read_bytes())
    height = content.index(b"\xff\xc0") + 5  # of ITU-T T.81's frame header
    for side in (14_142, 16_000):  # 200 megapixels, and more than our limit of 250
        content[height : height + 4] = struct.pack(">2H", side, side)
        (tmp_path / f"{side}.jpg").write_bytes(content)
    assert pictures.read_image(tmp_path / "14142.jpg").shape == (32, 32, 3)
    assert "decompression bomb" in read_or_reason(tmp_path / "16000.jpg", "crop")


def test_an_image_with_damaged_exif_is_taken_as_it_is_stored(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(pictures.read_image(path), PIXELS)


@pytest.mark.parametrize("name", ["a.eps", "a.png"])
def test_no_other_program_is_run_for_an_eps_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = saved(tmp_path / name, format="EPS")
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    assert read_or_reason(path, "crop") == "not decoded: EPS is a program, and none is run"


def test_heic_is_read_where_pillow_heif_is_installed_and_elsewhere_a_line_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()  # a decoder registers itself when it is imported, once: within the test, it would be lost after it
    monkeypatch.setattr(Image, "OPEN", {name: each for name, each in Image.OPEN.items() if name != "HEIF"})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setattr(pictures, "register_heif", pictures.register_heif.__wrapped__)
    content = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100)
    (tmp_path / "a.HEIC").write_bytes(content)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert read_or_reason(tmp_path / "a.HEIC", "crop") == "HEIC: to read it, pip install pillow-heif"

    def register() -> None:
        Image.register_open("HEIF", lambda *_: PICTURE.copy(), lambda prefix: prefix[8:12] == b"heic")  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    assert np.array_equal(pictures.read_image(tmp_path / "a.HEIC"), PIXELS)


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.bmp", "a.jpg", "a.tiff", "a.webp", "a.ppm", "a.ico", "a.tga"])
@pytest.mark.filterwarnings("ignore")
def test_any_damage_to_a_file_gives_an_image_or_a_reason(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content, rng = saved(tmp_path / name, exif=exif).read_bytes(), np.random.default_rng(0)
    reasons = set()
    for number in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 400), 1 + number % 8):
            damaged[place] = rng.integers(256)
        end = rng.integers(len(content)) if number % 3 == 0 else None
        (tmp_path / name).write_bytes(damaged[:end])
        read = read_or_reason(tmp_path / name, "crop")
        if isinstance(read, str):
            reasons.add(read)
        else:
            assert read.shape == (32, 32, 3) and read.dtype == np.uint8
    assert reasons and "" not in reasons


def test_images_are_found_in_folders_at_any_depth(tmp_path: Path) -> None:
    saved(tmp_path / "deep" / "er" / "stereo.MPO", save_all=True, append_images=[OTHER])
    for name in ("a.jfif", "a.jpe", "a.jp2", "a.avif", "a.tga", "a.pbm", "a.heic", "a.HIF"):
        (tmp_path / name).touch()
    expected = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    others = [".hidden.png", "deep/.cache/a.png", "drawing.svg", "page.pdf", "photo", "photo.jxl", "photo.nef"]
    for name in others:
        saved(tmp_path / name, format="PNG")
    assert pictures.find_images([tmp_path, tmp_path / "a.tga"]) == (expected, [tmp_path / name for name in others])
    assert pictures.find_images([tmp_path / ".hidden.png"]) == ([tmp_path / ".hidden.png"], [])
    alone = "import sys; from cifar10.pictures import *; print(len(find_images([Path(sys.argv[1])])[0]))"
    done = subprocess.run([sys.executable, "-c", alone, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) == len(expected)  # also where nothing has loaded Pillow's formats
    assert np.abs(pictures.read_image(expected[-1]).astype(int) - PIXELS).mean() < 20
