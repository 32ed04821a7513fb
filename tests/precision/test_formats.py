"""What the half-precision formats hold."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normswap.errors import NormswapError
from normswap.precision.formats import FORMATS, binary_places, format_called, halvings

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_what_torch_says(name: str) -> None:
    held, info = FORMATS[name], torch.finfo(TORCH[name])
    assert held.name == name
    assert (held.largest, held.smallest_normal) == (info.max, info.smallest_normal)
    assert held.smallest == held.smallest_normal * 2.0**-held.mantissa_bits
    assert held.smallest == float(ml_dtypes.finfo(held.dtype).smallest_subnormal)
    assert 2.0**-held.mantissa_bits == info.eps


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_is_that_of_torch(name: str) -> None:
    numbers = [0.0, 1.0, 1e-12, 1e-7, 6e-5, 1e-5, 65504.0, 65519.0, 65520.0, 1e38, 3.4e38, -1e30]
    array = np.array(numbers, np.float32)
    expected = torch.from_numpy(array).to(TORCH[name]).double().numpy()
    rounded = FORMATS[name].rounded(array)
    assert rounded.dtype == np.float64
    assert np.array_equal(rounded, expected)


@given(st.floats(1e-30, 1e38), st.integers(0, 5), st.sampled_from(list(FORMATS)))
def test_halvings_are_the_fewest(magnitude: float, headroom: int, name: str) -> None:
    held = FORMATS[name]
    k, limit = halvings(magnitude, held, headroom), held.largest / 2**headroom
    assert math.ldexp(magnitude, -k) <= limit
    assert k == 0 or math.ldexp(magnitude, 1 - k) > limit
    assert (binary_places(magnitude, held) < 0) == (magnitude > held.largest) or math.isclose(
        magnitude, held.largest
    )


def test_nothing_takes_no_room() -> None:
    assert binary_places(0.0, FORMATS["float16"]) == math.inf
    assert halvings(0.0, FORMATS["float16"], 20) == 0


def test_another_name_is_none() -> None:
    with pytest.raises(NormswapError, match="'float8' is none of the formats float16, bfloat16"):
        format_called("float8")
