"""One model in one kind of graph: what the demo does with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import normswap
from normswap.demo.demo_results import Accuracies, Parity, VariantResults
from normswap.demo.output import Output
from normswap.demo.spelled_out import OPSETS, onnx_variants, torch_variants
from normswap.demo.tasks import Task
from normswap.graph.graph import Array
from normswap.io.load import load
from normswap.io.save import save
from normswap.model import Model
from normswap.parity.report import ApproximateOutput, ValidationReport
from normswap.parity.validation import validate
from normswap.passes import Affine, BatchNorm
from normswap.report.html.page import write_html
from normswap.report.inspection import inspection

_SUFFIX = {"fx": ".pt2", "onnx": ".onnx"}
_TOWER = "image"  # the tower that is swapped where there is also a text tower


def run_variant(
    folder: Path, task: Task, kind: str, announce: Callable[[str], None]
) -> tuple[VariantResults, dict[str, str]]:
    """Results of ``task`` as a ``kind`` of graph, and the files written to ``folder`` for it."""
    output = Output(folder)
    if kind == "fx":
        announce(f"{task.name} as fx: capturing")
        original, spelled_out = torch_variants(task.folder)
    else:
        announce(f"{task.name} as onnx: exporting")
        names = {spelling: f"{spelling}{_SUFFIX[kind]}" for spelling in OPSETS}
        files = {spelling: output.path(task.name, kind, name) for spelling, name in names.items()}
        original, spelled_out = onnx_variants(task.folder, files)
        for spelling, path in files.items():
            output.wrote(path, f"exported by torch at opset {OPSETS[spelling]}")
    return _Variant(task, original, spelled_out, output, announce).run(), output.files


class _Variant:
    """One model in one kind of graph: inspected, fused, swapped, folded and validated."""

    def __init__(
        self,
        task: Task,
        original: Model,
        spelled_out: Model,
        output: Output,
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
        copied, moments = self._batch_norms(data) if self.kind == "onnx" else (None, None)
        swapped = normswap.swap(self.original, Affine(refit_writers=True), data=data)
        affine = self._step(
            swapped.model, "affine", "original after swap --to affine --refit-writers"
        )

        self._say("folding")
        result = normswap.fold(affine)
        folded = self._kept(result.model, "folded", "affine after fold")
        folded_parity = self._exact(affine, folded, "folded", "affine and folded")
        after = self._inspect(folded, "folded")
        original, norm_free = self._approximate(folded)
        accuracy = Accuracies(original, self.task.accuracy(fused), copied, moments, norm_free)
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

    def _batch_norms(self, data: Mapping[str, Array]) -> tuple[float, float]:
        """The accuracies with BatchNorms that are copied and that are fitted."""
        copied = normswap.swap(self.original, BatchNorm(fit="copy"), data=data)
        moments = normswap.swap(self.original, BatchNorm(ffn_batchnorm=True), data=data)
        what = "original after swap --to batchnorm --ffn-batchnorm"
        self._save(moments.model, "batchnorm", what)
        found = [normswap.fold(swapped.model).model for swapped in (copied, moments)]
        return self.task.accuracy(found[0]), self.task.accuracy(found[1])

    def _step(self, model: Model, name: str, what: str) -> Model:
        """A model on the way: as ``_kept`` if it is ONNX. torch graphs stay in memory, since each
        takes seconds to write."""
        return self._kept(model, name, what) if self.kind == "onnx" else model

    def _kept(self, model: Model, name: str, what: str) -> Model:
        """Saves the model to the folder; what its file holds."""
        return load(self._save(model, name, what))

    def _save(self, model: Model, name: str, what: str) -> Path:
        path = self._path(f"{name}{_SUFFIX[self.kind]}")
        save(model, path)
        self.output.wrote(path, what)
        return path

    def _say(self, step: str) -> None:
        self._announce(f"{self.task.name} as {self.kind}: {step}")

    def _inspect(self, model: Model, name: str) -> int:
        """Writes the inspection; the statistics computed for one sample."""
        report = inspection(model)
        path = self._path(f"{name}.inspection.json")
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

    def _approximate(self, folded: Model) -> tuple[float, float]:
        """Writes the report; the accuracies of the original and of ``folded`` that it has."""
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
        scores = [
            (output.accuracy_reference, output.accuracy_candidate)
            for output in report.outputs
            if isinstance(output, ApproximateOutput)
        ]
        ((ours, theirs),) = [(a, b) for a, b in scores if a is not None and b is not None]
        return ours, theirs

    def _write_report(self, name: str, report: ValidationReport, what: str) -> None:
        self.output.write_json(self._path(f"{name}.json"), report.to_json(), what)
        page = self._path(f"{name}.html")
        write_html(report, page)
        self.output.wrote(page, f"{what}, as a page")

    def _path(self, name: str) -> Path:
        return self.output.path(self.task.name, self.kind, name)
