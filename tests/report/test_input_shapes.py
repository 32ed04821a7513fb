"""Sizes that users ask for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from normswap import Model, NormswapError, load
from normswap.report.input_shapes import named_shapes, parse_input_shape, sized
from normswap.report.inspection import inspection
from tests.graph.onnx_text import onnx_graph
from tests.zoo.exports import model_as


def given(model: Model, *texts: str) -> dict[str, tuple[int, ...]]:
    return named_shapes(model, [parse_input_shape(text) for text in texts])


@pytest.fixture(scope="module")
def vit() -> Model:
    return replace(model_as("timm_vit", "fx"), name="vit")


@pytest.fixture(scope="module", params=["fx", "torchscript-14"])
def clip(request: pytest.FixtureRequest) -> Model:
    return replace(model_as("open_clip_clip", request.param), name="clip")


def test_texts() -> None:
    assert parse_input_shape("1x3x224x224") == ("", (1, 3, 224, 224))
    assert parse_input_shape("text=8x77") == ("text", (8, 77))
    assert parse_input_shape("odd=name=8") == ("odd=name", (8,))


@pytest.mark.parametrize("text", ["", "x", "1x", "1,3", "x=", "=1x3", "1x0", "1x-3", "1X3", "1x3 "])
def test_no_shape(text: str) -> None:
    with pytest.raises(NormswapError, match="is no shape; write sizes like 1x3x224x224"):
        parse_input_shape(text)


def test_the_input_that_is_meant(vit: Model, clip: Model) -> None:
    assert given(vit, "1x3x32x32") == {"x": (1, 3, 32, 32)}
    assert given(clip, "1x3x16x16") == {"image": (1, 3, 16, 16)}
    assert given(clip, "1x3x16x16", "text=4x12") == {"image": (1, 3, 16, 16), "text": (4, 12)}
    with pytest.raises(NormswapError, match="'x' is given twice"):
        given(vit, "1x3x32x32", "x=2x3x32x32")
    with pytest.raises(NormswapError, match=r"which input is 2x12 for.*write NAME=2x12"):
        given(model_as("hf_bert", "fx"), "2x12")


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({"y": (1, 3, 32, 32)}, "vit: 'y' is no input; it takes x"),
        ({"x": (1, 3, 32)}, "vit: input 'x' takes batchx3x32x32, got 1x3x32"),
        ({"x": (1, 3, 64, 64)}, "vit: input 'x' takes batchx3x32x32, got 1x3x64x64"),
        ({"x": (0, 3, 32, 32)}, "vit: input 'x' cannot have the size 0x3x32x32"),
        ({"x": (10**12, 3, 32, 32)}, "vit: input 'x' cannot have the size 1000000000000x3x32x32"),
    ],
)
def test_shapes_that_do_not_fit(
    vit: Model, shapes: dict[str, tuple[int, ...]], problem: str
) -> None:
    with pytest.raises(NormswapError) as error:
        inspection(vit, shapes)
    assert str(error.value) == problem


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.norm(x + y)


def added(form: str) -> Model:
    if form == "fx":
        example = {"x": torch.randn(2, 8), "y": torch.randn(2, 8)}
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        return load(Added().eval(), example_inputs=example, dynamic_axes=axes)
    text = "(float[n,8] x, float[m,8] y) => (float[n,8] z)"
    graph = onnx_graph(
        text + "{ s = Add(x, y) z = LayerNormalization<axis=-1>(s, w) }",
        {"w": np.ones(8, np.float32)},
    )
    return load(graph.model)


@pytest.mark.parametrize("form", ["fx", "onnx"])
def test_sizes_that_do_not_fit_each_other(form: str) -> None:
    model = added(form)
    assert inspection(model, {"x": (5, 8), "y": (5, 8)}).statistics == 10
    with pytest.raises(NormswapError, match=r"it does not run on x=4x8, y=3x8 \(.+\)") as error:
        inspection(model, {"x": (4, 8), "y": (3, 8)})
    assert "\n" not in str(error.value)


def test_sizes_with_a_name_are_shared() -> None:
    arrays = sized(model_as("hf_bert", "torchscript-14"), {"input_ids": (7, 12)})
    assert {name: array.shape for name, array in arrays.items()} == {
        "input_ids": (7, 12),
        "attention_mask": (7, 12),
    }


def test_without_shapes_it_is_the_example(vit: Model) -> None:
    assert np.array_equal(sized(vit, {})["x"], vit.examples["x"])
    assert inspection(vit).to_json() == inspection(vit, {}).to_json()


def test_costs_at_other_sizes(clip: Model) -> None:
    found = inspection(clip, {"image": (5, 3, 16, 16), "text": (2, 12)})
    assert found.examples == {"image": (5, 3, 16, 16), "text": (2, 12)}
    shapes = [site.input_shape for site in found.sites]
    assert shapes == [(5, 17, 64)] * 6 + [(2, 12, 32)] * 5
    assert found.statistics == 2 * (6 * 5 * 17 + 5 * 2 * 12)
    assert found.statistics_folded_batch_norm == 0
