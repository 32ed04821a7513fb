"""Whole models in every runtime, and what becomes of one that fails."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.lowering import kernels_of
from normswap.runtimes import process, worker
from normswap.runtimes.process import Process, RuntimeFailed, worker_command
from normswap.runtimes.run_in import run_in
from tests.runtimes import crashing
from tests.runtimes.endless import endless
from tests.runtimes.models import one_node
from tests.zoo.exports import FX, model_as

TEXT = """<ir_version: 8, opset_import: ["": 17]>
two (float[batch,2] left, int64[batch] ids) => (int64[batch] following, float[batch,2] rows)
    <float[3,2] table = {0, 0, 10, 10, 20, 20}, int64 one = {1}> {
    found = Gather(table, ids)
    rows = Add(left, found)
    following = Add(ids, one)
}"""
X = {"x": np.array([[-1, 2, -3, 4]], np.float32)}


class Doubled(nn.Module):
    """Two inputs whose order matters, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.linear(left - 2 * right), right.abs()


@pytest.fixture(scope="module")
def torch_model() -> ns.Model:
    arrays = {name: torch.randn(2, 4) for name in ("left", "right")}
    return ns.load(Doubled(), example_inputs=arrays)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_torch_model(torch_model: ns.Model, runtime: str, scratch: Path) -> None:
    random = np.random.default_rng(0)
    left, right = random.standard_normal((2, 5, 4)).astype(np.float32)
    with run_in(torch_model, runtime) as model:
        assert not list(scratch.iterdir())  # nothing waits for the end
        got = model({"right": right, "left": left})
        again = model({"right": right[:1], "left": left[:1]})
    wanted = torch_model.run({"left": left, "right": right})
    assert model.name.startswith(f"{runtime} ")
    for array, exact in zip(got, wanted.values(), strict=True):
        np.testing.assert_allclose(array, exact, rtol=1e-5, atol=1e-6)
    assert again[0].shape == (1, 3)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_onnx_model(runtime: str, scratch: Path) -> None:
    """Floats and token ids, and outputs in the order of the file."""
    pytest.importorskip(runtime)
    model = ns.load(ir.from_onnx_text(TEXT))
    ids = np.array([2, 0, 1])
    left = np.arange(6, dtype=np.float32).reshape(3, 2)
    with run_in(model, runtime) as there:
        following, rows = there({"ids": ids, "left": left})
    assert (following.dtype, rows.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(following, ids + 1)
    np.testing.assert_array_equal(rows, left + 10 * ids[:, None])
    if runtime == "openvino":
        assert there.name.endswith(" CPU f32")


def test_a_saved_torch_model_with_kernels_runs_in_a_process(tmp_path: Path) -> None:
    kernels = ns.Lowering(kernels=True)
    model = ns.swap(model_as("hf_vit", FX), to="fused", lowering=kernels).model
    assert kernels_of(model.graph)
    ns.save(model, tmp_path / "model.pt2")
    feeds = {s.name: np.array(model.examples[s.name]) for s in model.inputs}
    with Process("torch", "hf_vit") as there:
        there.load(tmp_path / "model.pt2", threads=1)
        got = there.run(feeds)
        peak = there.peak_mib()
    for array, exact in zip(got, model.run(feeds).values(), strict=True):
        np.testing.assert_allclose(array, exact, rtol=1e-5, atol=1e-5)
    assert peak is None or 0 < peak < 150  # its weights, not what loading imports


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ("torch", "an ONNX model has no torch graph to run; take --runtime onnxruntime"),
        ("tensorrt", "'tensorrt' is none of torch, onnxruntime, openvino"),
    ],
)
def test_a_runtime_that_the_model_cannot_have(runtime: str, told: str) -> None:
    with pytest.raises(NormswapError, match=told), run_in(one_node(), runtime):
        pass


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    told = re.escape(f"--runtime openvino: it is not installed; {install_command('openvino')}")
    with pytest.raises(NormswapError, match=told), run_in(one_node(), "openvino"):
        pass


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_operator_that_the_runtime_lacks(runtime: str, scratch: Path) -> None:
    pytest.importorskip(runtime)
    model = one_node("Fancy", "some.domain")
    with pytest.raises(RuntimeFailed) as failed, run_in(model, runtime):
        pass
    told = str(failed.value)
    assert told.startswith(f"one: {runtime} cannot load it: ")
    assert "Fancy" in told
    assert "\n" not in told


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_run_that_fails_is_the_end_of_that_run_alone(runtime: str, scratch: Path) -> None:
    pytest.importorskip(runtime)
    with run_in(one_node(), runtime) as model:
        with pytest.raises(RuntimeFailed, match=f"^one: {runtime} cannot run it: .*5"):
            model({"x": np.zeros((1, 5), np.float32)})
        np.testing.assert_array_equal(model(X)[0], np.maximum(X["x"], 0))


@pytest.mark.parametrize(
    ("end", "when", "told"),
    [
        ("SIGSEGV", "load", "one: onnxruntime crashed (SIGSEGV) and did not load it"),
        ("SIGABRT", "run", "one: onnxruntime crashed (SIGABRT) and did not run it"),
        (
            "SIGKILL",
            "run",
            "one: onnxruntime was killed (SIGKILL), for memory perhaps, and did not run it",
        ),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_crash_is_one_line(
    end: str, when: str, told: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-P", crashing.__file__, worker.__file__, end, when]
    monkeypatch.setattr(process, "worker_command", lambda _runtime: command)
    if when == "load":
        with pytest.raises(RuntimeFailed) as failed, run_in(one_node(), "onnxruntime"):
            pass
        assert str(failed.value) == f"{told}; take another runtime"
        return
    with run_in(one_node(), "onnxruntime") as model:
        np.testing.assert_array_equal(model(X)[0], X["x"])
        for _ in range(2):  # also what is asked of it afterwards
            with pytest.raises(RuntimeFailed) as failed:
                model(X)
            assert str(failed.value) == f"{told}; take another runtime"


def test_a_loop_without_end_is_stopped(tmp_path: Path) -> None:
    """Also what is asked of it afterwards; what ends in time is not."""
    feeds = {**X, "turns": np.array([2])}
    told = "m: onnxruntime did not run it within 0.5 s; a loop in it may go on for ever"
    with Process("onnxruntime", "m") as there:
        there.load(endless(tmp_path / "m.onnx"), threads=1)
        np.testing.assert_array_equal(there.run(feeds)[0], X["x"])
        there.limit = 0.5
        for _ in range(2):
            with pytest.raises(RuntimeFailed, match=re.escape(told)):
                there.run(feeds | {"turns": np.array([1 << 60])})


def test_a_limit_is_handed_on(tmp_path: Path) -> None:
    """One that nothing can keep to, to the processes of a validation and of a benchmark."""
    model = ns.load(endless(tmp_path / "m.onnx"))
    told = r"onnxruntime did not load it within 0\.01 s; .* give a larger --limit"
    (measured,) = ns.bench([model], limit=0.01).results
    assert re.search(told, str(measured.error))
    report = ns.validate(model, model, candidate_runtime="onnxruntime", limit=0.01)
    assert any(re.search(told, finding.message) for finding in report.findings)
    for limit in (0, -1, float("nan"), float("inf")):
        with pytest.raises(NormswapError, match=r"--limit: .* no number of seconds"):
            ns.bench([model], limit=limit)
        with pytest.raises(NormswapError, match=r"--limit: .* no number of seconds"):
            ns.validate(model, model, limit=limit)


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    command = worker_command("nonsense")
    monkeypatch.setattr(process, "worker_command", lambda _runtime: command)
    told = r"ended \(status 1: ModuleNotFoundError: No module named 'normswap.runtimes.nonsense'\)"
    with Process("onnxruntime", "one") as there, pytest.raises(RuntimeFailed, match=told):
        there.run(X)


def test_an_interrupt_leaves_nothing(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Process] = []

    class Watched(Process):
        def __init__(self, runtime: str, model: str, limit: float) -> None:
            super().__init__(runtime, model, limit)
            started.append(self)

        def load(self, path: Path, threads: int, precise: bool = False) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("normswap.runtimes.run_in.Process", Watched)
    with pytest.raises(KeyboardInterrupt), run_in(one_node(), "onnxruntime"):
        pass
    assert started[0]._process.returncode is not None  # waited for, so no zombie


def test_a_process_ends_when_nobody_asks_any_more() -> None:
    """Not by SIGINT, which a terminal sends to both."""
    with subprocess.Popen(
        worker_command("onnxruntime"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdin is not None
        running.stdin.write(b'{"do": "peak", "arrays": []}\n')
        running.stdin.flush()
        assert running.stdout is not None
        assert b"mib" in running.stdout.readline()
        if sys.platform != "win32":
            running.send_signal(signal.SIGINT)
        running.stdin.close()
        assert running.wait(20) == 0


def test_a_process_does_not_import_torch() -> None:
    """It takes seconds and memory, and brings threads of its own."""
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({worker.__file__!r})['without_the_package']()\n"
        "from normswap.runtimes import onnxruntime, worker\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
