"""What the dialects share: which norms they write, and how constants and operators are written."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Graph, Value
from normswap.model import Model
from normswap.norms.site import Site
from normswap.passes.base import Pass, PassResult, Refusal
from normswap.passes.insert import insert_cast, insert_transpose
from normswap.passes.norm_operator import ROW_NORMS
from normswap.passes.select import select_sites, why_left

_HALF = 2  # bytes


class Pen:
    """Writes the operators of one norm. ``dtype``: in which it is computed."""

    def __init__(self, graph: Graph, site: Site, dtype: np.dtype[Any]) -> None:
        self.graph, self.site, self.dtype = graph, site, dtype
        self._like = graph.value(site.output).producer

    def write(self, op: str, *inputs: Value, what: str, **attributes: Any) -> Value:
        """The result of a new node; ``what`` it is called, behind the name of the norm."""
        name = f"{self.site.name}.{what}"
        return self.graph.insert(op, inputs, attributes, name=name, like=self._like)

    def constant(self, array: Array | float, what: str) -> Value:
        name = f"{self.site.name}.{what}"
        return self.graph.add_constant(np.asarray(array, self.dtype), name)

    def cast(self, x: Value, dtype: np.dtype[Any] | None, what: str) -> Value:
        return insert_cast(self.graph, x, dtype, f"{self.site.name}.{what}", self._like)

    def transpose(self, x: Value, perm: tuple[int, ...], what: str) -> Value:
        return insert_transpose(self.graph, x, perm, f"{self.site.name}.{what}", self._like)

    def shaped_like(self, value: Value, x: Value) -> Value:
        """``value`` in the shape of ``x``, which has as many elements."""
        if self.graph.has_fixed_sizes and x.shape is not None:
            return self.write("Reshape", value, what="back", shape=x.shape)
        return self.write("Reshape", value, self.write("Shape", x, what="sizes"), what="back")

    def affine(self, x: Value, axes: tuple[int, ...], factor: float = 1.0) -> Value:
        """``x`` times gamma and ``factor``, plus beta; gamma and beta lie along ``axes``."""
        sizes, gamma = iter(self.site.normalized_shape), self.site.weight
        shape = [next(sizes) if a in axes else 1 for a in range(min(axes), x.rank or 0)]
        if gamma is None and factor != 1:
            gamma = np.ones(self.site.normalized_shape)
        if gamma is not None:
            weight = self.constant((factor * gamma).reshape(shape), "weight")
            x = self.write("Mul", x, weight, what="scaled")
        if self.site.bias is not None:
            bias = self.constant(self.site.bias.reshape(shape), "bias")
            x = self.write("Add", x, bias, what="shifted")
        return x


@dataclass(kw_only=True)
class Dialect(Pass):
    """Writes LayerNorms and RMSNorms in other operators, whatever they are spelled in now.

    ``kinds``: of the norms that it writes. ``requires``: the newest of their operators, which a
    graph may have no way to hold.
    """

    exact: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ROW_NORMS
    requires: ClassVar[str] = ""

    @abc.abstractmethod
    def write(self, graph: Graph, site: Site) -> Value:
        """Writes a norm in its place; the new value. Raises Refusal, and ValueError where the graph
        has not been asked to hold ``requires``."""

    def why_not(self, site: Site) -> str:
        """Why a norm is not written in the dialect, whatever the graph; '' if it can be."""
        return why_left(site, self.kinds)

    def run(self, model: Model) -> PassResult:
        chosen = select_sites(model.sites, self.sites)
        reasons = {site: self.why_not(site) for site in chosen}
        result = model.copy()
        if not all(reasons.values()):
            try:
                if self.requires:
                    result.graph.require(self.requires)
            except NormswapError as error:
                reasons = {site: why or str(error) for site, why in reasons.items()}
        for site in reversed(chosen):  # a norm may read the output of the one before it
            if not reasons[site]:
                try:
                    self.write(result.graph, site)
                except Refusal as refusal:
                    reasons[site] = str(refusal)
        skipped = [(site, reasons[site]) for site in chosen if reasons[site]]
        if len(skipped) == len(chosen):
            return PassResult(model, False, [], skipped)
        result.graph.prune()
        return PassResult(result, True, [s for s in chosen if not reasons[s]], skipped)


@dataclass(kw_only=True)
class Spelling(Dialect):
    """A dialect of several operators around the norm's own input and output.

    A subclass has ``normed``. ``any_axes``: whether norms over several axes, and over others than
    the last, are written as they are; else the axis is the last one, by transposes if need be.
    ``widens``: whether half precision is computed in float32.
    """

    any_axes: ClassVar[bool] = False
    widens: ClassVar[bool] = True

    @abc.abstractmethod
    def normed(self, pen: Pen, x: Value, axes: tuple[int, ...]) -> Value:
        """The norm of ``x`` over ``axes`` with gamma and beta. Raises Refusal for one that cannot
        be written."""

    def why_not(self, site: Site) -> str:
        several = "it normalises over several axes" if len(site.axes) > 1 else ""
        return super().why_not(site) or ("" if self.any_axes else several)

    def write(self, graph: Graph, site: Site) -> Value:
        x, old = graph.value(site.input), graph.value(site.output)
        rank, pen = len(old.shape or ()), Pen(graph, site, self.dtype_of(x, old))
        value = pen.cast(x, pen.dtype, "cast")
        if self.any_axes:
            value = self.normed(pen, value, site.axes)
        else:
            perm = (*(a for a in range(rank) if a not in site.axes), *site.axes)
            value = pen.transpose(value, perm, "axis_last")
            value = self.normed(pen, value, (rank - 1,))
            back = tuple(perm.index(axis) for axis in range(rank))
            value = pen.transpose(value, back, "axis_back")
        value = pen.cast(value, old.dtype, "cast_back")
        graph.replace_uses(old, value)
        return value

    def dtype_of(self, x: Value, y: Value) -> np.dtype[Any]:
        """In which the norm of ``x`` that yields ``y`` is computed."""
        known = [v.dtype for v in (x, y) if v.dtype is not None]
        if not self.widens and len(set(known)) == 1:
            return known[0]
        return np.result_type(np.float32, *(d for d in known if d.itemsize > _HALF))


def normed_rows(pen: Pen, x: Value, op: str, **attributes: Any) -> Value:
    """The last axis of ``x`` normalised by an operator that normalises what lies behind the
    channels of a sample: a row is a sample of one channel, [rows, 1, C], with a plain weight."""
    rows = pen.write("Reshape", x, what="rows", shape=(-1, 1, pen.site.normalized_shape[0]))
    one, zero = pen.constant(np.ones(1), "one"), pen.constant(np.zeros(1), "zero")
    epsilon = pen.site.epsilon
    normed = pen.write(op, rows, one, zero, what="normed", epsilon=epsilon, **attributes)
    return pen.shaped_like(normed, x)


def centred(pen: Pen, x: Value, mean: Value) -> Value:
    """``x`` less its ``mean``; itself for an RMSNorm, which has none."""
    return pen.write("Sub", x, mean, what="centred")


def divided(pen: Pen, d: Value, variance: Value, epsilon: float) -> Value:
    """d / sqrt(variance + epsilon)."""
    total = pen.write("Add", variance, pen.constant(epsilon, "epsilon"), what="with_epsilon")
    root = pen.write("Sqrt", total, what="deviation")
    return pen.write("Div", d, root, what="normed")
