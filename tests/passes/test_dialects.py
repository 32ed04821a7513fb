"""Every dialect is the same function, on hostile rows too, and is located as what it is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.passes.dialects.channels_first import ChannelsFirst
from normswap.passes.dialects.writing import Dialect, Spelling
from normswap.passes.registry import pass_called, passes
from tests.zoo.exports import FX, model_as

DIALECTS = sorted(
    to
    for to, kind in passes().items()
    if issubclass(kind, Spelling) and kind is not ChannelsFirst  # of images, in a file of its own
)
IN_TORCH = ("elementary", "product", "scaled")
OF_RMS = ("elementary", "lp", "product", "scaled")
EXPORTED = "torchscript-14"


def _operators(model: ns.Model) -> Counter[str]:
    return Counter(node.op for node in model.graph.nodes)


def test_these_are_the_dialects() -> None:
    assert DIALECTS == ["elementary", "group", "instance", "lp", "product", "scaled"]
    assert all(pass_called(to) is not None for to in DIALECTS)
    others = {to for to, kind in passes().items() if issubclass(kind, Dialect)} - {*DIALECTS}
    assert others == {"channels-first", "fused-residual"}


@pytest.mark.parametrize("form", [FX, EXPORTED])
@pytest.mark.parametrize("to", DIALECTS)
def test_a_model_keeps_its_function_and_its_norms(to: str, form: str) -> None:
    model = model_as("timm_vit", form)
    result = ns.swap(model, to=to)
    if form == FX and to not in IN_TORCH:
        assert not result.done
        assert all("export the model to ONNX" in reason for _, reason in result.skipped)
        return
    assert len(result.done) == len(model.sites)
    assert not result.skipped
    for old, new in zip(model.sites, result.model.sites, strict=True):
        assert (new.kind, new.role, new.axes) == (old.kind, old.role, old.axes)
        assert new.input == old.input  # all of it is found, not a part
        assert new.epsilon == pytest.approx(old.epsilon, rel=1e-6)
        np.testing.assert_allclose(new.weight, old.weight, rtol=1e-6)
    report = ns.validate(model, result.model)
    assert report.passed, report.findings
    back = ns.swap(result.model, to="fused", lowering=ns.Lowering(target="generic"))
    assert len(back.done) == len(model.sites)


def _norm(kind: str, opset: int, shape: str, epsilon: float = 1e-6) -> ns.Model:
    """One norm over the last of several axes, spelled out."""
    mean = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m)" if kind == "layer_norm" else ""
    d = "d" if mean else "x"
    text = f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    norm (float[{shape}] x) => (float[{shape}] y)
        <float[12] g = {{1,-2,0.5,3,1,1,2,1,0.25,1,1,1}}, float e = {{{epsilon}}}> {{
        {mean} q = Mul({d}, {d})  v = ReduceMean<axes=[-1]>(q)  w = Add(v, e)  r = Sqrt(w)
        n = Div({d}, r)  y = Mul(n, g)
    }}"""
    return ns.load(ir.serde.deserialize_model(onnx.parser.parse_model(text)))


def _hostile() -> np.ndarray:
    """Rows around 1e4, of a variance near epsilon, all equal, with an outlier, and ordinary."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((6, 12))
    rows[1] += 1e4
    rows[2] *= 1e-3
    rows[3] = 7
    rows[4, 3] = 300
    rows[5] *= 1e-6
    return rows.astype(np.float32).reshape(3, 2, 12)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("to", DIALECTS)
def test_hostile_rows(to: str, kind: str) -> None:
    model = _norm(kind, 14, "N, 2, 12")
    result = ns.swap(model, to=to)
    if kind == "rms_norm" and to not in OF_RMS:
        assert [reason for _, reason in result.skipped] == ["it is a rms_norm"]
        return
    (site,) = result.model.sites
    assert (site.kind, site.input) == (kind, "x")
    x = {"x": _hostile()}
    truth = model.run(x, np.float64)["y"]
    scale = np.abs(truth).max(-1, keepdims=True) + 1e-30
    errors = [np.abs(m.run(x)["y"] - truth) / scale for m in (model, result.model)]
    ours, theirs = (error.max(-1).reshape(-1) for error in errors)
    assert np.all(theirs <= 2 * ours + 2**-23), (ours, theirs)
    exact = np.abs(result.model.run(x, np.float64)["y"] - truth) / scale
    assert exact.max() < 1e-6  # constants are in float32
    report = ns.validate(model, result.model, data=x)
    assert report.passed, report.findings


def test_l2_without_epsilon_would_be_wrong_by_the_order_of_one() -> None:
    """What tools write that drop it: the dialect's own result is not that."""
    model = _norm("rms_norm", 14, "N, 2, 12", epsilon=1e-2)
    x = 1e-2 * _hostile()[:1]
    found = ns.swap(model, to="lp").model.run({"x": x})["y"]
    truth = model.run({"x": x}, np.float64)["y"]
    gamma = model.sites[0].weight
    dropped = x / np.sqrt((x.astype(float) ** 2).mean(-1, keepdims=True)) * gamma
    assert np.abs(dropped - truth).max() > 0.5
    np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-7)


def test_scaled_rows_need_an_epsilon() -> None:
    """A row of zeros would be divided by its largest magnitude."""
    result = ns.swap(_norm("layer_norm", 14, "N, 2, 12", epsilon=0.0), to="scaled")
    assert [reason for _, reason in result.skipped] == ["its epsilon is 0"]


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("to", DIALECTS)
def test_files_of_fixed_and_of_free_sizes(to: str, opset: int) -> None:
    for shape in ("2, 3, 12", "N, T, 12"):
        model = _norm("layer_norm", opset, shape)
        result = ns.swap(model, to=to)
        assert len(result.done) == 1
        shapes = _operators(result.model)["Shape"]
        assert shapes == (to in ("group", "instance") and shape.startswith("N"))
        x = np.random.default_rng(0).standard_normal((2, 3, 12)).astype(np.float32)
        expected = model.run({"x": x}, np.float64)["y"]
        np.testing.assert_allclose(result.model.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)
        if shape.startswith("N"):
            x = np.concatenate([x, x, x], 1)
            expected = model.run({"x": x}, np.float64)["y"]
            found = result.model.run({"x": x})["y"]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_dialect_has_none_of_what_it_is_to_avoid() -> None:
    model = model_as("timm_vit", EXPORTED)
    fused = _operators(ns.swap(model, to="fused", lowering=ns.Lowering(target="generic")).model)
    fused["LayerNormalization"] = 0
    none = {
        "product": ["ReduceMean", "ReduceSum", "LayerNormalization"],
        "instance": ["ReduceMean", "Sqrt", "LayerNormalization"],
        "lp": ["Sqrt", "LayerNormalization"],
    }
    for to, operators in none.items():
        found = _operators(ns.swap(model, to=to).model)
        assert not [op for op in operators if found[op] > fused[op]], to


def test_scaled_rows_do_not_overflow_in_half() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(64, eps=1e-6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            d = x - x.mean(-1, keepdim=True)
            return d / (d.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.norm.weight

    torch.manual_seed(0)
    x = 3e3 * torch.randn(4, 64)
    single = ns.load(Half().eval(), example_inputs=(x,))
    truth = single.run({"x": x.numpy()}, np.float64)
    scaled = ns.swap(single, to="scaled").model.to_torch().half()
    with torch.no_grad():
        found = scaled(x.half())
        lost = Half().eval().half()(x.half())
    assert not torch.isfinite(lost).all() or float(lost.abs().max()) == 0
    (expected,) = truth.values()
    np.testing.assert_allclose(found.float().numpy(), expected, atol=1e-2)


class _Axes(nn.Module):
    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        sizes = (6, 4, 5)
        shape = [size if a + 1 in axes else 1 for a, size in enumerate(sizes)]
        self.weight = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = x - x.mean(self.axes, keepdim=True)
        return d / (d.square().mean(self.axes, keepdim=True) + 1e-5).sqrt() * self.weight


@pytest.mark.parametrize("axes", [(1,), (2, 3)])
@pytest.mark.parametrize("to", IN_TORCH)
def test_other_axes(to: str, axes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 5)
    model = ns.load(_Axes(axes).eval(), example_inputs=(x,))
    (site,) = model.sites
    result = ns.swap(model, to=to)
    if to == "product" and len(axes) > 1:
        assert result.skipped == [(site, "it normalises over several axes")]
        return
    expected, found = (m.run({"x": x.numpy()}, np.float64) for m in (model, result.model))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6)
    (again,) = result.model.sites
    assert again.normalized_shape == site.normalized_shape
