"""Many module paths in few words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

_NUMBER = re.compile(r"(?<=[./])\d{1,6}(?=[./])")


def gathered(names: Iterable[str]) -> list[str]:
    """``blocks.{0-11}.norm1`` for ``blocks.0.norm1`` to ``blocks.11.norm1``.

    Only names that differ in the first number of their path are one.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault(tuple(_NUMBER.split(name, maxsplit=1)), []).append(name)
    found = []
    for ends, members in groups.items():
        if len(members) == 1 or len(ends) == 1:
            found += members
        else:
            numbers = [int(name[len(ends[0]) : len(name) - len(ends[1])]) for name in members]
            found.append(f"{ends[0]}{{{_ranges(sorted(numbers))}}}{ends[1]}")
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """'0-3,5' for 0, 1, 2, 3, 5."""
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b != a + 1)]
    ends = [*(a for a, b in pairwise(numbers) if b != a + 1), numbers[-1]]
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in zip(starts, ends, strict=True))
