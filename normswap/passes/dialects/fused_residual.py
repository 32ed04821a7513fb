"""LayerNorm and the residual sum that it reads as one operator of ONNX Runtime's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from normswap.graph.graph import Graph, Value
from normswap.graph.operators import norm_with_sum_operator
from normswap.norms.site import Site
from normswap.passes.base import Refusal
from normswap.passes.dialects.writing import Dialect
from normswap.passes.norm_operator import replace_norm_and_sum, sum_read_by

_LAYER_NORM = norm_with_sum_operator("layer_norm") or ""


@dataclass(kw_only=True)
class FusedResidual(Dialect):
    """s = a + b; y = norm(s) as com.microsoft's SkipLayerNormalization, which yields y and s.

    Exact. It is what ONNX Runtime's own optimiser writes, and what targets behind it may want; on a
    CPU it is slower and less accurate than Add and LayerNormalization, so that
    ``--to fused --target onnxruntime-cpu --tune`` seldom takes it. An RMSNorm becomes
    SkipSimplifiedLayerNormalization. Skips norms whose input is no sum of two values of its shape,
    of 2 or 3 axes and in one dtype. There is no way back from it. ONNX graphs only.

    Examples:
        >>> FusedResidual()(model).model
    """

    to: ClassVar[str] = "fused-residual"
    summary: ClassVar[str] = "exact, a norm and its residual sum are ONNX Runtime's one operator."
    requires: ClassVar[str] = _LAYER_NORM

    def write(self, graph: Graph, site: Site) -> Value:
        if sum_read_by(graph, site) is None:
            raise Refusal("it reads no sum of two values that one operator could compute as well")
        return replace_norm_and_sum(graph, site)[0]
