"""Arrays that share memory with tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normswap.graph.tensors import has_own_memory, to_numpy

_WHOLE = torch.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize(
    ("array", "own"),
    [
        (np.zeros((4, 6)), True),
        (np.zeros((4, 6)).reshape(24), True),
        (np.zeros((4, 6))[1:], False),
        (to_numpy(_WHOLE), True),
        (to_numpy(_WHOLE.T), True),
        (to_numpy(_WHOLE).reshape(2, 12), True),
        (to_numpy(_WHOLE[1:]), False),
        (to_numpy(_WHOLE)[:, 1:], False),
        (to_numpy(_WHOLE.unbind(1)[0]), False),
        (to_numpy(_WHOLE.bfloat16()), True),
        (to_numpy(_WHOLE.bfloat16()[1:]), False),
        (to_numpy(_WHOLE[:1].clone().expand(4, 6)), True),  # holds less than it shows
    ],
)
def test_whether_an_array_keeps_more_than_itself_alive(array: np.ndarray, own: bool) -> None:
    assert has_own_memory(array) == own
