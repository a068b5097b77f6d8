"""Small made-up pictures, and files of them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)  # 16 colours
PICTURE = Image.fromarray(PIXELS)
OTHER = Image.new("RGB", (32, 32), "red")


def saved(path: Path, image: Image.Image = PICTURE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {"append_images": [more.copy() for more in options.get("append_images", [])]}
    image.copy().save(path, **options | copies)  # Pillow keeps an encoder's settings in an image
    return path
