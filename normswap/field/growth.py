"""How large the polynomials behind values are: what the bound on the probability of error needs.

A value is a rational function of symbols (inputs, and results of uninterpreted functions), with
rational coefficients. It is kept as

    N * (product of inverses) / D

for a polynomial N with whole coefficients, at most ``inverses`` factors 1/b, each the inverse of an
element b of a computed array, and a whole number D. ``degree`` is that of N, ``bits`` bounds the
logarithm to base 2 of the sum of the sizes of N's coefficients, and ``denominators`` describe D: by
name, the bits of a number and the power to which D has it at most. All hold for every element of an
array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from normswap.graph.graph import Array

_DOUBLE = 53
TWO = "2"


@dataclass(frozen=True)
class Growth:
    """See above. The default is that of whole numbers of size one."""

    degree: int = 0
    inverses: int = 0
    bits: float = 0.0
    denominators: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    def __add__(self, other: Growth) -> Growth:
        """Of a sum."""
        common = {
            n: self.denominators.get(n, other.denominators.get(n, (0.0, 0)))
            for n in [*self.denominators, *other.denominators]
        }
        common = {
            n: (size, max(self._power(n), other._power(n))) for n, (size, _) in common.items()
        }
        bits = max(self._over(common), other._over(common)) + 1
        degree, inverses = max(self.degree, other.degree), max(self.inverses, other.inverses)
        return Growth(degree, inverses, bits, common)

    def __mul__(self, other: Growth) -> Growth:
        """Of a product."""
        product = dict(self.denominators)
        for name, (size, power) in other.denominators.items():
            product[name] = (size, self._power(name) + power)
        return Growth(
            self.degree + other.degree,
            self.inverses + other.inverses,
            self.bits + other.bits,
            product,
        )

    def summed(self, count: int) -> Growth:
        """Of a sum of so many such values."""
        return replace(self, bits=self.bits + math.log2(max(count, 1)))

    def joined(self, other: Growth) -> Growth:
        """Of an array with elements of both, over one denominator."""
        return replace(self + other, bits=(self + other).bits - 1)

    def covers(self, other: Growth) -> bool:
        """Whether all that is said of the other is true of what this one says."""
        return (
            self.degree >= other.degree
            and self.inverses >= other.inverses
            and all(self._power(n) >= power for n, (_, power) in other.denominators.items())
            and self.bits >= other._over(self.denominators)
        )

    def over(self, count: int) -> Growth:
        """Of the value divided by a whole number."""
        return self * Growth(denominators=_of_whole(count))

    def _power(self, name: str) -> int:
        return self.denominators.get(name, (0.0, 0))[1]

    def _over(self, common: Mapping[str, tuple[float, int]]) -> float:
        return self.bits + sum(
            size * (power - self._power(name)) for name, (size, power) in common.items()
        )


SYMBOL = Growth(degree=1)
"""Of a symbol."""


def of_constants(array: Array) -> Growth:
    """Of an array of numbers: whole numbers over one power of two."""
    wide = np.asarray(array, np.float64)
    wide = np.abs(wide[np.isfinite(wide) & (wide != 0)])
    if not wide.size:
        return Growth()
    digits = (
        24
        if array.dtype.kind not in "iub" and array.dtype.itemsize <= np.dtype(np.float32).itemsize
        else _DOUBLE
    )
    low, high = (int(np.frexp(size)[1]) for size in (wide.min(), wide.max()))
    if wide.size == 1 or array.dtype.kind in "iub":  # few digits, often
        whole = [float(n).as_integer_ratio()[1].bit_length() - 1 for n in wide.reshape(-1)[:1]]
        low = -max(whole[0], 0) if array.dtype.kind not in "iub" else 0
        digits = 0
    power = max(0, digits - low)
    return Growth(
        bits=float(max(high + power, 1)), denominators={TWO: (1.0, power)} if power else {}
    )


def _of_whole(count: int) -> dict[str, tuple[float, int]]:
    """A whole number, as powers of two and an odd one."""
    twos = (count & -count).bit_length() - 1
    odd = count >> twos
    found = {TWO: (1.0, twos)} if twos else {}
    return found | ({str(odd): (math.log2(odd), 1)} if odd > 1 else {})
