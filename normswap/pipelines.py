"""Single passes inside other export pipelines, without the rest of normswap around them.

ir.passes.Sequential(OnnxPass(Fused()), CommonSubexpressionEliminationPass())(model)
program = ProgramPass(RmsNorm())(program)            # a torch.export.ExportedProgram
module = FxPass(Fold())(graph_module).graph_module   # or in a PassManager of torch.fx
module = apply_to_module(Fold(), graph_module)       # the same as a function
module = apply_for_inference(Fused(), graph_module)  # with kernels

A pass object keeps what it did and what it left alone, with the reasons, in ``last``.
"""

from __future__ import annotations

import onnx_ir as ir
from torch import fx
from torch.export import ExportedProgram
from torch.fx.passes.infra import pass_base

from normswap.errors import NormswapError
from normswap.graph.fx.memory import random_drops, written_state
from normswap.graph.fx.module_tree import deepcopied
from normswap.io.load import cloned, model_from_onnx
from normswap.io.torch_model import model_from_module, model_from_program, program_from_model
from normswap.lowering import Lowering, lower
from normswap.passes.base import Pass, PassResult

_CAPTURE = "torch.export.export(module.eval(), args)"
_UNLIFT = "ExportedProgram.module(check_guards=False)"


class OnnxPass(ir.passes.FunctionalPass):
    """A pass of normswap as a functional ``onnx_ir`` pass.

    The model's functions are inlined in the result. ``last``: what the last call did.
    """

    last: PassResult

    def __init__(self, inner: Pass) -> None:
        self.inner = inner

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """The rewritten copy of ``model``.

        Raises NormswapError as the pass does, and for what is no ``onnx_ir.Model`` or a damaged one
        (within a Sequential it is the cause of onnx_ir's PassError).
        """
        if not isinstance(model, ir.Model):
            raise NormswapError(
                f"OnnxPass: takes an onnx_ir.Model, got {_type(model)}; give the .model of an "
                "ONNXProgram, or onnx_ir.from_proto(...) of a ModelProto"
            )
        name = model.graph.name or "model"
        self.last = self.inner(model_from_onnx(cloned(model, name), name))
        return ir.passes.PassResult(self.last.model.to_onnx_ir(), self.last.modified)

    def __repr__(self) -> str:  # which onnx_ir names a failing pass by
        return f"OnnxPass({_type(self.inner)})"


class FxPass(pass_base.PassBase):
    """A pass of normswap on a captured GraphModule, as torch.fx's PassManager takes it.

    ``last``: what the last call did.
    """

    last: PassResult

    def __init__(self, inner: Pass) -> None:
        self.inner = inner

    def call(self, graph_module: fx.GraphModule) -> pass_base.PassResult:
        """The rewritten copy of ``graph_module``, in evaluation mode and ready to be trained.

        ``graph_module``: in the ATen dialect with ``node.meta["val"]``, weights held by it, such as
        ``torch.export.export(...).module(check_guards=False)``. Raises NormswapError as the pass
        does, and for a module that was not captured so, drops at random, or writes to its weights
        or buffers.
        """
        self.last = _on_module(self.inner, graph_module)
        return pass_base.PassResult(self.last.model.to_torch(), self.last.modified)


class ProgramPass:
    """A pass of normswap on an ExportedProgram, before ``.pt2``, ``torch.onnx.export`` or any other
    backend that takes one.

    ``last``: what the last call did.
    """

    last: PassResult

    def __init__(self, inner: Pass) -> None:
        self.inner = inner

    def __call__(self, program: ExportedProgram) -> ExportedProgram:
        """The rewritten ``program``, captured again with the same inputs and dynamic sizes.

        It holds operators of torch alone, which other tools know. Raises NormswapError as the pass
        does, and for what is not an ExportedProgram, or one that drops at random or writes to its
        weights or buffers.
        """
        if not isinstance(program, ExportedProgram):
            raise NormswapError(
                f"ProgramPass: takes an ExportedProgram, got {_type(program)}; capture it with "
                f"{_CAPTURE}"
            )
        _check_captured(program.module(check_guards=False), "program")
        self.last = self.inner(model_from_program(program, "program"))
        return program_from_model(self.last.model, self.last.model.to_torch())


def apply_to_module(inner: Pass, module: fx.GraphModule) -> fx.GraphModule:
    """What ``FxPass`` makes of ``module``, where nobody asks what it left alone."""
    return _on_module(inner, module).model.to_torch()


def apply_for_inference(inner: Pass, module: fx.GraphModule, tune: bool = False) -> fx.GraphModule:
    """The same for inference, under ``torch.no_grad()``: with kernels that work in place, all that
    are safe or, with ``tune``, those that are faster on this machine than torch's operators."""
    made_for = Lowering(kernels=True, tune=tune)
    return lower(_on_module(inner, module), made_for).model.to_inference()


def _on_module(inner: Pass, module: fx.GraphModule) -> PassResult:
    name = _type(module)
    if not isinstance(module, fx.GraphModule):
        raise NormswapError(
            f"{name}: is not a captured GraphModule; give {_CAPTURE}.module(check_guards=False)"
        )
    if not any(True for _ in (*module.parameters(), *module.buffers())):
        raise NormswapError(
            f"{name}: holds no weights, they are among its inputs; give {_UNLIFT} instead of its "
            "graph_module"
        )
    inputs = module.graph.find_nodes(op="placeholder")
    if not any("val" in node.meta for node in inputs):
        raise NormswapError(
            f"{name}: its graph knows no shapes; capture it with {_CAPTURE} instead of "
            "torch.fx.symbolic_trace"
        )
    _check_captured(module, name)
    return inner(model_from_module(deepcopied(module), name))


def _check_captured(module: fx.GraphModule, name: str) -> None:
    """Raises NormswapError for a module that is no function of its inputs alone."""
    for node in random_drops(module):
        raise NormswapError(
            f"{name}: '{node.name}' drops at random, it was captured in training mode; capture it "
            f"with {_CAPTURE}"
        )
    for path in written_state(module):
        raise NormswapError(
            f"{name}: its forward writes to its own '{path}', so no two calls are alike; capture "
            f"it with {_CAPTURE}, or take that write out"
        )


def _type(thing: object) -> str:
    return type(thing).__name__.removesuffix("Impl")
