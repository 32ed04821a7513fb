"""LayerNorm of rows that are divided by their largest magnitude first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from normswap.graph.graph import Value
from normswap.norms.site import Site
from normswap.passes.dialects.writing import Pen, Spelling, centred


@dataclass(kw_only=True)
class Scaled(Spelling):
    """z = x / M with M = max(|x|, sqrt(eps)), then the norm of z with epsilon eps / M^2.

    Exact: norm(x) with eps is norm(x / M) with eps / M^2. For half precision on a device without
    float32: no square overflows, for |z| is at most 1, and no epsilon vanishes where it matters,
    for sqrt(eps) / M is at most 1 and is squared behind the division. Everything stays in the
    norm's own dtype. Skips norms with an epsilon of 0.

    Examples:
        >>> Scaled()(model).model
    """

    to: ClassVar[str] = "scaled"
    summary: ClassVar[str] = "exact, rows are divided by their largest magnitude first, for half."
    any_axes: ClassVar[bool] = True
    widens: ClassVar[bool] = False

    def why_not(self, site: Site) -> str:
        return super().why_not(site) or ("" if site.epsilon > 0 else "its epsilon is 0")

    def normed(self, pen: Pen, x: Value, axes: tuple[int, ...]) -> Value:
        layer_norm, root = pen.site.kind == "layer_norm", math.sqrt(pen.site.epsilon)
        size = pen.write("Abs", x, what="magnitude")
        largest = pen.write("ReduceMax", size, what="largest", axes=axes, keepdims=1)
        least = pen.constant(root, "least")
        largest = pen.write("Max", largest, least, what="at_least")
        d = pen.write("Div", x, largest, what="in_units")
        if layer_norm:
            d = centred(pen, d, pen.write("ReduceMean", d, what="mean", axes=axes, keepdims=1))
        square = pen.write("Mul", d, d, what="square")
        variance = pen.write("ReduceMean", square, what="variance", axes=axes, keepdims=1)
        shift = pen.write("Div", least, largest, what="root_of_epsilon")
        epsilon = pen.write("Mul", shift, shift, what="epsilon")
        total = pen.write("Add", variance, epsilon, what="with_epsilon")
        normed = pen.write("Div", d, pen.write("Sqrt", total, what="deviation"), what="normed")
        return pen.affine(normed, axes)
