"""Small images of every kind that a folder may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((37, 53), (64, 41), (30, 30), (9, 75))  # height and width; the last must be enlarged


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth RGB image with some noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (3 + c)) + np.cos(columns / (5 - c)) for c in range(3)]
    noise = random.normal(0, 0.3, (height, width, 3))
    return Image.fromarray(np.clip((np.stack(waves, -1) + noise) * 60 + 128, 0, 255).astype("u1"))


def write_pictures(folder: Path) -> list[Path]:
    """Odd sizes, several formats and modes, one turned by EXIF; in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, size in enumerate(SIZES):
        paths.append(folder / f"a{number}.png")
        picture(*size, seed=number).save(paths[-1])
    base = picture(45, 50, seed=9)
    alpha = base.copy()
    alpha.putalpha(base.convert("L"))
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, image, options in (
        ("b.jpg", base, {"exif": turned}),
        ("c.webp", base, {}),
        ("d.png", base.convert("L"), {}),
        ("e.png", alpha, {}),
        ("f.png", base.quantize(16), {}),
        ("g.png", base.quantize(16), {"transparency": 3}),
        ("h.png", base.convert("1"), {}),
        ("i.jpeg", base.convert("CMYK"), {}),
        ("j.bmp", base, {}),
        ("k.ppm", base, {}),
        ("l.tiff", base, {}),
        ("m.gif", base, {}),
        ("n.png", alpha.convert("LA"), {}),
    ):
        paths.append(folder / name)
        image.save(paths[-1], **options)
    return paths
