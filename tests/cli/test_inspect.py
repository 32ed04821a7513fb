"""``normswap inspect``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.cli.conftest import Run

FIELDS = {
    "name", "kind", "role", "tower", "axes", "normalized_shape", "epsilon", "weight", "bias",
    "input", "output", "spelling", "input_shape", "statistics",
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


def test_towers_of_a_clip(run: Run, files: Path) -> None:
    sites = run("inspect", files / "clip.onnx", "--json").json["sites"]
    assert [site["tower"] for site in sites] == 6 * ["image"] + 5 * ["text"]
    assert [s["role"] for s in sites].count("embedding") == 1


def test_table(run: Run, files: Path) -> None:
    outcome = run("inspect", files / "spelled-out.onnx")
    assert (outcome.status, outcome.err) == (0, "")
    title, head, _, *rows = outcome.out.splitlines()
    assert title == "spelled-out.onnx: 5 norms (onnx)"
    columns = ("site", "kind", "role", "tower", "shape", "spelling", "eps", "statistics")
    assert tuple(head.split()) == columns
    first = "vit.layers.0.layernorm_before layer_norm pre_attention image 2x17x[48] decomposed"
    assert rows[0].split() == [*first.split(), "1e-12", "68"]
    assert rows[5].startswith("340 statistics are computed for pixel_values 2x1x8x8")


def test_what_looks_like_a_norm_is_listed_with_the_reason(run: Run, files: Path) -> None:
    rejected = run("inspect", files / "clip.onnx", "--json").json["rejected"]
    assert rejected
    assert all(set(r) == {"where", "reason"} for r in rejected)
    assert "no norm: " in run("inspect", files / "clip.onnx").out


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_no_norm(run: Run, files: Path, json: tuple[str, ...]) -> None:
    outcome = run("inspect", files / "no-norm.onnx", *json)
    assert outcome.status == 1
    assert outcome.err.endswith("no-norm.onnx: no norm was found\n")
    if json:
        assert outcome.json["sites"] == []
    else:
        assert outcome.out == "no-norm.onnx: 0 norms (onnx)\n"


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
