"""Neighbours are off by rounding, and by no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from normswap.model import Model
from normswap.parity.neighbours import Neighbours, one_ulp_off


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_neighbours_are_as_far_as_rounding(build: Any, kind: str) -> None:
    linear = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    model = build(kind, linear, {"x": x})
    neighbours = Neighbours(model, model.graph.outputs)
    feeds = {model.inputs[0].name: x.numpy()}
    (own,) = model.run(feeds).values()
    draws = [neighbours.run(feeds, draw)[0] for draw in range(8)]
    errors = np.array([np.abs(draw - own).max() for draw in draws])
    assert draws[0].dtype == np.float32
    assert (errors > 0).sum() > 4
    assert errors.max() < 2e-6
    assert np.array_equal(draws[1], neighbours.run(feeds, 1)[0])


def test_neighbours_keep_infinities_integers_and_zeros(onnx_model: Callable[..., Model]) -> None:
    inputs = {"x": (("batch", 4), np.float32), "i": (("batch",), np.int64)}
    constants = {"c": np.array([0, -np.inf, np.finfo(np.float32).min, 1], np.float32)}
    nodes: list[Any] = [("Identity", ["i"], "j", {}), ("Min", ["x", "c"], "y", {})]
    model = onnx_model(nodes, inputs, ["j", "y"], constants)
    feeds = {"x": np.full((1, 4), np.inf, np.float32), "i": np.array([5])}
    for draw in range(4):
        j, y = Neighbours(model, model.graph.outputs).run(feeds, draw)
        assert j[0] == 5
        assert y[0, 0] == 0
        assert y[0, 1] == -np.inf
        assert np.isfinite(y[0, 2])
        assert 0 < abs(y[0, 3] - 1) < 3e-7


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_subnormal_numbers_move_by_their_spacing(dtype: Any) -> None:
    spacing = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    steps = np.array([0, 1, -2, 5, -100], np.float64)
    moved = one_ulp_off(np.random.default_rng(0), (steps * spacing).astype(dtype))
    assert np.array_equal(np.abs(moved.astype(np.float64) / spacing - steps), [0, 1, 1, 1, 1])
