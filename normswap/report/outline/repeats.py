"""Runs of identical blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normswap.report.outline.items import Fork, Item, Repeat, Step, steps


def collapsed(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items with every run of identical blocks as one ``Repeat``.

    Identical: the same steps with the same sizes; names, weights and epsilons may differ. A block
    has two steps or more; the run that covers most is taken, in its smallest blocks.
    """
    inner = [_inside(item) for item in items]
    signatures = [_signature(item) for item in inner]
    found: list[Item] = []
    index = 0
    while index < len(inner):
        size, count = _longest_run(inner, signatures, index)
        if count > 1:
            blocks = [tuple(inner[index + i * size :][:size]) for i in range(count)]
            found.append(Repeat(tuple(blocks)))
        else:
            found.append(inner[index])
        index += size * count
    return tuple(found)


def _inside(item: Item) -> Item:
    """The item with the runs in its own branches collapsed."""
    if isinstance(item, Fork):
        branches = tuple(collapsed(branch) for branch in item.branches)
        return Fork(item.join, branches, item.value)
    return item


def _longest_run(items: Sequence[Item], signatures: Sequence[Any], start: int) -> tuple[int, int]:
    """The size of a block that repeats from ``start`` on, and how often; (1, 1) if none does."""
    best = (1, 1)
    for size in range(1, (len(items) - start) // 2 + 1):
        block = signatures[start : start + size]
        count = 1
        while signatures[start + count * size :][:size] == block:
            count += 1
        if count > 1 and size * count > best[0] * best[1] and _is_block(items[start:][:size]):
            best = (size, count)
    return best


def _is_block(items: Sequence[Item]) -> bool:
    return len(list(steps(items))) > 1


def _signature(item: Item) -> Any:
    """What two items share if they are the same but for their names."""
    if isinstance(item, Fork):
        return (item.join, *(tuple(map(_signature, branch)) for branch in item.branches))
    if isinstance(item, Step):
        return (item.kind, item.detail, _of_site(item), *map(_signature, item.parts))
    return tuple(tuple(map(_signature, block)) for block in item.blocks)


def _of_site(step: Step) -> Any:
    site = step.site
    if site is None:
        return None
    return (site.kind, site.role, site.axes, site.normalized_shape, site.spelling)
