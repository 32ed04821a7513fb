"""How large the values of a model are, against what a format is to hold of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from normswap.graph.graph import Value
from normswap.precision.formats import Format, binary_places, halvings
from normswap.precision.magnitudes import Magnitude

_LOSES = 2.0  # times what a format rounds of normal numbers


@dataclass(frozen=True)
class Limits:
    """How large values may be, and how large they are, by name."""

    held_in: Format
    headroom: int
    measured: Mapping[str, Magnitude]

    def of(self, value: Value) -> float:
        """Its largest magnitude."""
        return self._measured(value).largest

    def loses_digits(self, value: Value, exponent: int) -> bool:
        """Whether the smallest magnitude of a value has all its digits, and 2^exponent times it has
        not."""
        least, normal = self._measured(value).smallest, self.held_in.smallest_normal
        return math.ldexp(least, exponent) < normal <= least

    def _measured(self, value: Value) -> Magnitude:
        return self.measured.get(value.name, Magnitude())

    def halvings(self, magnitude: float) -> int:
        return halvings(magnitude, self.held_in, self.headroom)

    def says(self, what: str, magnitude: float) -> str:
        left, name = binary_places(magnitude, self.held_in), self.held_in.name
        end = f"beyond {name}" if left < 0 else f"{left:.1f} binary places from the end of {name}"
        return f"{what}: {magnitude:.3g}, {end}"

    def holds_epsilon(self, epsilon: float, k: int) -> bool:
        """Whether an epsilon that is spelled out is still a number of the format with 4^-k, as
        close as it was."""
        if not epsilon:
            return True
        before, now = (self._error(epsilon * e) for e in (1.0, 4.0**-k))
        usual = 2.0 ** -(self.held_in.mantissa_bits + 1)
        return now < 1 and (not k or now <= _LOSES * max(usual, before))

    def _error(self, number: float) -> float:
        return abs(float(self.held_in.rounded(number)) - number) / number
