"""What is computed with values over the field.

Roots. ``inverse_root`` is an uninterpreted function G of its argument, but for powers of four:
G(4^k v) = 2^-k G(v), and for constants that are squares of floats, of which it is the true inverse
root. That is all of roots that exact passes rely on. The shadow gives k: v = 4^k w with the shadow
of w between t and 4 t, for a random t; G(v) is 2^-k times the symbol of w.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from normswap.field.exact import Exact
from normswap.field.growth import SYMBOL, Growth, of_constants
from normswap.field.hashing import Digest, Hashing
from normswap.field.residues import Residues
from normswap.graph.graph import Array


@dataclass
class Tally:
    """What the bound is made of. ``arguments``: how many symbols there are. ``largest``: the growth
    of their arguments, of all. ``cleared``: of the product of all computed values that were
    inverted. ``roots``: how many elements each root has, and whether it was used as it is (True)
    and as its inverse (False). Of one that was used in one way only, that way is the symbol."""

    arguments: int = 0
    largest: Growth = field(default_factory=Growth)
    cleared_degree: int = 0
    cleared_bits: float = 0.0
    roots: dict[bytes, tuple[int, set[bool]]] = field(default_factory=dict)

    @property
    def counts(self) -> tuple[int, int, float]:
        """What grows with every node: arguments, and the two of what was inverted."""
        return self.arguments, self.cleared_degree, self.cleared_bits

    def add(self, counts: tuple[int, int, float]) -> None:
        """Counts what was computed once for two graphs a second time."""
        self.arguments += counts[0]
        self.cleared_degree += counts[1]
        self.cleared_bits += counts[2]

    def whole(self, growth: Growth) -> tuple[int, float]:
        """Degree and bits of a value with its inverses cleared, over its denominators, but for
        those of roots."""
        degree = growth.degree + growth.inverses * self.cleared_degree
        return degree, growth.bits + growth.inverses * self.cleared_bits

    def used(self, root: bytes, size: int, as_it_is: bool) -> Callable[[], None]:
        """Notes that a root was used, or its inverse, when it is called."""
        return lambda: self.roots.setdefault(root, (size, set()))[1].add(as_it_is)

    @property
    def mixed(self) -> int:
        """The elements of roots that were used in both ways. Multiplied by all of these symbols as
        often as it has any, so by at most their number times its degree, a polynomial in the
        symbols and their inverses is one in the symbols."""
        return sum(size for size, ways in self.roots.values() if len(ways) > 1)


class Field:
    """The arithmetic modulo ``count`` primes drawn with ``key`` (32 random bytes)."""

    def __init__(self, count: int, key: bytes | None = None) -> None:
        key = key or secrets.token_bytes(32)
        self.residues = Residues(count, key)
        self.hashing = Hashing(self.residues.primes, key)
        self.random = np.random.default_rng(list(key))
        self.tally = Tally()
        self._offset = float(self.random.uniform(0, 2))

    # -- into the field ------------------------------------------------------------------------

    def constant(self, array: Array) -> Exact:
        """Numbers as they are."""
        array = np.asarray(array)
        shadow = np.asarray(array, np.float64)
        if array.dtype.kind == "f" or array.dtype.kind in "iub" or array.dtype.itemsize > 1:
            return Exact(shadow, None, of_constants(array), (self.residues, array))
        raise TypeError(f"numbers of {array.dtype}")

    def symbol(self, shadow: Array) -> Exact:
        """New symbols, one for each element."""
        primes = self.residues.primes
        drawn = [self.random.integers(1, p, shadow.shape).astype(np.float64) for p in primes]
        return self._made(np.asarray(shadow, np.float64), np.stack(drawn), SYMBOL)

    def _made(self, shadow: Array, residues: Array, growth: Growth) -> Exact:
        shadow = np.asarray(shadow, np.float64)
        if not np.isfinite(shadow).all():
            residues = np.stack(
                [self.residues.marked(r, shadow, j) for j, r in enumerate(residues)]
            )
        return Exact(shadow, residues, growth)

    # -- rational operations -------------------------------------------------------------------

    def add(self, a: Exact, b: Exact, sign: int = 1) -> Exact:
        with np.errstate(all="ignore"):
            shadow = a.shadow + b.shadow if sign > 0 else a.shadow - b.shadow
        residues = self.residues.each(
            lambda j: a.residue(j) + b.residue(j) if sign > 0 else a.residue(j) - b.residue(j)
        )
        return self._made(shadow, residues, a.growth + b.growth)

    def subtract(self, a: Exact, b: Exact) -> Exact:
        return self.add(a, b, -1)

    def negative(self, a: Exact) -> Exact:
        return self._made(-a.shadow, self.residues.each(lambda j: -a.residue(j)), a.growth)

    def multiply(self, a: Exact, b: Exact) -> Exact:
        with np.errstate(all="ignore"):
            shadow = a.shadow * b.shadow
        residues = self.residues.each(lambda j: a.residue(j) * b.residue(j))
        return self._made(shadow, residues, a.growth * b.growth)

    def divide(self, a: Exact, b: Exact) -> Exact:
        return self.multiply(a, self.reciprocal(b))

    def reciprocal(self, b: Exact) -> Exact:
        """1/b; of a root the inverse root itself."""
        if b.inverse is not None:
            return b.inverse
        with np.errstate(all="ignore"):
            shadow = 1 / b.shadow
        growth = SYMBOL if b.symbol is not None else self._inverted(b)
        inverse = self._made(shadow, self.residues.inverse(b.residues), growth)
        if b.symbol is not None:
            inverse.used = self.tally.used(*b.symbol, False)
        inverse.inverse, b.inverse = b, inverse
        return inverse

    def _inverted(self, b: Exact) -> Growth:
        growth, size = b.growth, b.shadow.size
        own = sum(power * bits for bits, power in growth.denominators.values())
        if growth.degree == 0 and growth.inverses == 0:  # D / N, another N for each element
            return Growth(
                bits=own,
                denominators={f"constants {self.tally.arguments}.{id(b)}": (growth.bits * size, 1)},
            )
        degree, bits = self.tally.whole(growth)
        above = Growth(
            growth.inverses * self.tally.cleared_degree,
            1,
            own + growth.inverses * self.tally.cleared_bits,
        )
        self.tally.cleared_degree += size * degree
        self.tally.cleared_bits += size * bits
        return above

    def scaled(self, a: Exact, number: float) -> Exact:
        return a if number == 1 else self.multiply(a, self.constant(np.asarray(number, np.float64)))

    def matmul(self, a: Exact, b: Exact) -> Exact:
        with np.errstate(all="ignore"):
            shadow = np.matmul(a.shadow, b.shadow)
        growth = (a.growth * b.growth).summed(a.shape[-1])
        return self._made(shadow, self.residues.matmul(a.residue, b.residue), growth)

    def total(self, a: Exact, axes: tuple[int, ...], keepdims: bool = True) -> Exact:
        count = _count(a.shape, axes)
        residues = self.residues.each(lambda j: a.residue(j).sum(axes, keepdims=keepdims))
        return self._made(a.shadow.sum(axes, keepdims=keepdims), residues, a.growth.summed(count))

    def mean(self, a: Exact, axes: tuple[int, ...], keepdims: bool = True) -> Exact:
        return self.over(self.total(a, axes, keepdims), _count(a.shape, axes))

    def over(self, a: Exact, count: int) -> Exact:
        """Divided by a whole number."""
        inverses = [float(pow(count, -1, p)) for p in self.residues.primes]
        residues = self.residues.each(lambda j: a.residue(j) * inverses[j])
        return self._made(a.shadow / count, residues, a.growth.over(count))

    # -- uninterpreted functions ---------------------------------------------------------------

    def inverse_root(self, v: Exact) -> Exact:
        """1/sqrt(v): see the file's head."""
        return self._roots(v)[0]

    def root(self, v: Exact) -> Exact:
        """sqrt(v), the inverse of ``inverse_root``."""
        return self._roots(v)[1]

    def _roots(self, v: Exact) -> tuple[Exact, Exact]:
        with np.errstate(all="ignore"):
            root = np.sqrt(v.shadow)
            positive = np.isfinite(v.shadow) & (v.shadow > 0)
            exponent = np.floor((np.log2(np.where(positive, v.shadow, 1.0)) - self._offset) / 2)
            shadow = 1 / root
        down, up = (self.residues.power_of_two(n * exponent) for n in (-2, -1))
        within = self.residues.each(lambda j: v.residue(j) * down[j])
        digest = self._digest("inverse root", [within], v.growth * _power_growth(exponent, 2))
        symbols = self.hashing.symbols(digest)
        residues = self.residues.each(lambda j: symbols[j] * up[j])
        growth = SYMBOL * _power_growth(exponent, 1)
        if not v.growth.degree and not v.growth.inverses:
            residues = self._true_roots(v, root, residues)
            growth = growth * of_constants(root)
        found = self._made(shadow, residues, growth)
        above = self._made(root, self.residues.inverse(residues), growth)
        found.inverse, above.inverse = above, found
        name = hashlib.blake2b(symbols[0].tobytes()).digest()
        found.used = self.tally.used(name, root.size, False)
        above.used = self.tally.used(name, root.size, True)
        return found, above

    def _true_roots(self, v: Exact, root: Array, residues: Array) -> Array:
        """Inverse roots with the true ones where v is the square of a float."""
        known = root.astype(np.float32).astype(np.float64)
        square = known * known == v.shadow
        square &= known > 0
        if not square.any():
            return residues
        true = self.residues.all_of(np.where(square, known, 1.0))
        squares = self.residues.each(lambda j: true[j] * true[j])
        square &= (squares == v.residues).all(0)
        return np.where(square, self.residues.inverse(true), residues)

    def function(self, name: str, shadow: Array, *arguments: Exact) -> Exact:
        """A function of each element of its arguments, which broadcast."""
        shape = np.broadcast_shapes(*(a.shape for a in arguments))
        broadcast = [
            np.broadcast_to(_aligned(a.residues, len(shape)), (self.residues.count, *shape))
            for a in arguments
        ]
        growth = arguments[0].growth
        for argument in arguments[1:]:
            growth = growth.joined(argument.growth)
        digest = self._digest(name, broadcast, growth)
        return self._symbols(shadow, digest)

    def _symbols(self, shadow: Array, digest: Digest) -> Exact:
        symbols = self.hashing.symbols(digest)
        found = self._made(shadow, symbols, SYMBOL)
        if np.isfinite(found.shadow).all():
            found.symbol = (hashlib.blake2b(symbols[0].tobytes()).digest(), shadow.size)
            found.used = self.tally.used(*found.symbol, True)
        return found

    def signed(self, name: str, shadow: Array, x: Exact) -> Exact:
        """A function g of each element with g(2^k x) = 2^k g(x): a ReLU, a magnitude."""
        size = np.abs(x.shadow)
        positive = np.isfinite(size) & (size > 0)
        exponent = np.floor(np.log2(np.where(positive, size, 1.0)) - self._offset)
        down, up = (self.residues.power_of_two(n * exponent) for n in (-1, 1))
        within = self.residues.each(lambda j: x.residue(j) * down[j])
        digest = self._digest(name, [within], x.growth * _power_growth(exponent, 1))
        symbols = self.hashing.symbols(digest)
        zero = (within == 0).all(0)
        residues = self.residues.each(lambda j: np.where(zero, 0.0, symbols[j]) * up[j])
        return self._made(shadow, residues, SYMBOL * _power_growth(exponent, 1))

    def rows(
        self, name: str, shadow: Array, x: Exact, axes: tuple[int, ...], reduces: bool
    ) -> Exact:
        """A function of all elements along ``axes``; ``reduces``: which gives one number of them,
        else one for each. ``shadow`` has all axes, of size 1 where it reduces."""
        digest = self._digest(name, [x.residues], x.growth, count=shadow.size)
        whole = digest
        for axis in axes:
            whole = self.hashing.along(whole, axis)
        found = whole if reduces else self.hashing.both(whole, digest)
        return self._symbols(shadow, found)

    def opaque(
        self, name: str, shadow: Array, arguments: Sequence[Exact | Array], output: int
    ) -> Exact:
        """A function of everything that its arguments hold."""
        total: Digest | None = None
        for place, argument in enumerate(arguments):
            value = argument if isinstance(argument, Exact) else self.constant(argument)
            digest = self._digest(
                f"{name} {place} {value.shape}", [value.residues], value.growth, count=0
            )
            flat = (
                self.hashing.along(digest.reshape((-1,)), 0)
                if value.shadow.size
                else self.hashing.start(f"{place}", (1,))
            )
            total = flat if total is None else self.hashing.both(total, flat)
        own = self.hashing.start(f"{name} {output}", (1,))
        total = own if total is None else self.hashing.both(total, own)
        places = np.arange(shadow.size, dtype=np.float64)
        each = self.hashing.absorb(self.hashing.start("place", places.shape), places[None])
        self.tally.arguments += shadow.size
        return self._symbols(shadow, self.hashing.both(total, each).reshape(shadow.shape))

    def _digest(
        self, name: str, arguments: Sequence[Array], growth: Growth, count: int | None = None
    ) -> Digest:
        digest = self.hashing.start(name, arguments[0].shape[1:])
        for argument in arguments:
            digest = self.hashing.absorb(digest, argument)
        self.tally.arguments += digest.first.size if count is None else count
        self.tally.largest = self.tally.largest.joined(growth)
        return digest


def _aligned(residues: Array, rank: int) -> Array:
    missing = rank + 1 - residues.ndim
    return residues.reshape(residues.shape[0], *(1,) * missing, *residues.shape[1:])


def _power_growth(exponent: Array, times: int) -> Growth:
    if not exponent.size:
        return Growth()
    most = int(np.abs(exponent).max()) * times
    return Growth(bits=float(most), denominators={"2": (1.0, most)})


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    return int(np.prod([shape[axis] for axis in axes], dtype=np.int64))
