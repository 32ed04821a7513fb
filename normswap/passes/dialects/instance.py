"""LayerNorm as an InstanceNormalization of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from normswap.graph.graph import Value
from normswap.passes.dialects.writing import Pen, Spelling, normed_rows


@dataclass(kw_only=True)
class Instance(Spelling):
    """Reshape to [rows, 1, C], InstanceNormalization, Reshape back, then gamma and beta.

    Exact: an InstanceNorm normalises what lies behind the channels of a sample, and a row is a
    sample of one channel here. For targets that have this operator and no LayerNormalization. Skips
    norms over several axes, and RMSNorms: the operator subtracts the mean. ONNX graphs only.

    Examples:
        >>> Instance()(model).model
    """

    to: ClassVar[str] = "instance"
    summary: ClassVar[str] = "exact, an InstanceNormalization of rows between two Reshapes."
    requires: ClassVar[str] = "InstanceNormalization"
    kinds: ClassVar[tuple[str, ...]] = ("layer_norm",)

    def normed(self, pen: Pen, x: Value, axes: tuple[int, ...]) -> Value:
        return pen.affine(normed_rows(pen, x, self.requires), axes)
