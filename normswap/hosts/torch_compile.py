"""A backend of ``torch.compile``: norms as kernels that work in place, then Inductor or eager.

    compiled = torch.compile(model.eval(), backend="normswap")
    with torch.inference_mode():
        compiled(images)

torch finds it by the entry point ``normswap`` of the group ``torch_dynamo_backends``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch._dynamo import lookup_backend
from torch._guards import tracing
from torch._inductor import list_mode_options
from torch._inductor.exc import InvalidCxxCompiler
from torch.fx.experimental.proxy_tensor import make_fx

from normswap.errors import NormswapError, first_line, root_cause
from normswap.graph.graph import Graph, Value
from normswap.io.torch_model import model_from_module
from normswap.lowering import Lowering, lower
from normswap.lowering.inference import torch_graph
from normswap.lowering.torch_kernels import write_kernels
from normswap.model import Model
from normswap.norms.site import Site, site_nodes
from normswap.passes.fused import Fused

_LOG = logging.getLogger("normswap")
_THEN = ("inductor", "eager")
Compiled = Callable[..., Any]


def backend(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compiles what torch's dynamo has captured; ``torch.compile`` calls it.

    In inference, every LayerNorm and RMSNorm over the last axis, one operator or spelled out, runs
    as a kernel of ``normswap.lowering.kernels`` on the CPU, with the residual sum before it and in
    place where the graph proves that safe. Exact. Weights stay inputs, so that they may change
    without a new compilation: a norm that is spelled out is taken only if nothing but its gamma and
    beta are weights. Training, autocast, other devices and graphs that write to their inputs go to
    ``then`` as they are, each with one line on the log of level INFO.

    Args:
        module: with torch's own functions, as dynamo makes it.
        example_inputs: for its placeholders.
        mode: as ``torch.compile`` takes it, for Inductor.
        options: ``then``, 'inductor' (the default) or 'eager'; the others are Inductor's. Without
            a C++ compiler it is eager, with one warning.

    Raises:
        NormswapError: another value of ``then``.

    Examples:
        >>> torch.compile(model, backend="normswap", options={"then": "eager"})
    """
    patches = dict(options or {})
    then = patches.pop("then", _THEN[0])
    if then not in _THEN:
        raise NormswapError(f"normswap: option then is '{then}', not {' or '.join(_THEN)}")
    rewritten = _with_kernels(module, example_inputs)
    if then == "eager":
        return rewritten.forward
    if mode is not None:
        patches = {**list_mode_options(mode), **patches}
    inductor: Any = lookup_backend("inductor")
    try:
        return inductor(rewritten, example_inputs, config_patches=patches)
    except Exception as error:
        if not isinstance(getattr(error, "inner_exception", error), InvalidCxxCompiler):
            raise
        _warn_without_compiler()
        return rewritten.forward


_warned: list[bool] = []


def _warn_without_compiler() -> None:
    if not _warned:
        _LOG.warning("torch.compile: there is no C++ compiler for Inductor; the model runs eagerly")
        _warned.append(True)


def _with_kernels(module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """``module`` with kernels; itself where it cannot have any."""
    try:
        _check(module, inputs)
        captured = _captured(module)
        return _rewritten(captured, _inputs(module, inputs))
    except _NotTaken as reason:
        _LOG.info("torch.compile: compiled without normswap's kernels: %s", reason)
    except Exception as error:  # a host's model must run, whatever happens here
        why = first_line(root_cause(error))
        _LOG.warning("torch.compile: compiled without normswap's kernels: %s", why)
    return module


class _NotTaken(Exception):
    """A graph that goes on as it is; the message is the reason."""


def _check(module: fx.GraphModule, inputs: Sequence[Any]) -> None:
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise _NotTaken("it needs gradients; call it under torch.inference_mode()")
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise _NotTaken("it is not on the CPU")
    if torch.is_autocast_enabled("cpu"):
        raise _NotTaken("it runs under autocast")
    for node in module.graph.nodes:
        if node.op == "call_module" or getattr(node.target, "__name__", "") in _REGIONS:
            raise _NotTaken(f"'{node.name}' calls or opens a region of its own")


_REGIONS = ("_enter_autocast", "_exit_autocast", "_set_grad_enabled", "_enter_inference_mode")


def _captured(module: fx.GraphModule) -> fx.Graph:
    """The graph in the ATen dialect, its sizes symbolic where dynamo's are."""
    places = module.graph.find_nodes(op="placeholder")
    # Without the tracing context the fake tensors that dynamo captured with are taken, whose mode
    # is another one than the context's; both have the same symbols.
    with tracing(None), torch.no_grad():
        captured = make_fx(module, pre_dispatch=True)(*(p.meta["example_value"] for p in places))
    return captured.graph


@dataclass(frozen=True)
class _Input:
    """An input of the graph; ``weight``: its tensor, if it is a parameter or buffer of a module."""

    name: str
    weight: torch.Tensor | None


def _inputs(module: fx.GraphModule, inputs: Sequence[Any]) -> list[_Input]:
    found = []
    for node, value in zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True):
        held = "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})
        is_weight = isinstance(value, torch.nn.Parameter) or (
            held and isinstance(value, torch.Tensor)
        )
        found.append(_Input(node.name, value if is_weight else None))
    return found


def _rewritten(graph: fx.Graph, inputs: Sequence[_Input]) -> fx.GraphModule:
    """The captured ``graph`` with kernels, with the same inputs in the same order."""
    module = _holding_weights(graph, inputs)
    names = {name for name, _ in module.named_buffers()}
    model = model_from_module(module, "the captured graph")
    sites = [site for site in model.sites if _can_be_taken(model, site, names)]
    if not sites:
        raise _NotTaken("it has no norm over the last axis")
    result = lower(Fused(sites=sites)(model), Lowering(kernels=True)).model
    # A copy shares its weights.
    lowered = torch_graph(result.graph).copy().module
    if not write_kernels(lowered):
        raise _NotTaken("no norm can become a kernel")
    return _taking_weights(lowered, inputs)


_HELD = "weight_{}"


def _holding_weights(graph: fx.Graph, inputs: Sequence[_Input]) -> fx.GraphModule:
    """A module of ``graph`` that holds its weights and takes tensors alone.

    A weight that could be a gamma or beta is another one, at random: so what is recognised is
    recognised for any values.
    """
    holder, random = torch.nn.Module(), np.random.default_rng(0)
    new, env = fx.Graph(), {}
    places = graph.find_nodes(op="placeholder")
    for index, (node, given) in enumerate(zip(places, inputs, strict=True)):
        if given.weight is None:
            if isinstance(node.meta["val"], torch.Tensor):
                env[node] = new.placeholder(given.name)
                env[node].meta = dict(node.meta)
            continue
        name = _HELD.format(index)
        holder.register_buffer(name, _stand_in(given.weight, random))
        env[node] = new.get_attr(name)
        env[node].meta = dict(node.meta)
    sizes = _sizes(env)
    for node in graph.nodes:
        if node.op == "placeholder":
            if node not in env and node.users:
                env[node] = _size(new, node, sizes)
        elif node.op == "get_attr":
            raise _NotTaken(f"'{node.name}' is a constant that torch keeps to itself")
        else:
            env[node] = new.node_copy(node, env.__getitem__)
    return fx.GraphModule(holder, new)


def _stand_in(weight: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    tensor = weight.detach()
    if not tensor.is_floating_point() or tensor.numel() != max(tensor.shape, default=1):
        return tensor
    values = random.uniform(0.5, 1.5, tuple(tensor.shape))
    return torch.from_numpy(values).to(tensor.dtype)


def _sizes(env: Mapping[fx.Node, fx.Node]) -> dict[str, tuple[fx.Node, int]]:
    """The input and the axis that each symbolic size is of."""
    found: dict[str, tuple[fx.Node, int]] = {}
    for new in env.values():
        for axis, size in enumerate(new.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                found.setdefault(str(size), (new, axis))
    return found


def _size(graph: fx.Graph, node: fx.Node, sizes: Mapping[str, tuple[fx.Node, int]]) -> fx.Node:
    """What computes a size that was an input itself."""
    value = node.meta["val"]
    if str(value) not in sizes:
        raise _NotTaken(f"the number '{node.name}' is no size of an input")
    call = graph.call_function(torch.ops.aten.sym_size.int, sizes[str(value)])
    call.meta["val"] = value
    return call


def _can_be_taken(model: Model, site: Site, weights: set[str]) -> bool:
    """Whether ``site`` is a norm over the last axis that depends on no weight beside its gamma and
    beta, and on these as they are."""
    graph = model.graph
    if site.kind not in ("layer_norm", "rms_norm"):
        return False
    if site.axes != ((graph.value(site.input).rank or 0) - 1,):
        return False
    if site.spelling == "op":
        return True
    read = [value for value in _constants(graph, site) if value.name in weights]
    parameters = [array for array in (site.weight, site.bias) if array is not None]
    return len(read) == len(parameters) and all(
        any(_is(graph, value, array) for value in read) for array in parameters
    )


def _constants(graph: Graph, site: Site) -> set[Value]:
    nodes = site_nodes(graph, site)
    return {v for node in nodes for v in node.inputs if v is not None and v.producer is None}


def _is(graph: Graph, value: Value, array: np.ndarray) -> bool:
    held = graph.constant(value)
    return held is not None and held.shape == array.shape and bool(np.array_equal(held, array))


def _taking_weights(module: fx.GraphModule, inputs: Sequence[_Input]) -> fx.GraphModule:
    """``module`` with the weights that it holds as inputs again."""
    new = fx.Graph()
    places = [new.placeholder(given.name) for given in inputs]
    names = {_HELD.format(index): place for index, place in enumerate(places)}
    by_name = {given.name: place for given, place in zip(inputs, places, strict=True)}
    env: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            env[node] = by_name[str(node.target)]
        elif node.op == "get_attr":
            env[node] = names[str(node.target)]
        else:
            env[node] = new.node_copy(node, env.__getitem__)
    return fx.GraphModule(torch.nn.Module(), new)
