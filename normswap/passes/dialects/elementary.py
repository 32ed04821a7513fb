"""LayerNorm as exporters without an operator for it spell it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from normswap.graph.graph import Value
from normswap.passes.dialects.writing import Pen, Spelling, centred, divided


@dataclass(kw_only=True)
class Elementary(Spelling):
    """d = x - ReduceMean(x); y = d / Sqrt(ReduceMean(d d) + eps) * gamma + beta.

    Exact, and in operators that every opset has: for targets that know no norm. An RMSNorm has no
    mean, d = x. Half precision is computed in float32, since the squares overflow from 256 on.

    Examples:
        >>> Elementary()(model).model
    """

    to: ClassVar[str] = "elementary"
    summary: ClassVar[str] = "exact, norms are spelled out: ReduceMean, Sub, Mul, Sqrt, Div."
    any_axes: ClassVar[bool] = True

    def normed(self, pen: Pen, x: Value, axes: tuple[int, ...]) -> Value:
        d = x
        if pen.site.kind == "layer_norm":
            d = centred(pen, x, pen.write("ReduceMean", x, what="mean", axes=axes, keepdims=1))
        square = pen.write("Mul", d, d, what="square")
        variance = pen.write("ReduceMean", square, what="variance", axes=axes, keepdims=1)
        return pen.affine(divided(pen, d, variance, pen.site.epsilon), axes)
