"""How many statistics norms compute, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normswap import load
from normswap.report.inspection import inspection, statistics_computed


@pytest.mark.parametrize(
    ("norm", "shape", "expected"),
    [
        (nn.LayerNorm(6), (2, 5, 6), 2 * 2 * 5),
        (nn.LayerNorm([5, 6]), (2, 5, 6), 2 * 2),
        (nn.BatchNorm1d(5), (2, 5, 6), 0),
        (nn.InstanceNorm1d(5), (2, 5, 6), 2 * 2 * 5),
        (nn.GroupNorm(2, 8), (3, 8, 4), 2 * 3 * 2),
        (nn.RMSNorm(6), (2, 5, 6), 2 * 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_statistics(norm: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    model = load(norm.eval(), example_inputs=(torch.randn(shape),))
    found = inspection(model)
    if not found.sites:
        pytest.skip("this norm is not located yet")
    (site,) = found.sites
    assert site.statistics == expected == statistics_computed(site.site, shape)
    assert site.statistics_folded_batch_norm == 0
    assert statistics_computed(site.site, None) == (0 if expected == 0 else None)
    assert site.input_shape == shape
    assert found.to_json()["examples"] == {name: list(shape) for name in model.examples}


def test_the_reference_count_of_a_vit() -> None:
    """2 N H W for a norm over an N H W grid of tokens."""
    n, height, width, channels = 2, 3, 4, 8
    model = load(nn.LayerNorm(channels), example_inputs=(torch.randn(n, height, width, channels),))
    assert inspection(model).statistics == 2 * n * height * width
    assert np.prod(model.examples[model.inputs[0].name].shape) == n * height * width * channels
