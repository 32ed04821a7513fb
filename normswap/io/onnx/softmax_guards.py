"""The IsNaN and Where that torch's exporter puts behind a softmax, where nothing can need them.

A row of logits that are all minus infinity, a fully masked one, has no softmax: 0 / 0. torch's
attention makes it 0, and so does the exporter, for every softmax of an attention, with::

    p = Softmax(s);  y = Where(IsNaN(p), 0, p)

Targets that have no IsNaN refuse the whole file for it. The guard goes where every row has a logit
that no mask closes: ``s`` is a product, or the sum of one and of a mask with such rows, that is a
constant, or a choice by a constant between a number and minus infinity. For finite products the
softmax is then no NaN, and y is p to the bit. A product that overflows is another matter: the guard
makes 0 of its NaN, torch itself does so only where all of a row is minus infinity. So for NaN and
infinite logits the file without the guard says NaN, as the model does, but for a row that is minus
infinity as a whole because its products overflowed: there torch has 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from normswap.graph.graph import Array, is_floating
from normswap.graph.operators import operator

_MOST = 1 << 24  # elements of a mask that is looked at


@dataclass(frozen=True)
class Guards:
    """How many guards were ``removed``, and why others were left, with how many each."""

    removed: int
    left: dict[str, int]

    @property
    def notes(self) -> list[str]:
        """In words, for a user."""
        told = [f"{n} guards behind a softmax stay: {why}" for why, n in self.left.items()]
        if self.removed:
            told.insert(0, f"{self.removed} guards behind a softmax are gone: no row is masked")
        return told


def remove_softmax_guards(model: ir.Model) -> Guards:
    """Takes the guards out of a model's main graph that no row can need, in place."""
    left: Counter[str] = Counter()
    removed = 0
    for node in list(model.graph):
        softmax = _guarded(node)
        if softmax is None:
            continue
        try:
            _check_open(softmax)
        except _Masked as reason:
            left[str(reason)] += 1
            continue
        value, guarded = node.outputs[0], softmax.outputs[0]
        if value.is_graph_output():
            left["its result is an output of the model"] += 1
            continue
        ir.convenience.replace_all_uses_with(value, guarded)
        removed += 1
    if removed:
        RemoveUnusedNodesPass()(model)
    return Guards(removed, dict(left))


def _guarded(node: ir.Node) -> ir.Node | None:
    """The Softmax behind which a node is the Where of a guard."""
    if node.op_type != "Where" or len(node.inputs) != 3:
        return None
    test, zero, value = node.inputs
    if test is None or zero is None or value is None:
        return None
    asks, softmax, other = test.producer(), value.producer(), _constant(zero)
    if asks is None or softmax is None or other is None or np.any(other != 0) or other.size != 1:
        return None
    is_guard = asks.op_type == "IsNaN" and asks.inputs[0] is value
    return softmax if is_guard and softmax.op_type == "Softmax" else None


class _Masked(Exception):
    """Why a row may be masked as a whole."""


def _check_open(softmax: ir.Node) -> None:
    """Raises _Masked unless every row of the logits has one that no mask closes."""
    logits = softmax.inputs[0]
    assert logits is not None  # onnx requires it
    rank = None if logits.shape is None else len(logits.shape)
    axis = softmax.attributes.get_int("axis", -1)
    if axis >= 0:
        if rank is None:
            raise _Masked("the rank of its logits is not known")
        axis -= rank
    masks = 0
    pending = [(logits, True)]  # and whether minus infinity in it stays that in the logits
    while pending:
        value, stays = pending.pop()
        node, mask = value.producer(), _open_places(value)
        if mask is not None:
            masks += not mask.all()
            if not (mask.all() or stays):
                raise _Masked("a mask is multiplied or subtracted")
            if not np.all(_any(mask, axis)):
                raise _Masked("a row of its mask is closed as a whole")
        elif node is None:
            raise _Masked(f"'{value.name}' is added to its logits, which a caller gives")
        elif operator(node.op_type).product == "matrix":
            continue
        elif _keeps_finite(node):
            known = operator(node.op_type)
            sums = stays and (known.arithmetic != "product")
            inputs = [v for v in node.inputs if v is not None]
            pending += [(v, sums and (n == 0 or known.commutes)) for n, v in enumerate(inputs)]
        else:
            raise _Masked("its mask is computed from the model's inputs")
    if masks > 1:
        raise _Masked("several masks are added up")


def _keeps_finite(node: ir.Node) -> bool:
    """Whether a node computes finite numbers from finite ones, element by element, and keeps what
    stands in a row: sums, products, and quotients by a number."""
    known = operator(node.op_type)
    if known.arithmetic == "product" and not known.commutes:
        by = None if node.inputs[1] is None else _constant(node.inputs[1])
        return by is not None and by.size == 1 and bool(np.all(by != 0))
    return known.combines_two or known.move == "copy"


def _open_places(value: ir.Value) -> Array | None:
    """Where a constant, or a choice by one, is a number and not minus infinity; None where it is
    neither, or something else than a number."""
    array = _constant(value)
    if array is not None:
        if not is_floating(array.dtype) or np.any(np.isnan(array) | np.isposinf(array)):
            return None
        return np.asarray(~np.isneginf(array))
    node = value.producer()
    if node is None or node.op_type != "Where":
        return None
    test, chosen, other = (None if v is None else _open(v) for v in node.inputs)
    if test is None or chosen is None or other is None:
        return None
    return np.asarray(np.where(test, chosen, other))


def _open(value: ir.Value) -> Array | None:
    """A truth of a constant, behind an Expand too, and where a constant number is open."""
    node = value.producer()
    if node is not None and operator(node.op_type).move == "expand" and node.inputs[0] is not None:
        return _open(node.inputs[0])
    array = _constant(value)
    return array if array is not None and array.dtype == bool else _open_places(value)


def _any(mask: Array, axis: int) -> Array:
    """Whether anything of each row along ``axis``, from the end, is true."""
    return np.asarray(mask.any(axis)) if mask.ndim >= -axis else mask


def _constant(value: ir.Value) -> Array | None:
    tensor = value.const_value
    if tensor is None or tensor.size > _MOST:
        return None
    return tensor.numpy()
