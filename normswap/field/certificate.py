"""The certificate: that two graphs compute the same function in real arithmetic."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from normswap.errors import NormswapError
from normswap.field.evaluation import Constants, drawn, equal, evaluate
from normswap.field.operators import Read
from normswap.field.residues import BITS, POOL
from normswap.field.values import Exact, Field
from normswap.graph.graph import Array, Graph, Value, is_floating

PROVEN = "proven equal in real arithmetic"
ERROR = 1e-12
"""What the probability that a certificate is wrong has to be below."""
_COUNTS = (5, 10, 20)  # primes, the fewest first


@dataclass(frozen=True)
class Certificate:
    """Whether two models are proven to be the same function in real arithmetic.

    Attributes:
        certified: whether every floating output is equal modulo every prime, every whole number is
            equal, and the bound is below 1e-12.
        primes: those that were drawn.
        error: the bound on the probability that models that differ are certified; 1.0 where
            nothing is certified.
        degree, bits: of the polynomial that is zero, at most; what the bound is made of.
        symbols: how many inputs and results of uninterpreted functions there are, of both models.
        uninterpreted: the operators of which only is used that they are functions of what they
            read.
        not_covered: what the proof says nothing about, in words.
        reason: why nothing is certified, in words; '' where it is.
    """

    certified: bool
    primes: list[int] = field(default_factory=list)
    error: float = 1.0
    degree: int = 0
    bits: float = 0.0
    symbols: int = 0
    uninterpreted: list[str] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def words(self) -> str:
        """One line for people."""
        if self.certified:
            return f"{PROVEN}; probability of error below {ERROR:.0e}".replace("e-12", "e-12")
        return f"not certified: {self.reason}"


@dataclass(frozen=True)
class Side:
    """One of two graphs: its inputs and outputs in the order of the reference's, and what stands in
    place of constants that a pass has computed."""

    graph: Graph
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    constants: Callable[[Field], Constants] | None = None


def certify(
    reference: Side, candidate: Side, feeds: Callable[[int], Mapping[str, Array]], key: bytes | None = None
) -> Certificate:
    """Compares two graphs over the field.

    ``feeds``: arrays by the names of the reference's inputs, from a seed. ``key``: 32 bytes that
    everything random comes from; by default from the operating system, so that nobody can know
    them.
    """
    key = key or secrets.token_bytes(32)
    result = Certificate(False)
    for attempt, count in enumerate(_COUNTS):
        own = hashlib.blake2b(key, digest_size=32, salt=bytes([attempt])).digest()
        result = _certified(reference, candidate, feeds, Field(count, own))
        if result.certified or not result.reason.startswith("the bound"):
            break
    return result


def _certified(reference: Side, candidate: Side, feeds: Callable[[int], Mapping[str, Array]], over: Field) -> Certificate:
    arrays = feeds(int(over.random.integers(2**31)))
    symbols = drawn(over, arrays)
    given = [symbols[value.name] for value in reference.inputs]
    seen: dict[Value, bytes] = {}
    ours = evaluate(over, reference.graph, dict(zip(reference.inputs, given, strict=True)), reference.outputs)
    uncovered = _not_covered(reference, arrays)
    primes = [int(p) for p in over.residues.primes]
    if ours.refusal:
        return Certificate(False, primes, not_covered=uncovered, reason=ours.refusal)
    constants = candidate.constants(over) if candidate.constants else None
    theirs = evaluate(over, candidate.graph, dict(zip(candidate.inputs, given, strict=True)), candidate.outputs, constants)
    uninterpreted = sorted(ours.uninterpreted | theirs.uninterpreted)
    if theirs.refusal:
        return Certificate(False, primes, uninterpreted=uninterpreted, not_covered=uncovered, reason=theirs.refusal)
    error, degree, bits = _bound(over, ours.outputs, theirs.outputs)
    differs = [v.name for v, one, other in zip(reference.outputs, ours.outputs, theirs.outputs, strict=True) if not equal(one, other)]
    reason = ""
    if differs:
        reason = f"the output '{differs[0]}' differs"
    elif error > ERROR:
        reason = f"the bound on the probability of error is {error:.1e}"
    return Certificate(
        not reason, primes, 1.0 if differs else error, degree, bits, over.tally.arguments, uninterpreted, uncovered, reason
    )


def _bound(over: Field, ours: Sequence[Read], theirs: Sequence[Read]) -> tuple[float, int, float]:
    """The probability of error, and the degree and bits of what is zero, at most.

    For each prime, a polynomial that is not zero is zero at a random point with probability at most
    ``degree`` / (p - 1), or zero everywhere, if p divides all of its coefficients: so does one of
    at most ``bits`` / 25 primes of the pool. All of this for a difference of outputs, and for the
    difference of every two arguments of uninterpreted functions, of which none may be taken for
    another: the primes are independent.
    """
    tally = over.tally
    degree, bits = tally.largest_degree, tally.largest_bits
    elements = 0
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Exact) and isinstance(other, Exact):
            whole = tally.whole(one.growth + other.growth)
            degree, bits = max(degree, whole[0]), max(bits, whole[1])
            elements += one.shadow.size
    bits = 2 * bits + 1  # of a difference, over the denominators of both
    least = 1 << (BITS - 1)
    single = degree / (least - 1) + bits / (BITS - 1) / POOL
    pairs = tally.arguments**2 / 2 + 1
    alike = single ** over.residues.count if single < 1 else 1.0
    return min(1.0, pairs * (alike + 2.0**-126)), degree, bits


def _not_covered(side: Side, arrays: Mapping[str, Array]) -> list[str]:
    found = []
    for value in side.inputs:
        if not is_floating(arrays[value.name].dtype):
            found.append(f"other numbers than those drawn for the input '{value.name}'")
    if not side.graph.has_fixed_sizes:
        found.append("other sizes than those of the example inputs")
    return found
