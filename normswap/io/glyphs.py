"""Pictures of characters, drawn from the fonts of this machine: labelled data without a network."""

from __future__ import annotations

import functools
import re
import string
import struct
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.graph.graph import Array

PREFIX = "glyphs:"
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
SIZE = 32
PER_CLASS = {TRAIN: 150, VALIDATION: 15, TEST: 30}
"""Pictures of each class."""
PACKAGES = "fonts-liberation, fonts-noto-core, fonts-droid-fallback"
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_SUFFIXES = {".ttf", ".otf", ".ttc"}
_STYLES = 4  # fonts of a family, at most: an upright and a bold one, mostly
_SCRIPT = 0.8  # of its characters: what a family has that has a script
_COMPARED = 16  # characters, when families are held against each other
_DAMAGED = (OSError, KeyError, ValueError, AssertionError, struct.error)
_ALIKE = 0.97  # the correlation of pictures that count as the same
_CANVAS, _EM, _BASELINE = 64, 50, 49  # pixels, twice as fine as the pictures
_MEAN, _DEVIATION = 0.08, 0.28  # of ink 1 on paper 0
_TURN, _SCALE, _SHIFT, _NOISE = 6.0, 0.08, 1.0, 0.1  # degrees, share, pixels, share


@dataclass(frozen=True)
class Glyphs:
    """A data source by name, ``glyphs:CLASSES``, with options as in a URL:
    ``glyphs:300?fonts=FOLDER&split=test``.

    ``fonts``: in place of the system's and matplotlib's. ``split``: 'train', 'validation' or
    'test', which have no family of fonts in common.
    """

    classes: int
    fonts: Path | None = None
    split: str = TRAIN

    @classmethod
    def parse(cls, text: str) -> Glyphs:
        """Raises NormswapError for what is no such name."""
        found = re.fullmatch(r"glyphs:(\d{1,5})(?:\?(.*))?", text)
        options = dict(parse_qsl(found[2] or "", keep_blank_values=True)) if found else {}
        if found is None or int(found[1]) < 2 or options.keys() - {"fonts", "split"}:
            raise NormswapError(
                f"{text}: takes a number of classes from 2 on, as in glyphs:300 or "
                "glyphs:300?fonts=FOLDER&split=test"
            )
        split = options.get("split", TRAIN)
        if split not in SPLITS:
            raise NormswapError(f"{text}: split '{split}' is none of {', '.join(SPLITS)}")
        folder = Path(options["fonts"]) if "fonts" in options else None
        if folder is not None and not folder.is_dir():
            raise NormswapError(f"{text}: {folder} is no folder; name one of .ttf or .otf files")
        return cls(int(found[1]), folder, split)

    def arrays(self, seed: int = 0) -> tuple[Array, Array]:
        """The pictures, float32 [N, 1, 32, 32], of mean 0 and variance 1 over all (about), ink the
        higher numbers, and labels int64 [N].

        The fonts of the split's families take turns; each picture is turned, scaled and shifted a
        little, and has noise of its own. The same ``seed`` and the same fonts give the same bits.
        Raises NormswapError where the fonts have fewer classes.

        Examples:
            >>> images, labels = Glyphs.parse("glyphs:300?split=test").arrays()
        """
        alphabet = _alphabet(self.fonts)
        if self.classes > len(alphabet.characters):
            few = f"are enough for {len(alphabet.characters)} classes"
            raise NormswapError(
                f"{PREFIX}{self.classes}: the fonts in {_where(self.fonts)} {few}: each needs "
                f"other families to train, validate and test on; install {PACKAGES} (Debian), "
                "fonts-noto-cjk and fonts-unfonts-core for more, or ask for fewer"
            )
        random = np.random.default_rng([seed, SPLITS.index(self.split)])
        labels = np.repeat(np.arange(self.classes), PER_CLASS[self.split])
        pictures = np.empty((len(labels), 1, SIZE, SIZE), np.float32)
        for label, character in enumerate(alphabet.characters[: self.classes]):
            families = [f for f in alphabet.families[self.split] if f.has(character)]
            drawn = [
                font.draw(character) for family in families for font in family.with_(character)
            ]
            # A family counts as much as another one, however many styles it has.
            shares = [1 / len(f.with_(character)) for f in families for _ in f.with_(character)]
            rows = np.flatnonzero(labels == label)
            chosen = random.choice(len(drawn), len(rows), p=np.array(shares) / len(families))
            for row, index in zip(rows, chosen, strict=True):
                pictures[row, 0] = _disturbed(drawn[index], random)
        order = random.permutation(len(labels))
        return pictures[order], labels[order]


def _disturbed(picture: Image.Image, random: np.random.Generator) -> Array:
    """Turned, scaled and shifted, at half the size, with noise; float32 [32, 32]."""
    angle = np.deg2rad(random.uniform(-_TURN, _TURN))
    scale = _CANVAS / SIZE / (1 + random.uniform(-_SCALE, _SCALE))
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    across, down = SIZE / 2 + random.uniform(-_SHIFT, _SHIFT, 2)
    x = _CANVAS / 2 - cosine * across + sine * down
    y = _CANVAS / 2 - sine * across - cosine * down
    inverse = (cosine, -sine, x, sine, cosine, y)
    small = picture.transform(
        (SIZE, SIZE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    noise = random.standard_normal((SIZE, SIZE), np.float32) * np.float32(random.uniform(0, _NOISE))
    ink = np.asarray(small, np.float32) / np.float32(255) + noise
    return (ink - np.float32(_MEAN)) / np.float32(_DEVIATION)


# -- characters ----------------------------------------------------------------------------------


def _letters(first: int, last: int) -> str:
    """Those with accents, which are harder to tell apart, behind those without."""
    letters = [c for c in map(chr, range(first, last + 1)) if c.isalpha()]
    return "".join(sorted(letters, key=lambda c: len(unicodedata.normalize("NFD", c))))


def _two_bytes(codec: str, rows: Iterable[int]) -> str:
    """The characters of rows of a two-byte code, which are in common use."""
    codes = (bytes((row, cell)) for row in rows for cell in range(0xA1, 0xFF))
    return "".join(code.decode(codec, "ignore") for code in codes)


@functools.cache
def _scripts() -> dict[str, str]:
    """Their characters; of Hangul and Han some hundred each. Hangul: of KS X 1001. Han: those of
    everyday use (level 1 of GB 2312) that Japan, Korea and Taiwan have as well."""
    common = _two_bytes("gb2312", range(0xB0, 0xD8))
    elsewhere = ("shift_jis", "euc_kr", "big5")
    return {
        "Latin": string.digits + string.ascii_letters + _letters(0xC0, 0x17E),
        "Greek": _letters(0x386, 0x3CE),
        "Cyrillic": _letters(0x400, 0x45F) + _letters(0x490, 0x4F9),
        "Hangul": _two_bytes("euc_kr", range(0xB0, 0xC9))[::4],
        "Han": "".join(c for c in common if all(c.encode(o, "ignore") for o in elsewhere))[::3],
    }


# -- fonts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Font:
    path: Path
    characters: frozenset[int]

    def draw(self, character: str) -> Image.Image:
        """Ink 255 on 0, [64, 64] pixels, at the font's own size and on its baseline."""
        picture = Image.new("L", (_CANVAS, _CANVAS))
        place = (_CANVAS / 2, _BASELINE)
        ImageDraw.Draw(picture).text(place, character, 255, _opened(self.path), anchor="ms")
        return picture

    def pixels(self, character: str) -> Array:
        """The drawing as a vector of mean 0 and norm 1, or 0 where it is empty."""
        half = self.draw(character).resize((SIZE, SIZE), Image.Resampling.BOX)
        vector = np.asarray(half, np.float32).reshape(-1)
        vector = vector - vector.mean()
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))


@functools.lru_cache(maxsize=64)
def _opened(path: Path) -> ImageFont.FreeTypeFont:
    # The basic layout: what another one makes depends on which libraries there are.
    return ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC)


@dataclass(frozen=True)
class _Family:
    name: str
    fonts: tuple[_Font, ...]

    def with_(self, character: str) -> list[_Font]:
        return [font for font in self.fonts if ord(character) in font.characters]

    def has(self, character: str) -> bool:
        return bool(self.with_(character))

    def writes(self, script: str) -> bool:
        characters = _scripts()[script]
        return sum(map(self.has, characters)) >= _SCRIPT * len(characters)


@dataclass(frozen=True)
class _Alphabet:
    """``characters``: one a class. ``families``: of each split."""

    characters: str
    families: Mapping[str, Sequence[_Family]]


@functools.lru_cache(maxsize=2)
def _alphabet(folder: Path | None) -> _Alphabet:
    families = _families(folder)
    writers = {s: [f for f in families if f.writes(s)] for s in _scripts()}
    designs = _designs(writers)
    splits: dict[str, list[_Family]] = {split: [] for split in SPLITS}
    given: dict[str, str] = {}  # by design: all its families belong to one split
    for script in sorted(writers, key=lambda s: len(writers[s])):  # the rarest chooses first
        for family in writers[script]:
            counts = [sum(f.writes(script) for f in splits[split]) for split in SPLITS]
            split = given.setdefault(designs[family.name], _in_need(*counts))
            if family not in splits[split]:
                splits[split].append(family)
    return _Alphabet(_distinct(splits), splits)


def _in_need(train: int, validation: int, test: int) -> str:
    """The split that the next family is for: each gets one, then three of five are to train on."""
    if not train or (validation and train < 3 * validation):
        return TRAIN
    return TEST if test <= validation else VALIDATION


def _families(folder: Path | None) -> list[_Family]:
    """All that there are, by name. Raises NormswapError if there is none."""
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ModuleNotFoundError as error:
        raise NormswapError(
            f"{PREFIX} needs fontTools, which comes with matplotlib; {install_command('train')}"
        ) from error
    named: dict[str, dict[str, Path]] = {}
    for path in _paths(folder):
        try:
            table = TTFont(path, fontNumber=0, lazy=True)["name"]
            name, style = table.getBestFamilyName(), table.getBestSubFamilyName()
        except _DAMAGED + (TTLibError,):
            continue  # a folder of fonts may hold what only looks like one
        if name and "Resort" not in name:  # "Last Resort" has a box for every character
            named.setdefault(str(name), {}).setdefault(str(style), path)
    families = []
    for name, styles in sorted(named.items()):
        plainest = sorted(styles, key=lambda s: (s not in ("Regular", "Book", "Bold"), s))
        fonts = []
        for path in [styles[style] for style in plainest[:_STYLES]]:
            try:
                cmap = TTFont(path, fontNumber=0, lazy=True).getBestCmap()
                fonts.append(_Font(path, frozenset(cmap or ())))
                fonts[-1].draw("A")
            except _DAMAGED + (TTLibError,):
                fonts = fonts[: len(fonts) - 1]
        if fonts:
            families.append(_Family(name, tuple(fonts)))
    if not families:
        raise NormswapError(
            f"{PREFIX} {_where(folder)}: holds no font; install {PACKAGES} (Debian), or name "
            "a folder of .ttf files, as in glyphs:300?fonts=FOLDER"
        )
    return families


def _paths(folder: Path | None) -> list[Path]:
    """The files of fonts, each name once."""
    found: dict[str, Path] = {}
    places = [Path(place).expanduser() for place in _FOLDERS] if folder is None else [folder]
    for path in sorted(p for place in places for p in place.rglob("*")):
        if path.suffix.lower() in _SUFFIXES:
            found.setdefault(path.name, path)
    if folder is None:
        own = Path(str(files("matplotlib"))) / "mpl-data" / "fonts" / "ttf"
        for path in sorted([*own.glob("DejaVu*.ttf"), *own.glob("STIXGeneral*.ttf")]):
            found.setdefault(path.name, path)
    return list(found.values())


def _where(folder: Path | None) -> str:
    return "the system's folders" if folder is None else str(folder)


# -- what looks alike ----------------------------------------------------------------------------


def _designs(writers: Mapping[str, Sequence[_Family]]) -> dict[str, str]:
    """For each family the first one that draws some script alike, itself mostly: packages share
    designs under other names."""
    design = {family.name: family.name for own in writers.values() for family in own}
    for script, own in writers.items():
        some = _scripts()[script][:: len(_scripts()[script]) // _COMPARED]
        for a, b in combinations(own, 2):
            if design[a.name] != design[b.name] and _alike(a, b, some):
                old, new = design[b.name], design[a.name]
                design = {name: new if of == old else of for name, of in design.items()}
    return design


def _alike(a: _Family, b: _Family, characters: str) -> bool:
    found = [
        float(a.with_(c)[0].pixels(c) @ b.with_(c)[0].pixels(c))
        for c in characters
        if a.has(c) and b.has(c)
    ]
    return bool(found) and float(np.mean(found)) > _ALIKE


def _distinct(splits: Mapping[str, Sequence[_Family]]) -> str:
    """The characters that each split has a family for, without those that a family draws like one
    before them, as Latin A and Greek Alpha, and without empty ones."""
    characters = [
        c
        for script in _scripts().values()
        for c in script
        if all(any(family.has(c) for family in own) for own in splits.values())
    ]
    alike = np.zeros((len(characters), len(characters)), bool)
    empty = np.zeros(len(characters), bool)
    for family in splits[TRAIN]:
        own = np.array([index for index, c in enumerate(characters) if family.has(c)], int)
        drawn = [family.with_(characters[index])[0].pixels(characters[index]) for index in own]
        if drawn:
            same = np.array(drawn) @ np.array(drawn).T > _ALIKE  # an empty one is not like itself
            alike[np.ix_(own, own)] |= same
            empty[own[~same.diagonal()]] = True
    kept: list[int] = []
    for index in np.flatnonzero(~empty):
        if not alike[index, kept].any():
            kept.append(int(index))
    return "".join(characters[index] for index in kept)
