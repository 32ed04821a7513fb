"""LayerNorm as an L2 normalisation, its epsilon as one more channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from normswap.graph.graph import Value
from normswap.passes.dialects.writing import Pen, Spelling, centred


@dataclass(kw_only=True)
class Lp(Spelling):
    """y = sqrt(C) LpNormalization([d, sqrt(C eps)]) without its last channel, d = x - mean(x).

    Exact: |[d, sqrt(C eps)]|^2 = sum(d^2) + C eps = C (variance + eps). Tools that write an L2
    normalisation drop the epsilon, which is an error of order 1 for small rows; a constant channel
    beside the data keeps it. sqrt(C) goes into gamma. For targets that have an L2 normalisation and
    no LayerNorm. Skips norms over several axes. ONNX graphs only.

    Examples:
        >>> Lp()(model).model
    """

    to: ClassVar[str] = "lp"
    summary: ClassVar[str] = "exact, an L2 normalisation, with epsilon as a constant channel."
    requires: ClassVar[str] = "LpNormalization"

    def normed(self, pen: Pen, x: Value, axes: tuple[int, ...]) -> Value:
        rank, size = x.rank or 0, pen.site.normalized_shape[0]
        d, (axis,) = x, axes
        if pen.site.kind == "layer_norm":
            d = centred(pen, x, pen.write("ReduceMean", x, what="mean", axes=axes, keepdims=1))
        pads = (*(0,) * (2 * rank - 1), 1)
        epsilon = math.sqrt(size * pen.site.epsilon)
        wide = pen.write("Pad", d, what="with_epsilon", pads=pads, value=epsilon)
        unit = pen.write("LpNormalization", wide, what="unit", axis=axis, p=2)
        normed = pen.write("Slice", unit, what="channels", starts=(0,), ends=(size,), axes=axes)
        return pen.affine(normed, axes, factor=math.sqrt(size))
