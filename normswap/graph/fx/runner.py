"""Runs an FX graph, or a slice of one, in its own dtypes or in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from normswap.graph.fx.module_tree import get_path
from normswap.graph.graph import Array, Runner
from normswap.graph.tensors import to_numpy, to_torch


@dataclass(frozen=True)
class Number:
    """A Python number in the arguments of a ``call``: the argument called ``name``, or, if that is
    a list, its ``item``."""

    call: fx.Node
    name: str
    item: int | None = None


Handle = fx.Node | str | Number


def fx_runner(
    module: fx.GraphModule,
    calls: Sequence[fx.Node],
    inputs: Sequence[Handle],
    outputs: Sequence[Handle],
    double: bool,
) -> Runner:
    """A function from arrays for ``inputs`` to arrays of ``outputs``.

    ``calls``: the nodes to run, in order. A handle is a node, the path of an attribute, or, among
    the inputs, a number in a call.
    ``double``: every floating-point value and every requested float dtype becomes float64.
    """
    numbers: dict[fx.Node, list[Number]] = {}
    for handle in inputs:
        if isinstance(handle, Number):
            numbers.setdefault(handle.call, []).append(handle)
    steps = [step for call in calls for step in (call, *_getitems(call)) if step not in inputs]
    last_use = _last_uses(steps, outputs)
    prepare: Callable[[Any], Any] = _as_double if double else lambda value: value

    def run(arrays: Sequence[Array]) -> list[Array]:
        known: dict[Handle, Any] = {
            handle: prepare(_argument(handle, array))
            for handle, array in zip(inputs, arrays, strict=True)
        }

        def fetch(handle: Handle) -> Any:
            return known[handle] if handle in known else prepare(get_path(module, str(handle)))

        def load(node: fx.Node) -> Any:  # an attribute may be one of the inputs
            return known[node] if node in known else fetch(str(node.target))

        with torch.no_grad():
            for index, step in enumerate(steps):
                args, kwargs = fx.map_arg((step.args, step.kwargs), load)
                for number in numbers.get(step, ()):
                    args, kwargs = _with_number(number, known[number].item(), args, kwargs)
                if double:
                    args, kwargs = _retype(args), _retype(kwargs)
                if step.op == "call_module":
                    known[step] = prepare(_call_module(module, step, args, kwargs, double, known))
                else:
                    known[step] = prepare(step.target(*args, **kwargs))  # type: ignore[operator]
                for done in last_use.get(index, ()):
                    known.pop(done, None)
            return [to_numpy(torch.as_tensor(fetch(handle))) for handle in outputs]

    return run


def module_runner(module: fx.GraphModule) -> Runner:
    """A function from arrays for the inputs of ``module`` to those of its outputs."""
    calls = [node for node in module.graph.nodes if node.op.startswith("call")]
    inputs = module.graph.find_nodes(op="placeholder")
    return fx_runner(module, calls, inputs, outputs_of(module), double=False)


def outputs_of(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values the module returns, in order."""
    flat: list[Any] = []
    fx.map_arg(module.graph.output_node().args, flat.append)
    return flat


def _argument(handle: Handle, array: Array) -> Any:
    """The array as a tensor, or as the number that a node yields: sizes go on as numbers."""
    value = handle.meta.get("val") if isinstance(handle, fx.Node) else None
    if isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        return array.item()
    return to_torch(array)


def _getitems(call: fx.Node) -> list[fx.Node]:
    """The nodes that pick from a call that returns a tuple: part of the call in the view."""
    value = call.meta.get("val")
    picks = [u for u in call.users if getattr(u.target, "__name__", "") == "getitem"]
    return picks if isinstance(value, list | tuple) or (picks and value is None) else []


def _last_uses(steps: Sequence[fx.Node], outputs: Sequence[Handle]) -> dict[int, list[fx.Node]]:
    last: dict[fx.Node, int] = {}
    for index, step in enumerate(steps):
        for node in step.all_input_nodes:
            last[node] = index
    freed: dict[int, list[fx.Node]] = {}
    for node, index in last.items():
        if node not in outputs:
            freed.setdefault(index, []).append(node)
    return freed


def _with_number(number: Number, value: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call with another number in them."""
    if number.item is not None:
        held = kwargs[number.name] if number.name in kwargs else args[_place(number)]
        value = [value if i == number.item else other for i, other in enumerate(held)]
    if number.name in kwargs:
        return args, {**kwargs, number.name: value}
    place = _place(number)
    return (*args[:place], value, *args[place + 1 :]), kwargs


def _place(number: Number) -> int:
    target: Any = number.call.target
    return [argument.name for argument in target._schema.arguments].index(number.name)


def _call_module(
    module: fx.GraphModule,
    step: fx.Node,
    args: Any,
    kwargs: Any,
    double: bool,
    known: Mapping[Handle, Any],
) -> Any:
    child = get_path(module, str(step.target))
    if not double:
        return child(*args, **kwargs)
    held = child.state_dict(keep_vars=True).items()
    state = {name: known.get(f"{step.target}.{name}", _as_double(t)) for name, t in held}
    return torch.func.functional_call(child, state, args, kwargs)


def _as_double(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    if isinstance(value, list | tuple):
        return type(value)(_as_double(v) for v in value)
    return value


def _retype(value: Any) -> Any:
    """Float dtypes among a call's arguments become float64, so that no cast rounds."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, list | tuple):
        return type(value)(_retype(v) for v in value)
    if isinstance(value, dict):
        return {key: _retype(v) for key, v in value.items()}
    return value
