"""Passes on captures whose graph hands sizes from one part to another."""

from __future__ import annotations

import numpy as np

from normswap import swap
from tests.zoo.exports import model_as


def test_sizes_pass_between_slices_as_numbers() -> None:
    """BERT's positions are an arange up to a dynamic size, read behind the first norm too."""
    model = model_as("hf_bert", "fx")
    random = np.random.default_rng(0)
    data = {
        "input_ids": random.integers(1, 30, (4, 12)),
        "attention_mask": np.ones((4, 12), np.int64),
    }
    result = swap(model, to="batchnorm", data=data, sites="*")
    assert len(result.done) == 5
    assert all(np.isfinite(y).all() for y in result.model.run(data).values())
