"""Rounding to integers: how a quantiser stores weights and activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array


@dataclass(frozen=True)
class IntegerFormat:
    """In how many bits the weights and the activations of products are.

    Attributes:
        name: what the command line calls it.
        weight_bits: of a weight, symmetric about 0.
        activation_bits: of what a product reads, between the least and the largest value, and 0.
        per_channel: whether each output channel of a weight has a scale of its own.

    Examples:
        >>> INTEGER_FORMATS["int8"].per_channel
        False
    """

    name: str
    weight_bits: int
    activation_bits: int
    per_channel: bool

    def rounded_weight(self, weight: Array) -> Array:
        """``weight`` [out, ...] at the nearest of the numbers that its integers stand for: k s with
        |k| < 2^(bits - 1), s the largest magnitude over that."""
        axes = tuple(range(1, weight.ndim)) if self.per_channel else None
        largest = np.max(np.abs(weight), axis=axes, keepdims=True, initial=0.0)
        steps = 2 ** (self.weight_bits - 1) - 1
        scale = np.where(largest > 0, largest, 1.0) / steps
        return np.asarray(np.rint(weight / scale) * scale)

    def rounded_activation(self, array: Array, within: Range) -> Array:
        """``array`` at the nearest of the numbers that its integers stand for."""
        return within.rounded(array, self.activation_bits)


INTEGER_FORMATS: dict[str, IntegerFormat] = {
    f.name: f
    for f in (
        IntegerFormat("int8", 8, 8, False),
        IntegerFormat("int8-per-channel", 8, 8, True),
        IntegerFormat("w4a8", 4, 8, False),
        IntegerFormat("w4a8-per-channel", 4, 8, True),
    )
}
"""The formats of ``validate --simulate``, by name."""


def integer_format(name: str) -> IntegerFormat:
    """The format of a name. Raises NormswapError for one that is none."""
    if name not in INTEGER_FORMATS:
        raise NormswapError(f"'{name}' is none of the formats {', '.join(INTEGER_FORMATS)}")
    return INTEGER_FORMATS[name]


@dataclass(frozen=True)
class Range:
    """The least and the largest number of a value, and 0, which integers hold exactly."""

    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, arrays: Iterable[Array]) -> Range:
        """Of all of ``arrays``. It is not finite where they are not."""
        found = (cls(float(a.min()), float(a.max())) for a in arrays if a.size)
        return reduce(cls.merged, found, cls())

    def merged(self, other: Range) -> Range:
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)  # NaN stays
        return Range(float(low), float(high))

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def step(self, bits: int) -> float:
        """The distance of the numbers that integers of so many bits stand for."""
        return (self.high - self.low) / (2**bits - 1)

    def rounded(self, array: Array, bits: int) -> Array:
        """``array`` at the nearest of the 2^bits numbers (k - z) s, 0 <= k < 2^bits, in its own
        dtype: what is beyond the range is at its end."""
        step = self.step(bits)
        if step == 0:
            return np.zeros_like(array)
        zero, one = np.rint(-self.low / step), array.dtype.type(step)
        found = np.asarray(array / one)
        np.rint(found, out=found)
        np.clip(found, -zero, 2**bits - 1 - zero, out=found)
        found *= one
        return found
