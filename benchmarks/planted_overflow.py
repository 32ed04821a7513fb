"""What ``--to rescale`` does about numbers that float16 does not hold, planted in trained models.

    python -m benchmarks.planted_overflow [--only KIND ...] [--json FILE]

in the repository's root. Twelve kinds are planted in the digits ViT and CLIP, as torch graphs with
their norms as operators and as ONNX files with their norms spelled out. Errors are those of
simulated float16 against the same model in float32, the largest over the outputs by the largest
output: *planted* as it is, *rescaled* (headroom of 2 binary places over 200 images), *digits*, as
planted with float16's digits but no end to its range, and *unplanted*, the trained model as it was.
A kind is mended if the rescaled model is finite and within twice the error of the unplanted one;
else what ``rescale`` says is in the last column. Some kinds change the function, and the planted
model rounds more by itself: *digits* is what is left if nothing overflows and nothing underflows.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

import normswap as ns
from normswap.assets.digits import (
    CAPTIONS,
    DIGITS_CLIP,
    DIGITS_VIT,
    caption_ids,
    load_digits_split,
)
from normswap.demo.spelled_out import _exported
from normswap.graph import simulation
from normswap.graph.graph import Array
from normswap.io.sources import Source
from normswap.io.sources.huggingface import huggingface_source
from normswap.io.torch_model import model_from_source
from normswap.precision.simulate import SimulatedModel

FOLDERS = {"ViT": DIGITS_VIT, "CLIP": DIGITS_CLIP}
SAMPLES, TESTED = 200, 64
_DIGITS = 11  # binary, of float16
_WRITERS = r"embedding|o(ut)?_proj|fc2"


def _times(module: nn.Module, pattern: str, factor: float) -> None:
    for name, parameter in module.named_parameters():
        if re.search(pattern, name):
            parameter.mul_(factor)


def _positions(module: nn.Module) -> list[nn.Parameter]:
    named = module.named_parameters()
    return [p for name, p in named if re.search("position_embedding", name)]


def _stream(module: nn.Module) -> None:
    _times(module, _WRITERS, 2.0**14)


def _squares(module: nn.Module) -> None:
    _times(module, _WRITERS, 2.0**8)


def _massive_channel(module: nn.Module) -> None:
    for rows in _positions(module):
        rows[..., 5] += 2000


def _growth(module: nn.Module) -> None:
    for layer in range(8):
        _times(module, rf"layers\.{layer}\..*(o(ut)?_proj|fc2)", 8.0**layer)


def _position_row(module: nn.Module) -> None:
    for rows in _positions(module):
        rows[..., -1, :] *= 1e6


def _epsilon(module: nn.Module) -> None:
    """Rows without variance, and an epsilon that float16 does not have."""
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 1e-12
    _times(module, r"class_embedding|cls_token", 0)
    for rows in _positions(module):
        rows[..., 0, :] = 0


def _logits_before_scale(module: nn.Module) -> None:
    _times(module, r"[qk]_proj", 2.0**8)
    for attention in module.modules():
        for name in ("scaling", "scale"):
            if isinstance(getattr(attention, name, None), float):
                setattr(attention, name, getattr(attention, name) * 2.0**-16)


def _logits(module: nn.Module) -> None:
    _times(module, r"[qk]_proj", 2.0**8)


def _hidden(module: nn.Module) -> None:
    _times(module, r"fc1", 2.0**15)
    _times(module, r"fc2.weight", 2.0**-15)


def _values(module: nn.Module) -> None:
    _times(module, r"v_proj", 2.0**16)
    _times(module, r"o(ut)?_proj.weight", 2.0**-16)


def _queries(module: nn.Module) -> None:
    _times(module, r"q_proj", 2.0**16)
    _times(module, r"k_proj", 2.0**-16)


def _norm_outputs(module: nn.Module) -> None:
    _times(module, r"(layernorm_after|layer_norm2)\.", 2.0**16)
    _times(module, r"fc1.weight", 2.0**-16)


KINDS: dict[str, Callable[[nn.Module], None]] = {
    "the whole stream": _stream,
    "squares inside the norms": _squares,
    "one channel of the stream": _massive_channel,
    "growth with depth": _growth,
    "a row of positions": _position_row,
    "rows without variance, epsilon 1e-12": _epsilon,
    "logits in front of their scale": _logits_before_scale,
    "logits": _logits,
    "hidden values of a GELU": _hidden,
    "values of attentions": _values,
    "queries, with small keys": _queries,
    "outputs of norms": _norm_outputs,
}


@dataclass(frozen=True)
class Row:
    """Errors are None where the outputs are not finite. ``operators``: before and after."""

    model: str
    graph: str
    kind: str
    planted: float | None
    rescaled: float | None
    digits: float | None
    unplanted: float | None
    operators: tuple[int, int]
    says: str

    @property
    def mended(self) -> bool:
        if self.rescaled is None or self.unplanted is None:
            return False
        return self.rescaled <= 2 * self.unplanted

    @property
    def is_its_own(self) -> bool:
        """Whether the rescaled model is within twice the error of the digits alone."""
        if self.rescaled is None or self.digits is None:
            return False
        return self.rescaled <= 2 * self.digits


def feeds_of(name: str, first: int, count: int, train: bool) -> dict[str, Array]:
    """``count`` images from ``first`` on, of the training or the test set, and texts for a CLIP."""
    split = load_digits_split()
    images = (split.train_images if train else split.test_images)[first : first + count]
    if name == "ViT":
        return {"pixel_values": images}
    labels = (split.train_labels if train else split.test_labels)[first : first + count]
    captions = [CAPTIONS[label][number % 3] for number, label in enumerate(labels)]
    return {"pixel_values": images, "input_ids": caption_ids(captions)}


def exported(source: Source, path: Path) -> ns.Model:
    """As ONNX, norms spelled out, written to ``path``."""
    return _exported(source, 14, path)


def _model(source: Source, graph: str, folder: Path) -> ns.Model:
    if graph == "torch":
        return model_from_source(source)
    return exported(source, folder / "model.onnx")


def error_in_half(model: ns.Model, like: ns.Model, feeds: Mapping[str, Array]) -> float | None:
    """Of ``model`` in simulated float16 against ``like`` in float32."""
    given = {spec.name: feeds[spec.name] for spec in model.inputs if spec.name in feeds}
    given |= {s.name: np.ones_like(feeds["input_ids"]) for s in model.inputs if s.name not in given}
    expected, found = like.run(given).values(), SimulatedModel(model, "float16").run(given)
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if not np.all(np.isfinite(b)):
            return None
        worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst


@contextlib.contextmanager
def digits_alone() -> Iterator[None]:
    """Simulations of float16 round to its digits, whatever the magnitude."""

    def rounded(array: Array, _: object) -> Array:
        fraction, exponent = np.frexp(np.asarray(array, np.float64))
        return np.ldexp(np.round(np.ldexp(fraction, _DIGITS)), exponent - _DIGITS)

    with (
        mock.patch.object(simulation, "rounded", rounded),
        mock.patch.object(simulation, "as_half", rounded),
    ):
        yield


def measure(kinds: Sequence[str], folder: Path) -> list[Row]:
    """A row for each model, kind of graph and kind of overflow."""
    rows = []
    for name, place in FOLDERS.items():
        source = huggingface_source(str(place))
        calibration, test = feeds_of(name, 0, SAMPLES, True), feeds_of(name, 0, TESTED, False)
        for graph in ("torch", "ONNX"):
            trained = _model(source, graph, folder)
            unplanted = error_in_half(trained, trained, test)
            for kind in kinds:
                module = copy.deepcopy(source.module)
                with torch.no_grad():
                    KINDS[kind](module)
                model = _model(replace(source, module=module), graph, folder)
                result = ns.swap(model, ns.Rescale(), data=calibration)
                errors = [error_in_half(m, model, test) for m in (model, result.model)]
                with digits_alone():
                    errors.append(error_in_half(model, model, test))
                counts = len(model.graph.nodes), len(result.model.graph.nodes)
                stays = [note for note in result.notes if "it stays" in note or "cannot" in note]
                says = stays[0] if stays else f"{len(result.done)} norms done"
                rows.append(Row(name, graph, kind, *errors, unplanted, counts, says))
                print(*asdict(rows[-1]).values(), sep=" | ", file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    head = "| kind | model | graph | planted | rescaled | digits | unplanted | operators | says |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        errors = [row.planted, row.rescaled, row.digits, row.unplanted]
        cells = [row.kind, row.model, row.graph]
        cells += ["not finite" if error is None else f"{error:.1e}" for error in errors]
        cells += [" to ".join(map(str, row.operators)), row.says]
        lines.append(f"| {' | '.join(cells)} |")
    mended = sum(row.mended for row in rows)
    own = sum(not row.mended and row.is_its_own for row in rows)
    told = f"{mended} of {len(rows)} are mended; {own} more are within twice the digits alone."
    return "\n".join([*lines, "", told])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.only, Path(folder))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
