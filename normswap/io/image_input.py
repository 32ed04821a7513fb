"""Which of a model's inputs takes the images."""

from __future__ import annotations

from collections.abc import Sequence

from normswap.graph.graph import is_floating
from normswap.model import InputSpec


def image_input(inputs: Sequence[InputSpec]) -> InputSpec | None:
    """The first floating input of rank 4, else the first floating one, else the only one."""
    floating = [spec for spec in inputs if is_floating(spec.dtype)]
    images = [spec for spec in floating if len(spec.shape) == 4]
    only = list(inputs) if len(inputs) == 1 else []
    return next(iter([*images, *floating, *only]), None)
