"""What int8 costs each form of a model, by ONNX Runtime's stock quantiser and by simulation.

    python -m benchmarks.int8 [MODEL ...] [--real NAME ...] [--forms FORM ...] [--nncf]
                              [--formats [FORMAT ...]] [--calibrate N] [--keep FOLDER]
                              [--cache FOLDER] [--json FILE]

in the repository's root. MODEL are folders of digits-vit or digits-clip checkpoints, one for each
training seed (see ``benchmarks.fits``); by default the two of normswap/assets. --real NAME: models
and data of ``real_models``. Everything runs as an ONNX file.

*float* is the form's own score: the accuracy on the 540 test images in percent (zero-shot for a
CLIP), the first score of its task for a real model. *ORT* is what ``quantize_static`` with its
defaults (QDQ, activations and weights int8, ranges from the least and largest value) loses of it,
per tensor and per channel, calibrated on N training samples. It runs as its rounding is defined,
without ONNX Runtime's graph optimizer, whose kernels for CPUs without VNNI saturate. *sim* is
``validate --simulate`` with each FORMAT. With --nncf, which needs the package ``nncf``, the same of
``nncf.quantize`` for transformers (which smooths and corrects biases of its own accord).

--keep leaves the files in FOLDER, to be timed:

    normswap bench FOLDER/*.onnx --runtime onnxruntime --runtime openvino
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import normswap as ns
from benchmarks.real_packages import Unavailable, default_cache
from benchmarks.real_tasks import TASKS, outputs_of
from normswap.assets import digits
from normswap.demo.tasks import tasks
from normswap.graph.graph import Array, Runner
from normswap.graph.onnx.evaluate import SESSION_THREADS
from normswap.precision.integers import INTEGER_FORMATS
from normswap.precision.quantised import QuantisedModel

Feeds = Mapping[str, Array]
AT_ONCE = 64
FITTED: dict[str, Callable[..., ns.Pass]] = {
    "affine": ns.Affine,
    "affine, writers": lambda **how: ns.Affine(refit_writers=True, **how),
    "predicted": ns.Predicted,
    "batchnorm, least-squares": lambda **how: ns.BatchNorm(fit="least-squares", **how),
}
EXACT: dict[str, ns.Pass] = {
    "fused": ns.Fused(),
    "rmsnorm": ns.RmsNorm(),
    "rmsnorm, hadamard": ns.RmsNorm(rotate="hadamard"),
    "rmsnorm, random": ns.RmsNorm(rotate="random"),
    "smooth, balanced": ns.Smooth(),
    "smooth, one-range": ns.Smooth(scales="one-range"),
    "smooth, powers-of-two": ns.Smooth(scales="powers-of-two"),
}
FORMS = ("original", *EXACT, *FITTED, *(f"{name}, for int8" for name in FITTED))


@dataclass(frozen=True)
class Case:
    """A model with its data; ``score`` of a model, the larger the better."""

    name: str
    model: ns.Model
    calibration: Feeds
    score: Callable[[Any], float]


@dataclass(frozen=True)
class Row:
    """A form of a model: its score in float32, and by each way to quantise it (None: it fails)."""

    model: str
    form: str
    floating: float
    quantised: dict[str, float | None] = field(default_factory=dict)


def digits_case(folder: Path, file: Path) -> Case:
    task = next(t for t in tasks() if t.name.split("-")[1] in folder.name)
    ns.save(ns.load(folder), file)
    model = ns.load(file)
    feeds = dict(task.calibration_for(model))
    captions = digits.class_caption_ids()
    flat = captions.reshape(-1, captions.shape[-1])
    rows = np.random.default_rng(0).integers(len(flat), size=len(feeds["pixel_values"]))
    for spec in model.inputs:
        if spec.name == "input_ids":
            feeds[spec.name] = flat[rows]
        elif spec.name == "attention_mask":
            feeds[spec.name] = (flat[rows] != digits.VOCABULARY[digits.PAD]).astype(spec.dtype)
    return Case(folder.name, model, feeds, lambda m: 100 * task.accuracy(m))


def real_case(name: str, cache: Path) -> Case:
    task = TASKS[name](cache)
    draw = task.draw(0)
    original = outputs_of(task.model, draw.test)

    def score(model: ns.Model) -> float:
        return next(iter(task.score(draw, original, outputs_of(model, draw.test)).values()))

    return Case(name, task.model, draw.calibration, score)


def _made(case: Case, form: str) -> ns.Model:
    if form == "original":
        return case.model
    if form in EXACT:
        how = EXACT[form]
        data = case.calibration if how.needs_data else None
        return ns.swap(case.model, how, data=data).model
    name = form.removesuffix(", for int8")
    how = FITTED[name](**({} if name == form else {"for_": "int8"}))
    return ns.fold(ns.swap(case.model, how, data=case.calibration).model).model


def _batches(case: Case, count: int) -> list[dict[str, Array]]:
    sizes = {s.shape[0] for s in case.model.inputs if isinstance(s.shape[0], int)}
    size = min(sizes, default=AT_ONCE)
    return [
        {spec.name: case.calibration[spec.name][i : i + size] for spec in case.model.inputs}
        for i in range(
            0, min(count, len(next(iter(case.calibration.values())))) // size * size, size
        )
    ]


def _by_onnxruntime(
    source: Path, target: Path, batches: Sequence[Feeds], per_channel: bool
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Feeds] = iter(batches)

        def get_next(self) -> Feeds | None:
            return next(self.rest, None)

    quantize_static(str(source), str(target), Reader(), per_channel=per_channel)


def _by_nncf(source: Path, target: Path, batches: Sequence[Feeds], per_channel: bool) -> None:
    import nncf
    import onnx

    data = nncf.Dataset(list(batches))
    transformer = nncf.ModelType.TRANSFORMER
    model = nncf.quantize(onnx.load(source), data, model_type=transformer)
    onnx.save(model, target)


def measure(
    case: Case, form: str, count: int, nncf: bool, formats: Sequence[str], keep: Path | None
) -> Row:
    model = _made(case, form)
    batches = _batches(case, count)
    quantised: dict[str, float | None] = {}

    def note(way: str, made: Callable[[], float]) -> None:
        try:
            quantised[way] = made()
        except Exception as error:  # whatever another tool raises
            print(f"{case.name}, {form}, {way}: {str(error)[:300]}", file=sys.stderr)
            quantised[way] = None

    with tempfile.TemporaryDirectory() as folder:
        folder = str(keep or folder)
        name = f"{case.name}-{form.replace(', ', '-').replace(' ', '-')}"
        source = Path(folder, f"{name}.onnx")
        ns.save(model, source)
        by: list[tuple[str, Callable[..., Any], bool]] = [
            ("ORT per tensor", _by_onnxruntime, False),
            ("ORT per channel", _by_onnxruntime, True),
        ]
        by += [("NNCF", _by_nncf, True)] * nncf
        for way, quantise, per_channel in by:
            target = Path(folder, f"{name}-{way.replace(' ', '-')}.onnx")

            def by_tool(
                quantise: Callable[..., Any] = quantise,
                target: Path = target,
                per_channel: bool = per_channel,
            ) -> float:
                quantise(source, target, batches, per_channel)
                return case.score(ns.load(target))

            note(way, by_tool)
    for name in formats:
        note(f"sim {name}", lambda name=name: case.score(_Simulated(model, name, batches)))
    row = Row(case.name, form, case.score(model), quantised)
    print(*asdict(row).values(), sep=" | ", file=sys.stderr, flush=True)
    return row


class _Simulated:
    """A quantised model that is run as a ``Model`` is."""

    def __init__(self, model: ns.Model, form: str, batches: Sequence[Feeds]) -> None:
        self._quantised = QuantisedModel(model, form, batches)
        self.inputs, self.output_names = model.inputs, model.output_names

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return dict(zip(self.output_names, self._quantised.run(feeds), strict=True))

    def runner(self) -> Runner:
        names = [spec.name for spec in self.inputs]
        return lambda arrays: self._quantised.run(dict(zip(names, arrays, strict=True)))


def table(rows: Sequence[Row]) -> str:
    """In Markdown, over the models of a kind: of the float scores the mean, of the others what is
    lost of them, with the standard deviation and the worst."""
    ways = list(rows[0].quantised)
    kinds = dict.fromkeys(row.model.rstrip("0123456789") for row in rows)
    parts = []
    for kind in kinds:
        own = [row for row in rows if row.model.rstrip("0123456789") == kind]
        count = len({row.model for row in own})
        form = ".1f" if max(abs(row.floating) for row in own) > 1 else ".4f"  # percent, or a cosine
        lines = [
            f"| {kind} (models: {count}) | float | {' | '.join(ways)} |",
            f"|---|---|{'---|' * len(ways)}",
        ]
        for name in dict.fromkeys(row.form for row in own):
            these = [row for row in own if row.form == name]
            cells = [_spread([row.floating for row in these], form)]
            for way in ways:
                lost = [v - row.floating for row in these if (v := row.quantised[way]) is not None]
                worst = f" ({min(lost):+{form}})" if len(lost) > 1 else ""
                cells.append(
                    _spread(lost, f"+{form}") + worst if len(lost) == len(these) else "fails"
                )
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _spread(values: Sequence[float], form: str) -> str:
    deviation = f" ± {np.std(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--real", nargs="+", choices=TASKS, default=[], metavar="NAME")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, metavar="FORM")
    parser.add_argument("--nncf", action="store_true")
    parser.add_argument(
        "--formats", nargs="*", choices=INTEGER_FORMATS, default=INTEGER_FORMATS, metavar="FORMAT"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--calibrate", type=int, default=512, metavar="N")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # of the quantisers
    SESSION_THREADS.set(1)  # of the many small sessions of a simulation, whose threads wait busily
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    folders = options.models or ([] if options.real else [digits.DIGITS_VIT, digits.DIGITS_CLIP])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        makers: list[tuple[str, Callable[[], Case]]] = [
            (str(f), lambda f=f: digits_case(f, Path(scratch, f"{f.name}.onnx"))) for f in folders
        ]
        cache = options.cache.resolve()
        makers += [(name, lambda name=name: real_case(name, cache)) for name in options.real]
        for name, make in makers:
            try:
                case = make()
                for form in options.forms:
                    how = options.calibrate, options.nncf, options.formats, options.keep
                    rows.append(measure(case, form, *how))
                    if options.json:
                        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))
            except (Unavailable, ns.NormswapError) as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main()
