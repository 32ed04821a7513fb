"""BatchNorms in front of and behind transposed convolutions, whatever their parameters."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normswap as ns
from tests.effort import examples_of
from tests.passes.fold_checks import KINDS, captured, check_fold, randomise_norms
from tests.zoo.captures import exporting

WIDTH = 4
CONVS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Around(nn.Module):
    """Steps between two ReLUs."""

    def __init__(self, *steps: nn.Module) -> None:
        super().__init__()
        self.steps = nn.Sequential(nn.ReLU(), *steps, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.steps(x)
        return result


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, int, dict[str, Any]]:
    """The rank, the channels behind it, and what a transposed convolution takes."""
    rank, groups = draw(st.sampled_from([1, 2, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    stride = draw(st.integers(1, 3))
    kernel = draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2))
    span = (kernel - 1) * dilation
    more = draw(st.integers(0, max(stride, dilation) - 1))
    options = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": draw(st.integers(0, min(span, 1))),
        "output_padding": more,
        "groups": groups,
        "bias": draw(st.booleans()),
        "dilation": dilation,
    }
    return rank, groups * draw(st.sampled_from([1, 3])), options


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples_of(6, 200))
@given(layer=layers(), before=st.booleans())
def test_what_lies_around_it_folds(
    kind: str, layer: tuple[int, int, dict[str, Any]], before: bool
) -> None:
    rank, out, options = layer
    if kind != "fx":  # onnx's reference evaluates no groups; see below
        options |= {"groups": 1}
    torch.manual_seed(0)
    conv = CONVS[rank](WIDTH, out, **options)
    x = torch.randn(2, WIDTH, *(4, 3, 5)[:rank])
    steps = [NORMS[rank](WIDTH), conv] if before else [conv, NORMS[rank](out)]
    model = captured(Around(*steps), x, kind)
    result = check_fold(model, model.examples)
    assert len(result.done) == 1
    plain = options["kernel_size"] == options["stride"] == 1 and not options["padding"]
    plain = plain and not options["output_padding"]
    shifts = [note for note in result.notes if "its shift stays" in note]
    assert bool(shifts) == (before and not plain)


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_of_a_grouped_one_fold(kind: str) -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(WIDTH, 6, 2, stride=2, groups=2, bias=False)
    module = Around(nn.BatchNorm2d(WIDTH), conv, nn.BatchNorm2d(6)).eval()
    randomise_norms(module)
    x = torch.randn(2, WIDTH, 3, 3)
    if kind == "fx":
        model = captured(module, x, kind)
        result = check_fold(model, model.examples)
    else:
        buffer = io.BytesIO()
        with exporting():
            torch.onnx.export(module, (x,), buffer, dynamo=False, opset_version=13)
        model = ns.load(ir.serde.deserialize_model(onnx.load_from_string(buffer.getvalue())))
        result = ns.fold(model)
        feeds = model.examples
        (old,), (new,) = (m.run(feeds).values() for m in (model, result.model))
        np.testing.assert_allclose(new, old, atol=1e-5)
    assert sum(site.kind == "batch_norm" for site in result.done) == 2


def test_a_square_matrix_stays_away_from_groups() -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(WIDTH, WIDTH, 2, groups=2)
    first = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
    module = Around(first, conv)
    model = captured(module, torch.randn(2, WIDTH, 3, 3), "fx")
    result = ns.fold(model, sites="steps.1")
    assert not result.modified
    ((_, why),) = result.skipped
    assert "groups" in why


def test_a_square_matrix_goes_into_one_of_one_group() -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(WIDTH, 5, 2, bias=False)
    first = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
    module = Around(first, conv)
    model = captured(module, torch.randn(2, WIDTH, 3, 3), "fx")
    assert len(ns.fold(model).done) == 1
    check_fold(model, model.examples)


AS = {
    "reshape_as": lambda x, y: y.reshape_as(x),
    "view_as": lambda x, y: y.view_as(x),
    "view": lambda x, y: y.view(x.shape),
    "expand_as": lambda x, y: y.reshape(x.shape).expand_as(x),
}


class Alike(nn.Module):
    """LeViT's: a BatchNorm on flattened tokens, shaped like what they were."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.linear = form, nn.Linear(WIDTH, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return torch.relu(AS[self.form](x, self.norm(x.flatten(0, 1))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", AS)
def test_a_value_that_is_read_for_its_sizes_is_no_reader(form: str, kind: str) -> None:
    torch.manual_seed(0)
    model = captured(Alike(form), torch.randn(2, 5, WIDTH), kind)
    assert len(check_fold(model, model.examples).done) == 1
