"""Norms of an FX graph that run as the kernels of ``lowering/kernels``, in place if they can.

A graph that passes see holds plain ATen operators; a norm that may run as a kernel is marked.
``write_kernels`` writes the kernels for inference, where the graph proves that the buffers which
they overwrite are not read any more; ``restore_norms`` makes plain operators and marks of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

import normswap.lowering.kernels  # noqa: F401  (registers the operators)
from normswap.errors import NormswapError
from normswap.graph.fx.graph import NOTE, FxGraph
from normswap.graph.fx.memory import Storages
from normswap.graph.fx.meta import call_arguments
from normswap.graph.graph import Node

_aten = torch.ops.aten
_ops = torch.ops.normswap

IN_PLACE = ("add_layer_norm_", "layer_norm_", "add_rms_norm_", "rms_norm_")
KERNELS = (*IN_PLACE, "rms_norm")
"""What a norm may be marked for. Out of place torch's layer_norm is as fast as ours; its
rms_norm is several operators on the CPU."""
KERNELS_IN_PLACE: dict[Any, str] = {getattr(_ops, name).default: name for name in IN_PLACE}
MARK = f"{NOTE}kernels"
"""Where a node's metadata say which ones."""
_NAMES: dict[Any, str] = {
    _aten.layer_norm.default: "layer_norm_",
    _aten.rms_norm.default: "rms_norm_",
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NORM_ARGUMENTS = ("weight", "bias", "eps")


@dataclass(frozen=True)
class Placement:
    """A norm that becomes ``kernel``; with ``add``, the sum that it reads becomes part of it.

    In place the kernel writes the norm into ``branch``, and the sum into ``residual``. ``scale``:
    LayerScale [C], which ``scaled`` multiplied the branch with.
    """

    norm: fx.Node
    kernel: str
    branch: fx.Node
    add: fx.Node | None = None
    residual: fx.Node | None = None
    scaled: fx.Node | None = None
    scale: fx.Node | None = None


def allow_kernels(graph: FxGraph, norms: Iterable[Node], besides: Collection[str] = ()) -> None:
    """Lets those of ``norms`` that a kernel could compute run as any of ``KERNELS``, ``besides``
    some, in inference. What the graph computes stays."""
    for node in norms:
        call = graph.call_of(node)
        if is_norm(call):
            mark(call, [kernel for kernel in KERNELS if kernel not in besides])


def running_kernels(graph: FxGraph) -> dict[Node, str]:
    """The kernel of every norm that runs as one in inference."""
    nodes = {graph.call_of(node): node for node in graph.nodes}
    return {nodes[p.norm]: p.kernel for p in placements(graph.module.graph)}


def inference_module(graph: FxGraph) -> fx.GraphModule:
    """A GraphModule with parameters of its own and with the graph's kernels.

    Its parameters stay as they are to be trained: without gradients aten.linear multiplies rows
    that are not contiguous one batch at a time, which takes half as long again.
    """
    module = graph.to_module()
    write_kernels(module)
    return module


def is_norm(node: fx.Node) -> bool:
    """Whether a kernel could compute ``node``: a norm over the last axis in a float type of up to
    four bytes."""
    if node.op != "call_function" or node.target not in _NAMES:
        return False
    x, arguments = node.args[0], call_arguments(node)
    value = x.meta.get("val") if isinstance(x, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES:
        return False
    known = arguments["eps"] is not None and len(arguments["normalized_shape"]) == 1
    return known and _same(value, node.meta.get("val"))


def mark(norm: fx.Node, kernels: Iterable[str]) -> None:
    """Lets ``norm`` run as one of ``kernels`` wherever that is proven to be safe."""
    norm.meta[MARK] = tuple(kernels)


def placements(graph: fx.Graph) -> list[Placement]:
    """The marked norms that can run as kernels, in the order of the graph."""
    storages = Storages(graph)
    order = {node: index for index, node in enumerate(graph.nodes)}
    chosen: list[Placement] = []
    fused: set[fx.Node] = set()
    for norm in [n for n in graph.nodes if n.meta.get(MARK) and is_norm(n)]:
        choices = (*_with_add(norm, storages, order, fused), *_alone(norm, storages))
        for placement in choices:
            if placement.kernel not in norm.meta[MARK]:
                continue
            # What lived in the overwritten buffers is dead, so their new contents share with none.
            chosen.append(placement)
            if placement.add is not None:
                fused.add(placement.add)
            break
    return chosen


def _with_add(
    norm: fx.Node, storages: Storages, order: dict[fx.Node, int], fused: set[fx.Node]
) -> Iterator[Placement]:
    add = _read_by(norm)
    while add.target is _aten.to.dtype and _same(_read_by(add).meta["val"], add.meta["val"]):
        add = _read_by(add)  # the cast does nothing
    if add.target is not _aten.add.Tensor or add in fused or len(add.args) != 2 or add.kwargs:
        return
    # The kernel stands where the sum stood, so what it reads must stand before.
    if any(order[p] > order[add] for p in _parameters(norm)):
        return
    for branch, residual in (add.args, add.args[::-1]):
        if not isinstance(branch, fx.Node) or not isinstance(residual, fx.Node):
            continue
        kernel = f"add_{_NAMES[norm.target]}"
        for source, scaled, scale in (*_layer_scale(branch), (branch, None, None)):
            alike = all(_same(v.meta.get("val"), add.meta["val"]) for v in (source, residual))
            if alike and storages.are_apart(source, residual):
                free = (
                    _is_in_rows(v) and storages.is_dead_after(v, add) for v in (source, residual)
                )
                if all(free):
                    yield Placement(norm, kernel, source, add, residual, scaled, scale)


def _layer_scale(branch: fx.Node) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
    """What ``branch`` scales, if it is a product with one constant per channel and read once."""
    if branch.target is not _aten.mul.Tensor or len(branch.users) != 1:
        return
    for source, scale in (branch.args, branch.args[::-1]):
        if isinstance(source, fx.Node) and isinstance(scale, fx.Node) and scale.op == "get_attr":
            value, channels = scale.meta["val"], branch.meta["val"].shape[-1]
            if tuple(value.shape) == (channels,) and value.dtype == source.meta["val"].dtype:
                yield source, branch, scale


def _alone(norm: fx.Node, storages: Storages) -> Iterator[Placement]:
    x, kernel = _read_by(norm), _NAMES[norm.target]
    if _is_in_rows(x):
        if storages.is_dead_after(x, norm):
            yield Placement(norm, kernel, x)
        yield Placement(norm, kernel[:-1], x)


def _is_in_rows(node: fx.Node) -> bool:
    """Whether it is contiguous: others cost copies, as the branches of attention do that computes
    with the tokens first."""
    return bool(node.meta["val"].is_contiguous())


def _read_by(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _parameters(norm: fx.Node) -> list[fx.Node]:
    arguments = call_arguments(norm)
    return [a for n in _NORM_ARGUMENTS if isinstance(a := arguments.get(n), fx.Node)]


def _same(one: Any, other: Any) -> bool:
    """Whether they agree in shape, dtype and device."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    alike = (one.dtype, one.device, one.dim()) == (other.dtype, other.device, other.dim())
    return alike and all(str(a) == str(b) for a, b in zip(one.shape, other.shape, strict=True))


def write_kernels(module: fx.GraphModule) -> int:
    """Writes the kernels of ``placements``, for inference; returns their number."""
    graph = module.graph
    chosen = placements(graph)
    written: dict[fx.Node, fx.Node] = {}  # what holds the values of nodes that are gone

    def current(node: fx.Node | None) -> fx.Node | None:
        while node in written:
            node = written[node]
        return node

    for placement in chosen:
        norm = placement.norm
        arguments = call_arguments(norm)
        parameters = [arguments[n] for n in _NORM_ARGUMENTS if n in arguments]
        branch, residual = current(placement.branch), current(placement.residual)
        kernel = getattr(_ops, placement.kernel).default
        operands = (
            (branch, *parameters)
            if placement.add is None
            else (branch, residual, *parameters[:-1], placement.scale, parameters[-1])
        )
        with graph.inserting_before(placement.add or norm):
            call = graph.call_function(kernel, operands)
        call.meta = {k: v for k, v in norm.meta.items() if k not in ("tensor_meta", MARK)}
        result = call
        if placement.kernel in IN_PLACE:
            call.meta["val"] = None
            assert branch is not None
            result = branch
        norm.replace_all_uses_with(result)
        graph.erase_node(norm)
        written[norm] = result
        if placement.add is not None and residual is not None:
            placement.add.replace_all_uses_with(residual)
            graph.erase_node(placement.add)
            written[placement.add] = residual
            if placement.scaled is not None:
                graph.erase_node(placement.scaled)
    if chosen:
        module.recompile()
    return len(chosen)


def restore_norms(module: fx.GraphModule) -> None:
    """Puts plain operators, marked for kernels, in place of the kernels of the graph.

    Raises NormswapError where something reads, through another view, memory that one overwrites.
    """
    graph = module.graph
    functional = {getattr(_ops, name[:-1]).default: name for name in IN_PLACE}
    for call in [n for n in graph.nodes if n.target in functional]:
        norm, add = _plain(graph, call, functional[call.target])
        if add is None:
            call.replace_all_uses_with(norm)
        for user in list(call.users):  # only what returns two values is picked from
            user.replace_all_uses_with((norm, add)[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(call)
    for call in [n for n in graph.nodes if n.target in KERNELS_IN_PLACE]:
        written = [a for a in call.args[:2] if isinstance(a, fx.Node)]
        name = KERNELS_IN_PLACE[call.target]
        norm, add = _plain(graph, call, name)
        storages, order = Storages(graph, call), {n: i for i, n in enumerate(graph.nodes)}
        for value, new in zip(written, (norm, add), strict=False):
            if new is None:
                continue
            for other in storages.read_later(value, call):
                raise NormswapError(
                    f"'{other.name}' is read after '{call.name}' wrote over it: use {name[:-1]} of "
                    f"normswap.lowering.kernels there, which does not"
                )
            for user in [u for u in value.users if order[u] > order[call]]:
                user.replace_input_with(value, new)
        graph.erase_node(call)


def _plain(graph: fx.Graph, call: fx.Node, name: str) -> tuple[fx.Node, fx.Node | None]:
    """The norm that ``call`` computes as an operator of its own before it, and the sum."""
    arguments = call_arguments(call)
    x = arguments["branch"] if name.startswith("add") else arguments["x"]
    value = x.meta["val"]
    add = None

    def called(target: Any, *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta = {**call.meta, "val": value}
        return node

    with graph.inserting_before(call):
        if name.startswith("add"):
            if arguments["scale"] is not None:
                x = called(_aten.mul.Tensor, x, arguments["scale"])
            x = add = called(_aten.add.Tensor, arguments["residual"], x)
        shape = [value.shape[-1]]
        if "layer" in name:
            operands = (x, shape, arguments["weight"], arguments["bias"], arguments["eps"])
            norm = called(_aten.layer_norm.default, *operands)
        else:
            norm = called(_aten.rms_norm.default, x, shape, arguments["weight"], arguments["eps"])
    mark(norm, KERNELS)
    return norm, add
