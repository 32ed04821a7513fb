"""One model in one kind of graph: inspected, fused, swapped, folded, validated and timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import normswap
from normswap.demo.output import Output
from normswap.demo.results import Accuracies, Parity, VariantResults
from normswap.demo.tasks import Task
from normswap.demo.timing import onnx_runs, torch_runs
from normswap.io.save import save
from normswap.model import Model
from normswap.parity.report import ValidationReport
from normswap.parity.validation import validate
from normswap.passes import Affine, BatchNorm
from normswap.report.html import write_html
from normswap.report.inspection import InspectedSite, inspection
from normswap.timing.paired import Timing, compare

_TOWER = "image"  # what is swapped where there is also a text tower


class Study:
    """One model in one kind of graph."""

    STEPS = 5  # how often it announces something

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

    def run(self) -> VariantResults:
        self._say("inspecting")
        before = self.inspect(self.original, "original")
        self.inspect(self.spelled_out, "spelled-out")

        self._say("fusing")
        fused = normswap.swap(self.spelled_out, to="fused")
        self.keep(fused.model, "fused", "spelled-out after swap --to fused")
        fused_parity = self.prove(self.spelled_out, fused.model, "fused", "spelled-out and fused")

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
        folded_parity = self.prove(swapped.model, folded.model, "folded", "affine and folded")
        after = self.inspect(folded.model, "folded")
        self.compare_outputs(folded.model)
        accuracy = Accuracies(
            original=self.task.accuracy(self.original),
            fused=self.task.accuracy(fused.model),
            copied=self.task.accuracy(normswap.fold(copied.model).model),
            moments=self.task.accuracy(normswap.fold(moments.model).model),
            affine=self.task.accuracy(folded.model),
        )

        self._say("timing")
        timing = self.time(fused.model, folded.model)
        towers = {site.tower for site in self.original.sites}
        left = [s for s in folded.model.sites if s.tower == _TOWER]
        return VariantResults(
            model=self.task.name,
            kind=self.kind,
            norms=len(self.original.sites),
            fused=len(fused.done),
            fused_parity=fused_parity,
            swapped=len(swapped.done),
            folded=len(folded.done),
            tower=_TOWER if len(towers) > 1 else "",
            left=len(left),
            folded_parity=folded_parity,
            statistics_before=before,
            statistics_after=after,
            accuracy=accuracy,
            timing=timing,
        )

    def _say(self, step: str) -> None:
        self._announce(f"{self.task.name} as {self.kind}: {step}")

    def keep(self, model: Model, name: str, what: str) -> None:
        path = self.output.path(self.task.name, self.kind, name)
        save(model, path)
        self.output.wrote(path, what)

    def inspect(self, model: Model, name: str) -> int:
        found = inspection(model)
        self._report(f"{name}.inspection", found.to_json(), f"the norms of {name}")
        return sum(_per_sample(site) for site in found.sites)

    def prove(self, reference: Model, candidate: Model, name: str, what: str) -> Parity:
        report = validate(
            reference, candidate, data=self.task.proof_for(reference), contract="exact"
        )
        self._prove(f"{name}.exact", report, f"exact contract of {what}")
        return Parity.of(report)

    def compare_outputs(self, folded: Model) -> None:
        report = validate(
            self.original,
            folded,
            data=self.task.test_for(self.original),
            labels=self.task.labels,
            contract="approximate",
        )
        what = "how far the outputs of folded are from original"
        self._prove("folded.approximate", report, what)

    def time(self, fused: Model, folded: Model) -> dict[str, Timing]:
        names = ("original", "spelled-out", "fused", "folded")
        feeds = self.task.timed_batch(self.original)
        if self.kind == "fx":
            models = (self.original, self.spelled_out, fused, folded)
            with torch_runs(dict(zip(names, models, strict=True)), feeds) as runs:
                return compare(runs, "original")
        files = {name: self.output.path(self.task.name, self.kind, name) for name in names}
        with onnx_runs(files, feeds) as runs:
            return compare(runs, "original")

    def _prove(self, name: str, report: ValidationReport, what: str) -> None:
        self._report(name, report.to_json(), what)
        path = self.output.path(self.task.name, self.kind, name, ".html")
        write_html(report, path)
        self.output.wrote(path, f"{what}, as a page")

    def _report(self, name: str, document: Mapping[str, Any], what: str) -> None:
        path = self.output.path(self.task.name, self.kind, name, ".json")
        relative = path.relative_to(self.output.folder).as_posix()
        self.output.write_json(relative, document, what)


def _per_sample(found: InspectedSite) -> int:
    assert found.statistics is not None
    assert found.input_shape is not None
    return found.statistics // found.input_shape[0]
