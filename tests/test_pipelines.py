"""Single passes inside other pipelines: onnx_ir's, torch.fx's, and around torch.export."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from torch import fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

import normswap as ns
from normswap.errors import NormswapError
from normswap.passes import BatchNorm, Fold, FoldAffine, Fused
from normswap.pipelines import FxPass, OnnxPass, ProgramPass, apply_for_inference, apply_to_module
from tests.zoo.exports import FX, model_as, zoo_model


def test_among_onnx_ir_passes() -> None:
    original = model_as("timm_vit", "torchscript-14")
    before = original.to_onnx_ir()
    fused = OnnxPass(Fused())
    pipeline = ir.passes.Sequential(
        RemoveUnusedNodesPass(), fused, CommonSubexpressionEliminationPass()
    )
    result = pipeline(before)
    assert result.modified
    assert len(fused.last.done) == 5
    operators = [node.op_type for node in result.model.graph]
    assert operators.count("LayerNormalization") == 5
    assert "ReduceMean" not in operators
    assert all(node.op_type != "LayerNormalization" for node in original.to_onnx_ir().graph)
    assert ns.validate(original, ns.load(result.model)).passed


def test_on_a_graph_module() -> None:
    zoo = zoo_model("timm_vit")
    x = zoo.inputs["x"]
    program = torch.export.export(
        zoo.module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    module = program.module(check_guards=False)
    images = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    data = ns.load_data(images, model_as("timm_vit", FX))
    swapped = apply_to_module(BatchNorm(data=data), module)
    folded = apply_to_module(Fold(), swapped)
    norms = [m for m in swapped.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(norms) == 5
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    batch = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(folded(batch), swapped(batch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module(batch), zoo.module(batch))


class _Block(nn.Module):
    """A pre-norm block on [N, T, 8], with a buffer that subclasses do things to."""

    state: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        self.drop, self.batch_norm = nn.Dropout(0.1), nn.BatchNorm1d(8)
        self.register_buffer("state", torch.ones(8))
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x + self.linear(self.norm(x)), "x": x * 2}


class _WritesBuffer(_Block):
    def forward(self, x: torch.Tensor) -> Any:
        self.state.view(2, 4)[1].mul_(2)
        return super().forward(x * self.state)


class _WritesWeight(_Block):
    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            self.linear.weight.mul_(0.5)
        return super().forward(x)


class _WritesResults(_Block):
    """No bad input: what it writes to, under no_grad too, is its own result."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.linear(x)
        with torch.no_grad():
            y.mul_(2)
        return super().forward(y.relu_())


class _Drops(_Block):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(self.drop(x))


class _Normalises(_Block):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(self.batch_norm(x.transpose(1, 2)).transpose(1, 2))


def _program(module: nn.Module) -> torch.export.ExportedProgram:
    shapes = {"x": {0: torch.export.Dim("batch")}}
    return torch.export.export(module, (), {"x": torch.randn(2, 3, 8)}, dynamic_shapes=shapes)


def test_on_an_exported_program() -> None:
    """The same call, the same results at another batch, and nothing that torch does not know."""
    block = _Block().eval()
    swap = ProgramPass(FoldAffine())
    program = swap(_program(block))
    assert [site.name for site in swap.last.done] == ["norm"]
    torch.export.save(program, file := io.BytesIO())
    file.seek(0)
    x = torch.randn(5, 3, 8)
    with torch.no_grad():
        got = torch.export.load(file).module()(x=x)
        wanted = block(x)
    assert list(got) == ["y", "x"]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert not {"norm.weight", "norm.bias"} & program.state_dict.keys()


def test_kernels_stay_out_of_programs() -> None:
    """Other exporters do not know them."""

    class InPlace(_Block):
        def forward(self, x: torch.Tensor) -> Any:
            return self.norm(x + self.linear(x))

    program = _program(InPlace().eval())
    swap = ProgramPass(Fused())
    targets = {str(node.target) for node in swap(program).graph.nodes}
    assert "aten.layer_norm.default" in targets
    assert not any("normswap" in target for target in targets)
    lowered = apply_for_inference(Fused(), program.module(check_guards=False))
    assert any("normswap" in str(node.target) for node in lowered.graph.nodes)


def test_in_a_pass_manager_of_torch_fx() -> None:
    block, x = _Block().eval(), torch.randn(5, 3, 8)
    fold, again = FxPass(FoldAffine()), FxPass(FoldAffine())
    module = _program(block).module(check_guards=False)
    result = PassManager([fold, again])(module)
    assert result.modified
    assert [site.name for site in fold.last.done] == ["norm"]
    assert not again.last.done
    assert [reason for _, reason in again.last.skipped] == ["it has neither weight nor bias"]
    torch.testing.assert_close(result.graph_module(x=x), block(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(x=x), block(x))


@pytest.mark.parametrize("block", [_WritesResults, _Normalises])
def test_what_looks_like_bad_input_and_is_not(block: type[_Block]) -> None:
    module, x = block().eval(), torch.randn(5, 3, 8)
    program = _program(module)
    swapped = [
        ProgramPass(FoldAffine())(program).module(),
        apply_to_module(FoldAffine(), program.module(check_guards=False)),
    ]
    for one in swapped:
        torch.testing.assert_close(one(x=x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(
    ("block", "training", "told"),
    [
        (_WritesBuffer, False, "its forward writes to its own 'state'"),
        (_WritesWeight, False, "its forward writes to its own 'linear.weight'"),
        (_Normalises, True, "its forward writes to its own 'batch_norm."),
        (_Drops, True, "dropout' drops at random, it was captured in training mode"),
    ],
)
def test_no_function_of_its_inputs(
    block: type[_Block], training: bool, told: str, decompose: bool
) -> None:
    """Refused whether or not torch has made the writes results of the graph."""
    program = _program(block().train(training))
    if decompose:
        program = program.run_decompositions({})
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    with pytest.raises(NormswapError) as in_program:
        ProgramPass(FoldAffine())(program)
    with pytest.raises(NormswapError) as in_module:
        FxPass(FoldAffine())(program.module(check_guards=False))
    for error in (str(in_program.value), str(in_module.value)):
        assert told in error
        assert "capture it with torch.export.export(module.eval(), args)" in error
        assert "\n" not in error
    torch.testing.assert_close(dict(program.state_dict), before, rtol=0, atol=0)


def test_what_was_not_captured() -> None:
    block = _Block().eval()
    program = _program(block)
    for given, told in (
        (block, "_Block: is not a captured GraphModule; give torch.export.export("),
        (program, "ExportedProgram: is not a captured GraphModule"),
        (program.graph_module, "GraphModule: holds no weights, they are among its inputs; give "),
        (fx.symbolic_trace(block), "_Block: its graph knows no shapes; capture it with "),
    ):
        for apply in (FxPass(Fold()), lambda module: apply_to_module(Fold(), module)):
            with pytest.raises(NormswapError) as caught:
                apply(given)  # type: ignore[arg-type]
            assert str(caught.value).startswith(told)
            assert "\n" not in str(caught.value)
    with pytest.raises(NormswapError, match=r"^ProgramPass: takes an ExportedProgram, got _Block;"):
        ProgramPass(Fold())(block)  # type: ignore[arg-type]


_CALL = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
main (float[N, 8] x) => (float[N, 8] y) { y = local.norm (x) }
<opset_import: ["" : 18, "local" : 1], domain: "local">
norm (x) => (y) {
  axes = Constant <value = int64[1] {-1}> ()
  epsilon = Constant <value = float {1e-5}> ()
  mean = ReduceMean (x, axes)
  centred = Sub (x, mean)
  squared = Mul (centred, centred)
  variance = ReduceMean (squared, axes)
  raised = Add (variance, epsilon)
  deviation = Sqrt (raised)
  y = Div (centred, deviation)
}"""


def test_an_onnx_model_with_functions() -> None:
    model = ir.from_proto(onnx.parser.parse_model(_CALL))
    result = OnnxPass(Fused())(model)
    assert [node.op_type for node in result.model.graph] == ["LayerNormalization"]
    assert not result.model.functions
    assert [node.op_type for node in model.graph] == ["norm"]
    assert len(model.functions) == 1
    assert ns.validate(ns.load(model), ns.load(result.model)).passed


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("y = Div (centred, deviation)", "y = local.norm (centred)", "calls itself"),
        ("y = local.norm (x)", "y = local.norm (x, x)", "call site has 2 inputs"),
        ("y = Div (centred, deviation)", "y = Div (centred, nothing)", "main: is damaged ("),
    ],
)
def test_functions_that_are_damaged(old: str, new: str, told: str) -> None:
    model = ir.from_proto(onnx.parser.parse_model(_CALL.replace(old, new)))
    with pytest.raises(NormswapError) as alone:
        OnnxPass(Fused())(model)
    assert told in str(alone.value)
    assert "\n" not in str(alone.value)
    with pytest.raises(ir.passes.PassError, match=r"running the 'OnnxPass\(Fused\)' pass") as among:
        ir.passes.Sequential(OnnxPass(Fused()))(model)
    assert str(among.value.__cause__) == str(alone.value)


def test_what_is_no_onnx_ir_model() -> None:
    with pytest.raises(NormswapError, match=r"^OnnxPass: takes an onnx_ir.Model, got ModelProto;"):
        OnnxPass(Fused())(onnx.parser.parse_model(_CALL))  # type: ignore[arg-type]
