"""Norms over the channels of images are written over axis 1, and transposes around them go."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir

import normswap as ns

_HEAD = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 6, 4, 5] x) => (float[N, 6, 4, 5] y)
    <float[6] g = {1, -2, 0.5, 3, 1, 1}, float[6] b = {1, 0, 0, 2, 0, 1}, float[1] two = {2},
     int64[2] sizes = {5, 6}>"""
_NORM = "LayerNormalization<axis=-1, epsilon=1e-5>"


def _model(body: str) -> ns.Model:
    return ns.load(ir.serde.deserialize_model(onnx.parser.parse_model(f"{_HEAD} {{ {body} }}")))


def _swapped(model: ns.Model) -> list[str]:
    """The operators of the model with its norm over channels that come first."""
    result = ns.swap(model, to="channelsfirst")
    (site,), (old,) = result.model.sites, model.sites
    assert (site.kind, site.epsilon, site.normalized_shape) == ("layer_norm", 1e-5, (6,))
    assert len(result.done) == 1
    np.testing.assert_allclose(site.weight, old.weight, rtol=1e-6)
    x = {"x": 3 + np.random.default_rng(0).standard_normal((2, 6, 4, 5)).astype(np.float32)}
    report = ns.validate(model, result.model, data=x)
    assert report.passed, report.findings
    return [node.op for node in result.model.graph.nodes]


def test_of_transpose_norm_transpose_the_norm_is_left() -> None:
    model = _model(
        f"t = Transpose<perm=[0,2,3,1]>(x) n = {_NORM}(t, g, b) y = Transpose<perm=[0,3,1,2]>(n)"
    )
    assert _swapped(model) == ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div",
                               "Mul", "Add"]  # fmt: skip


def test_another_reader_gets_its_transpose() -> None:
    model = _model(
        f"t = Transpose<perm=[0,2,3,1]>(x) n = {_NORM}(t, g, b) r = Transpose<perm=[0,3,1,2]>(n) "
        "m = Mul(n, two) s = Transpose<perm=[0,3,1,2]>(m) y = Add(r, s)"
    )
    assert _swapped(model).count("Transpose") == 2


def test_one_without_transposes_gets_them() -> None:
    model = _model(
        f"r = Relu(x) t = Transpose<perm=[0,3,2,1]>(r) n = {_NORM}(t, g, b) "
        "y = Transpose<perm=[0,3,2,1]>(n)"
    )
    assert _swapped(model).count("Transpose") == 4


def test_one_over_axis_1_stays_there() -> None:
    model = _model(
        f"t = Transpose<perm=[0,2,3,1]>(x) n = {_NORM}(t, g, b) y = Transpose<perm=[0,3,1,2]>(n)"
    )
    again = ns.swap(ns.swap(model, to="channelsfirst").model, to="channelsfirst")
    assert len(again.done) == 1
    assert "Transpose" not in [node.op for node in again.model.graph.nodes]


def test_others_are_left() -> None:
    model = _model(
        "h = Squeeze(two) w = Expand(h, sizes) t = Transpose<perm=[0,2,3,1]>(x) "
        "n = LayerNormalization<axis=2>(t, w) y = Transpose<perm=[0,3,1,2]>(n)"
    )
    ((_, reason),) = ns.swap(model, to="channelsfirst").skipped
    assert reason == "it is no norm over the channels of an image, [N, C, H, W]"
