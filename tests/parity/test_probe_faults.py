"""Faults that one kind of probe alone shows, and inputs that a reference does not take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normswap import load
from normswap.model import Model
from normswap.parity.exact import exact_contract
from normswap.parity.probes import make_probes
from normswap.parity.report import ValidationReport

LENGTH = 12
Nodes = list[tuple[str, list[str], str, dict[str, Any]]]
MEAN: Nodes = [("ReduceMean", ["x"], "y", {"axes": [1], "keepdims": 0})]
CONSTANTS = {
    "most": np.float32(60000),
    "least": np.float32(-60000),
    "zero": np.array([0]),
    "length": np.array([LENGTH]),
    "last": np.array([LENGTH - 1]),
    "axis": np.array([1]),
    "batch": np.array(0),
    "three": np.array(3),
    "fixed": np.array([-1, LENGTH, 4]),
    "a bit more": np.float32(1.001),
    "one": np.float32(1),
}


@pytest.fixture
def tokens(onnx_model: Callable[..., Model]) -> Callable[[Nodes], Model]:
    """A model of x [batch, tokens, 4], both dynamic, 12 tokens in the example."""

    def make(nodes: Nodes) -> Model:
        model = onnx_model(nodes, {"x": (("batch", "tokens", 4), np.float32)}, ["y"], CONSTANTS)
        return replace(model, examples={"x": np.ones((2, LENGTH, 4), np.float32)})

    return make


def compare(reference: Model, candidate: Model) -> ValidationReport:
    return exact_contract(reference, candidate, make_probes(reference))


FAULTS: dict[str, tuple[Nodes, set[str]]] = {
    "a range that ends where float16's does": (
        [("Clip", ["x", "least", "most"], "z", {}), (*MEAN[0][:1], ["z"], *MEAN[0][2:])],
        {"large_values"},
    ),
    "no more tokens than the example has": (
        [("Slice", ["x", "zero", "length", "axis"], "z", {}),
         (*MEAN[0][:1], ["z"], *MEAN[0][2:])],
        {"longer"},
    ),
    "batches of three": (
        [("Shape", ["x"], "shape", {}), ("Gather", ["shape", "batch"], "rows", {}),
         ("Equal", ["rows", "three"], "odd", {}),
         ("Where", ["odd", "a bit more", "one"], "factor", {}),
         ("Mul", ["x", "factor"], "z", {}), (*MEAN[0][:1], ["z"], *MEAN[0][2:])],
        {"batch_3", "longer"},  # which has three rows, too
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_few_kinds_show(tokens: Callable[[Nodes], Model], fault: str) -> None:
    nodes, kinds = FAULTS[fault]
    report = compare(tokens(MEAN), tokens(nodes))
    assert {finding.probe for finding in report.findings} == kinds
    assert not report.passed


def test_lengths_that_the_reference_cannot_take_are_told_and_left_out(
    tokens: Callable[[Nodes], Model],
) -> None:
    fixed: Nodes = [("Reshape", ["x", "fixed"], "z", {}), ("Add", ["z", "x"], "w", {}),
                    (*MEAN[0][:1], ["w"], *MEAN[0][2:])]  # fmt: skip
    report = compare(tokens(fixed), tokens(fixed))
    assert report.passed
    found = [finding for finding in report.findings if finding.kind == "failed"]
    assert found
    assert {finding.probe for finding in found} <= {"shorter", "longer"}
    assert not any(finding.fatal for finding in found)


def test_lengths_that_the_standard_does_not_know_are_told_and_left_out() -> None:
    """ONNX Runtime pools two rows by three into one; the standard's formula says none."""
    text = """<ir_version: 9, opset_import: ["" : 17]>
    test (float[N,3,H,W] x) => (float[N,3,M] y) {
        z = AveragePool<kernel_shape = [3, 2], strides = [3, 2]>(x)
        c = Conv(z, w)
        y = ReduceMean<axes = [2], keepdims = 0>(c)
    }"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((3, 3, 1, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = load(ir.serde.deserialize_model(proto))
    model = replace(model, examples={"x": np.zeros((2, 3, 4, 64), np.float32)})
    report = compare(model, model)
    assert report.passed
    assert [(f.kind, f.probe, f.fatal) for f in report.findings] == [("failed", "shorter", False)]
