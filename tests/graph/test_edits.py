"""The edits that passes make, and evaluation, on both kinds of graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normswap.graph.fx.graph import FxGraph
from normswap.graph.graph import Graph
from tests.graph.fx_capture import captured
from tests.graph.onnx_text import onnx_graph

X = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
SCALE = np.array([1, 2, 3], np.float32)


class _Scaled(nn.Module):
    """y = relu(x * scale), z = y + y"""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.from_numpy(SCALE.copy()))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(x * self.scale)
        return y, y + y


def _fx() -> FxGraph:
    return FxGraph(captured(_Scaled(), X))


def _onnx() -> Graph:
    text = "(float[B,4,3] x) => (float[B,4,3] y, float[B,4,3] z) "
    text += "{ m = Mul(x, scale) y = Relu(m) z = Add(y, y) }"
    return onnx_graph(text, {"scale": SCALE})


@pytest.fixture(params=[_fx, _onnx], ids=["fx", "onnx"])
def graph(request: pytest.FixtureRequest) -> Graph:
    return request.param()


def _run(graph: Graph, dtype: object = None) -> list[np.ndarray]:
    return graph.evaluate(graph.outputs, {graph.inputs[0]: X}, dtype)


def test_reads_operators_values_and_shapes(graph: Graph) -> None:
    assert [node.op for node in graph.nodes] == ["Mul", "Relu", "Add"]
    assert graph.inputs[0].shape == (2, 4, 3)
    relu = graph.nodes[1]
    assert relu.output.shape == (2, 4, 3)
    assert relu.output.dtype == np.float32
    assert relu.output.readers == [graph.nodes[2]]
    assert graph.constant(graph.nodes[0].data_input(1)) is not None
    np.testing.assert_array_equal(graph.constant(graph.nodes[0].data_input(1)), SCALE)  # type: ignore[arg-type]


def test_evaluates_a_slice(graph: Graph) -> None:
    middle = graph.nodes[0].output
    result = graph.evaluate([graph.outputs[1]], {middle: -X})[0]
    np.testing.assert_array_equal(result, 2 * np.maximum(-X, 0))


def test_float64_is_float64_throughout(graph: Graph) -> None:
    y, z = _run(graph, np.float64)
    assert y.dtype == z.dtype == np.float64
    np.testing.assert_array_equal(y, np.maximum(X.astype(np.float64) * SCALE, 0))


def test_names_the_input_that_is_missing(graph: Graph) -> None:
    with pytest.raises(ValueError, match="the input 'x' is needed"):
        graph.slice([], graph.outputs)


def test_inserts_in_order_and_replaces_outputs_too(graph: Graph) -> None:
    names = [v.name for v in graph.outputs] if graph.kind == "onnx" else None
    y = graph.nodes[1].output
    one = graph.add_constant(np.ones(3, np.float32), "one")
    plus = graph.insert("Add", [y, one], name="plus", like=graph.nodes[1])
    assert plus.shape == (2, 4, 3)
    graph.replace_uses(y, plus, keep=[n for n in [plus.producer] if n])
    graph.prune()
    assert [node.op for node in graph.nodes] == ["Mul", "Relu", "Add", "Add"]
    expected = np.maximum(X * SCALE, 0) + 1
    for result in (_run(graph), _run(graph.copy())):
        np.testing.assert_allclose(result[0], expected)
        np.testing.assert_allclose(result[1], 2 * expected)
    if names:
        assert [v.name for v in graph.outputs] == names


def test_prune_drops_dead_nodes_and_constants(graph: Graph) -> None:
    mul = graph.nodes[0]
    graph.replace_uses(mul.output, graph.inputs[0])
    graph.prune()
    assert [node.op for node in graph.nodes] == ["Relu", "Add"]
    assert all(not v.name.startswith("scale") for v in graph.values())
    np.testing.assert_array_equal(_run(graph)[0], np.maximum(X, 0))
    assert graph.inputs[0].readers == [graph.nodes[0]]


def test_a_copy_shares_nothing_that_an_edit_changes(graph: Graph) -> None:
    before = _run(graph)
    copy = graph.copy()
    assert [v.name for v in copy.values()] == [v.name for v in graph.values()]
    copy.replace_constant(copy.nodes[0].data_input(1), np.zeros(3, np.float32))
    assert not np.any(_run(copy)[0])
    np.testing.assert_array_equal(_run(graph)[0], before[0])


def test_a_parameter_called_like_an_input_is_another_value() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.from_numpy(SCALE.copy()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.x

    graph = FxGraph(captured(Clash(), X))
    product = graph.nodes[0]
    assert product.data_input(0) is graph.inputs[0]
    assert product.data_input(1).is_constant
    np.testing.assert_array_equal(_run(graph)[0], X * SCALE)
    graph.replace_constant(product.data_input(1), np.zeros(3, np.float32))
    assert not np.any(_run(graph.copy())[0])


@pytest.mark.parametrize("trained", [True, False])
def test_a_weight_in_place_of_another_is_trained_as_it_was(trained: bool) -> None:
    """torch chooses its kernels by that, and these round differently."""
    graph = FxGraph(captured(nn.Linear(3, 4).requires_grad_(trained), X))
    weight = next(v for v in graph.values() if v.is_constant and v.rank == 2)
    graph.replace_constant(weight, np.ones((4, 3), np.float32))
    found = dict(graph.module.named_parameters())[weight.name]
    assert found.requires_grad == trained


def test_a_number_in_a_call_can_become_a_constant() -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten.add.Scalar(x, 1.5)

    graph = FxGraph(captured(Shifted(), X))
    node = graph.nodes[0]
    assert graph.scalar(node.data_input(1)) == 1.5
    graph.set_input(node, 1, graph.add_constant(SCALE, "shift"))
    graph.prune()
    np.testing.assert_allclose(_run(graph.copy())[0], X + SCALE)


def test_names_stay_unique(graph: Graph) -> None:
    first = graph.add_constant(np.ones(3, np.float32), "extra")
    second = graph.add_constant(np.ones(3, np.float32), "extra")
    assert first.name == "extra"
    assert second.name == "extra_2"


def test_refuses_an_operator_that_it_cannot_write(graph: Graph) -> None:
    with pytest.raises(ValueError, match="cannot write the operator Softmax"):
        graph.insert("Softmax", [graph.inputs[0]], name="s")


def test_batch_norm_becomes_a_trainable_module() -> None:
    graph = _fx()
    arrays = [np.full(4, v, np.float32) for v in (2, 1, 0.5, 4)]
    names = ("weight", "bias", "running_mean", "running_var")
    constants = [graph.add_constant(a, f"norm.{n}") for a, n in zip(arrays, names, strict=True)]
    y = graph.nodes[1].output
    new = graph.insert(
        "BatchNormalization", [y, *constants], {"epsilon": 1e-9}, name="norm", like=None
    )
    graph.replace_uses(y, new, keep=[n for n in [new.producer] if n])
    graph.prune()
    expected = (np.maximum(X * SCALE, 0) - 0.5) + 1
    np.testing.assert_allclose(_run(graph)[0], expected, rtol=1e-6)
    module = graph.to_module()
    assert isinstance(module.get_submodule("norm"), nn.BatchNorm1d)
    module.train()
    module(torch.from_numpy(X))
    assert not np.allclose(module.get_submodule("norm").running_mean.numpy(), 0.5)  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(_run(graph)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_parameters_read_alike_whatever_the_opset(opset: int) -> None:
    if opset < 13:
        text = "(float[B,4,3] x) => (float y) { s = Squeeze<axes = [-1]>(r) "
        text = text.replace("{ s", "{ r = ReduceMean<axes = [-1]>(x) s") + "y = Neg(s) }"
        graph = onnx_graph(text, opset=opset)
    else:
        text = "(float[B,4,3] x) => (float y) { r = ReduceMean<axes = [-1]>(x) "
        text += "s = Squeeze(r, a) y = Neg(s) }"
        graph = onnx_graph(text, {"a": np.array([-1], np.int64)}, opset=opset)
    mean, squeeze, _ = graph.nodes
    assert mean.attributes["axes"] == squeeze.attributes["axes"] == (2,)
    assert len(squeeze.inputs) == 1
