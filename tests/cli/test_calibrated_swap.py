"""``normswap swap`` to what is fitted to calibration data: its options and what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Run

_SITES = [
    "vit.layers.0.layernorm_before",
    "vit.layers.0.layernorm_after",
    "vit.layers.1.layernorm_before",
    "vit.layers.1.layernorm_after",
    "vit.layernorm",
]


@pytest.fixture
def swap(run: Run, files: Path, tmp_path: Path) -> Any:
    """Runs ``swap`` on a ViT with its images."""

    def invoke(*options: object, source: str = "spelled-out.onnx") -> Any:
        out = tmp_path / f"out{Path(source).suffix}"
        data = ["--data", files / "images.npz"]
        return out, run("swap", files / source, "-o", out, *data, *options)

    return invoke


@pytest.mark.parametrize("source", ["spelled-out.onnx", "vit.pt2"])
def test_affine_maps_are_folded_into_the_weights(swap: Any, run: Run, source: str) -> None:
    out, outcome = swap("--to", "affine", "--refit-writers", "--fold", "--json", source=source)
    assert (outcome.status, outcome.err) == (0, "")
    affine, fold = outcome.json["passes"]
    assert (affine["pass"], [site["name"] for site in affine["done"]]) == ("affine", _SITES)
    assert (affine["skipped"], affine["kept"], affine["notes"]) == ([], [], [])
    assert (fold["pass"], len(fold["done"]), fold["skipped"]) == ("fold", 5, [])
    assert run("inspect", out, "--json").json["sites"] == []  # no norm is left


def test_affine_without_fold(swap: Any) -> None:
    _, outcome = swap("--to", "affine")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("affine: 5 done, 0 skipped\n")


@pytest.mark.parametrize("target", ["affine", "batchnorm"])
def test_groups_of_tokens_are_told(swap: Any, target: str) -> None:
    note = "a scale and shift for each of 17 tokens stay at 5 sites, unfolded"
    _, outcome = swap("--to", target, "--tokens", "class")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"note: {note}" in outcome.out
    _, outcome = swap("--to", target, "--tokens", "position", "--json")
    assert outcome.json["passes"][0]["notes"] == [note]


def test_a_requirement_that_leaves_some_norms(swap: Any, run: Run) -> None:
    options = [
        "--to",
        "batchnorm",
        "--ensure",
        "sqnr>=12",
        "--sites",
        "*layernorm_after,*.layernorm",
    ]
    out, outcome = swap(*options, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    document = outcome.json
    (step,) = document["passes"]
    kept = [miss["site"]["name"] for miss in step["kept"]]
    done = [site["name"] for site in step["done"]]
    assert kept
    assert done
    assert sorted(kept + done) == sorted([_SITES[1], _SITES[3], _SITES[4]])
    for miss in step["kept"]:
        assert set(miss) == {"site", "reason"}
        assert miss["reason"].startswith("kept for sqnr >= 12: with all sites swapped sqnr is ")
    assert (step["skipped"], document["passed"], document["output"]) == ([], True, str(out))
    sites = run("inspect", out, "--json").json["sites"]
    assert {site["kind"] for site in sites if site["name"] in done} == {"batch_norm"}
    assert {site["kind"] for site in sites if site["name"] in kept} == {"layer_norm"}

    _, outcome = swap(*options)
    assert all(name in outcome.out for name in kept)


def test_a_requirement_that_is_met_anyway(swap: Any) -> None:
    _, outcome = swap("--to", "batchnorm", "--ensure", "cosine>=-1", "--json")
    assert outcome.status == 0
    (step,) = outcome.json["passes"]
    assert (len(step["done"]), step["kept"], step["notes"]) == (5, [], [])


def test_a_requirement_that_leaves_nothing_to_swap(swap: Any) -> None:
    options = ["--to", "batchnorm", "--ensure", "cosine>=1", "--sites", "*layernorm_after"]
    out, outcome = swap(*options, "--json")
    document = outcome.json
    assert (outcome.status, document["passed"], document["output"]) == (1, False, None)
    (step,) = document["passes"]
    assert (step["modified"], step["done"], len(step["kept"])) == (False, [], 2)
    why = "no norm can go for what --ensure asks"
    assert outcome.err == f"normswap: spelled-out.onnx: {why}; {out} was not written\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ensure", "top1"], "--ensure: 'top1' is no requirement"),
        (["--ensure", "top9>=1"], "--ensure: 'top9>=1' is no requirement"),
        (["--ensure", "top1>=1.5"], "--ensure: top1 is never above 1, got 1.5"),
        (["--ensure", "top1>=0.9", "--samples", 4], "--ensure: 4 samples are too few"),
        (["--samples", 4], "--to affine: 4 samples are too few"),
    ],
)
def test_what_cannot_be_done_is_one_line(swap: Any, options: list[object], message: str) -> None:
    out, outcome = swap("--to", "affine", *options)
    assert message in outcome.error
    assert not out.exists()


def test_images_give_a_clip_no_classes(run: Run, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    options = ["--to", "affine", "--data", files / "clip-images.npy"]
    outcome = run("swap", files / "clip.onnx", "-o", out, *options, "--ensure", "top1>=0.9")
    assert "no output with class scores" in outcome.error
    assert not out.exists()
    outcome = run("swap", files / "clip.onnx", "-o", out, *options, "--ensure", "cosine>=0")
    assert outcome.status == 0


def test_both_towers_of_a_clip(run: Run, files: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out.onnx", tmp_path / "data.npz"
    random = np.random.default_rng(0)
    ids = random.integers(1, 48, (20, 12))
    ids[:, 7] = 49  # [EOS]
    images = np.load(files / "clip-images.npy")
    np.savez(data, pixel_values=images, input_ids=ids, attention_mask=np.ones_like(ids))
    options = ["--to", "affine", "--data", data, "--sites", "*", "--ensure", "top1>=0", "--json"]
    outcome = run("swap", files / "clip.onnx", "-o", out, *options)
    assert outcome.status == 0
    assert len(outcome.json["passes"][0]["done"]) == 11


TAKE_DATA = "affine or auto or batchnorm or predicted or rescale or rmsnorm or smooth"


@pytest.mark.parametrize(
    ("target", "option", "takers"),
    [
        ("fused", ["--data", "x.npy"], TAKE_DATA),
        ("fused", ["--samples", 3], TAKE_DATA),
        ("fused", ["--rotate", "pca"], "rmsnorm"),
        ("fused", ["--for", "int8"], "affine or auto or batchnorm or predicted"),
        ("fused", ["--tokens", "class"], "affine or auto or batchnorm or predicted"),
        ("fused", ["--ensure", "top1>=1"], "affine or auto or batchnorm or predicted"),
        ("fused", ["--fold"], "affine or auto or batchnorm or predicted"),
        ("fused", ["--fit", "copy"], "batchnorm"),
        ("fused", ["--ffn-batchnorm"], "batchnorm"),
        ("fused", ["--ffn-position", "after"], "batchnorm"),
        ("fused", ["--refit-writers"], "affine"),
        ("affine", ["--fit", "copy"], "batchnorm"),
        ("affine", ["--ffn-batchnorm"], "batchnorm"),
        ("affine", ["--ffn-position", "before"], "batchnorm"),
        ("batchnorm", ["--refit-writers"], "affine"),
        ("fused", ["--headroom", 3], "rescale"),
        ("rescale", ["--fold"], "affine or auto or batchnorm or predicted"),
    ],
)
def test_options_of_another_target(
    run: Run, tmp_path: Path, target: str, option: list[object], takers: str
) -> None:
    outcome = run("swap", "missing.onnx", "-o", tmp_path / "out.onnx", "--to", target, *option)
    assert (outcome.status, outcome.out) == (2, "")
    message = f"{option[0]} belongs to --to {takers}, not to {target}."
    assert message in " ".join(outcome.err.split())


@pytest.mark.parametrize("option", [["--tokens", "words"], ["--fit", "best"]])
def test_an_unknown_choice(run: Run, tmp_path: Path, option: list[str]) -> None:
    args = ["--to", "batchnorm", "--data", "x.npy", *option]
    outcome = run("swap", "missing.onnx", "-o", tmp_path / "out.onnx", *args)
    assert (outcome.status, outcome.out) == (2, "")
    assert f"Invalid value for '{option[0]}'" in outcome.err
