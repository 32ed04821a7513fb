"""Axes: where a value lies, and which values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_MOST_TICKS = 6
_SMALLEST = 1e-300  # span; below, its parts are no normal numbers


@dataclass(frozen=True)
class Scale:
    """From ``low`` (0) to ``high`` (1), of the logarithms where ``logarithmic``."""

    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` lies; what lies outside is put at the end, NaN at the beginning."""
        if value <= self.low or math.isnan(value):
            return 0.0
        if value >= self.high:
            return 1.0
        if self.logarithmic:
            return math.log10(value / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            every = -(-(last - first) // _MOST_TICKS)
            powers = range(first + (-first) % every, last + 1, every)
            return [(10.0**power, power_of_ten(power)) for power in powers]
        step = _step(self.high - self.low)
        first, last = math.ceil(self.low / step), math.floor(self.high / step + 1e-9)
        return [(index * step, f"{index * step:g}") for index in range(first, last + 1)]


def linear(values: Iterable[float]) -> Scale:
    """From zero, or below, up to a round number."""
    held = [value for value in values if math.isfinite(value)] or [1.0]
    low, high = min(0.0, *held), max(0.0, *held)
    if high - low < _SMALLEST:
        high = low + 1.0
    step = _step(high - low)
    return Scale(math.floor(low / step) * step, math.ceil(high / step) * step)


def logarithmic(values: Iterable[float]) -> Scale:
    """From power of ten to power of ten around the positive values."""
    held = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
    low, high = math.floor(min(held)), math.ceil(max(held))
    return Scale(10.0**low, 10.0 ** max(high, low + 1), logarithmic=True)


def power_of_ten(power: int) -> str:
    return {0: "1", 1: "10", 2: "100", -1: "0.1", -2: "0.01"}.get(power, f"1e{power}")


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, a few of which make up ``span``."""
    power = 10.0 ** math.floor(math.log10(span / _MOST_TICKS))
    return next(f * power for f in (1, 2, 5, 10) if f * power * _MOST_TICKS >= span * (1 - 1e-9))
