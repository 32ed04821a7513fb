"""Single passes inside other export pipelines, without the rest of normswap around them.

ir.passes.Sequential(OnnxPass(Fused()), CommonSubexpressionEliminationPass())(model)
module = apply_to_module(Fold(), graph_module)
module = apply_for_inference(Fused(), graph_module)
"""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from normswap.graph.fx import FxGraph
from normswap.graph.module_tree import deepcopied
from normswap.graph.onnx import OnnxGraph
from normswap.io.fx_model import model_from_module
from normswap.io.onnx_model import model_from_onnx
from normswap.passes.base import Pass


class OnnxPass(ir.passes.FunctionalPass):
    """A pass of normswap as a functional ``onnx_ir`` pass; ``done`` and ``skipped`` of its last
    run are kept in ``last``.
    """

    def __init__(self, inner: Pass) -> None:
        self.inner = inner

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """The rewritten copy of ``model``. Raises NormswapError as the pass does."""
        self.last = self.inner(model_from_onnx(model.clone(), model.graph.name or "model"))
        graph = self.last.model.graph
        assert isinstance(graph, OnnxGraph)
        return ir.passes.PassResult(graph.model, self.last.modified)


def apply_to_module(inner: Pass, module: fx.GraphModule) -> fx.GraphModule:
    """The rewritten copy of a captured GraphModule, in evaluation mode and ready to be trained.

    ``module``: in the ATen dialect with ``node.meta["val"]``, such as
    ``torch.export.export(...).module(check_guards=False)``. Raises NormswapError as the pass does.
    """
    return _rewritten(inner, module).to_module()


def apply_for_inference(inner: Pass, module: fx.GraphModule) -> fx.GraphModule:
    """The same for inference, under ``torch.no_grad()``: with kernels that work in place."""
    return _rewritten(inner, module).to_inference_module()


def _rewritten(inner: Pass, module: fx.GraphModule) -> FxGraph:
    graph = inner(model_from_module(deepcopied(module), type(module).__name__)).model.graph
    assert isinstance(graph, FxGraph)
    return graph
