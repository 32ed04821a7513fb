"""Roles and towers are decided by structure: renamed modules and unknown names change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap.graph.graph import Graph
from normswap.norms import locate
from normswap.passes.select import select_sites
from tests.graph.onnx_text import onnx_graph
from tests.zoo.exports import FX, model_as


class _Block(nn.Module):
    """A transformer block with meaningless names; ``post``: norms behind the residual sums."""

    def __init__(self, post: bool, qk: bool = False) -> None:
        super().__init__()
        self.post = post
        self.a, self.b = nn.LayerNorm(8), nn.LayerNorm(8)
        self.c, self.d = nn.Linear(8, 24), nn.Linear(8, 8)
        self.e, self.f = nn.Linear(8, 16), nn.Linear(16, 8)
        self.q, self.k = (nn.LayerNorm(4), nn.LayerNorm(4)) if qk else (nn.Identity(),) * 2

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.c(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(self.q(q), self.k(k), v)
        return self.d(y.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.post:
            x = self.a(x + self.mix(x))
            return self.b(x + self.f(torch.relu(self.e(x))))
        x = x + self.mix(self.a(x))
        return x + self.f(torch.relu(self.e(self.b(x))))


class _Model(nn.Module):
    def __init__(self, post: bool, qk: bool = False) -> None:
        super().__init__()
        self.z = nn.LayerNorm(8)
        self.y, self.x = _Block(post, qk), _Block(post, qk)
        self.w = nn.Identity() if post else nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.w(self.x(self.y(self.z(tokens))))[:, 0])


def _roles(module: nn.Module) -> dict[str, str]:
    model = ns.load(module.eval(), example_inputs=(torch.randn(2, 5, 8),))
    return {site.name: site.role for site in ns.locate(model)}


def test_pre_norm() -> None:
    assert _roles(_Model(post=False)) == {
        "z": "embedding",
        "y.a": "pre_attention",
        "y.b": "pre_mlp",
        "x.a": "pre_attention",
        "x.b": "pre_mlp",
        "w": "final",
    }


def test_post_norm() -> None:
    assert _roles(_Model(post=True)) == {
        "z": "embedding",
        "y.a": "post_attention",
        "y.b": "post_mlp",
        "x.a": "post_attention",
        "x.b": "post_mlp",
    }


def test_query_and_key_norms() -> None:
    roles = _roles(_Model(post=False, qk=True))
    assert [roles[n] for n in ("y.q", "y.k", "x.q", "x.k")] == ["query_key"] * 4
    assert (roles["y.a"], roles["y.b"], roles["w"]) == ("pre_attention", "pre_mlp", "final")


def test_a_lone_norm_is_final_and_of_no_tower() -> None:
    text = "(float[B,4,6] x) => (float y) { y = LayerNormalization(x, g) }"
    graph: Graph = onnx_graph(text, {"g": np.ones(6, np.float32)})
    (site,) = locate(graph).sites
    assert (site.role, site.tower) == ("final", "")


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        (None, 11),
        ("tower=image", 6),
        ("tower=text role=final", 1),
        ("role=pre_*", 8),
        ("*resblocks.0.*", 4),
        ("*ln_pre,*ln_post", 2),
        ("visual.* role=final", 1),
        ("tower=image, role=final", 7),
        ("*resblocks.0.* , role=final", 6),
        ("visual.* role=final, tower=text role=final,", 2),
        ("visual.transformer.resblocks.0.ln_1", 1),
    ],
)
def test_sites_are_selected_by_globs_and_terms(pattern: str | None, count: int) -> None:
    sites = ns.locate(model_as("open_clip_clip", FX))
    assert len(select_sites(sites, pattern)) == count


@pytest.mark.parametrize(
    "pattern",
    ["nothing*", "role=none", "tower=left", "depth=3", "role=final, nothing*", " , ", "a.* b.*"],
)
def test_a_pattern_without_a_match_is_an_error(pattern: str) -> None:
    with pytest.raises(ns.NormswapError, match="--sites"):
        select_sites(ns.locate(model_as("open_clip_clip", FX)), pattern)


def test_a_misspelled_name_is_suggested() -> None:
    with pytest.raises(ns.NormswapError, match=r"did you mean visual.transformer.resblocks.0.ln_1"):
        select_sites(
            ns.locate(model_as("open_clip_clip", FX)), "visual.transfromer.resblocks.0.ln_1"
        )
