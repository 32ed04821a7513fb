"""``run_demo``: the whole way on both models, as torch graphs and as ONNX."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import normswap
from normswap.demo.demo_results import Accuracies, DemoResults, Parity, VariantResults, readme
from normswap.demo.jobs import run_jobs
from normswap.demo.spelled_out import OPSETS, onnx_variants, torch_variants
from normswap.demo.tasks import Task, tasks
from normswap.errors import NormswapError
from normswap.io.atomic import atomic_path, check_writable
from normswap.io.load import load
from normswap.io.save import save
from normswap.io.sources.packages import import_extra
from normswap.model import Model, Progress
from normswap.parity.report import ValidationReport
from normswap.parity.validation import validate
from normswap.passes import Affine, BatchNorm
from normswap.report.html.page import write_html
from normswap.report.inspection import inspection
from normswap.runtimes.machine import processors

_SUFFIX = {"fx": ".pt2", "onnx": ".onnx"}
_TOWER = "image"  # the tower that is swapped where there is also a text tower
_STEPS = 5  # announced for each model in each kind of graph
JOBS = [  # (model, kind of graph): the longest first, since two run at a time
    ("digits-clip", "onnx"),
    ("digits-clip", "fx"),
    ("digits-vit", "onnx"),
    ("digits-vit", "fx"),
]


def run_demo(
    folder: Path, progress: Progress | None = None, processes: int | None = None
) -> DemoResults:
    """Runs it all and writes models, reports, ``results.json`` and ``README.md`` to ``folder``.

    ``processes``: as many models at a time, by default one for each processor.
    Raises NormswapError if scikit-learn or transformers are missing, or for a folder that cannot
    be written.
    """
    started = time.perf_counter()
    tasks()
    import_extra("transformers", "the demo", "demo")  # before anything is written
    output = _Output(folder)
    total, done = len(JOBS) * _STEPS, 0

    def announce(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    work = partial(_done, folder)
    found = run_jobs(work, JOBS, processes or min(processors(), len(JOBS)), announce)
    found.sort(key=lambda result: (result[0].model != "digits-vit", result[0].kind))
    for _, files in found:
        output.files |= files
    variants = [variant for variant, _ in found]
    results = DemoResults(folder, time.perf_counter() - started, variants, output.files)
    page = readme(results)
    output.write_text(folder / "README.md", page, "this list, and the results as a table")
    output.write_json(folder / "results.json", results.to_json(), "the results")
    if progress is not None:
        progress(total, total, "done")
    return results


def _done(
    folder: Path, job: tuple[str, str], announce: Callable[[str], None]
) -> tuple[VariantResults, dict[str, str]]:
    """One model in one kind of graph, and the files written for it."""
    name, kind = job
    (task,) = (task for task in tasks() if task.name == name)
    output = _Output(folder)
    if kind == "fx":
        announce(f"{name} as fx: capturing")
        original, spelled_out = torch_variants(task.folder)
    else:
        announce(f"{name} as onnx: exporting")
        files = {spelling: output.path(name, kind, spelling) for spelling in OPSETS}
        original, spelled_out = onnx_variants(task.folder, files)
        for spelling, path in files.items():
            output.wrote(path, f"exported by torch at opset {OPSETS[spelling]}")
    variant = _Variant(task, original, spelled_out, output, announce)
    return variant.run(), output.files


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
    """One model in one kind of graph: inspected, fused, swapped, folded and validated."""

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
        self._command = shlex.join(["normswap", "demo", "-o", str(output.folder)])

    def run(self) -> VariantResults:
        self._say("inspecting")
        before = self._inspect(self.original, "original")
        self._inspect(self.spelled_out, "spelled-out")

        self._say("fusing")
        swapped = normswap.swap(self.spelled_out, to="fused")
        fused = self._step(swapped.model, "fused", "spelled-out after swap --to fused")
        fused_parity = self._exact(self.spelled_out, fused, "fused", "spelled-out and fused")
        fused_norms = len(swapped.done)

        self._say("swapping")
        data = self.task.calibration_for(self.original)
        copied = normswap.swap(self.original, BatchNorm(fit="copy"), data=data)
        moments = normswap.swap(self.original, BatchNorm(ffn_batchnorm=True), data=data)
        self._step(moments.model, "batchnorm", "original after swap --to batchnorm --ffn-batchnorm")
        swapped = normswap.swap(self.original, Affine(refit_writers=True), data=data)
        affine = self._step(
            swapped.model, "affine", "original after swap --to affine --refit-writers"
        )

        self._say("folding")
        result = normswap.fold(affine)
        folded = self._kept(result.model, "folded", "affine after fold")
        folded_parity = self._exact(affine, folded, "folded", "affine and folded")
        after = self._inspect(folded, "folded")
        self._approximate(folded)
        accuracy = Accuracies(
            original=self.task.accuracy(self.original),
            fused=self.task.accuracy(fused),
            copied=self.task.accuracy(normswap.fold(copied.model).model),
            moments=self.task.accuracy(normswap.fold(moments.model).model),
            affine=self.task.accuracy(folded),
        )
        towers = {site.tower for site in self.original.sites}
        return VariantResults(
            model=self.task.name,
            kind=self.kind,
            norms=len(self.original.sites),
            fused=fused_norms,
            fused_parity=fused_parity,
            swapped=len(swapped.done),
            folded=len(result.done),
            tower=_TOWER if len(towers) > 1 else "",
            left=sum(site.tower == _TOWER for site in folded.sites),
            folded_parity=folded_parity,
            statistics_before=before,
            statistics_after=after,
            accuracy=accuracy,
        )

    def _step(self, model: Model, name: str, what: str) -> Model:
        """A model on the way: as ``_kept`` if it is ONNX. torch graphs stay in memory, since each
        takes seconds to write."""
        return self._kept(model, name, what) if self.kind == "onnx" else model

    def _kept(self, model: Model, name: str, what: str) -> Model:
        """Saves the model to the folder; what its file holds."""
        path = self._path(name)
        save(model, path)
        self.output.wrote(path, what)
        return load(path)

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
        report = validate(reference, candidate, data=data, contract="exact", command=self._command)
        self._write_report(f"{name}.exact", report, f"exact contract of {what}")
        return Parity.of(report)

    def _approximate(self, folded: Model) -> None:
        data, labels = self.task.test_for(self.original), self.task.labels
        report = validate(
            self.original,
            folded,
            data=data,
            labels=labels,
            contract="approximate",
            command=self._command,
        )
        what = "how far the outputs of folded are from original"
        self._write_report("folded.approximate", report, what)

    def _write_report(self, name: str, report: ValidationReport, what: str) -> None:
        self.output.write_json(self._path(name, ".json"), report.to_json(), what)
        page = self._path(name, ".html")
        write_html(report, page)
        self.output.wrote(page, f"{what}, as a page")

    def _path(self, name: str, suffix: str = "") -> Path:
        return self.output.path(self.task.name, self.kind, name, suffix)
