"""What a target has: which operators it runs, within which limits, and who says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from normswap.graph.graph import Node
from normswap.graph.operators import operator

_DIGITS = 9  # of a number in a version, at most

State = Literal["runs", "inaccurate", "unknown", "refused"]


@dataclass(frozen=True)
class Verdict:
    """Whether a target runs something. ``state``: 'runs', 'inaccurate' (it does, with errors that
    matter), 'unknown' or 'refused'; ``reason`` and ``source``: empty where it runs."""

    state: State
    reason: str = ""
    source: str = ""


@dataclass(frozen=True)
class Claim:
    """What is known of some operators, or of norms in a dialect.

    ``operators``: by the names of ``Node.op``, with their domain if it is not ONNX's; ``dialects``:
    by their words. ``runs``: whether the target runs them. ``source``: the address of the document,
    or what was measured. Within which limits it does: ``ranks``, the smallest and the largest of
    the first input; ``axes``, negative ones from the end; ``dtypes`` of the first input; ``opset``,
    the oldest and the newest. ``versions``: of the target, from and to, '' for any. ``inaccurate``:
    in which way its results are wrong. ``note``: a limit that nobody checks here, in words.
    """

    operators: frozenset[str]
    runs: bool
    source: str
    ranks: tuple[int, int] | None = None
    axes: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] = ()
    opset: tuple[int, int] | None = None
    versions: tuple[str, str] = ("", "")
    dialects: frozenset[str] = frozenset()
    inaccurate: str = ""
    note: str = ""

    def holds_for(self, version: str) -> bool:
        first, last = self.versions
        number = version_numbers(version)
        after = not first or version_numbers(first) <= number
        return after and (not last or number[: len(version_numbers(last))] <= version_numbers(last))

    def verdict(self, node: Node, opset: int | None) -> Verdict:
        """What the claim says of a node of a graph in ``opset``, None for a torch graph."""
        if not self.runs:
            return Verdict("refused", _joined(f"it has no {node.op}", self.note), self.source)
        x = node.input(0)
        rank = None if x is None else x.rank
        axes = _axes(node, rank)
        dtype = None if x is None or x.dtype is None else np.dtype(x.dtype).name
        limits: list[tuple[bool, object, str]] = []
        if self.ranks is not None:
            low, high = self.ranks
            fits = rank is not None and low <= rank <= high
            limits.append((fits, rank, f"of rank {rank}: it takes {_range(low, high)}"))
        if self.axes is not None and (axes is None or axes):
            fits = axes is not None and axes <= _absolute(self.axes, rank)
            named = ", ".join(str(axis) for axis in self.axes)
            limits.append((fits, axes, f"over axes {_listed(axes)}: it takes {named}"))
        if self.dtypes:
            takes = ", ".join(self.dtypes)
            limits.append((dtype in self.dtypes, dtype, f"of {dtype}: it takes {takes}"))
        if self.opset is not None and opset is not None:
            low, high = self.opset
            takes = _range(low, high)
            limits.append((low <= opset <= high, opset, f"of opset {opset}: it takes {takes}"))
        for fits, known, problem in limits:
            if not fits:
                state: State = "unknown" if known is None else "refused"
                return Verdict(state, f"{node.op} {problem}", self.source)
        if self.inaccurate:
            return Verdict("inaccurate", f"{node.op}: {self.inaccurate}", self.source)
        return Verdict("runs")


@dataclass(frozen=True)
class Capabilities:
    """What a target has.

    Attributes:
        target: its name, or the file's.
        title: in words.
        version: of the target, which the claims are judged for.
        otherwise: what becomes of an operator that it does not have.
        takes: 'onnx' or 'torch', the kind of graph that it is given.
        claims: on its operators.
        others: what holds for operators that no claim names; None where that is not known.
        opset: the oldest and the newest one that it reads, if that is known.
        static_shapes: whether all sizes must be fixed.
        source: of ``opset`` and ``static_shapes``.

    Examples:
        >>> capabilities_of("mnn").verdict(node, opset=20).state
        'refused'
    """

    target: str
    title: str
    version: str
    otherwise: str
    takes: str
    claims: tuple[Claim, ...]
    others: Claim | None = None
    opset: tuple[int, int] | None = None
    static_shapes: bool = False
    source: str = ""
    _by_operator: Mapping[str, Sequence[Claim]] = field(default_factory=dict, repr=False)

    def verdict(self, node: Node, opset: int | None) -> Verdict:
        """Whether the target runs a node of a graph in ``opset``, None for a torch graph."""
        claims = self._by_operator.get(qualified(node.op), ())
        if not claims:
            if self.others is None:
                return Verdict("unknown", f"whether it has {node.op} is not known")
            return self.others.verdict(node, opset)
        return worst(claim.verdict(node, opset) for claim in claims)

    def dialect_verdict(self, word: str) -> Verdict:
        """What is known of norms in a dialect beside what holds for its operators."""
        verdicts = []
        for claim in self.claims:
            if word in claim.dialects and not claim.runs:
                verdicts.append(Verdict("refused", claim.note or "it is refused", claim.source))
            elif word in claim.dialects and claim.inaccurate:
                verdicts.append(Verdict("inaccurate", claim.inaccurate, claim.source))
        return worst(verdicts)

    def verdict_of(self, nodes: Iterable[Node], opset: int | None) -> Verdict:
        """Whether it runs all of ``nodes``: the worst of theirs, the first of these."""
        computed = (node for node in nodes if not node.output.is_constant)
        return worst(self.verdict(node, opset) for node in computed)

    def opset_verdict(self, opset: int | None) -> Verdict:
        """Whether it reads files in ``opset``, whatever is in them."""
        if self.opset is None or opset is None or self.opset[0] <= opset <= self.opset[1]:
            return Verdict("runs")
        takes = _range(*self.opset)
        return Verdict("refused", f"the file is in opset {opset}: it takes {takes}", self.source)


_STATES: tuple[State, ...] = ("runs", "inaccurate", "unknown", "refused")


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The first of the worst ones; that it runs where there is none."""
    return max(verdicts, key=lambda v: _STATES.index(v.state), default=Verdict("runs"))


def qualified(op: str) -> str:
    """The name of an operator with its domain, if that is not ONNX's: the view leaves out that of
    an operator that it knows."""
    domain = operator(op).domain
    return op if not domain or op.startswith(f"{domain}.") else f"{domain}.{op}"


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version such as '1.26' or '2026-07'; ValueError for any other text."""
    parts = version.replace("-", ".").split(".")
    if not all(part.isascii() and part.isdecimal() and len(part) < _DIGITS for part in parts):
        raise ValueError(version)
    return tuple(int(part) for part in parts)


def _axes(node: Node, rank: int | None) -> set[int] | None:
    """The axes that a node works along: none of one without; None where they are not known."""
    attributes = node.attributes
    if "axes" in attributes:
        axes = attributes["axes"]
    elif "axis" in attributes:
        first = attributes["axis"]
        axes = [first]
        if node.operator.norm and rank is not None:  # and all behind it
            axes = range(first if first >= 0 else first + rank, rank)
    else:
        return None if "axes" in node.operator.parameters else set()
    if rank is None:
        return None
    return {int(axis) % rank if rank else 0 for axis in axes}


def _absolute(axes: Iterable[int], rank: int | None) -> set[int]:
    return {axis if axis >= 0 else axis + (rank or 0) for axis in axes}


def _listed(axes: Iterable[int] | None) -> str:
    return ", ".join(str(axis) for axis in sorted(axes or ()))


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _joined(*parts: str) -> str:
    return ": ".join(part for part in parts if part)
