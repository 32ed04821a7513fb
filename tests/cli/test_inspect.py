"""``normswap inspect``."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from normswap.norms import Rejection
from normswap.report.inspection import Inspection
from normswap.report.terminal import inspection_view
from tests.cli.conftest import Run
from tests.effort import thorough

FIELDS = {
    "name", "kind", "role", "tower", "axes", "normalized_shape", "epsilon", "weight", "bias",
    "groups", "input", "output", "spelling", "fixed", "input_shape", "statistics",
    "statistics_folded_batch_norm",
}  # fmt: skip
ROLES = ["pre_attention", "pre_mlp", "pre_attention", "pre_mlp", "final"]


@pytest.mark.parametrize("name", ["spelled-out.onnx", "vit.pt2", "vit-folder"])
def test_json_of_every_kind_of_source(run: Run, files: Path, name: str) -> None:
    outcome = run("inspect", files / name, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    document = outcome.json
    assert document["schema"] == "normswap.inspection/1"
    assert document["model"] == name
    onnx = name.endswith(".onnx")
    assert document["kind"] == ("onnx" if onnx else "fx")
    sites = document["sites"]
    assert all(set(site) == FIELDS for site in sites)
    assert [site["role"] for site in sites] == ROLES
    assert [site["name"] for site in sites][::4] == [
        "vit.layers.0.layernorm_before",
        "vit.layernorm",
    ]
    assert {site["spelling"] for site in sites} == {"decomposed" if onnx else "op"}
    assert {site["tower"] for site in sites} == {"image"}
    batch = document["examples"]["pixel_values"][0]
    assert [site["input_shape"] for site in sites] == [[batch, 17, 48]] * 5
    assert [site["statistics"] for site in sites] == [2 * 17 * batch] * 5
    assert document["statistics"] == 5 * 2 * 17 * batch
    assert [site["statistics_folded_batch_norm"] for site in sites] == [0] * 5
    assert document["statistics_folded_batch_norm"] == 0


def test_towers_of_a_clip(run: Run, files: Path) -> None:
    sites = run("inspect", files / "clip.onnx", "--json").json["sites"]
    assert [site["tower"] for site in sites] == 6 * ["image"] + 5 * ["text"]
    assert [s["role"] for s in sites].count("embedding") == 1


def test_table(run: Run, files: Path) -> None:
    outcome = run("inspect", files / "spelled-out.onnx")
    assert (outcome.status, outcome.err) == (0, "")
    title, shared, head, _, *rows = outcome.out.splitlines()
    assert title == "spelled-out.onnx: 5 norms (onnx)"
    told = "all of them: kind layer_norm, tower image, spelling decomposed, eps 1e-12"
    assert shared == told
    assert head.split() == ["site", "role", "shape", "statistics", "folded", "BN"]
    first = "vit.layers.0.layernorm_before pre_attention 2x17x[48] 68 0"
    assert rows[0].split() == first.split()
    costs = "340 statistics are computed for pixel_values 2x1x8x8; folded BatchNorm computes 0"
    assert rows[5] == costs


def test_columns_that_differ_are_in_the_table(run: Run, files: Path) -> None:
    lines = run("inspect", files / "clip.onnx").out.splitlines()
    assert lines[1] == "all of them: kind layer_norm, spelling op, eps 1e-05"
    assert lines[2].split() == ["site", "role", "tower", "shape", "statistics", "folded", "BN"]
    assert all(len(line) <= 100 for line in lines[2:15])


def test_what_looks_like_a_norm_is_listed_with_the_reason(run: Run, files: Path) -> None:
    rejected = run("inspect", files / "clip.onnx", "--json").json["rejected"]
    assert rejected
    assert all(set(r) == {"where", "reason"} for r in rejected)
    lines = run("inspect", files / "clip.onnx").out.splitlines()
    told = [i for i, line in enumerate(lines) if line.startswith("no norm: ")]
    assert len(told) == len({r["reason"] for r in rejected})
    assert all(lines[i + 1].startswith("         in ") for i in told)


def test_many_rejections_are_counted() -> None:
    rejected = [Rejection(f"place{i}", "it is odd") for i in range(5)]
    rejected.append(Rejection("elsewhere", "it is even"))
    found = Inspection("m", None, "fx", {}, [], rejected)
    console = Console(width=100, file=io.StringIO())
    with console.capture() as shown:
        console.print(inspection_view(found))
    assert shown.get().splitlines()[1:] == [
        "no norm: 5 times it is odd",
        "         in place0, place1, place2, and 2 more (--json lists all)",
        "no norm: it is even",
        "         in elsewhere",
    ]


@pytest.mark.parametrize("name", ["spelled-out.onnx", "vit.pt2"])
def test_input_shape(run: Run, files: Path, name: str) -> None:
    outcome = run("inspect", files / name, "--json", "--input-shape", "3x1x8x8")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.json["examples"] == {"pixel_values": [3, 1, 8, 8]}
    assert [site["input_shape"] for site in outcome.json["sites"]] == [[3, 17, 48]] * 5
    assert outcome.json["statistics"] == 5 * 2 * 17 * 3


def test_input_shapes_of_several_inputs(run: Run, files: Path) -> None:
    shapes = ("--input-shape", "5x3x16x16", "--input-shape", "input_ids=4x12")
    more = ("--input-shape", "attention_mask=4x12")
    document = run("inspect", files / "clip.onnx", "--json", *shapes, *more).json
    assert {site["input_shape"][0] for site in document["sites"]} == {4, 5}
    assert "pixel_values 5x3x16x16" in run("inspect", files / "clip.onnx", *shapes, *more).out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("image=1x1x8x8", "'image' is no input; it takes pixel_values"),
        ("1x8x8", "input 'pixel_values' takes batchx1x8x8, got 1x8x8"),
        ("1x3x8x8", "input 'pixel_values' takes batchx1x8x8, got 1x3x8x8"),
        ("1,1,8,8", "--input-shape: '1,1,8,8' is no shape; write sizes like 1x3x224x224"),
    ],
)
def test_input_shapes_that_do_not_fit(run: Run, files: Path, text: str, problem: str) -> None:
    for how in ((), ("--json",), ("--mermaid",)):
        error = run("inspect", files / "spelled-out.onnx", "--input-shape", text, *how).error
        assert problem in error


@pytest.mark.parametrize("name", ["spelled-out.onnx", "vit.pt2", "vit-folder", "clip.onnx"])
def test_mermaid_is_all_there_is_on_standard_output(run: Run, files: Path, name: str) -> None:
    outcome = run("inspect", files / name, "--mermaid")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[1] == "flowchart TB"
    towers = ("image", "text") if name.startswith("clip") else ("image",)
    assert all(f'["{tower} tower"]' in outcome.out for tower in towers)
    assert "layer_norm, pre_attention" in outcome.out
    assert outcome.out.endswith("layer_norm\n")


def test_the_diagram_in_the_documentation_is_what_the_command_prints(run: Run) -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/how-to/choose-norms.md").read_text("utf-8")
    (shown,) = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert run("inspect", root / "normswap" / "assets" / "digits-vit", "--mermaid").out == shown


def test_mermaid_of_a_model_without_norms(run: Run, files: Path) -> None:
    outcome = run("inspect", files / "no-norm.onnx", "--mermaid")
    assert (outcome.status, outcome.err) == (0, "")
    assert "64 to 3" in outcome.out


def test_mermaid_and_json_exclude_each_other(run: Run, files: Path) -> None:
    outcome = run("inspect", files / "clip.onnx", "--mermaid", "--json")
    assert (outcome.status, outcome.out) == (2, "")
    assert "--json and --mermaid exclude each other" in outcome.err


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_no_norm(run: Run, files: Path, json: tuple[str, ...]) -> None:
    outcome = run("inspect", files / "no-norm.onnx", *json)
    assert outcome.status == 1
    assert outcome.err.endswith("no-norm.onnx: no norm was found\n")
    if json:
        assert outcome.json["sites"] == []
    else:
        assert outcome.out == "no-norm.onnx: 0 norms (onnx)\n"


@thorough
@pytest.mark.parametrize(
    ("name", "image", "text"),
    [("timm:vit_base_patch16_224", 25, 0), ("open_clip:ViT-B-32", 26, 25)],
)
def test_full_size_models_have_their_sites_and_roles(
    run: Run, name: str, image: int, text: int
) -> None:
    outcome = run("inspect", f"{name}?pretrained=false", "--json")
    assert outcome.status == 0
    sites = outcome.json["sites"]
    blocks = {"pre_attention": 12, "pre_mlp": 12, "final": 1}
    for tower, count in (("image", image), ("text", text)):
        roles = Counter(site["role"] for site in sites if site["tower"] == tower)
        embedding = {"embedding": 1} if count == 26 else {}
        assert roles == ({**blocks, **embedding} if count else {})
    assert all(set(site) == FIELDS for site in sites)


@pytest.mark.parametrize("name", ["spelled-out.onnx", "vit.pt2"])
def test_headroom_on_data(run: Run, files: Path, name: str, tmp_path: Path) -> None:
    asked = ("inspect", files / name, "--headroom", "--data", files / "images.npz")
    outcome = run(*asked, "--samples", 5, "--report", tmp_path / "page.html")
    assert (outcome.status, outcome.err) == (0, "")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "headroom in half precision on 5 samples" in page
    assert page.count("<figure>") == 1
    assert "This command makes it again:" in page
    assert f"{name}: headroom in half precision on 5 samples" in outcome.out
    assert "vit.layernorm" in outcome.out
    assert "nothing goes over" in outcome.out
    document = run(*asked, "--json").json
    assert document["schema"] == "normswap.inspection/1"
    assert len(document["headroom"]["norms"]) == len(document["sites"]) == 5
    assert document["headroom"]["samples"] == 24
    assert document["headroom"]["first_over"] == {"float16": None, "bfloat16": None}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--headroom"], "--headroom needs real inputs: give --data."),
        (["--data", "images.npz"], "--data belongs to --headroom and --ranges."),
        (["--samples", "3"], "--samples belongs to --headroom and --ranges."),
        (["--report", "page.html"], "--report belongs to --headroom."),
        (["--headroom", "--mermaid"], "--headroom and --mermaid exclude each other."),
    ],
)
def test_options_of_headroom_that_do_not_go_together(
    run: Run, files: Path, options: list[str], reason: str
) -> None:
    outcome = run("inspect", files / "vit.pt2", *options)
    assert outcome.status == 2
    assert reason in outcome.err
