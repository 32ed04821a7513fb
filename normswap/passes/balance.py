"""A stream without norms changes its variables, so that what writes and what reads it are even."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from normswap import distributed
from normswap.fit.calibration import Batches
from normswap.graph.graph import Array, Value
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.orthogonal import random_orthogonal
from normswap.passes.algebra.rules import rotation
from normswap.passes.algebra.spread import Spread, Start, norm_nodes, spread
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal
from normswap.passes.fold import Fold
from normswap.precision.integers import IntegerFormat
from normswap.precision.quantised import QuantisedModel

_LEAST = 1 / 8  # of the largest factor of a direction: `spread` allows a condition number of 10
_JUDGING = 4  # batches
_NOISE = 1e-9  # of the largest eigenvalue: less is rounding


def balance(
    model: Model, sites: Sequence[Site], batches: Batches, form: IntegerFormat
) -> tuple[Model, list[str]]:
    """x becomes T x on the streams that the swapped ``sites`` have read; notes on those that stay.

    Exact: what writes to a stream takes T [C, C], what reads it T^-1, which norms would not let
    through. Integers divide the whole range of x into equal steps. With second moments S of the
    stream and M = W^T W of all that reads it, rounding x costs about tr(T S T^T) tr(T^-T M T^-1),
    and so does rounding the weights. The least is at T^T T = S^-1 # M, the geometric mean of
    matrices (Pusz and Woronowicz 1975). A stream often has a few large directions that its readers
    all but ignore: W is large in the others, and multiplies their rounding. What reads it is what
    the maps come to when they are folded (``Fold``). The result is the model as it was where, in
    integers of ``form``, the folded one is no nearer to itself for it: a range is more than
    its moments.
    """
    result, refused = model.copy(), dict[str, list[Site]]()
    folded = Fold()(model).model
    trials, edits = WeightEdits(folded.graph), WeightEdits(result.graph)
    known = {v.name: v for v in folded.graph.values()}
    closed, kept = norm_nodes(result.graph, result.sites), norm_nodes(folded.graph, folded.sites)
    reached, changed = set[str](), False
    for site in sites:
        if site.input not in known or site.input in reached:
            continue
        size, axis, stream = site.normalized_shape[0], site.axes[0], known[site.input]
        turn = rotation(random_orthogonal(size), axis, stream.rank or 0)
        trial = spread(trials, Start(stream, turn, False, closed=kept, joins=True))
        try:
            matrix = _balancing(trial.checked(), folded, batches, size)
            change = ChannelMap.along(matrix, np.zeros(size), axis, stream.rank or 0).invertible()
            start = Start(result.graph.value(site.input), change, False, closed=closed, joins=True)
            spread(edits, start).checked().act()
            changed = True
        except Refusal as refusal:
            refused.setdefault(str(refusal), []).append(site)
        reached |= {value.name for value in trial.known}
    notes = [
        f"the stream of '{first.name}'{_and_more(others)} is not balanced for integers: {why}"
        for why, (first, *others) in refused.items()
    ]
    if not changed:
        return model, notes
    edits.write()
    result.graph.prune()
    worse = _lost(Fold()(result).model, form, batches) >= _lost(folded, form, batches)
    return (model if worse else result), notes


def _lost(model: Model, form: IntegerFormat, batches: Batches) -> float:
    """What rounding changes in the outputs that the inputs of ``batches`` give, by their power; nan
    where there is none, as of a CLIP whose texts are not given."""
    graph, some = model.graph, batches[:_JUDGING]
    inputs = [graph.value(name) for name in some[0]]
    outputs = [v for v in graph.outputs if set(graph.sources([v])) <= set(inputs)]
    if not outputs:
        return float("nan")
    exact = graph.slice(inputs, outputs)
    rounded = QuantisedModel(model, form.name, some).slice(inputs, outputs)
    total = np.zeros((2, len(outputs)))
    for batch in some:
        arrays = [batch[value.name] for value in inputs]
        for number, (a, b) in enumerate(zip(exact(arrays), rounded(arrays), strict=True)):
            wanted = a.astype(np.float64)
            total[:, number] += np.square(b - wanted).sum(), np.square(wanted).sum()
    off, power = np.sum(distributed.gathered(total), 0)
    return float(np.sum(off / np.where(power > 0, power, 1.0)))


def _and_more(sites: Sequence[Site]) -> str:
    return f" and {len(sites)} more" * bool(sites)


def _balancing(trial: Spread, model: Model, batches: Batches, size: int) -> Array:
    """T [C, C], symmetric, for the stream that ``trial`` spreads through."""
    read: dict[Value, tuple[int, Array]] = {}
    for weight, _ in trial.readers():
        array = np.moveaxis(weight.weight, -1 if weight.weight.ndim == 2 else 2, -1)
        if array.shape[-1] == size:
            rows = array.reshape(-1, size)
            before = read.get(weight.input, (0, np.zeros((size, size))))[1]
            read[weight.input] = weight.axis, before + rows.T @ rows
    if not read:
        raise Refusal("no linear layer reads it")
    moments = _moments(model, {value: axis for value, (axis, _) in read.items()}, batches, size)
    held, wanted = np.zeros((size, size)), np.zeros((size, size))
    for value, (_, gram) in read.items():
        power, given = np.trace(moments[value]), np.sum(gram * moments[value])
        if power > 0 and given > 0:  # what is lost of each counts by its share
            held += moments[value] / power
            wanted += gram * power / given
    if not np.isfinite(held).all() or not np.isfinite(wanted).all():
        raise Refusal("its activations on the calibration data are not finite")
    if not held.any():
        raise Refusal("it is 0 on the calibration data")
    root = _power(held, 0.5)
    back = _power(held, -0.5)
    return _power(back @ _power(root @ wanted @ root, 0.5) @ back, 0.5, _LEAST)


def _moments(
    model: Model, axes: Mapping[Value, int], batches: Batches, size: int
) -> dict[Value, Array]:
    """The second moments [C, C] of the channels of values, whose channels are along ``axes``."""
    graph, names = model.graph, list(batches[0])
    run = graph.slice([graph.value(name) for name in names], list(axes))
    sums = {value: np.zeros((size, size)) for value in axes}
    for batch in batches:
        for (value, axis), array in zip(axes.items(), run([batch[n] for n in names]), strict=True):
            rows = np.moveaxis(array, axis, -1).reshape(-1, size).astype(np.float64)
            sums[value] += rows.T @ rows
    return {value: np.sum(distributed.gathered(own), 0) for value, own in sums.items()}


def _power(matrix: Array, exponent: float, least: float = 0.0) -> Array:
    """Of a symmetric matrix; no eigenvalue of the result is below ``least`` of its largest."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    powers = np.maximum(values, _NOISE * values[-1]) ** exponent
    return np.asarray((vectors * np.maximum(powers, least * powers.max())) @ vectors.T)
