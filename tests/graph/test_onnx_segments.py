"""Large slices of ONNX graphs run in segments whose weights are fed, and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import normswap as ns
from normswap.graph.onnx import segments
from normswap.io.onnx.tensors import InlineTensor, MappedTensor
from tests.zoo.exports import model_as

_IF = """
<ir_version: 8, opset_import: ["": 17]>
agraph (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] x_again)
    <float[4, 4] w = {1,2,3,4, 0,1,0,2, 5,0,1,0, 0,0,2,1}, float[4, 4] v = {0,1,0,0, 1,0,0,3,
     0,2,0,1, 1,1,1,0}>
{
    a = MatMul(x, w)
    b = Relu(a)
    d = MatMul(b, v)
    e = If (c) <
        then_branch = g () => (f) { f = Add(d, a) },
        else_branch = h () => (g) { g = MatMul(d, w) }
    >
    y = MatMul(e, v)
    x_again = Identity(x)
}
"""


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is fed, and a segment holds a few of them."""
    monkeypatch.setattr(segments, "SEGMENT", 1 << 10)
    monkeypatch.setattr(segments, "_LARGE", 1)


def _feeds(model: ns.Model) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in model.examples.items()}


@pytest.mark.parametrize("name", ["hf_vit", "hf_clip"])
def test_a_model_computes_the_same_at_its_outputs_and_inside(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_as(name, "torchscript-14")
    graph = model.graph
    inside = [graph.value(site.output) for site in model.sites]
    constant = next(v for v in graph.values() if v.is_constant and v.producer is None)
    wanted = [*graph.outputs, *inside, constant, graph.inputs[0]]
    feeds = [_feeds(model)[v.name] for v in graph.inputs]
    whole = graph.slice(graph.inputs, wanted)(feeds)
    monkeypatch.setattr(segments, "SEGMENT", 1 << 14)
    monkeypatch.setattr(segments, "_LARGE", 1 << 8)
    opened: list[int] = []
    original = segments._Segment.run
    monkeypatch.setattr(
        segments._Segment, "run", lambda s, *a: (opened.append(len(s.nodes)), original(s, *a))[1]
    )
    run = graph.slice(graph.inputs, wanted)
    for _ in range(2):  # sessions are kept
        for a, b in zip(run(feeds), whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert len(opened) > 6


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("condition", [True, False])
def test_what_bodies_read_is_handed_on(condition: bool) -> None:
    proto = onnx.parser.parse_model(_IF)
    model = ns.load(ir.serde.deserialize_model(proto))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = model.run({"x": x, "c": np.array(condition)})
    w, v = (onnx.numpy_helper.to_array(t).astype(float) for t in proto.graph.initializer)
    d = np.maximum(x @ w, 0) @ v
    expected = (d + x @ w if condition else d @ w) @ v
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)
    np.testing.assert_array_equal(found["x_again"], x)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("external", [True, False])
def test_weights_of_a_file_are_read_in_place_and_their_pages_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    path = tmp_path / "model.onnx"
    ns.save(model_as("hf_vit", "torchscript-14"), path)
    if external:
        onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0)
    model = ns.load(path)
    expected = model_as("hf_vit", "torchscript-14").run(_feeds(model))
    released: list[str] = []
    kind = MappedTensor if external else InlineTensor
    monkeypatch.setattr(kind, "release_pages", lambda self: released.append(self.name))
    for name, array in model.run(_feeds(model)).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)
    products = [n for n in model.graph.nodes if n.operator.product == "matrix"]
    assert len(set(released)) >= len([n for n in products if len(n.dynamic_inputs()) == 1])
