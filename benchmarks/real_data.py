"""Pictures, sentences, lines of text, speech and files out of the packages of ``real_packages``.

Each function is deterministic: what differs between draws is what the caller's generator says.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from normswap.graph.graph import Array

_SMALLEST, _COLOURS, _APART = 220, 400, 40  # pixels; of 128 x 128; of 256 bits
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
LINE, WIDTH = 48, 320  # pixels of a line of text
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SENTENCE = re.compile(r"(?<=[a-z\d)][.!?])\s+(?=[A-Z])")
_WORD = re.compile(r"\b[A-Za-z][A-Za-z-]{1,11}\b")
_FAMILIES = (
    "LiberationMono", "LiberationSans", "LiberationSerif", "NotoSans", "NotoSerif", "DroidSans"
)  # fmt: skip
_STYLES = "(Narrow|Display|FallbackFull)?(-(Regular|Bold|Italic|BoldItalic))?.ttf"


def photographs(folders: Sequence[Path], cache: Path) -> list[Path]:
    """Distinct photographs: with many colours, and no two whose difference hashes are near, so
    that the sizes, crops and themes of one wallpaper count once. Kept in ``cache``."""
    known = cache / "photographs.json"
    if known.is_file():
        return [cache / name for name in json.loads(known.read_text())]
    files = sorted(p for f in folders for p in f.rglob("*") if p.suffix.lower() in _SUFFIXES)
    kept: list[Path] = []
    hashes: list[Array] = []
    for path in files:
        if path.is_symlink() or (image := _photograph(path)) is None:
            continue
        grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BILINEAR))
        bits = grey[:, 1:] > grey[:, :-1]
        if all((bits != other).sum() >= _APART for other in hashes):
            hashes.append(bits)
            kept.append(path)
    known.write_text(json.dumps([p.relative_to(cache).as_posix() for p in kept]))
    return kept


def _photograph(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as file:
            if min(file.size) < _SMALLEST:
                return None
            file.draft("RGB", (512, 512))
            image = file.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):  # no image after all
        return None
    small = np.asarray(image.resize((128, 128), Image.Resampling.BILINEAR)) // 8
    return image if len(np.unique(small.reshape(-1, 3), axis=0)) >= _COLOURS else None


def crops(paths: Sequence[Path], size: int, cache: Path) -> Array:
    """One square of each picture, of half to all of its shorter side, normalized: [N, 3, S, S]."""
    known = cache / f"crops-{size}.npy"
    if known.is_file():
        return np.load(known, mmap_mode="r")
    rng = np.random.default_rng(0)
    out = np.empty((len(paths), 3, size, size), np.float32)
    for number, path in enumerate(paths):
        with Image.open(path) as file:
            file.draft("RGB", (768, 768))
            image = file.convert("RGB")
        side = int(min(image.size) * rng.uniform(0.5, 1))
        left, top = (int(rng.integers(0, full - side + 1)) for full in image.size)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box)) / 255
        out[number] = ((pixels - MEAN) / STD).transpose(2, 0, 1)
    np.save(known, out)
    return out


def paragraphs(folders: Sequence[Path]) -> list[list[str]]:
    """Prose of two or more sentences of 5 to 40 words each, in the order of the documents."""
    found: dict[str, list[str]] = {}
    for path in sorted(p for folder in folders for p in folder.rglob("*.txt.gz")):
        if path.is_symlink():
            continue
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        for block in re.split(r"\n\s*\n", text):
            prose = re.sub(r"\s+", " ", block).strip()
            sentences = _SENTENCE.split(prose)
            lengths = [len(sentence.split()) for sentence in sentences]
            fits = len(sentences) > 1 and min(lengths) >= 5 and max(lengths) <= 40
            if fits and prose[0].isupper() and prose.endswith((".", "?", "!")):
                found.setdefault(prose, sentences)
    return list(found.values())


def words(texts: Sequence[Sequence[str]]) -> list[str]:
    """Every word of some sentences once, in order of appearance."""
    return list(dict.fromkeys(w for text in texts for line in text for w in _WORD.findall(line)))


def font_families(folders: Sequence[Path]) -> list[list[Path]]:
    """The Latin fonts by family, so that all styles of one stay together."""
    files = sorted(p for folder in folders for p in folder.rglob("*.ttf") if not p.is_symlink())
    found = [[p for p in files if re.fullmatch(f + _STYLES, p.name)] for f in _FAMILIES]
    return [family for family in found if family]


def lines(
    rng: np.random.Generator, count: int, fonts: Sequence[Path], vocabulary: Sequence[str]
) -> tuple[Array, list[str]]:
    """Lines of one to four words or numbers and their text: [N, 3, 48, 320] from -1 to 1, grey ink
    on paper, of many sizes, blurred and noisy as photographs are."""
    images = np.zeros((count, 3, LINE, WIDTH), np.float32)
    texts = []
    while len(texts) < count:
        parts = [str(rng.choice(vocabulary)) for _ in range(rng.integers(1, 5))]
        if rng.random() < 0.3:
            parts.append(str(rng.integers(10, 10_000)))
        font = ImageFont.truetype(str(rng.choice([str(f) for f in fonts])), rng.integers(12, 40))
        text = " ".join(parts)
        if (picture := _line(rng, text, font)) is not None:
            images[len(texts), :, :, : picture.shape[1]] = picture
            texts.append(text)
    return images, texts


def _line(rng: np.random.Generator, text: str, font: ImageFont.FreeTypeFont) -> Array | None:
    """The picture of a line, 48 pixels high, or None if it is too wide."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    edge = max(2, (bottom - top) // 5)
    size = right - left + 2 * edge, bottom - top + 2 * edge
    image = Image.new("L", size, int(rng.integers(150, 256)))
    ink = int(rng.integers(0, 110))
    ImageDraw.Draw(image).text((edge - left, edge - top), text, fill=ink, font=font)
    width = round(size[0] * LINE / size[1])
    if width > WIDTH:
        return None
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, size[1] / 30)))
    pixels = np.asarray(image.resize((width, LINE), Image.Resampling.BILINEAR), np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(0, 25), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.float32) / 127.5 - 1


def spoken(folder: Path) -> Iterator[tuple[str, Array]]:
    """Recorded prompts of a second and more, at 16 kHz from -1 to 1, with their names."""
    for path in sorted(folder.rglob("*.wav")):
        with wave.open(str(path)) as file:
            rate, frames = file.getframerate(), file.readframes(file.getnframes())
        sound = np.frombuffer(frames, "<i2").astype(np.float32) / 32768
        if rate == 8000 and len(sound) >= rate and not path.is_symlink():
            steps = np.arange(2 * len(sound)) / 2
            yield path.stem, np.interp(steps, np.arange(len(sound)), sound).astype(np.float32)


def files(folders: Sequence[Path], each: int) -> list[Path]:
    """At most ``each`` files of every suffix, spread over the packages."""
    found = sorted(p for f in folders for p in f.rglob("*") if p.is_file() and not p.is_symlink())
    chosen: list[Path] = []
    for _, group in itertools.groupby(sorted(found, key=_suffix), key=_suffix):
        same = list(group)
        chosen += same[:: max(1, len(same) // each)][:each]
    return chosen


def _suffix(path: Path) -> str:
    return path.suffix.lower()
