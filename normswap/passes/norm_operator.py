"""Located norms written as operators, however they were spelled.

A norm has several forms, each called by its operator: the operator of its kind, or one that also
computes the residual sum which the norm reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from normswap.fit.channelwise import BatchNormConstants
from normswap.graph.graph import Array, Graph, Node, Value, is_floating
from normswap.graph.operators import norm_operator, norm_with_sum_operator, operator
from normswap.norms.site import Site
from normswap.passes.base import ChosenForms
from normswap.passes.insert import insert_batch_norm, insert_cast, insert_transpose
from normswap.passes.select import why_left

ROW_NORMS = ("layer_norm", "rms_norm")
"""The kinds of norms whose operators need nothing but the norm's input."""
_KINDS = (*ROW_NORMS, "batch_norm")
_HALF = 2  # bytes


class OperatorForms:
    """The forms that this file writes, as a ``NormForms`` for a chooser."""

    def defaults(self, sites: Sequence[Site]) -> ChosenForms:
        """Each norm that is spelled out as the operator of its kind."""
        todo = [s for s in sites if _default(s) is not None]
        skipped = [(s, _why_not(s)) for s in sites if s not in todo]
        return ChosenForms({site: norm_operator(site.kind) for site in todo}, skipped)

    def candidates(self, graph: Graph, site: Site) -> list[str]:
        if site.fixed:
            return []
        default = _default(site)
        with_sum = []
        if sum_read_by(graph, site) is not None and (op := norm_with_sum_operator(site.kind)):
            with_sum = [op]
        return with_sum if default is None else [default, *with_sum]

    def region(self, graph: Graph, site: Site) -> tuple[list[Value], list[Value]]:
        x, y = graph.value(site.input), graph.value(site.output)
        add = sum_read_by(graph, site)
        return ([x], [y]) if add is None else (add.dynamic_inputs(), [y, x])

    def write(self, graph: Graph, site: Site, form: str) -> list[Value]:
        graph.require(form)
        if operator(form).norm_with_sum:
            return list(replace_norm_and_sum(graph, site))
        if site.kind == "batch_norm":
            return [_replace_batch_norm(graph, site)]
        return [replace_norm(graph, site, site)]


def replace_norm(graph: Graph, site: Site, spelled: Site) -> Value:
    """The operator of the kind, weight and bias of ``site`` where the graph has ``spelled``; what
    takes the place of its output.

    An operator without a bias of its own (RMSNormalization) gets an Add behind it. Norms over
    other axes than the last ones get transposes, such whose constants the dtype cannot hold casts.
    """
    x, old = graph.value(spelled.input), graph.value(spelled.output)
    like, name, rank = old.producer, f"{site.name}.output", len(old.shape or ())
    dtype = _working_dtype(x, old, site)
    perm = (*(a for a in range(rank) if a not in site.axes), *site.axes)
    value = insert_cast(graph, x, dtype, f"{site.name}.cast", like)
    value = insert_transpose(graph, value, perm, f"{site.name}.axes_last", like)
    weight = _parameter(graph, spelled, site.weight, f"{site.name}.weight", dtype)
    bias = _parameter(graph, spelled, site.bias, f"{site.name}.bias", dtype)
    takes_bias = site.kind == "layer_norm"
    inputs = [value, weight, bias] if takes_bias else [value, weight]
    attributes = {"axis": rank - len(site.axes), "epsilon": site.epsilon}
    value = graph.insert(norm_operator(site.kind), inputs, attributes, name=name, like=like)
    if bias is not None and not takes_bias:
        value = graph.insert("Add", [value, bias], name=f"{site.name}.shifted", like=like)
    back = tuple(perm.index(axis) for axis in range(rank))
    value = insert_transpose(graph, value, back, f"{site.name}.axes_back", like)
    value = insert_cast(graph, value, old.dtype, f"{site.name}.cast_back", like)
    graph.replace_uses(old, value)
    return value


def spell_rms_norm(graph: Graph, site: Site, spelled: Site) -> Value:
    """``replace_norm`` of an RMSNorm over one axis by operators that every opset has, in float32 at
    the least."""
    x, old = graph.value(spelled.input), graph.value(spelled.output)
    like, name, (axis,) = old.producer, site.name, site.axes
    dtype = _working_dtype(x, old, site)
    dtype = dtype if dtype.itemsize > _HALF else np.dtype(np.float32)
    shape = tuple(-1 if a == axis else 1 for a in range(axis, old.rank or 1))

    def insert(op: str, inputs: Sequence[Value], what: str, **attributes: Any) -> Value:
        return graph.insert(op, inputs, attributes, name=f"{name}.{what}", like=like)

    def constant(array: Array, what: str) -> Value:
        return graph.add_constant(array.astype(dtype), f"{name}.{what}")

    value = insert_cast(graph, x, dtype, f"{name}.cast", like)
    square = insert("Mul", [value, value], "square")
    mean = insert("ReduceMean", [square], "mean", axes=(axis,), keepdims=1)
    total = insert("Add", [mean, constant(np.array(site.epsilon), "epsilon")], "shifted_mean")
    value = insert("Div", [value, insert("Sqrt", [total], "root")], "output")
    if site.weight is not None:
        value = insert("Mul", [value, constant(site.weight.reshape(shape), "weight")], "scaled")
    if site.bias is not None:
        value = insert("Add", [value, constant(site.bias.reshape(shape), "bias")], "shifted")
    value = insert_cast(graph, value, old.dtype, f"{name}.cast_back", like)
    graph.replace_uses(old, value)
    return value


def _replace_batch_norm(graph: Graph, site: Site) -> Value:
    x, old = graph.value(site.input), graph.value(site.output)
    assert site.mean is not None  # a batch_norm site has statistics
    assert site.variance is not None
    constants = BatchNormConstants(
        weight=np.ones_like(site.mean) if site.weight is None else site.weight,
        bias=np.zeros_like(site.mean) if site.bias is None else site.bias,
        mean=site.mean,
        variance=site.variance,
        epsilon=site.epsilon,
    )
    like, name = old.producer, f"{site.name}.output"
    value = insert_cast(graph, x, _working_dtype(x, old, site), f"{site.name}.cast", like)
    value, _ = insert_batch_norm(graph, value, site.axes[0], constants, name, like)
    value = insert_cast(graph, value, old.dtype, f"{site.name}.cast_back", like)
    graph.replace_uses(old, value)
    return value


def replace_norm_and_sum(graph: Graph, site: Site) -> tuple[Value, Value]:
    """One operator for the norm and for the sum of ``sum_read_by``; their new values."""
    x, old = graph.value(site.input), graph.value(site.output)
    add, dtype = x.producer, x.dtype
    assert add is not None  # sum_read_by has found it
    assert dtype is not None
    gamma = np.ones(site.normalized_shape) if site.weight is None else site.weight
    inputs: list[Value | None] = [*add.dynamic_inputs()]
    inputs.append(_parameter(graph, site, gamma, f"{site.name}.weight", dtype))
    if site.bias is not None:
        inputs.append(_parameter(graph, site, site.bias, f"{site.name}.bias", dtype))
    attributes = {"epsilon": site.epsilon}
    op = norm_with_sum_operator(site.kind)
    assert op is not None  # sum_read_by has found it
    new = graph.insert(op, inputs, attributes, name=f"{site.name}.output", like=old.producer)
    assert new.producer is not None
    total = new.producer.outputs[3]
    graph.replace_uses(old, new)
    graph.replace_uses(x, total)
    return new, total


def _default(site: Site) -> str | None:
    """The operator that a norm which is spelled out becomes; None for any other."""
    is_written = site.spelling == "decomposed" and not why_left(site, _KINDS)
    return norm_operator(site.kind) if is_written else None


def _why_not(site: Site) -> str:
    one = "it is one operator already" if site.spelling == "op" else ""
    return site.fixed or one or why_left(site, _KINDS)


def sum_read_by(graph: Graph, site: Site) -> Node | None:
    """The Add whose sum the norm normalises, if one operator can compute both: of two values of
    one shape, rank 2 or 3, over the last axis, in one dtype that holds the parameters."""
    x, y = graph.value(site.input), graph.value(site.output)
    add = x.producer
    if norm_with_sum_operator(site.kind) is None or add is None or x.shape is None:
        return None
    if add.op != "Add":
        return None
    values = add.dynamic_inputs()
    alike = len(values) == 2 and all(v.shape == x.shape and v.dtype == x.dtype for v in values)
    last = site.axes == (len(x.shape) - 1,) and len(x.shape) in (2, 3)
    plain = site.bias is None or site.kind == "layer_norm"
    same = x.dtype == y.dtype == _working_dtype(x, y, site)
    return add if alike and last and plain and same else None


def _working_dtype(x: Value, y: Value, site: Site) -> np.dtype[Any]:
    """That of input and output, if they agree and it holds the constants; else at least float32."""
    given = [v.dtype for v in (x, y) if v.dtype is not None]
    constants = [a for a in (site.weight, site.bias, site.mean, site.variance) if a is not None]
    if len(set(given)) == 1 and all(_holds(given[0], array) for array in constants):
        return given[0]
    return np.result_type(np.float32, *(d for d in given if d.itemsize > _HALF))


def _holds(dtype: np.dtype[Any], array: Array) -> bool:
    if dtype.itemsize > _HALF:
        return True
    return is_floating(dtype) and bool(np.all(array.astype(dtype).astype(np.float64) == array))


def _parameter(
    graph: Graph, spelled: Site, array: Array | None, name: str, dtype: np.dtype[Any]
) -> Value | None:
    """The norm's own parameter where it is the one, so that its name stays; else a new one."""
    if array is None:
        return None
    nodes = graph.ancestors([graph.value(spelled.output)], stop=[graph.value(spelled.input)])
    for value in (v for node in nodes for v in node.inputs if v is not None):
        if value.is_constant and value.shape == array.shape and value.dtype == dtype:
            own = graph.constant(value)
            if own is not None and np.array_equal(own, array):
                return value
    return graph.add_constant(array.astype(dtype), name)
