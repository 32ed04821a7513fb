"""LayerNorm as a GroupNormalization of one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from normswap.graph.graph import Value
from normswap.passes.dialects.writing import Pen, Spelling, centred, normed_rows


@dataclass(kw_only=True)
class Group(Spelling):
    """Reshape to [rows, 1, C], GroupNormalization of one group, Reshape back, then gamma and beta.

    Exact: the one group has one channel, which is a row. So what differs between opset 18 (a weight
    for each group) and 21 (one for each channel) does not matter. The mean is subtracted before:
    ONNX Runtime's operator takes E[x^2] - E[x]^2, which is NaN for rows with a large mean. For
    targets that have this operator and no LayerNormalization. Skips norms over several axes, and
    RMSNorms: the operator subtracts the mean. ONNX graphs only, which are raised to opset 18.

    Examples:
        >>> Group()(model).model
    """

    to: ClassVar[str] = "group"
    summary: ClassVar[str] = "exact, a GroupNormalization of one group between two Reshapes."
    requires: ClassVar[str] = "GroupNormalization"
    kinds: ClassVar[tuple[str, ...]] = ("layer_norm",)

    def normed(self, pen: Pen, x: Value, axes: tuple[int, ...]) -> Value:
        mean = pen.write("ReduceMean", x, what="mean", axes=axes, keepdims=1)
        normed = normed_rows(pen, centred(pen, x, mean), self.requires, num_groups=1)
        return pen.affine(normed, axes)
