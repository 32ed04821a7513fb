"""A file whose opset is raised says of its values' shapes what it said before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import normswap as ns
from tests.zoo.exports import exported

WIDTH = 8


def _residual_block(annotated: bool) -> onnx.ModelProto:
    """Opset 14: a decomposed LayerNorm of a sum, whose shape follows from nodes on shapes."""
    nodes = [
        make_node("Shape", ["tokens"], ["sizes"]),
        make_node("Gather", ["sizes", "first"], ["count"]),
        make_node("Concat", ["count", "others"], ["shape"], axis=0),
        make_node("Relu", ["tokens"], ["active"]),
        make_node("Reshape", ["active", "shape"], ["branch"]),
        make_node("Add", ["branch", "tokens"], ["sum"]),
        make_node("ReduceMean", ["sum"], ["mean"], axes=[-1]),
        make_node("Sub", ["sum", "mean"], ["centred"]),
        make_node("Pow", ["centred", "two"], ["squares"]),
        make_node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        make_node("Add", ["variance", "epsilon"], ["safe"]),
        make_node("Sqrt", ["safe"], ["deviation"]),
        make_node("Div", ["centred", "deviation"], ["unit"]),
        make_node("Mul", ["unit", "gamma"], ["scaled"]),
        make_node("Add", ["scaled", "beta"], ["normed"]),
    ]
    constants = {
        "first": np.array([0]),
        "others": np.array([5, WIDTH]),
        "two": np.float32(2),
        "epsilon": np.float32(1e-5),
        "gamma": np.linspace(0.5, 1.5, WIDTH, dtype=np.float32),
        "beta": np.linspace(-1, 1, WIDTH, dtype=np.float32),
    }
    graph = make_graph(
        nodes,
        "block",
        [make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", 5, WIDTH])],
        [make_tensor_value_info("normed", TensorProto.FLOAT, ["batch", 5, WIDTH])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    if annotated:
        shape = [1, 5, WIDTH]
        graph.value_info.append(make_tensor_value_info("sum", TensorProto.FLOAT, shape))
    return make_model(graph, opset_imports=[make_opsetid("", 14)], ir_version=8)


def _shapes(path: Path) -> dict[str, list[int]]:
    graph = onnx.load(path).graph
    computed = {output for node in graph.node for output in node.output}
    return {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in graph.value_info
        if info.name in computed and info.type.tensor_type.HasField("shape")
    }


@pytest.mark.parametrize("to", ["fused", "rmsnorm"])
@pytest.mark.parametrize("annotated", [False, True])
def test_shapes_are_told_as_before(to: str, annotated: bool, tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(_residual_block(annotated), source)
    result = ns.swap(ns.load(source), to=to)
    ns.save(result.model, output)
    assert onnx.load(output).opset_import[0].version > 14 or not result.modified
    assert _shapes(output) == _shapes(source) == ({"sum": [1, 5, WIDTH]} if annotated else {})


def test_onnxruntime_fuses_no_more_of_it(tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(exported("spelled_vit", "torchscript-14"), source)
    ns.save(ns.swap(ns.load(source), to="fused").model, output)
    for path in (source, output):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert kinds.count("LayerNormalization") == 5
        assert "SkipLayerNormalization" not in kinds
