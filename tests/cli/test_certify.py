"""``--certify``: what validate, swap and fold say of a certificate, and what they write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from normswap import load, save, swap
from normswap.field.certificate import Certificate
from tests.cli.conftest import Run

PROVEN = "proven equal in real arithmetic; probability of error below 1e-12"


@pytest.fixture(scope="module")
def fused(files: Path) -> Path:
    save(swap(load(files / "spelled-out.onnx"), to="fused").model, files / "fused.onnx")
    return files / "fused.onnx"


@pytest.fixture(scope="module")
def one_bit_off(files: Path, fused: Path) -> Path:
    """One gamma of the second block, by one unit in the last place."""
    proto = onnx.load(fused)
    (gamma,) = (i for i in proto.graph.initializer if "1.layernorm_before.weight" in i.name)
    array = numpy_helper.to_array(gamma).copy()
    array[3] = np.nextafter(array[3], np.float32(np.inf))
    gamma.CopyFrom(numpy_helper.from_array(array, gamma.name))
    onnx.save(proto, files / "one-bit-off.onnx")
    return files / "one-bit-off.onnx"


def test_validate_proves_what_is_the_same(
    run: Run, files: Path, fused: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    asked = ["validate", files / "spelled-out.onnx", fused, "--certify"]
    outcome = run(*asked, "--json", "--report", page, "--no-bench")
    found = outcome.json["certificate"]
    assert outcome.status == 0
    assert outcome.json["passed"]
    assert found["certified"]
    assert found["error"] <= 1e-12
    assert len(set(found["primes"])) >= 5
    assert found["uninterpreted"] == ["Erf", "Softmax"]
    assert found["reason"] == ""
    assert f"{PROVEN[0].upper()}{PROVEN[1:]}." in page.read_text(encoding="utf-8")


def test_validate_refuses_a_bit_that_floats_do_not_tell(
    run: Run, fused: Path, one_bit_off: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    outcome = run("validate", fused, one_bit_off, "--certify", "--report", page, "--no-bench")
    assert outcome.status == 1
    assert outcome.out.startswith("exact contract passed")
    said = " ".join(outcome.out.split())
    assert "not certified: the output 'logits' differs, from the norm" in said
    assert "layers.1.layernorm_before" in said
    text = page.read_text(encoding="utf-8")
    assert "Not certified: the output" in text
    assert PROVEN[1:] not in text
    assert run("validate", fused, one_bit_off).status == 0
    found = run("validate", fused, one_bit_off, "--certify", "--json").json["certificate"]
    assert not found["certified"]
    assert found["error"] == 1.0


def test_without_the_option_there_is_no_certificate(run: Run, files: Path, fused: Path) -> None:
    outcome = run("validate", files / "spelled-out.onnx", fused, "--json")
    assert outcome.json["certificate"] is None
    assert "proven" not in run("validate", files / "spelled-out.onnx", fused).out


@pytest.mark.parametrize(
    ("source", "to", "proofs"), [("spelled-out.onnx", "fused", 2), ("vit.pt2", "rmsnorm", 1)]
)
def test_swap_certifies_every_pass(
    run: Run, files: Path, tmp_path: Path, source: str, to: str, proofs: int
) -> None:
    """That does anything: a swap to RMSNorm leaves no gamma to fold."""
    out = tmp_path / f"out{Path(source).suffix}"
    asked = ["swap", files / source, "-o", out, "--to", to, "--fold-affine", "--certify"]
    outcome = run(*asked, "--json")
    assert outcome.status == 0, outcome.err
    found = [step.get("certificate") for step in outcome.json["passes"] if step["modified"]]
    assert len(found) == proofs
    assert all(certificate["certified"] for certificate in found)
    assert out.exists()


def test_swap_writes_nothing_that_is_not_certified(run: Run, files: Path, tmp_path: Path) -> None:
    """``scaled`` rounds a root of epsilon."""
    out = tmp_path / "out.onnx"
    asked = ["swap", files / "spelled-out.onnx", "-o", out, "--to", "scaled"]
    outcome = run(*asked, "--certify", "--json")
    assert outcome.status == 1
    (step,) = outcome.json["passes"]
    assert not step["certificate"]["certified"]
    assert "the square of 'vit.layers.0.layernorm_before.least' is" in step["certificate"]["reason"]
    assert outcome.json["output"] is None
    assert f"not certified: {step['certificate']['reason']}; {out} was not written" in outcome.err
    assert not out.exists()
    assert run(*asked).status == 0


def test_another_function_is_not_to_be_certified(run: Run, files: Path, tmp_path: Path) -> None:
    asked = ["swap", files / "spelled-out.onnx", "-o", tmp_path / "out.onnx", "--to", "affine"]
    outcome = run(*asked, "--data", files / "images.npz", "--certify")
    assert "--certify" in outcome.err
    assert outcome.status == 2


@pytest.fixture(scope="module")
def batch_norms(files: Path) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)).eval()
    for tensor in module[1].state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    save(load(module, example_inputs=(torch.randn(4, 6),)), files / "batch-norms.pt2")
    return files / "batch-norms.pt2"


def test_fold_certifies(run: Run, batch_norms: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pt2"
    outcome = run("fold", batch_norms, "-o", out, "--certify")
    assert outcome.status == 0, outcome.err
    assert PROVEN in " ".join(outcome.out.split())
    assert "not covered: other sizes" in outcome.out
    assert out.exists()
    asked = ["validate", batch_norms, out, "--certify", "--json"]
    rounded = run(*asked)  # the file holds what floats can
    assert rounded.json["passed"]
    assert not rounded.json["certificate"]["certified"]


def test_fold_writes_nothing_that_is_not_certified(
    run: Run, batch_norms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Certificate(False, reason="the output 'y' differs")
    monkeypatch.setattr("normswap.api.certified_pass", lambda *given: refused)
    out = tmp_path / "out.pt2"
    outcome = run("fold", batch_norms, "-o", out, "--certify")
    assert outcome.status == 1
    assert f"not certified: the output 'y' differs; {out} was not written" in outcome.err
    assert not out.exists()
