"""Two models side by side: inputs and outputs matched, run on the same feeds, findings gathered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from normswap.errors import NormswapError, first_line
from normswap.graph.graph import Array, is_floating
from normswap.model import InputSpec, Model
from normswap.parity.metrics import Variation
from normswap.parity.probes import vocabulary
from normswap.parity.report import (
    ApproximateOutput,
    ExactOutput,
    Finding,
    ModelSummary,
    ValidationReport,
)

Run = Callable[[Mapping[str, Array]], list[Array]]
Runs = tuple[Run | None, Run | None]
"""How the reference and the candidate are run: feeds by input name to all outputs in order; None is
as their own graphs do."""


def shared_inputs(reference: Model, candidate: Model) -> tuple[InputSpec, ...]:
    """The reference's inputs with every size fixed that either model fixes.

    Raises NormswapError naming both models where no input can fit both.
    """
    names = matched_inputs(reference, candidate)
    others = {spec.name: spec.dtype for spec in candidate.inputs}
    for spec in reference.inputs:
        if spec.dtype != others[names[spec.name]]:
            both = _both(reference, candidate, spec.name)
            other = others[names[spec.name]].name
            raise NormswapError(f"{both} differ: {spec.dtype.name} and {other}")
    return shared_sizes(reference, candidate)


def _both(reference: Model, candidate: Model, name: str) -> str:
    other = matched_inputs(reference, candidate)[name]
    return f"{reference.name}'s input '{name}' and {candidate.name}'s '{other}'"


def shared_sizes(reference: Model, candidate: Model) -> tuple[InputSpec, ...]:
    """The same for a candidate that may take another floating dtype (see ``feeds_for``)."""
    names = matched_inputs(reference, candidate)
    others = {spec.name: spec for spec in candidate.inputs}
    fixed: dict[str, int] = {}
    for spec in reference.inputs:
        other = others[names[spec.name]]
        both = _both(reference, candidate, spec.name)
        floating = is_floating(spec.dtype) and is_floating(other.dtype)
        if spec.dtype != other.dtype and not floating:
            raise NormswapError(f"{both} differ: {spec.dtype.name} and {other.dtype.name}")
        pairs = list(zip(spec.shape, other.shape, strict=False))
        unfit = [a != b for a, b in pairs if not isinstance(a, str) and not isinstance(b, str)]
        if len(spec.shape) != len(other.shape) or any(unfit):
            sizes = " and ".join("x".join(map(str, s.shape)) for s in (spec, other))
            raise NormswapError(f"{both} differ: {sizes}")
        words = [vocabulary(m.graph, s) for m, s in ((reference, spec), (candidate, other))]
        if words[0] != words[1] and None not in words:
            raise NormswapError(
                f"{both} have other vocabularies, of {words[0]} and {words[1]} tokens: they cannot "
                "be compared"
            )
        fixed |= {a: b for a, b in pairs if isinstance(a, str) and not isinstance(b, str)}
    return tuple(
        replace(s, shape=tuple(fixed.get(n, n) if isinstance(n, str) else n for n in s.shape))
        for s in reference.inputs
    )


def matched_inputs(reference: Model, candidate: Model) -> dict[str, str]:
    """The candidate's input for each of the reference's: by name, else by position.

    Raises NormswapError where one of them has more.
    """
    ours, theirs = ([spec.name for spec in m.inputs] for m in (reference, candidate))
    if len(ours) != len(theirs):
        raise _different_counts("inputs", reference.name, ours, candidate.name, theirs)
    return matched_names(ours, theirs)


def feeds_for(
    reference: Model, candidate: Model
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A function from feeds of the reference to those of the candidate, in the dtypes it takes."""
    names = matched_inputs(reference, candidate)
    dtypes = {spec.name: spec.dtype for spec in candidate.inputs}

    def feeds(given: Mapping[str, Array]) -> dict[str, Array]:
        with np.errstate(over="ignore"):
            named = {names[name]: np.asarray(array) for name, array in given.items()}
            return {
                name: array.astype(dtypes[name], copy=False) if is_floating(array.dtype) else array
                for name, array in named.items()
            }

    return feeds


def matched_outputs(reference: Model, candidate: Model) -> dict[str, str]:
    """The same for outputs."""
    ours, theirs = list(reference.output_names), list(candidate.output_names)
    if len(ours) != len(theirs):
        raise _different_counts("outputs", reference.name, ours, candidate.name, theirs)
    return matched_names(ours, theirs)


def matched_positions(reference: Model, candidate: Model) -> list[int]:
    """The position of the candidate's output for each of the reference's, in their order."""
    names = matched_outputs(reference, candidate)
    return [candidate.output_names.index(name) for name in names.values()]


def _different_counts(
    what: str, reference: str, ours: Sequence[str], candidate: str, theirs: Sequence[str]
) -> NormswapError:
    return NormswapError(
        f"{reference} has {len(ours)} {what} ({', '.join(ours)}) and {candidate} has "
        f"{len(theirs)} ({', '.join(theirs)}): they cannot be compared"
    )


def matched_names(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """The one of ``theirs`` for each of ``ours``: of the same name, else the next that is left."""
    rest = iter([name for name in theirs if name not in ours])
    return {name: name if name in theirs else next(rest) for name in ours}


class RunFailed(Exception):
    """A model could not be run; ``args[0]`` says why."""


class Pair:
    """Two models with their inputs and outputs matched, and what was found so far."""

    def __init__(self, reference: Model, candidate: Model, runs: Runs = (None, None)) -> None:
        shared_sizes(reference, candidate)
        self.reference, self.candidate = reference, candidate
        self.findings: list[Finding] = []
        self._feeds = feeds_for(reference, candidate)
        kinds = [{spec.dtype for spec in m.inputs} for m in (reference, candidate)]
        self._typed_alike = kinds[0] == kinds[1]
        names = matched_outputs(reference, candidate)
        self.outputs = list(names.items())
        self._order = matched_positions(reference, candidate)
        self._run_reference = runs[0] or runner(reference)
        self._run_candidate = runs[1] or runner(candidate)
        self._variations = [(Variation(), Variation()) for _ in self.outputs]
        self.ran = False

    def run(self, feeds: Mapping[str, Array], probe: str) -> tuple[list[Array], list[Array]] | None:
        """The outputs of both models, matched; None (and a finding) where one of them fails."""
        try:
            ours = self._run_reference(feeds)
        except RunFailed as failure:
            message = f"the reference cannot run: {failure}"
            self.found("failed", message, probe=probe, fatal=False)
            return None
        self.ran = True
        try:
            results = self._run_candidate(self._feeds(feeds))
        except RunFailed as failure:
            self.found("failed", f"the candidate cannot run: {failure}", probe=probe)
            return None
        theirs = [results[index] for index in self._order]
        for variations, *arrays in zip(self._variations, ours, theirs, strict=True):
            for variation, array in zip(variations, arrays, strict=True):
                variation.add(array)
        return ours, theirs

    def comparable(self, output: int, ours: Array, theirs: Array, probe: str | None) -> bool:
        """Whether errors can be computed; findings for shapes, dtypes and integers that differ."""
        name = self.outputs[output][0]
        if ours.dtype != theirs.dtype:
            # A candidate with inputs of another dtype says that it is in another one.
            message = f"{ours.dtype.name} became {theirs.dtype.name}"
            both = is_floating(ours.dtype) and is_floating(theirs.dtype)
            self.found("dtype", message, name, fatal=self._typed_alike or not both)
        if ours.shape != theirs.shape:
            self.found("shape", f"{_sizes(ours)} became {_sizes(theirs)}", name, probe)
            return False
        if is_floating(ours.dtype) and is_floating(theirs.dtype):
            return True
        different = int(np.count_nonzero(ours != theirs))
        if different:
            self.found("integer", f"{different} of {ours.size} elements differ", name, probe)
        return False

    def found(
        self,
        kind: str,
        message: str,
        output: str | None = None,
        probe: str | None = None,
        fatal: bool = True,
    ) -> None:
        """Adds a finding, the first of its kind for one output and probe, or of its message."""
        known = {(f.kind, f.output, f.probe) for f in self.findings}
        known |= {(f.kind, f.output, f.message) for f in self.findings}
        if not known & {(kind, output, probe), (kind, output, message)}:
            self.findings.append(Finding(kind, message, output, probe, fatal))

    def report(
        self, contract: str, outputs: list[ExactOutput] | list[ApproximateOutput]
    ) -> ValidationReport:
        self._look_for_constants()
        if not self.ran:
            self.found("failed", "nothing was compared")
        passed = not any(finding.fatal for finding in self.findings)
        reference, candidate = (_summary(model) for model in (self.reference, self.candidate))
        return ValidationReport(contract, passed, reference, candidate, outputs, self.findings)

    def _look_for_constants(self) -> None:
        outputs = zip(self.outputs, self.reference.graph.outputs, self._variations, strict=True)
        for (name, _), value, (ours, theirs) in outputs:
            if not self.depends_on(value):
                message = "it depends on no input of the reference"
                self.found("constant", message, name, fatal=False)
            elif not theirs.constant:
                continue
            elif ours.constant:
                where = "in both models for all inputs: its agreement says nothing"
                self.found("constant", f"{theirs} {where}", name)
            else:
                self.found("constant", f"{theirs} in the candidate for all inputs", name)

    def depends_on(self, output: Any) -> set[str]:
        """The names of the reference's inputs that one of its output values depends on."""
        return {value.name for value in self.reference.graph.sources([output])}


def runner(model: Model, dtype: Any = None) -> Run:
    """All outputs in order, from feeds by name, in inference or in ``dtype``; whatever goes wrong
    in a run is RunFailed."""
    try:
        run = model.runner(dtype)
    except NormswapError as error:
        raise NormswapError(f"{model.name}: {error}") from error

    def call(feeds: Mapping[str, Array]) -> list[Array]:
        with reported_failures():
            model.check_feeds(feeds)
            return [np.asarray(a) for a in run([feeds[spec.name] for spec in model.inputs])]

    return call


@contextlib.contextmanager
def reported_failures() -> Iterator[None]:
    """Whatever goes wrong in a run is RunFailed, with its first line; all but a lack of memory."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # the runtimes' exceptions share no base class
        raise RunFailed(first_line(error)) from error


def agreeing_finite(arrays: Sequence[Array]) -> Array | None:
    """Where all are finite; None unless they are elsewhere the same infinities."""
    finite = np.logical_and.reduce([np.isfinite(a) for a in arrays])
    agree = all(np.array_equal(a[~finite], arrays[0][~finite]) for a in arrays)
    return np.asarray(finite) if agree and not np.isnan(arrays[0]).any() else None


def _sizes(array: Array) -> str:
    return "x".join(map(str, array.shape)) or "a scalar"


def _summary(model: Model) -> ModelSummary:
    return ModelSummary(model.label, model.kind, None if model.path is None else str(model.path))
