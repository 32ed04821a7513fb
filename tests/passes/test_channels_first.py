"""Norms over the channels of images are written over axis 1, and transposes around them go."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import normswap as ns
from tests.effort import ALL
from tests.zoo.exports import FX, model_as

_HEAD = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 6, 4, 5] x) => (float[N, 6, 4, 5] y)
    <float[6] g = {1, -2, 0.5, 3, 1, 1}, float[6] b = {1, 0, 0, 2, 0, 1}, float[1] two = {2},
     int64[2] sizes = {5, 6}>"""
_NORM = "LayerNormalization<axis=-1, epsilon=1e-5>"


def _model(body: str) -> ns.Model:
    return ns.load(ir.serde.deserialize_model(onnx.parser.parse_model(f"{_HEAD} {{ {body} }}")))


def _swapped(model: ns.Model) -> list[str]:
    """The operators of the model with its norm over channels that come first."""
    result = ns.swap(model, to="channels-first")
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
        "m = Softmax<axis=-1>(n) s = Transpose<perm=[0,3,1,2]>(m) y = Add(r, s)"
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
    again = ns.swap(ns.swap(model, to="channels-first").model, to="channels-first")
    assert len(again.done) == 1
    assert "Transpose" not in [node.op for node in again.model.graph.nodes]


def test_others_are_left() -> None:
    model = _model(
        "h = Squeeze(two) w = Expand(h, sizes) t = Transpose<perm=[0,2,3,1]>(x) "
        "n = LayerNormalization<axis=2>(t, w) y = Transpose<perm=[0,3,1,2]>(n)"
    )
    ((_, reason),) = ns.swap(model, to="channels-first").skipped
    assert reason == "it is no norm over the channels of an image, [N, C, H, W]"


_BLOCK = (
    f"t = Transpose<perm=[0,2,3,1]>(x) n = {_NORM}(t, g, b) h = MatMul(n, up) i = Add(h, shift) "
    "q = Div(i, root) f = Erf(q) o = Add(f, one) a = Mul(i, o) d = MatMul(a, down) "
)


def _with_weights(body: str) -> ns.Model:
    text = f"{_HEAD} {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    arrays = {
        "up": random.standard_normal((6, 9)), "down": random.standard_normal((9, 6)),
        "shift": random.standard_normal(9), "root": np.array(2**0.5), "one": np.ones(1),
        "scale": random.standard_normal((1, 1, 1, 6)),
    }  # fmt: skip
    for name, array in arrays.items():
        tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        proto.graph.initializer.append(tensor)
    return ns.load(ir.serde.deserialize_model(proto))


def test_a_block_behind_it_is_computed_on_the_image() -> None:
    model = _with_weights(
        _BLOCK + "l = Mul(d, scale) r = Transpose<perm=[0,3,1,2]>(l) y = Add(x, r)"
    )
    operators = _swapped(model)
    assert operators.count("Conv") == 2
    assert not {"Transpose", "MatMul"} & {*operators}


@pytest.mark.parametrize(
    "rest",
    [
        "l = Softmax<axis=-1>(d) r = Transpose<perm=[0,3,1,2]>(l) y = Add(x, r)",
        "l = Mul(d, t) r = Transpose<perm=[0,3,1,2]>(l) y = Add(x, r)",
        "r = Transpose<perm=[0,3,2,1]>(d) u = Transpose<perm=[0,1,3,2]>(r) y = Add(x, u)",
    ],
)
def test_a_block_that_something_else_reads_stays(rest: str) -> None:
    operators = _swapped(_with_weights(_BLOCK + rest))
    assert operators.count("MatMul") == 2
    assert "Conv" not in operators


@pytest.mark.parametrize("form", [FX, "torchscript-14", *(["dynamo-20"] if ALL else [])])
def test_a_convnext(form: str) -> None:
    """Its norms stand between transposes, or in front of a block that ends in one."""
    model = model_as("hf_convnext", form)
    images = [site for site in model.sites if len(site.axes) == 1 and _rank(model, site.input) == 4]
    result = ns.swap(model, to="channels-first", sites=images)
    assert images
    assert len(result.done) == len(images)
    before, after = (
        [n.op for n in each.graph.nodes].count("Transpose") for each in (model, result.model)
    )
    assert after < before
    if form != FX:
        assert after == 0
    assert len(result.model.sites) == len(model.sites)
    report = ns.validate(model, result.model)
    assert report.passed, report.findings


def _rank(model: ns.Model, name: str) -> int:
    return model.graph.value(name).rank or 0
