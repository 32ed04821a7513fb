"""The certificate: that two graphs compute the same function in real arithmetic."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from normswap.field.difference import Pair, first_difference
from normswap.field.evaluation import Side, drawn, equal
from normswap.field.exact import Exact
from normswap.field.in_step import evaluate_both
from normswap.field.node import Read
from normswap.field.residues import BITS, POOL
from normswap.field.values import Field
from normswap.graph.graph import Array, is_floating

PROVEN = "proven equal in real arithmetic"
ERROR = 1e-12
"""What the probability that a certificate is wrong has to be below."""
_PRIMES, _MOST_PRIMES = 5, 32
_ATTEMPTS = 3
_SINGLE = 1e-4  # what one prime misses of a large model, about; only to begin with enough of them
_MIXED = 126  # bits


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

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @property
    def words(self) -> str:
        """One line for people."""
        if self.certified:
            return f"{PROVEN}; probability of error below {ERROR:g}"
        return f"not certified: {self.reason}"


def certify(
    reference: Side,
    candidate: Callable[[Field], Side],
    feeds: Callable[[int], Mapping[str, Array]],
    key: bytes | None = None,
    pairs: Callable[[Side], Sequence[Pair]] | None = None,
) -> Certificate:
    """Compares two graphs over the field.

    ``candidate``: the other graph, which may have been made over the field. ``feeds``: arrays by
    the names of the reference's inputs, from a seed. ``key``: 32 bytes that everything random comes
    from; by default from the operating system, so that nobody can know them. ``pairs``: the values
    in place of each other in the reference and in the candidate, for the reason where outputs
    differ.
    """
    key = key or secrets.token_bytes(32)
    sizes = [math.prod(v.shape) for n in reference.graph.nodes for v in n.outputs if v.shape]
    count = _first_count(sum(sizes))
    for attempt in range(_ATTEMPTS):
        own = hashlib.blake2b(key, digest_size=32, salt=bytes([attempt])).digest()
        result, wanted = _certified(reference, candidate, feeds, Field(count, own), pairs)
        if wanted <= count or wanted > _MOST_PRIMES:
            break
        count = wanted
    return result


def _first_count(elements: int) -> int:
    """How many primes will do, as far as the size of a graph tells: where they do not, all of it
    is computed again with more."""
    pairs = max(elements, 2) ** 2 / 2
    return max(_PRIMES, math.ceil(math.log(ERROR / pairs) / math.log(_SINGLE)))


def _certified(
    reference: Side,
    candidate: Callable[[Field], Side],
    feeds: Callable[[int], Mapping[str, Array]],
    over: Field,
    pairs: Callable[[Side], Sequence[Pair]] | None,
) -> tuple[Certificate, int]:
    """The certificate, and how many primes the bound needs."""
    arrays = feeds(int(over.random.integers(2**31)))
    symbols = drawn(over, arrays)
    given = [symbols[value.name] for value in reference.inputs]
    result = Certificate(
        False, list(over.residues.primes), not_covered=_not_covered(reference, arrays)
    )
    sides = (reference, candidate(over))
    if refusal := sides[0].refusal or sides[1].refusal:
        return replace(result, reason=refusal), 0
    evaluations = evaluate_both(over, *sides, given)
    uninterpreted = sorted(evaluations[0].uninterpreted | evaluations[1].uninterpreted)
    result = replace(result, uninterpreted=uninterpreted, symbols=over.tally.arguments)
    if refusal := evaluations[0].refusal or evaluations[1].refusal:
        return replace(result, reason=refusal), 0
    outputs = [evaluation.outputs for evaluation in evaluations]
    for place, (one, other) in enumerate(zip(*outputs, strict=True)):
        if not equal(one, other):
            reason = f"the output '{reference.outputs[place].name}' differs"
            known = pairs(sides[1]) if pairs else []
            reason += first_difference(over, sides, given, known, place)
            return replace(result, reason=reason), 0
    bound = _bound(over, *outputs)
    result = replace(
        result, error=bound.error(over.residues.count), degree=bound.degree, bits=bound.bits
    )
    if result.error > ERROR:
        reason = f"the bound on the probability of error is {result.error:.1e}"
        return replace(result, reason=reason), bound.primes()
    return replace(result, certified=True), 0


@dataclass(frozen=True)
class _Bound:
    """The probability of error.

    For each prime, a polynomial that is not zero is zero at a random point with probability at most
    ``degree`` / (p - 1), or zero everywhere, if p divides all of its coefficients, as at most
    ``bits`` / 25 primes of the pool do. That goes for the difference of two outputs, and for that
    of any two arguments of uninterpreted functions (``pairs``), of which none may be taken for
    another. The primes are independent. Mixing to 128 bits adds its own.
    """

    degree: int
    bits: float
    pairs: float

    def error(self, count: int) -> float:
        least = BITS - 1
        single = self.degree / (2**least - 1) + self.bits / least / POOL
        return min(1.0, self.pairs * (min(single, 1.0) ** count + 2.0**-_MIXED))

    def primes(self) -> int:
        """How many primes keep the error small enough."""
        counts = range(_PRIMES, _MOST_PRIMES + 1)
        return next((count for count in counts if self.error(count) <= ERROR), _MOST_PRIMES + 1)


def _bound(over: Field, ours: Sequence[Read], theirs: Sequence[Read]) -> _Bound:
    tally, growth = over.tally, over.tally.largest
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Exact) and isinstance(other, Exact):
            growth = growth.joined(one.growth).joined(other.growth)
    growth = growth + growth
    # Once more: what was inverted must not be zero modulo a prime either.
    degree, bits = tally.whole(replace(growth, inverses=growth.inverses + 1))
    return _Bound(degree * (1 + tally.mixed), bits, tally.arguments**2 / 2 + 1)


def _not_covered(side: Side, arrays: Mapping[str, Array]) -> list[str]:
    found = []
    for value in side.inputs:
        if not is_floating(arrays[value.name].dtype):
            found.append(f"other numbers than those drawn for the input '{value.name}'")
    if not side.graph.has_fixed_sizes:
        found.append("other sizes than those of the example inputs")
    return found
