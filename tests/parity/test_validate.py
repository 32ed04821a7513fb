"""``validate`` with and without data, and what its report says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from normswap.errors import NormswapError
from normswap.io.data import Data
from normswap.model import Model
from normswap.parity.report import ApproximateOutput, ExactOutput, ValidationReport
from normswap.parity.validation import validate

NODES: list[Any] = [("MatMul", ["x", "w"], "logits", {})]
WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).standard_normal((70, 4)).astype(np.float32)
Make = Callable[..., Model]


@pytest.fixture
def linear(onnx_model: Callable[..., Model]) -> Make:
    def make(
        weight: np.ndarray = WEIGHT, batch: int | str = "batch", name: str = "linear"
    ) -> Model:
        inputs = {"x": ((batch, 4), np.float32)}
        return onnx_model(NODES, inputs, ["logits"], {"w": weight}, name)

    return make


def notes(report: ValidationReport) -> str:
    return " ".join(finding.message for finding in report.findings)


def test_exact_without_data(linear: Make) -> None:
    report = validate(linear(), linear())
    assert report.passed
    assert [finding.kind for finding in report.findings] == ["unchanged"]
    assert not validate(linear(), linear(WEIGHT * np.float32(1.0001))).passed


def test_data_is_one_more_kind_of_probe(linear: Make) -> None:
    calls: list[tuple[int, int, str]] = []
    report = validate(linear(), linear(), data=IMAGES, progress=lambda *call: calls.append(call))
    output = report.outputs[0]
    assert isinstance(output, ExactOutput)
    data = output.probes[-1]
    assert (data.probe, data.elements) == ("data", 70 * 3)
    assert calls[0] == (0, 11, "normal")
    assert calls[-1] == (11, 11, "done")


def test_a_fault_that_only_the_data_shows(onnx_model: Callable[..., Model]) -> None:
    inputs = {"x": (("batch", 4), np.float32)}
    limits = {"low": np.float32(-1e13), "high": np.float32(1e13)}
    plain = onnx_model([("Neg", ["x"], "y", {})], inputs, ["y"])
    clipped = onnx_model(
        [("Clip", ["x", "low", "high"], "z", {}), ("Neg", ["z"], "y", {})], inputs, ["y"], limits
    )
    assert validate(plain, clipped).passed
    report = validate(plain, clipped, data=1e14 * IMAGES)
    assert {finding.probe for finding in report.findings} == {"data"}


def test_approximate_with_labels(linear: Make) -> None:
    labels = (IMAGES @ WEIGHT).argmax(1)
    labels[:7] = (labels[:7] + 1) % 3
    noisy = linear(WEIGHT + np.float32(0.3) * WEIGHT[::-1])
    report = validate(linear(), noisy, data=IMAGES, labels=labels, contract="approximate")
    output = report.outputs[0]
    assert isinstance(output, ApproximateOutput)
    assert output.rows == 70
    assert output.accuracy_reference == pytest.approx(0.9)
    assert output.accuracy_candidate is not None
    assert 0.3 < output.accuracy_candidate < 0.9
    assert report.passed
    owned = validate(linear(), noisy, data=Data({"x": IMAGES}, labels), contract="approximate")
    assert owned.outputs == report.outputs


def test_approximate_without_data_says_so(linear: Make) -> None:
    report = validate(linear(), linear(2 * WEIGHT), contract="approximate")
    output = report.outputs[0]
    assert isinstance(output, ApproximateOutput)
    assert output.sqnr_db == pytest.approx(0)
    assert output.cosine_worst == pytest.approx(1)
    assert "no data was given" in notes(report)
    assert report.passed


def test_fixed_batches(linear: Make) -> None:
    fixed = linear(batch=8)
    labels = (IMAGES @ WEIGHT).argmax(1)
    report = validate(fixed, fixed, data=IMAGES, labels=labels, contract="approximate")
    assert "6 samples were left out" in notes(report)
    output = report.outputs[0]
    assert isinstance(output, ApproximateOutput)
    assert (output.rows, output.accuracy_candidate) == (64, 1)
    assert validate(linear(), fixed).passed  # the smaller freedom of the two
    assert validate(fixed, linear()).passed
    with pytest.raises(NormswapError, match="batches of 8, the data holds 5"):
        validate(fixed, fixed, data=IMAGES[:5])


def test_inputs_that_the_data_lacks_are_drawn(onnx_model: Callable[..., Model]) -> None:
    ids: tuple[Any, ...] = ("batch", "tokens")
    inputs = {"x": (("batch", 3), np.float32), "ids": (ids, np.int64), "mask": (ids, np.int64)}
    nodes = [
        ("Gather", ["table", "ids"], "rows", {}),
        ("Cast", ["mask"], "kept", {"to": 1}),
        ("Unsqueeze", ["kept", "last"], "column", {}),
        ("Mul", ["rows", "column"], "masked", {}),
        ("ReduceMean", ["masked"], "text", {"axes": [1], "keepdims": 0}),
        ("Mul", ["x", "text"], "logits", {}),
        ("Neg", ["x"], "image", {}),
    ]
    table = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    constants = {"table": table, "last": np.array([-1])}
    model = onnx_model(nodes, inputs, ["logits", "image", "masked"], constants)
    images, labels = IMAGES[:40, :3], np.zeros(40, int)
    report = validate(model, model, data=images, labels=labels, contract="approximate")
    assert "drawn at random: ids, mask" in notes(report)
    assert "no accuracy" in notes(report)  # the logits are those of random texts
    assert [output.dtype for output in report.outputs] == ["float32"] * 3
    assert validate(model, model, data=images).passed
    tokens = np.full((4, 6), 3)
    report = validate(model, model, data={"ids": tokens}, contract="approximate")
    assert report.outputs[2].rows == 4  # type: ignore[union-attr]
    assert report.passed is False  # one text throughout: its rows are constant
    assert {f.output for f in report.findings if f.fatal} == {"masked"}


def test_bad_usage(linear: Make) -> None:
    model = linear()
    with pytest.raises(NormswapError, match="approximate contract"):
        validate(model, model, data=IMAGES, labels=np.zeros(70, int))
    with pytest.raises(NormswapError, match="labels need the data"):
        validate(model, model, labels=np.zeros(70, int), contract="approximate")
    for labels in (np.zeros(69, int), np.zeros(70), np.zeros((70, 3), int)):
        with pytest.raises(NormswapError, match="labels must be 70 integers"):
            validate(model, model, data=IMAGES, labels=labels, contract="approximate")
    with pytest.raises(NormswapError, match="'close' is neither exact nor approximate"):
        validate(model, model, contract="close")  # type: ignore[arg-type]
    with pytest.raises(NormswapError, match="'some' is neither quick nor full"):
        validate(model, model, effort="some")  # type: ignore[arg-type]
    other = linear(batch="batch", name="other")
    wider = replace(other, inputs=(replace(other.inputs[0], shape=("batch", 5)),))
    with pytest.raises(NormswapError, match=r"linear's input 'x' and other's 'x' differ"):
        validate(model, wider)


def test_the_report_is_json(linear: Make) -> None:
    labels = np.zeros(70, int)
    reports = [
        validate(linear(), linear(2 * WEIGHT)),
        validate(linear(), linear(), data=IMAGES, labels=labels, contract="approximate"),
        validate(linear(), linear(WEIGHT * np.float32(np.nan))),
    ]
    for report in reports:
        document = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert document["schema"] == "normswap.validation/2"
        assert document["passed"] is report.passed
        told = document["reference"]
        assert (told["name"], told["kind"], told["path"]) == ("linear", "onnx", None)
        assert (told["norms"], told["sha256"], told["history"]) == ([], None, [])
        assert told["runtime"].startswith("onnxruntime ")
        assert document["provenance"]["versions"]["normswap"]
        assert len(document["findings"]) == len(report.findings)
    exact, approximate, broken = (report.to_json() for report in reports)
    assert [probe["passed"] for probe in exact["outputs"][0]["probes"]] == [False] * 10
    assert approximate["outputs"][0]["sqnr_db"] is None
    assert approximate["findings"][0]["kind"] == "identical"
    assert {finding["kind"] for finding in broken["findings"]} == {"non_finite"}
