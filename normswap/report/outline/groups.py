"""Attentions and MLPs: several steps that people see as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normswap.report.outline.items import Fork, Item, Step, steps
from normswap.report.outline.names import common_path

_BETWEEN = (
    "activation",
    "norm",
    "convolution",
    "scale",
    "operator",
)  # the two linear layers of an MLP


def grouped(items: Sequence[Item], residual: bool) -> list[Item]:
    """The items with the linear layers around an attention drawn into it.

    In a ``residual`` branch without attention, linear layers around an activation become an MLP.
    """
    found = _with_projections(items)
    attends = any(step.kind == "attention" for step in steps(found))
    return _with_mlps(found) if residual and not attends else found


def _with_projections(items: Sequence[Item]) -> list[Item]:
    found = list(items)
    index = 0
    while index < len(found):
        core = found[index]
        if isinstance(core, Step) and core.kind == "attention":
            before, behind = _linear(found, index - 1), _linear(found, index + 1)
            own = core.parts or (core,)
            if any(isinstance(part, Step) and part.kind == "linear" for part in own):
                before = ()
            parts = (*before, *own, *behind)
            if not any(part.kind == "attention" and part.parts for part in steps(own[1:])):
                name = common_path(step.name for step in parts if isinstance(step, Step))
                value = _value(parts[-1])
                found[index - len(before) : index + 1 + len(behind)] = [
                    replace(core, name=name or core.name, parts=parts, value=value)
                ]
                index -= len(before)
        index += 1
    return found


def _linear(items: Sequence[Item], index: int) -> tuple[Step, ...]:
    item = items[index] if 0 <= index < len(items) else None
    return (item,) if isinstance(item, Step) and item.kind == "linear" else ()


def _with_mlps(items: Sequence[Item]) -> list[Item]:
    found: list[Item] = []
    index = 0
    while index < len(items):
        end = _mlp_end(items, index)
        if end is None:
            found.append(items[index])
            index += 1
        else:
            found.append(_mlp(tuple(items[index : end + 1])))
            index = end + 1
    return found


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
    return Step("mlp", common_path(s.name for s in inner), detail, None, parts, _value(parts[-1]))


def _value(item: Item) -> str:
    return item.value if isinstance(item, Step | Fork) else ""
