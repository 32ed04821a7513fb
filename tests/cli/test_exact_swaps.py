"""``normswap swap --to fused``, ``rmsnorm`` and ``rescale`` with their options."""

from __future__ import annotations

from pathlib import Path

import pytest

from normswap.passes import passes
from tests.cli.conftest import Run


@pytest.mark.parametrize("name", ["spelled-out.onnx", "vit.pt2"])
def test_rmsnorm_is_exact(run: Run, files: Path, tmp_path: Path, name: str) -> None:
    source, out = files / name, tmp_path / f"rms{Path(name).suffix}"
    outcome = run("swap", source, "-o", out, "--to", "rmsnorm")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("rmsnorm: 5 done, 0 skipped\n")
    sites = run("inspect", out, "--json").json["sites"]
    assert [site["kind"] for site in sites] == ["rms_norm"] * 5
    assert run("validate", source, out).status == 0


@pytest.mark.parametrize("name", ["spelled-out.onnx", "vit.pt2"])
def test_rescale_is_exact(run: Run, files: Path, tmp_path: Path, name: str) -> None:
    source, out, data = files / name, tmp_path / f"out{Path(name).suffix}", files / "images.npz"
    args = ("swap", source, "-o", out, "--to", "rescale", "--data", data)
    vanishes = "its epsilon of 1e-12 is no number of float16"
    assert ("there is headroom" if name == "vit.pt2" else vanishes) in run(*args).out
    outcome = run(*args, "--headroom", 16)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("rescale: 5 done, 0 skipped\n")
    assert "times 2^-" in outcome.out
    assert run("validate", source, out).status == 0
    found = run("inspect", out, "--headroom", "--data", data, "--json").json["headroom"]
    assert all(norm["stream"]["places"]["float16"] >= 16 for norm in found["norms"])


@pytest.mark.parametrize("name", ["spelled-out.onnx", "vit.pt2"])
def test_gamma_and_beta_fold_on_the_way(run: Run, files: Path, tmp_path: Path, name: str) -> None:
    source, out = files / name, tmp_path / f"out{Path(name).suffix}"
    outcome = run("swap", source, "-o", out, "--to", "fused", "--fold-affine", "--json")
    assert [step["pass"] for step in outcome.json["passes"]] == ["fused", "fold-affine"]
    assert len(outcome.json["passes"][1]["done"]) == 5
    assert run("validate", source, out).status == 0


def test_kernels_stay_when_gamma_and_beta_fold(run: Run, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pt2"
    args = ["swap", files / "vit.pt2", "-o", out, "--to", "fused", "--fold-affine"]
    outcome = run(*args, "--kernels")
    assert "note: 4 norms run as add_layer_norm_ in inference" in outcome.out
    assert outcome.out.endswith("import normswap.lowering.kernels before torch.export.load\n")
    import normswap as ns
    from normswap.lowering import kernels_of

    assert len(kernels_of(ns.load(out).graph)) == 4


def test_kernels_are_for_torch_files_alone(run: Run, files: Path, tmp_path: Path) -> None:
    args = ["--to", "fused", "--kernels"]
    outcome = run("swap", files / "vit.pt2", "-o", tmp_path / "out.onnx", *args)
    assert outcome.status == 2
    assert "only a .pt2 file can hold them" in outcome.err
    outcome = run("swap", files / "spelled-out.onnx", "-o", tmp_path / "out.pt2", *args)
    assert "are for torch models" in outcome.error
    outcome = run("swap", files / "vit.pt2", "-o", tmp_path / "plain.pt2", "--to", "rmsnorm")
    assert outcome.out.endswith("which plain torch loads\n")


def test_tuning_says_what_was_measured(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    args = ["swap", files / "spelled-out.onnx", "-o", tmp_path / "out.onnx", "--to", "fused"]
    outcome = run(*args, "--tune", "--target", "onnxruntime-cpu")
    assert outcome.status == 0
    assert "time beside the original: LayerNormalization" in outcome.out
    assert list((tmp_path / "cache" / "normswap" / "tuning").iterdir())
    assert "name one of this machine with --target" in run(*args, "--tune").error


def test_options_of_other_swaps_are_refused(run: Run, files: Path, tmp_path: Path) -> None:
    args = ["swap", files / "vit.pt2", "-o", tmp_path / "out.pt2", "--to"]
    exact = " or ".join(sorted(to for to, kind in passes().items() if kind.exact))
    for option, takers in (("--tune", "dialect or fused"), ("--fold-affine", exact)):
        outcome = run(*args, "batchnorm", "--data", files / "images.npz", option)
        assert outcome.status == 2
        assert f"{option} belongs to --to {takers}, not to batchnorm." in outcome.err
    assert run(*args, "fused", "--target", "tpu").status == 2
