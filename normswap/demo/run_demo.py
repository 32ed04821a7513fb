"""``run_demo``: the whole way on both models, as torch graphs and as ONNX."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import normswap
from normswap.demo.demo_results import Accuracies, DemoResults, Parity, VariantResults, readme
from normswap.demo.spelled_out import onnx_variants, torch_variants
from normswap.demo.tasks import Task, tasks
from normswap.errors import NormswapError
from normswap.io.atomic import atomic_path, check_writable
from normswap.io.save import save
from normswap.io.sources.packages import import_extra
from normswap.model import Model, Progress
from normswap.parity.report import ValidationReport
from normswap.parity.validation import validate
from normswap.passes import Affine, BatchNorm
from normswap.report.html.page import write_html
from normswap.report.inspection import inspection
from normswap.timing.paired import Timing, compare, one_thread

_SUFFIX = {"fx": ".pt2", "onnx": ".onnx"}
_TOWER = "image"  # the tower that is swapped where there is also a text tower
_STEPS = 6  # announced for each model in each kind of graph


def run_demo(folder: Path, progress: Progress | None = None) -> DemoResults:
    """Runs it all and writes models, reports, ``results.json`` and ``README.md`` to ``folder``.

    Raises NormswapError if scikit-learn or transformers are missing, or for a folder that cannot
    be written.
    """
    started = time.perf_counter()
    chosen = tasks()
    import_extra("transformers", "the demo", "demo")  # before anything is written
    output = _Output(folder)
    total, done = len(chosen) * 2 * _STEPS, 0

    def announce(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    with one_thread():  # models this small gain nothing from more
        variants = [v for task in chosen for v in _both_kinds(task, output, announce)]
    results = DemoResults(folder, time.perf_counter() - started, variants, output.files)
    page = readme(results)
    output.write_text(folder / "README.md", page, "this list, and the results as a table")
    output.write_json(folder / "results.json", results.to_json(), "the results")
    if progress is not None:
        progress(total, total, "done")
    return results


def _both_kinds(
    task: Task, output: _Output, announce: Callable[[str], None]
) -> Iterator[VariantResults]:
    announce(f"{task.name}: capturing in torch")
    source, original, spelled_out = torch_variants(task.folder)
    variant = _Variant(task, original, spelled_out, output, announce)
    variant.keep(spelled_out, "spelled-out", "the same with every LayerNorm spelled out")
    yield variant.run()

    announce(f"{task.name}: exporting to ONNX")
    files = {name: output.path(task.name, "onnx", name) for name in ("original", "spelled-out")}
    original, spelled_out = onnx_variants(source, original, *files.values())
    output.wrote(files["original"], "exported by torch's current exporter, opset 20")
    output.wrote(files["spelled-out"], "exported by torch's older one, opset 14")
    yield _Variant(task, original, spelled_out, output, announce).run()


class _Output:
    """``folder``; ``files``: what was written to it, by path in it, with a description.

    Raises NormswapError for a folder that cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}
        self._make(folder)
        check_writable(folder / "results.json")

    def path(self, task: str, kind: str, name: str, suffix: str = "") -> Path:
        folder = self.folder / task / kind
        self._make(folder)
        return folder / f"{name}{suffix or _SUFFIX[kind]}"

    def wrote(self, path: Path, what: str) -> None:
        self.files[path.relative_to(self.folder).as_posix()] = what

    def write_text(self, path: Path, text: str, what: str) -> None:
        with atomic_path(path) as file:
            file.write_text(text, encoding="utf-8")
        self.wrote(path, what)

    def write_json(self, path: Path, document: Mapping[str, Any], what: str) -> None:
        self.write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n", what)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise NormswapError(
                f"{folder}: this folder cannot be made ({reason}); name another output"
            ) from error


class _Variant:
    """One model in one kind of graph: inspected, fused, swapped, folded, validated and timed."""

    def __init__(
        self,
        task: Task,
        original: Model,
        spelled_out: Model,
        output: _Output,
        announce: Callable[[str], None],
    ) -> None:
        self.task, self.original, self.spelled_out = task, original, spelled_out
        self.kind = original.kind
        self.output, self._announce = output, announce

    def run(self) -> VariantResults:
        self._say("inspecting")
        before = self._inspect(self.original, "original")
        self._inspect(self.spelled_out, "spelled-out")

        self._say("fusing")
        fused = normswap.swap(self.spelled_out, to="fused")
        self.keep(fused.model, "fused", "spelled-out after swap --to fused")
        fused_parity = self._exact(self.spelled_out, fused.model, "fused", "spelled-out and fused")

        self._say("swapping")
        data = self.task.calibration_for(self.original)
        copied = normswap.swap(self.original, BatchNorm(fit="copy"), data=data)
        moments = normswap.swap(self.original, BatchNorm(ffn_batchnorm=True), data=data)
        self.keep(moments.model, "batchnorm", "original after swap --to batchnorm --ffn-batchnorm")
        swapped = normswap.swap(self.original, Affine(refit_writers=True), data=data)
        self.keep(swapped.model, "affine", "original after swap --to affine --refit-writers")

        self._say("folding")
        folded = normswap.fold(swapped.model)
        self.keep(folded.model, "folded", "affine after fold")
        folded_parity = self._exact(swapped.model, folded.model, "folded", "affine and folded")
        after = self._inspect(folded.model, "folded")
        self._approximate(folded.model)
        accuracy = Accuracies(
            original=self.task.accuracy(self.original),
            fused=self.task.accuracy(fused.model),
            copied=self.task.accuracy(normswap.fold(copied.model).model),
            moments=self.task.accuracy(normswap.fold(moments.model).model),
            affine=self.task.accuracy(folded.model),
        )

        self._say("timing")
        timing = self._time(fused.model, folded.model)
        towers = {site.tower for site in self.original.sites}
        return VariantResults(
            model=self.task.name,
            kind=self.kind,
            norms=len(self.original.sites),
            fused=len(fused.done),
            fused_parity=fused_parity,
            swapped=len(swapped.done),
            folded=len(folded.done),
            tower=_TOWER if len(towers) > 1 else "",
            left=sum(site.tower == _TOWER for site in folded.model.sites),
            folded_parity=folded_parity,
            statistics_before=before,
            statistics_after=after,
            accuracy=accuracy,
            timing=timing,
        )

    def keep(self, model: Model, name: str, what: str) -> None:
        """Saves the model to the folder."""
        path = self._path(name)
        save(model, path)
        self.output.wrote(path, what)

    def _say(self, step: str) -> None:
        self._announce(f"{self.task.name} as {self.kind}: {step}")

    def _inspect(self, model: Model, name: str) -> int:
        """Writes the inspection; the statistics computed for one sample."""
        report = inspection(model)
        path = self._path(f"{name}.inspection", ".json")
        self.output.write_json(path, report.to_json(), f"the norms of {name}")
        count = 0
        for site in report.sites:
            assert site.statistics is not None
            assert site.input_shape is not None
            count += site.statistics // site.input_shape[0]
        return count

    def _exact(self, reference: Model, candidate: Model, name: str, what: str) -> Parity:
        data = self.task.proof_for(reference)
        report = validate(reference, candidate, data=data, contract="exact")
        self._write_report(f"{name}.exact", report, f"exact contract of {what}")
        return Parity.of(report)

    def _approximate(self, folded: Model) -> None:
        data, labels = self.task.test_for(self.original), self.task.labels
        report = validate(self.original, folded, data=data, labels=labels, contract="approximate")
        what = "how far the outputs of folded are from original"
        self._write_report("folded.approximate", report, what)

    def _write_report(self, name: str, report: ValidationReport, what: str) -> None:
        self.output.write_json(self._path(name, ".json"), report.to_json(), what)
        page = self._path(name, ".html")
        write_html(report, page)
        self.output.wrote(page, f"{what}, as a page")

    def _time(self, fused: Model, folded: Model) -> dict[str, Timing]:
        feeds = self.task.timed_batch(self.original)
        names = ("original", "spelled-out", "fused", "folded")
        if self.kind == "onnx":
            from normswap.runtimes.onnxruntime import compiled

            files = {name: str(self._path(name)) for name in names}
            runs = {name: partial(compiled(file, threads=1), feeds) for name, file in files.items()}
            return compare(runs, "original")
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        models = zip(names, (self.original, self.spelled_out, fused, folded), strict=True)
        with torch.inference_mode():
            modules = {name: partial(model.to_inference(), **tensors) for name, model in models}
            return compare(modules, "original")

    def _path(self, name: str, suffix: str = "") -> Path:
        return self.output.path(self.task.name, self.kind, name, suffix)
