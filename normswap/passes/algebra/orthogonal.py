"""Orthogonal matrices that mix channels: what a stream can be turned by."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

from normswap.graph.graph import Array

_SEED = 0  # a model rotated twice is the same both times


def hadamard(size: int) -> Array:
    """H diag(signs) [size, size] in float64, with H orthogonal and its entries of one magnitude, or
    nearly so; the signs are random, but always the same.

    H is a Hadamard matrix over its root where one is known: those of orders 2^k (Sylvester 1867),
    q + 1 and 2 (q + 1) for a prime q (Paley 1933), and their Kronecker products. For other sizes
    it is the Kronecker product of the largest of these whose order divides ``size`` with the
    Hartley transform of what is left, whose entries are at most sqrt(2) times as large. None is 0,
    so that every channel takes part in every other. The signs keep the first row from being the
    mean over channels, which is 0 where a LayerNorm was.

    >>> bool(np.allclose(np.abs(hadamard(384)), 384**-0.5))
    True
    """
    rest = min(size // order for order in range(1, size + 1) if _has(size, order))
    matrix = np.kron(_hadamard(size // rest), _hartley(rest))
    signs = np.random.default_rng(_SEED).choice([-1.0, 1.0], size)
    return np.asarray(matrix * signs)


@functools.lru_cache(maxsize=4)  # each norm of a model is tried with it
def random_orthogonal(size: int) -> Array:
    """An orthogonal matrix [size, size] in float64, drawn evenly (Mezzadri 2007), but always the
    same. It cannot be written to."""
    factor, upper = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((size, size)))
    matrix = np.asarray(factor * np.sign(np.diag(upper)))
    matrix.setflags(write=False)
    return matrix


def principal(moments: Array) -> Array:
    """The rows [size, size] are the directions of second moments [size, size], largest first."""
    _, vectors = np.linalg.eigh(moments)
    return np.ascontiguousarray(vectors.T[::-1])


def _has(size: int, order: int) -> bool:
    return size % order == 0 and _core(order) is not None


def _core(order: int) -> int | None:
    """The order, 1 or one of Paley's, that times a power of two is ``order``."""
    return next((core for core in _halves(order) if core == 1 or _paley(core)), None)


def _halves(order: int) -> Iterator[int]:
    yield order
    while order % 2 == 0:
        order //= 2
        yield order


def _paley(order: int) -> int:
    """The prime that Paley's matrix of an order is made of; 0 where there is none."""
    for prime, residue in ((order - 1, 3), (order // 2 - 1, 1)):
        whole = residue == 3 or order % 2 == 0
        if whole and prime % 4 == residue and _is_prime(prime):
            return prime
    return 0


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, math.isqrt(number) + 1))


def _hadamard(order: int) -> Array:
    core = _core(order)
    assert core is not None  # the caller has asked
    matrix = np.ones((1, 1)) if core == 1 else _paleys(core)
    while len(matrix) < order:
        matrix = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / math.sqrt(order)


def _paleys(order: int) -> Array:
    """Paley's Hadamard matrix, of entries 1 and -1."""
    prime = _paley(order)
    squares = {n * n % prime for n in range(1, prime)}
    differences = (np.arange(prime)[:, None] - np.arange(prime)) % prime
    character = np.where(np.isin(differences, list(squares)), 1.0, -1.0)
    np.fill_diagonal(character, 0.0)
    conference = np.zeros((prime + 1, prime + 1))
    conference[0, 1:], conference[1:, 1:] = 1.0, character
    if prime % 4 == 1:
        conference[1:, 0] = 1.0
        both = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.asarray(np.kron(conference, both[0]) + np.kron(np.eye(prime + 1), both[1]))
    conference[1:, 0] = -1.0
    return conference + np.eye(prime + 1)


def _hartley(size: int) -> Array:
    """cas(2 pi j k / size) / sqrt(size) (Bracewell 1983), an orthogonal matrix."""
    angles = 2 * math.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    return (np.cos(angles) + np.sin(angles)) / math.sqrt(size)
