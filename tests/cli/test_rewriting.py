"""``normswap swap``, ``fold``, ``export``, and ``validate`` of what they wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Run


def test_fused_and_its_proof(run: Run, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "fused.onnx"
    outcome = run("swap", files / "spelled-out.onnx", "-o", out, "--to", "fused")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("fused: 5 done, 0 skipped\n")
    assert f"\nwrote {out} (" in outcome.out
    sites = run("inspect", out, "--json").json["sites"]
    assert [site["spelling"] for site in sites] == ["op"] * 5
    outcome = run("validate", files / "spelled-out.onnx", out, "--data", files / "images.npz")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("exact contract passed: fused.onnx against spelled-out.onnx\n")
    *table, norms = outcome.out.splitlines()
    assert norms.startswith("norms: 5 of 5 hold the contract")
    rows = [line.split() for line in table[3:]]
    assert {"normal", "large_mean", "data"} <= {row[1] for row in rows}
    assert all(row[-1] == "ok" for row in rows)


def test_weights_beside_the_file_are_counted(run: Run, files: Path, tmp_path: Path) -> None:
    source = tmp_path / "in" / "big.onnx"
    source.parent.mkdir()
    onnx.save(
        onnx.load(files / "spelled-out.onnx"),
        source,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    out = tmp_path / "out.onnx"
    outcome = run("swap", source, "-o", out, "--to", "fused")
    size, beside = (file.stat().st_size / 1e6 for file in (out, tmp_path / "weights.bin"))
    assert beside > 0.1
    told = f"wrote {out} ({size:.1f} MB), with its weights in weights.bin ({beside:.1f} MB)"
    assert outcome.out.splitlines()[-1] == told


@pytest.mark.parametrize("name", ["spelled-out.onnx", "vit.pt2"])
def test_batchnorm_folded_away(run: Run, files: Path, tmp_path: Path, name: str) -> None:
    source, out = files / name, tmp_path / f"out{Path(name).suffix}"
    options = ["--to", "batchnorm", "--data", files / "images.npz", "--samples", 16]
    outcome = run("swap", source, "-o", out, *options, "--ffn-batchnorm", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    document = outcome.json
    assert document["schema"] == "normswap.rewriting/1"
    assert document["passed"]
    assert document["output"] == str(out)
    (step,) = document["passes"]
    assert (step["pass"], len(step["done"]), step["skipped"]) == ("batchnorm", 5, [])
    sites = run("inspect", out, "--json").json["sites"]
    assert [site["kind"] for site in sites] == ["batch_norm"] * 7
    assert {site["statistics"] for site in sites} == {0}

    folded = tmp_path / f"folded{Path(name).suffix}"
    outcome = run("fold", out, "-o", folded, "--json")
    assert outcome.status == 0
    (step,) = outcome.json["passes"]
    assert (step["pass"], len(step["done"]), step["skipped"]) == ("fold", 7, [])
    assert run("validate", out, folded).status == 0
    assert run("inspect", folded, "--json").status == 1  # no norm is left

    at_once = tmp_path / f"once{Path(name).suffix}"
    outcome = run("swap", source, "-o", at_once, *options, "--ffn-batchnorm", "--fold", "--json")
    assert [step["pass"] for step in outcome.json["passes"]] == ["batchnorm", "fold"]
    assert run("validate", folded, at_once).status == 0


def test_validate_tells_models_apart(run: Run, files: Path, tmp_path: Path) -> None:
    source, out = files / "spelled-out.onnx", tmp_path / "copied.onnx"
    options = ["--to", "batchnorm", "--data", files / "images.npz", "--fit", "copy"]
    assert run("swap", source, "-o", out, *options).status == 0
    outcome = run("validate", source, out)
    assert outcome.status == 1
    assert outcome.out.startswith("exact contract FAILED: copied.onnx against spelled-out.onnx\n")
    assert "error_bound: " in outcome.out
    document = run("validate", source, out, "--json")
    assert (document.status, document.json["passed"]) == (1, False)
    approximate = ["--contract", "approximate", "--data", files / "images.npz"]
    outcome = run("validate", source, out, *approximate)
    assert outcome.status == 0
    assert outcome.out.startswith("approximate contract measured: ")
    assert " % -> " in outcome.out  # the data has labels
    report = run("validate", source, out, *approximate, "--json").json
    assert report["schema"] == "normswap.validation/2"
    assert 0 < report["outputs"][0]["cosine_mean"] < 1


def test_one_tower_of_a_clip(run: Run, files: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out.onnx", files / "clip-images.npy"
    options = ["--to", "batchnorm", "--data", data, "--fold"]
    outcome = run("swap", files / "clip.onnx", "-o", out, *options)
    assert outcome.status == 0
    assert "note: the image tower was swapped; 5 sites of the text tower" in outcome.out
    sites = run("inspect", out, "--json").json["sites"]
    assert [site["tower"] for site in sites] == 5 * ["text"]
    refused = run("swap", files / "clip.onnx", "-o", out, *options, "--sites", "tower=text")
    assert "the calibration data lacks 'input_ids'" in refused.error


def test_sites(run: Run, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    args = ["swap", files / "spelled-out.onnx", "-o", out, "--to", "fused", "--json"]
    done = run(*args, "--sites", "*layernorm_before").json["passes"][0]["done"]
    assert [site["name"] for site in done] == [f"vit.layers.{i}.layernorm_before" for i in (0, 1)]
    sites = run("inspect", out, "--json").json["sites"]
    assert [s["spelling"] for s in sites] == ["op", "decomposed", "op", "decomposed", "decomposed"]
    out.unlink()
    assert "no site matches 'nothing'" in run(*args, "--sites", "nothing").error
    assert "role=nothing" in run(*args, "--sites", "role=nothing").error
    assert not out.exists()


def test_a_site_that_was_asked_for_and_skipped(run: Run, files: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "model.pt2", tmp_path / "out.pt2"
    shutil.copy(files / "vit.pt2", source)
    args = ["swap", source, "-o", out, "--to", "fused", "--target", "generic"]
    outcome = run(*args, "--sites", "role=final")
    assert outcome.status == 1
    assert "asked for and not done: vit.layernorm: it is one operator already" in outcome.out
    assert outcome.err == f"normswap: model.pt2: a site was skipped; {out} was not written\n"
    document = run(*args, "--sites", "role=final", "--json").json
    assert document["output"] is None
    assert not document["passed"]
    assert document["passes"][0]["skipped"][0]["site"]["name"] == "vit.layernorm"
    assert not out.exists()
    assert run(*args).status == 0  # not asked for by name: there is nothing to do
    assert out.exists()
    outcome = run("fold", source, "-o", tmp_path / "folded.pt2", "--sites", "role=final")
    assert outcome.status == 1
    assert "vit.layernorm: it is a layer_norm" in outcome.out


@pytest.mark.parametrize(
    "args",
    [["swap", "--to", "fused"], ["swap", "--to", "fused", "--sites", "a*"], ["fold"]],
    ids=" ".join,
)
def test_no_norm(run: Run, files: Path, tmp_path: Path, args: list[str]) -> None:
    out = tmp_path / "out.onnx"
    outcome = run(args[0], files / "no-norm.onnx", "-o", out, *args[1:])
    assert outcome.status == 1
    what = "BatchNorm" if args[0] == "fold" else "norm"
    assert outcome.err == (f"normswap: no-norm.onnx: no {what} was found; {out} was not written\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "batchnorm"], "--to batchnorm needs calibration data: give --data."),
        (
            ["--to", "other"],
            "Invalid value for '--to': 'other' is none of affine, auto, batchnorm, channels-first",
        ),
        (["--to", "batchnorm", "--data", "x.npy", "--samples", 0], "0 is not in the range x>=1"),
    ],
)
def test_bad_usage(run: Run, tmp_path: Path, args: list[object], message: str) -> None:
    outcome = run("swap", "missing.onnx", "-o", tmp_path / "out.onnx", *args)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err


def test_output_equal_to_input(run: Run, files: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(files / "spelled-out.onnx", model)
    assert run("swap", model, "-o", model, "--to", "fused").status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert run("validate", files / "spelled-out.onnx", model).status == 0
    program = tmp_path / "model.pt2"
    shutil.copy(files / "vit.pt2", program)
    options = ["--to", "batchnorm", "--data", files / "images.npz"]
    assert run("swap", program, "-o", program, *options).status == 0
    assert run("fold", program, "-o", program).status == 0
    assert run("inspect", program).status == 1


def test_export(run: Run, files: Path, tmp_path: Path) -> None:
    for name in ("vit.onnx", "vit.pt2"):
        out = tmp_path / name
        outcome = run("export", files / "vit-folder", "-o", out)
        assert (outcome.status, outcome.err) == (0, "")
        assert outcome.out.startswith(f"wrote {out} (")
        assert run("validate", files / "vit-folder", out).status == 0
    error = run("export", tmp_path / "vit.onnx", "-o", tmp_path / "other.pt2").error
    assert "ONNX" in error
    assert not (tmp_path / "other.pt2").exists()


def test_bad_data(run: Run, files: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "out.onnx", tmp_path / "bad.npz"
    args = ["swap", files / "spelled-out.onnx", "-o", out, "--to", "batchnorm", "--data"]
    assert str(bad) in run(*args, bad).error
    bad.write_bytes(b"nothing")
    assert str(bad) in run(*args, bad).error
    np.savez(bad, images=np.zeros((4, 3, 9, 9), np.float32))
    assert "pixel_values" in run(*args, bad).error
    assert str(bad) in run("validate", files / "vit.pt2", files / "vit.pt2", "--data", bad).error
    assert not out.exists()
