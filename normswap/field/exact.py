"""A value over the field.

It has residues modulo every prime, and a *shadow*, which is what a float64 evaluation at one
random point gives. The shadow never enters the residues. It says what is infinite, and which power
of two a root is normalised by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from normswap.field.growth import Growth
from normswap.field.residues import Numbers, Residues
from normswap.graph.graph import Array


class Exact:
    """An array over the field: ``shadow`` [*shape] in float64, ``residues`` [m, *shape]."""

    def __init__(
        self,
        shadow: Array,
        residues: Array | None,
        growth: Growth,
        source: tuple[Residues, Array] | None = None,
    ) -> None:
        self.shadow, self._growth = shadow, growth
        self._residues, self._source = residues, source
        self._numbers: Numbers | None = None
        self.inverse: Exact | None = None
        self.used: Callable[[], None] | None = None
        self.symbol: tuple[bytes, int] | None = None  # of symbols alone: their name and number

    @property
    def growth(self) -> Growth:
        """How large the polynomials are. Whoever asks computes with the value: ``used``."""
        if self.used is not None:
            self.used()
        return self._growth

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shadow.shape

    @property
    def residues(self) -> Array:
        if self._residues is None:
            assert self._source is not None  # a constant, converted where it is used
            return np.stack([self.residue(j) for j in range(self.count)])
        return self._residues

    def residue(self, j: int) -> Array:
        """Modulo prime ``j``."""
        if self._residues is None:
            assert self._source is not None
            primes, array = self._source
            if self._numbers is None:
                self._numbers = Numbers.of(array)
            return primes.of(self._numbers, j)
        return np.asarray(self._residues[j], np.float64)

    @property
    def is_plain(self) -> bool:
        """Whether its numbers and its growth are all there is to it: no constant, no root, and no
        symbol."""
        return (
            self._source is None
            and self.inverse is None
            and self.used is None
            and self.symbol is None
        )

    def compact(self) -> Exact:
        """The same in half of the memory."""
        return Exact(self.shadow, self.residues.astype(np.uint32), self.growth)

    def moved(self, move: Callable[[Array], Array]) -> Exact:
        """With ``move``, which only moves elements, on shadow and residues."""
        if self._source is not None:
            primes, array = self._source
            return Exact(
                np.asarray(move(self.shadow)), None, self.growth, (primes, np.asarray(move(array)))
            )
        residues = np.stack([move(self.residue(j)) for j in range(self.count)])
        return Exact(np.asarray(move(self.shadow)), residues, self.growth)

    @property
    def count(self) -> int:
        if self._residues is not None:
            return len(self._residues)
        assert self._source is not None
        return self._source[0].count

    @property
    def source(self) -> Array | None:
        """The numbers of a constant as they were given."""
        return None if self._source is None else self._source[1]

    def reshaped(self, shape: tuple[int, ...]) -> Exact:
        if self._source is not None:
            primes, array = self._source
            return Exact(
                self.shadow.reshape(shape), None, self.growth, (primes, array.reshape(shape))
            )
        value = Exact(
            self.shadow.reshape(shape), self.residues.reshape(self.count, *shape), self._growth
        )
        value.used, value.symbol = self.used, self.symbol
        if self.inverse is not None:
            value.inverse = self.inverse.alone().reshaped(shape)
        return value

    def picked(self, where: Array) -> Exact:
        """The elements at these places of the flattened array."""
        residues = np.stack([self.residue(j).reshape(-1)[where] for j in range(self.count)])
        value = Exact(self.shadow.reshape(-1)[where], residues, self._growth)
        value.used, value.symbol = self.used, self.symbol
        if self.inverse is not None:
            value.inverse = self.inverse.alone().picked(where)
        return value

    def alone(self) -> Exact:
        """The same value, without its inverse."""
        value = Exact(self.shadow, self._residues, self._growth, self._source)
        value.used, value.symbol = self.used, self.symbol
        return value

    def transposed(self, perm: Sequence[int]) -> Exact:
        if self._source is not None:
            primes, array = self._source
            return Exact(
                self.shadow.transpose(perm), None, self.growth, (primes, array.transpose(perm))
            )
        residues = self.residues.transpose(0, *(1 + axis for axis in perm))
        return Exact(self.shadow.transpose(perm), residues, self.growth)
