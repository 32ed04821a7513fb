"""Steps that people see as one: attentions, MLPs, and runs of identical blocks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace

from normswap.report.outline.items import Fork, Item, Repeat, Step, common_path, steps, value_of

# What may stand between the two linear layers of an MLP.
_BETWEEN = ("activation", "norm", "convolution", "scale", "operator")


def grouped(items: Sequence[Item], residual: bool) -> list[Item]:
    """The items with the linear layers around an attention drawn into it.

    In a ``residual`` branch without attention, linear layers around an activation become an MLP.
    """
    joined = _with_projections(items)
    attends = any(step.kind == "attention" for step in steps(joined))
    return _with_mlps(joined) if residual and not attends else joined


def _with_projections(items: Sequence[Item]) -> list[Item]:
    joined = list(items)
    index = 0
    while index < len(joined):
        core = joined[index]
        if isinstance(core, Step) and core.kind == "attention":
            before, behind = _linear(joined, index - 1), _linear(joined, index + 1)
            own = core.parts or (core,)
            if any(isinstance(part, Step) and part.kind == "linear" for part in own):
                before = ()
            parts = (*before, *own, *behind)
            if not any(part.kind == "attention" and part.parts for part in steps(own[1:])):
                name = common_path(step.name for step in parts if isinstance(step, Step))
                joined[index - len(before) : index + 1 + len(behind)] = [
                    replace(core, name=name or core.name, parts=parts, value=value_of(parts[-1]))
                ]
                index -= len(before)
        index += 1
    return joined


def _linear(items: Sequence[Item], index: int) -> tuple[Step, ...]:
    item = items[index] if 0 <= index < len(items) else None
    return (item,) if isinstance(item, Step) and item.kind == "linear" else ()


def _with_mlps(items: Sequence[Item]) -> list[Item]:
    joined: list[Item] = []
    index = 0
    while index < len(items):
        end = _mlp_end(items, index)
        if end is None:
            joined.append(items[index])
            index += 1
        else:
            joined.append(_mlp(tuple(items[index : end + 1])))
            index = end + 1
    return joined


def _mlp_end(items: Sequence[Item], start: int) -> int | None:
    """The index of the linear layer that ends the MLP that starts at ``start``, if one does."""
    first = items[start]
    activated = isinstance(first, Fork) and _is_gate(first)
    if not activated and not _linear(items, start):
        return None
    for index in range(start + 1, len(items)):
        item = items[index]
        if not isinstance(item, Step) or item.kind not in _BETWEEN:
            return index if activated and _linear(items, index) else None
        activated |= item.kind == "activation"
    return None


def _is_gate(fork: Fork) -> bool:
    """Linear layers multiplied with each other, one of them activated."""
    kinds = {step.kind for step in steps([fork])}
    return fork.join == "multiply" and kinds == {"linear", "activation"}


def _mlp(parts: tuple[Item, ...]) -> Step:
    inner = list(steps(parts))
    linear = [step for step in inner if step.kind == "linear"]
    sizes = [step.detail.split(" to ") for step in (linear[0], linear[-1])]
    detail = ""
    if all(len(pair) == 2 for pair in sizes):
        detail = " to ".join([*sizes[0], *sizes[1][(sizes[0][1] == sizes[1][0]) :]])
    activation = next((step.detail for step in inner if step.kind == "activation"), "")
    if isinstance(parts[0], Fork):
        activation = f"gated {activation}"
    detail = ", ".join(filter(None, [detail, activation]))
    return Step("mlp", common_path(s.name for s in inner), detail, None, parts, value_of(parts[-1]))


# -- repeated blocks -----------------------------------------------------------------------------


def collapsed(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items with every run of identical blocks as one ``Repeat``.

    Identical: the same steps with the same sizes; names, weights and epsilons may differ. A block
    has two steps or more; the run that covers most is taken, in its smallest blocks.
    """
    inner = [
        replace(item, branches=tuple(map(collapsed, item.branches)))
        if isinstance(item, Fork)
        else item
        for item in items
    ]

    def is_block(start: int, size: int) -> bool:
        return len(list(steps(inner[start:][:size]))) > 1

    return tuple(
        Repeat(tuple(tuple(inner[start + copy * size :][:size]) for copy in range(count)))
        if count > 1
        else inner[start]
        for start, size, count in runs([_signature(item) for item in inner], is_block=is_block)
    )


def runs(
    signatures: Sequence[Hashable],
    largest: int | None = None,
    is_block: Callable[[int, int], bool] = lambda start, size: True,
) -> Iterator[tuple[int, int, int]]:
    """Splits a sequence into runs of equal blocks: yields (start, size of a block, count).

    At each place the run that covers most is taken, in its smallest blocks; where none repeats,
    one item: (start, 1, 1). ``largest``: the size of a block at most; ``is_block``: whether the
    items from a start, of a size, may be one.

    Example: of the signatures 'abcbcd' the runs are (0, 1, 1), (1, 2, 2) and (5, 1, 1).
    """
    start = 0
    while start < len(signatures):
        most = (len(signatures) - start) // 2
        best = (1, 1)
        for size in range(1, (most if largest is None else min(largest, most)) + 1):
            block = signatures[start : start + size]
            count = 1
            while signatures[start + count * size :][:size] == block:
                count += 1
            if count > 1 and size * count > best[0] * best[1] and is_block(start, size):
                best = (size, count)
        yield start, *best
        start += best[0] * best[1]


def _signature(item: Item) -> Hashable:
    """Equal for items that are the same but for their names."""
    if isinstance(item, Fork):
        return (item.join, *(tuple(map(_signature, branch)) for branch in item.branches))
    if isinstance(item, Step):
        site = item.site
        of_site = site and (site.kind, site.role, site.axes, site.normalized_shape, site.spelling)
        return (item.kind, item.detail, of_site, *map(_signature, item.parts))
    return tuple(tuple(map(_signature, block)) for block in item.blocks)
