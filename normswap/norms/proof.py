"""The numeric proof that an exit of a region is a norm of its entry, with its constants.

The region is evaluated in float64 on probes:

1. Which elements of the exit change with one of the entry tells the axes.
2. At a large scale, with large row means, epsilon vanishes: weight and bias follow by least
   squares.
3. At a tiny scale a first epsilon follows, and at the scale where the variance equals it the exact
   one.
4. The formula with these constants has to reproduce every probe, one with outlier channels among
   them, to float64 rounding.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from normswap.graph.graph import Array, Graph, Value
from normswap.norms.evaluation import (
    WHOLE,
    Probes,
    RegionRunner,
    bounded,
    probe_shapes,
    rounded_averages,
    touched,
)
from normswap.norms.formula import Norm, Statistics, fit_affine, fit_epsilon, spread
from normswap.norms.regions import Region, narrowed
from normswap.norms.site import KINDS

_EPSILON_DIGITS = 7
_SAME = 1e-9
_BEYOND = f"its shape is fixed, and values of more than {WHOLE:,} elements are beyond the bound"
_TOLERANCE = 1e-9  # of weight and bias; float64 rounding through a dozen operators, with room
_UNKNOWN = "it cannot be evaluated: "
_EPSILON_OUTSIDE = "epsilon is not added to the variance under the root"
_SHAPE = "it changes the shape of what it normalises"
_BATCH = "it reduces over the batch (axis 0)"
_L2 = "it is an L2 normalisation: x / ||x||"
_EPSILON_DIFFERS = "epsilon differs within what is normalised"
_AXES = "its statistics are taken over different axes"
_STATISTIC = (
    "what it divides by is not the root mean square of what it divides: a statistic, an exponent "
    "or an operand is another"
)
_SCALE = (
    "its result changes with the scale of its input: an exponent is not that of a norm, or what "
    "it divides by is not the root of it"
)
_NOT_FINITE = "it divides by zero or overflows: its values are not finite on ordinary inputs"
# What to report of several values around an anchor: what the one closest to a norm lacks.
_CLOSEST = (_L2, _EPSILON_DIFFERS, _EPSILON_OUTSIDE, _BATCH, _AXES, _STATISTIC, _NOT_FINITE, _SCALE)
_FULL = 0.9  # of what a norm reaches; a weight of zero hides some
_FACTOR = 30.0  # by which a norm's output may grow from unit to large scale
_APART = 0.05  # of the largest value; below it the weight and bias are to blame

Verdict = Norm | str  # a norm, or the reason why there is none


def prove(graph: Graph, region: Region) -> list[Verdict]:
    """What each exit of ``region`` is: a norm of its entry, or the reason why it is none.

    In the order of ``region.exits``. Nothing is raised: an exit that cannot be evaluated (an
    operator without a float64 implementation, values beyond the bound on memory) proves nothing,
    which is a reason too. An epsilon is as it was computed (see ``shortened``).
    """
    verdicts = _verdicts(graph, region, {})
    if len(verdicts) > 1 and all(_is_unknown(verdict) for verdict in verdicts):
        # what cannot be evaluated may lie behind one exit, and a norm in another
        return [prove(graph, narrowed(graph, region, value))[0] for value in region.exits]
    averages = rounded_averages(graph, region)
    if averages and not any(isinstance(verdict, Norm) for verdict in verdicts):
        verdicts = _verdicts(graph, region, averages)
    return verdicts


def shortened(verdict: Verdict) -> Verdict:
    """A verdict with the epsilon that was meant: rows of a small variance tell the decimal from the
    float32 in the file, so nothing may be computed with it."""
    if isinstance(verdict, Norm):
        return replace(verdict, epsilon=_shortest(verdict.epsilon))
    return verdict


def _verdicts(graph: Graph, region: Region, averages: dict[Value, Array]) -> list[Verdict]:
    count = len(region.exits)
    run = RegionRunner(graph, region, averages)
    if not run.is_known:
        return [f"{_UNKNOWN}{run.problem}"] * count
    best: list[Verdict] = [_BEYOND] * count
    for shape in probe_shapes(region):
        probes = Probes(run, shape)
        if probes.are_large and count > 1:  # of one exit at a time the values are held
            return [_verdicts(graph, narrowed(graph, region, v), averages)[0] for v in region.exits]
        if all(probes.of("plain", index) is None for index in range(count)):
            if math.prod(region.entry.shape or ()) <= WHOLE and run.problem:
                best = [f"{_UNKNOWN}{run.problem}"] * count
            continue
        best = [_judge(probes, index) for index in range(count)]
        cut = {a for a, size in enumerate(region.entry.shape or ()) if size != shape[a]}
        if region.counts and not cut:
            return ["a size enters its formula, and it takes no other"] * count
        if not any(cut & probes.reach(index) for index in range(count)):
            return _confirmed(run, shape, best)
    # What is a norm by now was shown for other sizes of what it normalises only.
    return [_BEYOND if isinstance(verdict, Norm) else verdict for verdict in best]


def _is_unknown(verdict: Verdict) -> bool:
    return isinstance(verdict, str) and verdict.startswith(_UNKNOWN)


def _judge(probes: Probes, index: int) -> Verdict:
    """What exit ``index`` is, from its values on the probes."""
    choices = _statistics_of(probes, index)
    if isinstance(choices, str):
        values = _values(probes, index)
        return values if isinstance(values, str) else choices
    for statistics in choices:
        for over in _affine_axes(statistics, len(probes.nudged_at)):
            enough = probes.to_fit(statistics, over)
            if enough.rows(over) < 2:
                return _BEYOND  # any line goes through one point
            values = _values(enough, index)
            if isinstance(values, str):
                return values
            fit = _fitted(statistics, over, enough.inputs["large"], values["large"])
            if fit is not None:
                return _with_epsilon(enough, index, statistics, over, values, fit)
    return _why_no_scale(probes, index)


def _values(probes: Probes, index: int) -> dict[str, Array] | str:
    """Exit ``index`` on the probes that every norm takes, or the reason why it is none."""
    names = ("plain", "large", "tiny", "outliers")
    y = {name: probes.of(name, index) for name in names}
    values = {name: value for name, value in y.items() if value is not None}
    if len(values) < len(names):
        return _SHAPE
    if not all(np.all(np.isfinite(value)) for value in values.values()):
        return _NOT_FINITE
    return values


def _affine_axes(statistics: Statistics, rank: int) -> list[tuple[int, ...]]:
    """The axes that weight and bias may depend on: those of the norm, or the channels."""
    if statistics.groups is not None:
        return [(statistics.channels,)]
    channels = [(1,)] if rank > 2 and statistics.centred and 1 not in statistics.axes else []
    return [statistics.axes, *channels]


def _fitted(
    statistics: Statistics, over: tuple[int, ...], x: Array, y: Array
) -> tuple[Array, Array] | None:
    """The weight and bias with which ``y`` is the norm without an epsilon of ``x``, where that is
    negligible; None where it is not the norm."""
    normalised = statistics.normalised(x, 0.0)
    weight, bias = fit_affine(normalised, y, over)
    rank = y.ndim - 1
    w, b = spread(weight, over, rank), spread(bias, over, rank)
    normalised *= w
    normalised += b
    return (weight, bias) if close(normalised, y, np.abs(w) + np.abs(b)) else None


def _with_epsilon(
    probes: Probes,
    index: int,
    statistics: Statistics,
    over: tuple[int, ...],
    y: dict[str, Array],
    fit: tuple[Array, Array],
) -> Verdict:
    x, rank = probes.inputs, y["plain"].ndim - 1
    weight, bias = fit
    w, b = spread(weight, over, rank), spread(bias, over, rank)
    if not np.any(w):
        return "its scale is zero"
    epsilon = fit_epsilon(statistics, x["tiny"], y["tiny"], w, b)
    is_l2 = _is_l2(statistics, y["plain"].shape[1:], weight)

    def reason() -> str:
        return _L2 if is_l2 else _why_no_epsilon(statistics, x["tiny"], y["tiny"], w, b)

    if not epsilon >= 0:
        return reason()
    checks = ["large", "plain", "outliers", "tiny"]
    if not epsilon or probes.rows(statistics.axes) == 1:  # else one of them is zero
        checks.append("vanishing")
    if epsilon:
        checks.append(probes.critical(epsilon, statistics))
    last = probes.of(checks[-1], index)
    if last is None or not np.all(np.isfinite(last)):
        return reason()
    if epsilon:
        epsilon = fit_epsilon(statistics, x[checks[-1]], last, w, b)
        if not epsilon > 0:
            return reason()
    weight, bias = fit_affine(statistics.normalised(x["plain"], epsilon), y["plain"], over)
    scale = float(np.abs(weight).max())
    weight, bias = _round_off(weight, scale), _round_off(bias, scale)
    norm = Norm("", statistics, over, weight, bias, epsilon)
    slack = np.abs(spread(weight, over, rank)) + np.abs(spread(bias, over, rank))
    for name in checks:
        found = y[name] if name in y else probes.of(name, index)
        if found is None or not close(norm(x[name]), found, slack):
            return reason()
    kind = kind_of(norm, rank)
    if kind not in KINDS:
        return kind
    return replace(norm, kind=kind)


def close(x: Array, y: Array, slack: Array) -> bool:
    """To rounding, by the size of each position's own weight and bias. ``x`` is used up."""
    x -= y
    np.abs(x, out=x)
    return bool(np.all(x <= _TOLERANCE * np.maximum(slack, 1e-3 * slack.max())))


def _confirmed(run: RegionRunner, shape: tuple[int, ...], verdicts: list[Verdict]) -> list[Verdict]:
    """Proven on fewer rows, the whole value has to agree too, as far as memory allows."""
    whole = bounded(run.region.entry.shape or shape, WHOLE)
    if run.is_rowwise or shape == whole:
        return verdicts
    x = np.random.default_rng(1).standard_normal((1, *whole))
    checked: list[Verdict] = []
    for verdict, y in zip(verdicts, run(x), strict=True):
        if isinstance(verdict, Norm):
            rank = x.ndim - 1
            weight, bias = (spread(a, verdict.over, rank) for a in (verdict.weight, verdict.bias))
            agrees = y is not None and close(verdict(x), y, np.abs(weight) + np.abs(bias))
            checked.append(verdict if agrees else "it treats rows differently")
        else:
            checked.append(verdict)
    return checked


def _shortest(epsilon: float) -> float:
    """The decimal that was meant: files store float32."""
    single = np.float32(epsilon)
    if abs(float(single) - epsilon) <= 1e-8 * epsilon:
        return float(str(single))
    return float(f"{epsilon:.{_EPSILON_DIGITS - 1}e}")


def _round_off(constants: Array, scale: float) -> Array:
    """Constants that are float32 numbers up to float64 rounding are those numbers."""
    single = constants.astype(np.float32).astype(np.float64)
    slack = 1e-10 * np.maximum(np.abs(constants), 1e-2 * scale)
    return np.where(
        np.abs(constants) <= slack,
        0.0,
        np.where(np.abs(single - constants) <= slack, single, constants),
    )


# -- what the values of an exit say ---------------------------------------------------------------


def _statistics_of(probes: Probes, index: int) -> list[Statistics] | str:
    """The statistics that an exit may have, from which elements change with one of the input;
    otherwise the reason why it has none."""
    positions, nudged_at = probes.reached(index), probes.nudged_at
    if positions is None:
        return _SHAPE
    rank = len(positions)
    axes = tuple(a for a in range(rank) if len(positions[a]) > 1)
    if not axes:
        return "no statistic of other elements enters"
    if 0 in axes and rank > 1:
        return _BATCH
    choices = [Statistics(axes, True), Statistics(axes, False)]
    if rank > 1 and axes == tuple(range(1, rank)):
        for channels in dict.fromkeys((rank - 1, 1)):
            first, last = int(positions[channels][0]), int(positions[channels][-1])
            size, span = probes.shape[channels], last - first + 1
            if span < size and size % span == 0 and nudged_at[channels] // span == first // span:
                choices.insert(0, Statistics(axes, True, size // span, channels))
    return choices


def kind_of(norm: Norm, rank: int) -> str:
    """One of ``KINDS``, or the reason why the proven formula is none of them.

    A norm whose weight and bias go with the channels and not with what is normalised is an
    InstanceNorm; one over all but the batch with a weight per channel a GroupNorm.
    """
    statistics = norm.statistics
    if not statistics.centred:
        first = float(norm.weight.flat[0])
        uniform = bool(np.all(np.abs(norm.weight - first) <= _SAME * abs(first)))
        if norm.epsilon == 0 and uniform and abs(first - 1) > _SAME:
            return _L2
        return "rms_norm"
    if statistics.groups is not None:
        return "group_norm"
    varying = {axis for axis, varies in zip(norm.over, _varying(norm), strict=True) if varies}
    spatial = tuple(range(2, rank))
    if not varying <= set(statistics.axes):
        return "instance_norm" if statistics.axes == spatial else "its scale depends on the row"
    if rank > 3 and statistics.axes == spatial and not varying:
        return "instance_norm"
    if rank > 2 and statistics.axes == tuple(range(1, rank)) and varying == {1}:
        return "group_norm"
    return "layer_norm"


def _varying(norm: Norm) -> list[bool]:
    """Along which of its axes weight or bias changes."""
    pairs = (norm.weight, norm.bias)
    return [
        any(bool(np.any(a != np.take(a, [0], axis))) for a in pairs)
        for axis in range(norm.weight.ndim)
    ]


def _is_l2(statistics: Statistics, shape: tuple[int, ...], weight: Array) -> bool:
    """x / ||x||: a mean of squares with the same weight of 1/sqrt(n) everywhere."""
    count = math.prod(shape[axis] for axis in statistics.axes)
    unit = 1 / math.sqrt(count)
    return not statistics.centred and bool(np.all(np.abs(weight - unit) <= 1e-6 * unit))


def _why_no_scale(probes: Probes, index: int) -> str:
    """Why an exit is no norm of its entry even where epsilon vanishes."""
    plain, nudged, large = (probes.of(name, index) for name in ("plain", "nudged", "large"))
    assert plain is not None
    assert nudged is not None
    assert large is not None  # else there were no choices
    mask = (plain != nudged).any(axis=0)
    box = mask[np.ix_(*touched(plain != nudged))]
    if not box.all() and box.mean() < _FULL:
        return _AXES
    before, behind = (np.std(y - y.mean(tuple(range(y.ndim - 1)))) for y in (plain, large))
    growth = float(behind / max(before, 1e-300))
    if not 1 / _FACTOR < growth < _FACTOR:
        return _SCALE
    return _STATISTIC


def likeliest(reasons: list[str]) -> str:
    """Of the reasons why several values are no norm, the one to report."""
    known = [reason for reason in _CLOSEST if reason in reasons]
    return known[0] if known else reasons[0]


def _why_no_epsilon(statistics: Statistics, x: Array, y: Array, weight: Array, bias: Array) -> str:
    """Why an exit that is a norm at a large scale is none at a tiny one."""
    scaled = weight * statistics.centre(x)
    part = y - bias
    axes = tuple(axis + 1 for axis in statistics.axes)
    with np.errstate(all="ignore"):
        inverse = (part * scaled).sum(axes, keepdims=True) / np.square(scaled).sum(
            axes, keepdims=True
        )
        apart = np.abs(part - scaled * inverse).max() / np.abs(scaled * inverse).max()
    if statistics.groups is None and np.isfinite(apart) and apart > _APART:
        return _EPSILON_DIFFERS
    return _EPSILON_OUTSIDE
