"""What ``bench`` makes of times; the times here are scripted, but for one test."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.runtimes.process import RuntimeFailed
from normswap.timing.bench import named_for
from normswap.timing.bench_report import BenchReport
from normswap.timing.paired import in_turn
from tests.runtimes.models import one_node

Times = Mapping[tuple[str, str], float]


def scripted(monkeypatch: pytest.MonkeyPatch, times: Times, dies: str = "") -> list[Any]:
    """Lets each model in each runtime take the same time in every round; ``dies`` fails in its
    fifth. Returns what was kept as inputs."""
    kept: list[Any] = []

    class Scripted:
        def __init__(self, runtime: str, model: str, limit: float) -> None:
            self.runtime, self.model, self.name, self.rounds = runtime, model, runtime, 0

        def load(self, path: Path, threads: int) -> None:
            assert path.stat().st_size
            if (self.model, self.runtime) not in times:
                raise RuntimeFailed(f"{self.model}: {self.runtime} refuses it")
            self.name = f"{self.runtime} 1.2 CPU"

        def keep(self, feeds: Any) -> None:
            kept.append(feeds)

        def seconds(self) -> float:
            self.rounds += 1
            if self.model == dies and self.rounds == 5:
                raise RuntimeFailed(f"{self.model}: it crashed")
            return times[self.model, self.runtime]

        def peak_mib(self) -> float:
            return 10.0

        def __enter__(self) -> Scripted:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("normswap.timing.bench.Process", Scripted)
    return kept


def verdicts(report: BenchReport) -> list[tuple[str, str, float | None, float | None]]:
    found = []
    for r in report.results:
        ratios = [None if x is None else round(x.median, 3) for x in (r.ratio, r.ratio_in_runtime)]
        found.append((r.model, r.runtime, *ratios))
    return found  # type: ignore[return-value]


def test_every_model_in_every_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    ort, ov = "onnxruntime", "openvino"
    times = {("a", ort): 1.0, ("a", ov): 4.0, ("b", ort): 0.5, ("b", ov): 5.0}
    scripted(monkeypatch, times)
    told: list[tuple[int, int, str]] = []
    report = ns.bench(
        [one_node(name="a"), one_node(name="b")],
        runtimes=[ort, ov],
        rounds=6,
        progress=lambda *step: told.append(step),
    )
    assert verdicts(report) == [
        ("a", ort, None, None),
        ("a", ov, 4.0, None),
        ("b", ort, 0.5, None),
        ("b", ov, 5.0, 1.25),
    ]
    assert report.complete
    document = report.to_json()
    assert document["schema"] == "normswap.bench/1"
    assert document["results"][2]["ratio"]["verdict"] == "faster"
    assert document["results"][3]["ratio_in_runtime"]["verdict"] == "slower"
    assert document["inputs"] == {"x": "1x4 float32"}
    assert document["versions"][ov] == "1.2 CPU"
    assert [r.milliseconds for r in report.results] == [1000, 4000, 500, 5000]
    assert told[0] == (0, 4, "loading a in onnxruntime")
    assert told[4] == (0, 6, "measuring")
    assert told[-1] == (6, 6, "measuring")


def test_one_that_fails_is_told_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = {(name, "onnxruntime"): seconds for name, seconds in zip("bcd", (1, 2, 3), strict=True)}
    scripted(monkeypatch, times, dies="c")
    report = ns.bench([one_node(name=name) for name in "abcd"], rounds=6)
    assert verdicts(report) == [
        ("a", "onnxruntime", None, None),
        ("b", "onnxruntime", None, None),
        ("c", "onnxruntime", None, None),
        ("d", "onnxruntime", 3.0, None),
    ]
    errors = [result.error for result in report.results]
    assert errors == ["a: onnxruntime refuses it", None, "c: it crashed", None]
    assert report.results[2].milliseconds is report.results[2].peak_mib is None
    assert not report.complete


def test_all_that_fail_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {})
    report = ns.bench([one_node()])
    assert [result.error for result in report.results] == ["one: onnxruntime refuses it"]


def test_inputs_are_the_same_for_all_whatever_they_are_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = {("a", "onnxruntime"): 1.0, ("b", "onnxruntime"): 1.0}
    kept = scripted(monkeypatch, times)
    models = [one_node(name="a"), one_node(name="b", read="z", batch=3)]
    ns.bench(models, rounds=6)
    np.testing.assert_array_equal(kept[0]["x"], kept[1]["z"])
    assert kept[0]["x"].shape == (3, 4)
    ns.bench(models, rounds=6, inputs={"x": np.ones((3, 4), np.float32)})
    assert kept[-1]["z"].sum() == 12


def test_inputs_come_in_the_order_of_the_model() -> None:
    """Torch takes them so."""

    def difference(a: str, b: str) -> ns.Model:
        header = '<ir_version: 8, opset_import: ["": 17]> g'
        body = f"(float[2] {a}, float[2] {b}) => (float[2] y) {{ y = Sub({a}, {b}) }}"
        return ns.load(ir.from_onnx_text(f"{header} {body}"))

    first, second = difference("a", "b"), difference("c", "a")
    feeds = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}
    named = named_for(second, first.inputs, feeds)
    assert list(named) == ["c", "a"]
    assert named["c"] is feeds["b"]
    assert named["a"] is feeds["a"]


def test_the_rounds_start_at_another_one_each() -> None:
    def turn(name: str) -> Iterator[float]:
        while True:
            order.append(name)
            yield float(len(order))

    order: list[str] = []
    turns = {name: turn(name) for name in "abc"}
    taken = in_turn({name: turns[name].__next__ for name in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert taken["b"] == [2, 4, 9, 11]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rounds": 5}, "5 give no confidence interval; take 6 or more"),
        ({"runtimes": ["torch"]}, "a: an ONNX model has no torch graph to run"),
        ({"runtimes": ["tvm"]}, "'tvm' is none of"),
        ({"batch": 2}, "a: its batch is fixed at 3, not 2; leave --batch out"),
        ({"inputs": {"x": np.ones((3, 5), np.float32)}}, "'x' takes 3x4, got 3x5"),
        ({"inputs": {}, "batch": 3}, "leave it out with inputs"),
    ],
)
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(NormswapError, match=told):
        ns.bench([one_node(name="a"), one_node(name="b", batch=3)], **options)


def test_bad_models(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NormswapError, match="name one or more"):
        ns.bench([])
    pair = [one_node(name="a"), one_node(name="b", columns=5)]
    with pytest.raises(
        NormswapError, match="a's input 'x' and b's 'x' differ: batchx4 and batchx5"
    ):
        ns.bench(pair)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(NormswapError, match=re.escape(install_command("openvino"))):
        ns.bench(pair[:1], runtimes=["openvino"])


def test_torch_beside_onnx_runtime() -> None:
    """Nothing is scripted here; what the times are is nobody's business."""
    module = ns.load(nn.LayerNorm(4), example_inputs=(torch.randn(2, 4),))
    report = ns.bench([module, one_node()], rounds=6, batch=2)
    assert [(r.runtime, r.error) for r in report.results] == [
        ("torch", None),
        ("onnxruntime", None),
    ]
    (_, ratio) = (r.ratio for r in report.results)
    assert ratio is not None
    assert 0 < ratio.low <= ratio.median <= ratio.high
    for result in report.results:
        assert result.milliseconds is not None
        assert result.milliseconds > 0
        assert result.peak_mib is None or result.peak_mib > 0
