"""Kernels of a torch graph that win on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import normswap as ns
from normswap.lowering import torch_tuning
from normswap.lowering.measure import Measured
from tests.zoo.exports import FX, model_as


def test_tuning_takes_only_kernels_that_win(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Measured(1.0, 1.0, 1.0, 0.5)
    slow, fast = Measured(1.5, 1.4, 1.6, 0.5), Measured(0.5, 0.4, 0.6, 0.5)

    def measure(kernel: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Measured]:
        return {torch_tuning.ORIGINAL: original, kernel: slow if "add" in kernel else fast}

    monkeypatch.setattr(torch_tuning, "measure_kernel", measure)
    result = ns.swap(model_as("timm_vit", FX), to="fused", lowering=ns.Lowering(tune=True))
    # Without the sum only the last norm reads what nobody else does.
    assert result.notes[0] == "1 norms run as layer_norm_ in inference"
    assert any("torch's operators; time beside" in note for note in result.notes)


def test_measuring_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kernel in ("add_layer_norm_", "rms_norm"):
        measured = torch_tuning.measure_kernel(kernel, (2, 5, 64), torch.float32)
        assert measured[kernel].is_exact
        assert 0 < measured[kernel].low <= measured[kernel].high < 1e3
        assert torch_tuning.measure_kernel(kernel, (2, 5, 64), torch.float32) == measured


def test_a_damaged_measurement_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch_tuning.measure_kernel("layer_norm_", (2, 64), torch.float32)
    (file,) = (tmp_path / "normswap" / "tuning").iterdir()
    file.write_text(file.read_text().replace('"ratio"', '"other"'))
    assert torch_tuning.measure_kernel("layer_norm_", (2, 64), torch.float32)[
        "layer_norm_"
    ].is_exact
