"""The trained models of this repository in float16: as accurate as in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import normswap as ns
from normswap.assets import digits
from normswap.graph.graph import Array
from normswap.runtimes.run_in import run_in
from tests.effort import thorough

_POINTS = 0.002


def _feeds(model: ns.Model, images: Array) -> Mapping[str, Array]:
    feeds = {"pixel_values": images}
    if len(model.inputs) > 1:
        ids = digits.class_caption_ids().reshape(-1, digits.CONTEXT_LENGTH)
        pad = digits.VOCABULARY[digits.PAD]
        feeds |= {"input_ids": ids, "attention_mask": (ids != pad).astype(np.int64)}
    return feeds


def _accuracy(outputs: Mapping[str, Array], labels: Array) -> float:
    found = {name: np.asarray(array, np.float64) for name, array in outputs.items()}
    if "image_embeds" not in found:
        (logits,) = found.values()
        return float((logits.argmax(-1) == labels).mean())
    captions = found["text_embeds"].reshape(10, -1, found["text_embeds"].shape[-1])
    nearest = digits.zero_shot_labels(found["image_embeds"], captions)
    return float((nearest == labels).mean())


@thorough
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("folder", [digits.DIGITS_VIT, digits.DIGITS_CLIP], ids=["vit", "clip"])
def test_accuracy(folder: Path, suffix: str, tmp_path: Path) -> None:
    split = digits.load_digits_split()
    original, path = ns.load(str(folder)), tmp_path / f"original.{suffix}"
    ns.save(original, path)
    feeds = _feeds(original, split.test_images)
    wanted = _accuracy(original.run(feeds), split.test_labels)
    assert wanted > 0.9
    result = ns.convert(ns.load(path), "float16")
    assert result.islands == []
    ns.save(result.model, tmp_path / f"half.{suffix}")
    half = ns.load(tmp_path / f"half.{suffix}")
    for outputs in (half.run(feeds), half.run(feeds, np.float16)):  # and simulated
        found = _accuracy(outputs, split.test_labels)
        print(folder.name, suffix, wanted, found)
        assert abs(found - wanted) <= _POINTS


@thorough
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("folder", [digits.DIGITS_VIT, digits.DIGITS_CLIP], ids=["vit", "clip"])
def test_a_file_in_runtimes(folder: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    split, original = digits.load_digits_split(), ns.load(str(folder))
    feeds = _feeds(original, split.test_images)
    expected = original.run(feeds)
    with run_in(ns.convert(original, "float16").model, runtime) as compiled:
        outputs = dict(zip(expected, compiled(feeds), strict=True))
    wanted, found = (_accuracy(named, split.test_labels) for named in (expected, outputs))
    assert abs(found - wanted) <= _POINTS
