"""Arithmetic modulo several random primes at once, exact in float64.

An array modulo ``m`` primes is a float64 array of whole numbers, ``[m, *shape]``. Every prime is
below 2^26, so that a product of two residues, below 2^52, is exact. A matrix product splits one
operand into halves of 13 bits: sums of up to 8192 products of 26 by 13 bits stay below 2^52,
whatever order they are added in, and longer sums are split.

A float is the dyadic rational m 2^e, which is m (2^e mod p) modulo p. Numbers that are not finite
are three symbols of their own.

Half of the time goes into passes over arrays, not into products, so these go block by block.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from normswap.graph.graph import Array

BITS = 26
POOL = 1_894_120
"""How many primes there are between 2^25 and 2^26."""
_LEAST, _MOST = 1 << (BITS - 1), 1 << BITS
_HALF = 13
_LONGEST = 8192  # products in a sum
_LOWEST, _HIGHEST = -1200, 1100  # exponents of two
_SINGLE, _DOUBLE = 24, 53  # digits
_BLOCK = 1 << 18  # elements, so that passes over a large array stay in a processor's cache


@dataclass(frozen=True)
class Numbers:
    """Numbers as whole numbers times powers of two. ``mantissa``: float32 where 24 digits will do.
    ``exponent``: places in a table of powers, None for integers. ``infinite``: the numbers, where
    some are not finite."""

    mantissa: Array
    exponent: Array | None = None
    infinite: Array | None = None

    @staticmethod
    def of(array: Array) -> Numbers:
        """Those of a float, integer or bool array."""
        if array.dtype.kind in "iub":
            return Numbers(array.astype(np.int64))
        single = array.dtype.itemsize <= np.dtype(np.float32).itemsize
        digits, dtype = (_SINGLE, np.float32) if single else (_DOUBLE, np.float64)
        wide = np.asarray(array, dtype)
        finite = np.isfinite(wide)
        whole = bool(finite.all())
        mantissa, exponent = np.frexp(wide if whole else np.where(finite, wide, dtype(0)))
        mantissa *= dtype(1 << digits)
        exponent = (exponent - (digits + _LOWEST)).astype(np.int16)
        return Numbers(mantissa, exponent, None if whole else np.asarray(wide, np.float64))


class Residues:
    """Arithmetic modulo ``count`` primes that ``key`` draws from all between 2^25 and 2^26."""

    def __init__(self, count: int, key: bytes) -> None:
        self.primes = _drawn_primes(count, key)
        self.count = count
        odd = [
            np.array([pow(2, e, p) for e in range(_LOWEST, _HIGHEST)], np.float64)
            for p in self.primes
        ]
        self._powers = np.stack(odd)
        seed = hashlib.blake2b(b"symbols", key=key).digest()
        self._not_finite = [
            np.array(
                [1 + int.from_bytes(seed[i : i + 8], "little") % (p - 1) for p in self.primes],
                np.float64,
            )
            for i in (0, 8, 16)
        ]  # of inf, -inf, nan

    # -- into the field ------------------------------------------------------------------------

    def of(self, numbers: Numbers, j: int) -> Array:
        """Numbers modulo prime ``j``."""
        if numbers.exponent is None:
            return np.asarray(numbers.mantissa % self.primes[j], np.float64)
        exponent, powers = flat(numbers.exponent), self._powers[j]
        mantissa, found = numbers.mantissa, np.empty_like(numbers.mantissa, np.float64)
        factors, out = flat(mantissa), flat(found)
        for block in blocks(out.size):
            part = factors[block].astype(np.float64)
            if mantissa.dtype == np.float64:
                self._reduced(part, j, part)
            part *= powers[exponent[block]]
            self._reduced(part, j, out[block])
        return found if numbers.infinite is None else self.marked(found, numbers.infinite, j)

    def all_of(self, array: Array) -> Array:
        """An array of numbers modulo all primes."""
        numbers = Numbers.of(array)
        return np.stack([self.of(numbers, j) for j in range(self.count)])

    def marked(self, residues: Array, shadow: Array, j: int) -> Array:
        """``residues`` with a symbol wherever ``shadow`` is not finite."""
        inf, minus, nan = (symbol[j] for symbol in self._not_finite)
        found = np.where(np.isnan(shadow), nan, np.where(shadow > 0, inf, minus))
        return np.where(np.isfinite(shadow), residues, found)

    def power_of_two(self, exponent: Array) -> Array:
        """2^exponent for an array of whole numbers, [m, *shape]."""
        return np.asarray(self._powers[:, np.asarray(exponent, np.int64) - _LOWEST])

    # -- arithmetic ----------------------------------------------------------------------------

    def reduce(self, x: Array, j: int) -> Array:
        """Whole numbers below 2^53 in size modulo prime ``j``; ``x`` is overwritten."""
        x = np.asarray(x)  # products of single numbers are no arrays
        if not (x.flags.c_contiguous or x.flags.f_contiguous):
            x = np.ascontiguousarray(x)
        self._reduced(flat(x), j, flat(x))
        return x

    def _reduced(self, x: Array, j: int, out: Array) -> None:
        """``reduce`` of a flat array, into ``out``. The quotient is rounded, which may leave a
        little over half of p on either side; then p is added to what is negative."""
        p = float(self.primes[j])
        size = min(x.size, _BLOCK)
        room, negative = np.empty(size), np.empty(size, bool)
        for block in blocks(x.size):
            number = x[block]
            part, below = room[: number.size], negative[: number.size]
            np.multiply(number, 1 / p, out=part)
            np.rint(part, out=part)
            part *= p
            number -= part
            np.less(number, 0, out=below)
            np.multiply(below, p, out=part)
            np.add(number, part, out=out[block])

    def each(self, function: Callable[[int], Array]) -> Array:
        """What ``function`` gives for each prime, reduced: whole numbers below 2^53 in size, which
        are overwritten."""
        found = np.empty(0)
        for j in range(self.count):
            plane = np.asarray(function(j))
            if not j:
                found = np.empty((self.count, *plane.shape))
            plane = np.ascontiguousarray(plane).reshape(-1)
            self._reduced(plane, j, found[j : j + 1].reshape(-1))
        return found

    def matmul(self, a: Callable[[int], Array], b: Callable[[int], Array]) -> Array:
        """Matrix products; ``a`` and ``b`` give the operands modulo each prime."""

        def product(j: int) -> Array:
            left, right = a(j), b(j)
            length = left.shape[-1]
            if length <= _LONGEST:
                return self._matmul(left, right, j)
            total = self._matmul(left[..., :_LONGEST], _rows(right, 0), j)
            for start in range(_LONGEST, length, _LONGEST):
                part = left[..., start : start + _LONGEST]
                total += self._matmul(part, _rows(right, start), j)
            return total

        return self.each(product)

    def _matmul(self, left: Array, right: Array, j: int) -> Array:
        if left.size < right.size:
            high, low = split(left)
            return self.joined(high @ right, low @ right, j)
        high, low = split(right)
        return self.joined(left @ high, left @ low, j)

    def joined(self, high: Array, low: Array, j: int) -> Array:
        """What products with the two halves of ``split`` come to."""
        total = self.reduce(high, j)
        total *= 1 << _HALF
        total += low
        return self.reduce(total, j)

    def inverse(self, x: Array) -> Array:
        """1/x, [m, *shape]; 0 for 0."""
        return self.each(lambda j: self._power(x[j], self.primes[j] - 2, j))

    def _power(self, x: Array, exponent: int, j: int) -> Array:
        result = np.ones_like(x)
        for bit in bin(exponent)[2:]:
            result = self.reduce(result * result, j)
            if bit == "1":
                result = self.reduce(result * x, j)
        return result


def blocks(size: int) -> Iterator[slice]:
    """The blocks of an array of so many elements."""
    for start in range(0, size, _BLOCK):
        yield slice(start, start + _BLOCK)


def flat(array: Array) -> Array:
    """Its elements in the order of memory; a view of what is contiguous."""
    return array.ravel("K")


def split(x: Array) -> tuple[Array, Array]:
    """Residues as halves of 13 bits: x = 2^13 high + low."""
    high = np.floor(x / (1 << _HALF))
    return high, x - high * (1 << _HALF)


def _rows(right: Array, start: int) -> Array:
    return (
        right[start : start + _LONGEST]
        if right.ndim == 1
        else right[..., start : start + _LONGEST, :]
    )


def fits(length: int) -> bool:
    """Whether sums of so many products with halves are exact."""
    return length <= _LONGEST


def _drawn_primes(count: int, key: bytes) -> list[int]:
    """Different primes, each drawn evenly from the pool."""
    found: list[int] = []
    counter = 0
    while len(found) < count:
        digest = hashlib.blake2b(counter.to_bytes(8, "little"), key=key, person=b"prime").digest()
        number = _LEAST + int.from_bytes(digest[:16], "little") % _LEAST
        if number not in found and _is_prime(number):
            found.append(number)
        counter += 1
    return found


def _is_prime(number: int) -> bool:
    if number % 2 == 0:
        return False
    return all(number % divisor for divisor in range(3, math.isqrt(number) + 1, 2))


assert _MOST * (1 << _HALF) * _LONGEST <= 1 << 52
