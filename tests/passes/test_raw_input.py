"""A norm straight on one of several inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import normswap as ns
from normswap.demo.spelled_out import SpelledOutLayerNorm


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = SpelledOutLayerNorm(nn.LayerNorm(6))
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x)) + y


def test_it_is_fused_swapped_and_folded_in_a_program_that_saves(tmp_path: Path) -> None:
    inputs = (torch.randn(4, 5, 6), torch.randn(4, 5, 3))
    model = ns.load(_Model().eval(), example_inputs=inputs)
    feeds = {s.name: t.numpy() for s, t in zip(model.inputs, inputs, strict=True)}
    fused = ns.swap(model, to="fused").model
    swapped = ns.swap(model, to="batchnorm", data={"x": feeds["x"]}).model
    folded = ns.fold(swapped)
    assert len(folded.done) == 1
    for result, expected in ((fused, model), (folded.model, swapped)):
        module = result.to_torch()
        kinds = [node.op for node in module.graph.nodes if node.op != "get_attr"]
        assert kinds.index("placeholder") == 0
        assert kinds[1] == "placeholder"
        ns.save(result, tmp_path / "model.pt2")
        again = ns.load(tmp_path / "model.pt2")
        (got,) = again.run(feeds).values()
        (wanted,) = expected.run(feeds).values()
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
