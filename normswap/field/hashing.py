"""Uninterpreted functions: fresh symbols, one for each argument, by a hash under a secret key.

An argument is given by its residues modulo all primes together, and by nothing else. It is mixed
into 128 bits, of which the symbol's residues are made. We count on the mixture to behave as a
random function does on arguments that were written without knowledge of the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from normswap.field.residues import blocks
from normswap.graph.graph import Array

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Digest(NamedTuple):
    """128 bits for each element, in two arrays of uint64."""

    first: Array
    second: Array

    def reshape(self, shape: tuple[int, ...]) -> Digest:
        return Digest(self.first.reshape(shape), self.second.reshape(shape))


class Hashing:
    """Digests and symbols under ``key`` for residues modulo ``primes``."""

    def __init__(self, primes: Sequence[int], key: bytes) -> None:
        self._primes, self._key = primes, key

    def start(self, function: str, shape: tuple[int, ...]) -> Digest:
        """The digest of a function without arguments yet."""
        bits = hashlib.blake2b(function.encode(), key=self._key, digest_size=16).digest()
        return Digest(
            *(np.full(shape, np.uint64(int.from_bytes(b, "little"))) for b in (bits[:8], bits[8:]))
        )

    def absorb(self, digest: Digest, residues: Array) -> Digest:
        """With one more argument for each element: ``residues`` [m, *shape]."""
        shape = digest.first.shape
        found = Digest(np.empty(shape, np.uint64), np.empty(shape, np.uint64))
        lanes = [lane.reshape(-1) for lane in digest]
        planes = [plane.reshape(-1) for plane in residues]
        for block in blocks(found.first.size):
            first, second = (lane[block] for lane in lanes)
            with np.errstate(over="ignore"):
                for plane in planes:
                    number = plane[block].astype(np.uint64)
                    first = _mixed((first ^ number) * _STEP + number)
                    second = _mixed((second + number) * _FIRST ^ number)
            found.first.reshape(-1)[block], found.second.reshape(-1)[block] = first, second
        return found

    def along(self, digest: Digest, axis: int) -> Digest:
        """One digest of all elements along ``axis``, which stays with size 1, in their order."""
        place = np.arange(1, digest.first.shape[axis] + 1, dtype=np.uint64)
        place = place.reshape([-1 if a == axis else 1 for a in range(digest.first.ndim)])
        with np.errstate(over="ignore"):
            parts = (
                _mixed(_mixed(lane ^ _mixed(place * c)) * c)
                for lane, c in zip(digest, (_STEP, _SECOND), strict=True)
            )
            return Digest(
                *(_mixed(part.sum(axis, keepdims=True, dtype=np.uint64)) for part in parts)
            )

    def both(self, one: Digest, other: Digest) -> Digest:
        """The digest of two, in this order, broadcast."""
        with np.errstate(over="ignore"):
            return Digest(
                *(_mixed(a * _STEP ^ _mixed(b + _SECOND)) for a, b in zip(one, other, strict=True))
            )

    def symbols(self, digest: Digest) -> Array:
        """A residue for each element and prime, none of them 0: [m, *shape]."""
        out = np.empty((len(self._primes), digest.first.size))
        first, second = (lane.reshape(-1) for lane in digest)
        for block in blocks(first.size):
            with np.errstate(over="ignore"):
                for j, prime in enumerate(self._primes):
                    salt = np.uint64(j + 1) * _FIRST
                    mixed = _mixed(first[block] + salt) ^ _mixed(second[block] * _STEP + salt)
                    out[j][block] = mixed % np.uint64(prime - 1) + np.uint64(1)
        return out.reshape(len(self._primes), *digest.first.shape)


def _mixed(x: Array) -> Array:
    """The finaliser of splitmix64, a bijection of 64 bits."""
    x = x ^ (x >> np.uint64(30))
    x *= _FIRST
    x ^= x >> np.uint64(27)
    x *= _SECOND
    x ^= x >> np.uint64(31)
    return np.asarray(x)
