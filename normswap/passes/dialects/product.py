"""LayerNorm whose statistics are products with a constant column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normswap.graph.graph import Value
from normswap.passes.dialects.writing import Pen, Spelling, centred, divided


@dataclass(kw_only=True)
class Product(Spelling):
    """mean = (x P 1) / C, variance = (d d P 1) / C with constants of ones: no reduction operator.

    Exact; for targets whose reductions are slow, missing or on another unit than their products. A
    product adds its terms up one after the other, which loses digits in a long row, so P [C, G]
    sums G parts of it, and a column of ones their sums. The total is divided by C: float32 would
    round a constant 1 / C. An RMSNorm has no mean. Skips norms over several axes.

    Examples:
        >>> Product(sites="role=final")(model).model
    """

    to: ClassVar[str] = "product"
    summary: ClassVar[str] = "exact, mean and variance are matrix products: no reduction is left."

    def normed(self, pen: Pen, x: Value, axes: tuple[int, ...]) -> Value:
        size = pen.site.normalized_shape[0]
        count, parts = pen.constant(size, "size"), math.isqrt(size)
        of_part = np.arange(size) * parts // size
        into_parts = pen.constant(of_part[:, None] == np.arange(parts), "into_parts")
        ones = pen.constant(np.ones((parts, 1)), "ones")

        def mean(value: Value, what: str) -> Value:
            sums = pen.write("MatMul", value, into_parts, what=f"{what}_parts")
            total = pen.write("MatMul", sums, ones, what=f"{what}_sum")
            return pen.write("Div", total, count, what=what)

        d = centred(pen, x, mean(x, "mean")) if pen.site.kind == "layer_norm" else x
        variance = mean(pen.write("Mul", d, d, what="square"), "variance")
        return pen.affine(divided(pen, d, variance, pen.site.epsilon), axes)
