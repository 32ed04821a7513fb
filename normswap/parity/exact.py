"""The exact contract: the same function up to rounding, judged in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Value, is_floating
from normswap.model import Model, Progress
from normswap.parity.metrics import ErrorHistogram, ErrorTally
from normswap.parity.pairing import Pair, RunFailed, Runs, agreeing_finite, runner
from normswap.parity.probes import EXTREMES, LENGTHS, Probe
from normswap.parity.report import (
    ExactOutput,
    OutputErrors,
    ProbeErrors,
    ValidationReport,
)


def exact_contract(
    reference: Model,
    candidate: Model,
    probes: Sequence[Probe],
    progress: Progress | None = None,
    runs: Runs | None = None,
) -> ValidationReport:
    """Whether ``candidate`` computes the function of ``reference``, up to rounding.

    Truth is ``reference`` evaluated in float64. For every output and kind of probe
    e(candidate) <= 2 e(original) + one ulp, for e the largest error and for e the root mean square,
    over all probes of the kind; ulp = eps(output dtype) * max |truth| (64 of them for float64), or
    the spacing of subnormal numbers where that is larger (``ulp``).

    Why so: the rms sees small dense faults, the largest error sparse ones, but one draw of it is
    noisy (one sensitive row can decide), so in doubt e(original) is its largest value over up to
    16 more runs of the original with inputs and biases off by an ulp, and up to 64 where the
    candidate is less than a quarter above what is allowed: its error, not its luck.

    Where numbers are subnormal, an ulp is the same for all of them, and a norm magnifies it: of a
    row of x below the smallest normal number, var(x) is zero in the dtype, and y = gamma d /
    sqrt(epsilon) for d = x - mean(x). The mean is rounded to a multiple of the spacing s and lies
    between two of them by luck, so right spellings are off by up to s gamma / sqrt(epsilon) from
    each other, whatever the size of y. e(original) has that error too, but for its luck: moved by
    eps |x| < s / 2 its inputs would round back to themselves, moved by s they show it.

    Hardware that flushes subnormal numbers to zero makes an error of up to the smallest normal
    number in place of s / 2, which is all of such an input. Nothing is added for that: both models
    run in one runtime, so the original shows it, and a candidate that alone flushes is at fault.

    An original that is far from its own float64 evaluation proves nothing, however it came about
    (an operator that one of the two computes wrongly): a bound of twice its error would let any
    fault pass. So e(original) may itself be at most the larger of

    * sqrt(eps) * max |truth|: half of the digits of the dtype are right, and
    * 100 times the most that an ulp in the inputs and biases moves the original. Rounding a sum of
      n terms is a change of its terms by up to n ulps, and by sqrt(n) in all but rare cases (Higham
      and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019): 100 for the 10,000
      terms of the largest products.

    More than that is a fatal finding of its own, ``reference``. Large and subnormal values are not
    judged so: there the original may overflow or flush to zero.

    ``probes``: feeds by the reference's input names. Inputs and outputs of the two models are
    matched by name where the names agree and by position otherwise. Integer outputs must be equal.
    ``runs``: how both are run, by default as their own graphs do.
    Raises NormswapError for models whose inputs or outputs cannot be matched, or whose reference
    cannot be evaluated in float64.
    """
    exact = _Exact(Pair(reference, candidate, runs))
    groups: dict[str, list[Probe]] = {}
    for probe in probes:
        groups.setdefault(probe.name, []).append(probe)
    for done, (kind, group) in enumerate(groups.items()):
        if progress:
            progress(done, len(groups), kind)
        exact.examine(kind, group)
    if progress:
        progress(len(groups), len(groups), "done")
    return exact.report()


class _Exact:
    """The exact contract, one kind of probe after the other."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._truth = runner(pair.reference, np.float64)
        self._neighbours: Neighbours | None = None
        self._dtypes: dict[int, np.dtype[Any]] = {}
        self._histograms: dict[int, tuple[ErrorHistogram, ErrorHistogram]] = {}
        self._results: list[list[ProbeErrors]] = [[] for _ in self._pair.outputs]

    def examine(self, kind: str, probes: Sequence[Probe]) -> None:
        errors: dict[int, BoundedErrors] = {}
        compared = [(probe, *r) for probe in probes if (r := self._compare(probe, errors))]
        drawn = 0
        while draws := draws_in_doubt(largest_excess(errors.values()), drawn):
            self._try_neighbours(compared, errors, draws)
            drawn = draws.stop
        for output, tally in errors.items():
            result = tally.result()
            self._results[output].append(result)
            if not result.passed:
                message = (
                    f"error {result.max_candidate:.3g} (rms {result.rms_candidate:.3g}), allowed "
                    f"{result.max_bound:.3g} ({result.rms_bound:.3g}); the original's is "
                    f"{result.max_original:.3g} ({result.rms_original:.3g})"
                )
                self._pair.found("error_bound", message, self._pair.outputs[output][0], kind)
        if kind not in EXTREMES:
            self._judge_reference(kind, compared, errors)

    def _judge_reference(
        self,
        kind: str,
        compared: Sequence[tuple[Probe, list[Array], list[Array]]],
        errors: Mapping[int, BoundedErrors],
    ) -> None:
        """Looks for outputs of the reference that are far from their own float64 evaluation."""
        limits = {o: math.sqrt(float(ulp(t.dtype, 1.0))) * t.scale for o, t in errors.items()}
        far = [o for o, tally in errors.items() if tally.original.maximum > limits[o]]
        if not far:
            return
        moved: dict[int, float] = {}
        for probe, ours, _ in compared:
            for draw in range(_SOME):
                nearby = self._nearby(probe.feeds, draw)
                if nearby is None:
                    continue
                for output in far:
                    if nearby[output].shape == ours[output].shape:
                        most = _largest_difference(nearby[output], ours[output])
                        moved[output] = max(moved.get(output, 0.0), most)
        far = [output for output in far if output in moved]  # else nothing tells it from rounding
        for output in far:
            limits[output] = max(limits[output], _ROUNDINGS * moved[output])
        for output in far:
            error = errors[output].original.maximum
            if error > limits[output]:
                message = (
                    f"the reference is {error:.3g} from its own evaluation in float64, where "
                    f"rounding explains {limits[output]:.3g}: an operator in it is computed in "
                    "another meaning by one of the two, and nothing can be proven against it"
                )
                self._pair.found("reference", message, self._pair.outputs[output][0], kind)

    def _compare(
        self, probe: Probe, errors: dict[int, BoundedErrors]
    ) -> tuple[list[Array], list[Array]] | None:
        """Counts the errors on one probe; the reference's outputs in its own dtypes and in float64,
        if both models ran."""
        results = self._pair.run(probe.feeds, probe.name)
        if results is None:
            return None
        try:
            truths = self._in_double(probe.feeds)
        except NormswapError as error:
            if probe.name not in LENGTHS:
                raise
            self._pair.found("failed", str(error), probe=probe.name, fatal=False)
            return None
        for output, (ours, theirs, truth) in enumerate(zip(*results, truths, strict=True)):
            self._dtypes[output] = ours.dtype
            if not self._pair.comparable(output, ours, theirs, probe.name):
                continue
            arrays = [np.asarray(a, np.float64) for a in (truth, ours, theirs)]
            if probe.name in EXTREMES:  # where the original itself overflows, all may
                arrays = [a[np.isfinite(arrays[1])] for a in arrays]
            finite = agreeing_finite(arrays)
            if finite is None:
                counts = [int((~np.isfinite(a)).sum()) for a in arrays]
                message = (
                    f"NaN or infinite: {counts[2]} elements of the candidate's, {counts[1]} of the "
                    f"reference's, {counts[0]} in float64, of {ours.size}"
                )
                self._pair.found("non_finite", message, self._pair.outputs[output][0], probe.name)
                continue
            exact, original, rewritten = (a[finite] for a in arrays)
            tally = errors.setdefault(output, BoundedErrors(probe.name, ours.dtype))
            tally.add(exact, original, rewritten)
            own, other = self._histograms.setdefault(output, (ErrorHistogram(), ErrorHistogram()))
            own.add(exact, original)
            other.add(exact, rewritten)
        return results[0], truths

    def _try_neighbours(
        self,
        compared: Sequence[tuple[Probe, list[Array], list[Array]]],
        errors: dict[int, BoundedErrors],
        draws: Iterable[int],
    ) -> None:
        """Adds how far the original's neighbours are from the truth; where none can be run, the
        original's own error is all there is."""
        for probe, _, truths in compared:
            for draw in draws:
                nearby = self._nearby(probe.feeds, draw)
                if nearby is None:
                    continue
                for output, tally in errors.items():
                    tally.add_neighbour(draw, truths[output], nearby[output])

    def _nearby(self, feeds: Mapping[str, Array], draw: int) -> list[Array] | None:
        """What a neighbour of the original yields; None where none can be run."""
        model = self._pair.reference
        try:
            self._neighbours = self._neighbours or Neighbours(model, model.graph.outputs)
            return self._neighbours.run(feeds, draw)
        except NormswapError:
            return None

    def _in_double(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return self._truth(feeds)
        except RunFailed as failure:
            name = self._pair.reference.name
            raise NormswapError(f"{name}: cannot be evaluated in float64: {failure}") from failure

    def report(self) -> ValidationReport:
        outputs = [
            ExactOutput(*names, self._dtypes[i].name if i in self._dtypes else "", self._results[i])
            for i, names in enumerate(self._pair.outputs)
        ]
        errors = [
            OutputErrors(self._pair.outputs[i][0], own.result(), other.result())
            for i, (own, other) in sorted(self._histograms.items())
        ]
        left = sorted(self._pair.reference.graph.not_in_double)
        if left:
            message = (
                f"{', '.join(left)}: computed in its own dtype in the float64 evaluation too, "
                "which knows no other; the errors of the reference lack its part"
            )
            self._pair.found("float64", message, fatal=False)
        return replace(self._pair.report("exact", outputs), errors=errors)


def _largest_difference(a: Array, b: Array) -> float:
    """Between two arrays of one shape, where both are finite."""
    apart = np.abs(np.subtract(a, b, dtype=np.float64))
    return float(np.max(apart, where=np.isfinite(apart), initial=0))


_FACTOR = 2.0
_ULPS = 1.0
_DOUBLE_ULPS = 64.0  # of a float64 value, whose own error nothing here can measure
# In doubt, draws of the original's neighbours: some, more unless the error is hopelessly many times
# its bound, and many where it is close to it.
_SOME, _MORE, _MANY = 2, 16, 64
_HOPELESS, _CLOSE = 8.0, 1.25
_ROUNDINGS = 100.0  # by how many times what an ulp moves rounding may move an original


def ulp(dtype: np.dtype[Any], magnitude: Array | float) -> Array:
    """The unit in the last place of numbers of ``magnitude`` >= 0 in ``dtype``, in float64.

    eps * magnitude, but never less than eps * smallest_normal: subnormal numbers all have that
    spacing (2^-149 in float32, 2^-24 in float16, 2^-133 in bfloat16), so rounding to one is off by
    up to half of it, however small the number: fl(a op b) = (a op b)(1 + d) + h with |d| <= eps/2
    and |h| <= eps * smallest_normal / 2 (Higham, Accuracy and Stability of Numerical Algorithms,
    2002, section 2.1).
    """
    info = ml_dtypes.finfo(dtype)
    return np.asarray(float(info.eps) * np.maximum(magnitude, float(info.smallest_normal)))


@dataclass
class BoundedErrors:
    """The errors at one value over the probes of one kind, against float64.

    Allowed is e(candidate) <= 2 e(original) + one ulp, for the largest error and for the root mean
    square; ulp is that of max |truth| (64 of them for float64). e(original) is its largest over the
    original and those ``neighbours`` of it (by draw) that were run.
    """

    kind: str
    dtype: np.dtype[Any]
    scale: float = 0.0
    original: ErrorTally = field(default_factory=ErrorTally)
    candidate: ErrorTally = field(default_factory=ErrorTally)
    neighbours: dict[int, ErrorTally] = field(default_factory=dict)

    def result(self) -> ProbeErrors:
        ulps = _DOUBLE_ULPS if self.dtype == np.float64 else _ULPS
        slack = ulps * float(ulp(self.dtype, self.scale))
        draws = [self.original, *self.neighbours.values()]
        largest, rms = max(d.maximum for d in draws), max(d.rms for d in draws)
        return ProbeErrors(
            self.kind, self.candidate.count, self.scale, largest, self.candidate.maximum,
            _FACTOR * largest + slack, rms, self.candidate.rms, _FACTOR * rms + slack,
        )  # fmt: skip

    def add(self, truth: Array, original: Array, candidate: Array) -> None:
        """Counts arrays of one shape, in float64, the first two of them finite; where the candidate
        is not, its error is infinite."""
        self.scale = max(self.scale, float(np.abs(truth).max(initial=0)))
        self.original.add(original - truth)
        error = candidate - truth
        self.candidate.add(np.where(np.isfinite(error), error, np.inf))

    def add_neighbour(self, draw: int, truth: Array, nearby: Array) -> None:
        """Counts what the original's neighbour ``draw`` gives, where that is finite."""
        if nearby.shape != truth.shape:
            return
        with np.errstate(invalid="ignore"):
            error = np.asarray(nearby, np.float64) - truth
        self.neighbours.setdefault(draw, ErrorTally()).add(error[np.isfinite(error)])

    @property
    def excess(self) -> float:
        """The error as a multiple of its bound."""
        result = self.result()
        pairs = [(result.max_candidate, result.max_bound), (result.rms_candidate, result.rms_bound)]
        return max(0.0 if not e else e / bound if bound else np.inf for e, bound in pairs)


def largest_excess(errors: Iterable[BoundedErrors]) -> float:
    return max((tally.excess for tally in errors), default=0.0)


def draws_in_doubt(excess: float, drawn: int) -> range:
    """Which neighbours to run next, after ``drawn`` of them, for a largest ``excess``."""
    if not drawn:
        return range(_SOME if excess > 1 else 0)
    if drawn < _MORE:
        return range(drawn, _MORE if 1 < excess < _HOPELESS else drawn)
    return range(drawn, _MANY if 1 < excess < _CLOSE else drawn)


_SMALL = 2**16  # elements of a constant that is varied


class Neighbours:
    """``model`` with inputs and small constants off by an ulp, each time in another way.

    Every number of the floating inputs and of the constants of 2 to 65,536 elements (biases,
    gammas, position embeddings: there are some in every block) is off by an ulp, up or down at
    random; zeros are exact. What comes out differs from the model's ``values`` by as much as
    rounding may. Constants that give a result its shape stay as they are.
    Raises NormswapError where the runtime refuses to take constants as inputs.
    """

    def __init__(self, model: Model, values: Sequence[Value]) -> None:
        graph = model.graph
        self._names = [spec.name for spec in model.inputs]
        constants = [value for value in graph.values() if _is_small_constant(value)]
        self._constants = _Packed([np.asarray(graph.constant(value)) for value in constants])
        inputs = [graph.value(name) for name in self._names]
        self._run = graph.slice([*inputs, *constants], values)

    def run(self, feeds: Mapping[str, Array], draw: int) -> list[Array]:
        """The values in order, in the graph's own dtypes; another ``draw``, other neighbours.

        Raises NormswapError for one that cannot run: sizes may be computed from its numbers.
        """
        rng = np.random.default_rng(draw)
        inputs = [one_ulp_off(rng, feeds[name]) for name in self._names]
        outputs = self._run([*inputs, *self._constants.one_ulp_off(rng)])
        return [np.asarray(array) for array in outputs]


class _Packed:
    """Arrays that are varied together: a model has hundreds of small ones."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = arrays
        self._flat: dict[np.dtype[Any], Array] = {}
        for dtype in dict.fromkeys(array.dtype for array in arrays):  # in an order of theirs
            same = [array.reshape(-1) for array in arrays if array.dtype == dtype]
            self._flat[dtype] = np.concatenate(same)

    def one_ulp_off(self, rng: np.random.Generator) -> list[Array]:
        varied = {dtype: one_ulp_off(rng, flat) for dtype, flat in self._flat.items()}
        places = dict.fromkeys(varied, 0)
        found = []
        for array in self._arrays:
            start = places[array.dtype]
            places[array.dtype] += array.size
            found.append(varied[array.dtype][start : start + array.size].reshape(array.shape))
        return found


def _is_small_constant(value: Value) -> bool:
    if not value.is_constant or value.producer is not None or not value.uses:
        return False
    if value.dtype is None or not is_floating(value.dtype) or value.shape is None:
        return False
    if any(node.operator.takes_sizes and index for node, index in value.uses):
        return False
    return 1 < math.prod(value.shape) <= _SMALL


def one_ulp_off(rng: np.random.Generator, array: Array) -> Array:
    """Every number of a floating array but zeros off by an ulp (``ulp``), up or down; others
    as they are."""
    if not is_floating(array.dtype):
        return array
    wide = array.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        away = np.copysign(ulp(array.dtype, np.abs(wide)), wide) * rng.choice(
            [-1.0, 1.0], wide.shape
        )
        moved = np.where(wide == 0, wide, wide + away).astype(array.dtype)
    return np.where(np.isfinite(moved), moved, array)
