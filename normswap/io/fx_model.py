"""A ``Model`` from a captured torch program, and a program again from such a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from normswap.errors import NormswapError
from normswap.graph.fx.graph import FxGraph
from normswap.graph.fx.memory import hidden_writes
from normswap.graph.tensors import numpy_dtype, to_numpy, to_torch
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.lowering.torch_kernels import KERNELS_IN_PLACE, restore_norms
from normswap.model import InputSpec, Model

# Regions of a forward under autocast or no_grad, which torch.export keeps as nested modules.
_REGIONS = (
    torch.ops.higher_order.wrap_with_autocast,
    torch.ops.higher_order.wrap_with_set_grad_enabled,
)


def model_from_program(
    program: ExportedProgram,
    name: str,
    output_names: Sequence[str] = (),
    preprocessing: Preprocessing | Unsupported | None = None,
    path: Path | None = None,
) -> Model:
    """The model of a captured program; weights are shared with it until they are replaced.

    ``output_names`` default to the program's own. Raises NormswapError for a program with inputs
    or outputs that are not tensors.
    """
    regions = any(node.target in _REGIONS for node in program.graph.nodes)
    if regions or hidden_writes(program.graph, KERNELS_IN_PLACE):
        # Inlines them, with autocast's casts as nodes, and gives what was written as new values.
        program = program.run_decompositions({})
    unlifted = program.module(check_guards=False)
    model = model_from_module(fx.GraphModule(unlifted, unlifted.graph), name)
    names = list(output_names) or _program_outputs(program)
    if len(names) != len(model.output_names):
        raise NormswapError(f"{name}: {len(names)} names for {len(model.output_names)} outputs")
    return replace(
        model,
        output_names=tuple(names),
        examples=_given_examples(program, model) or model.examples,
        preprocessing=preprocessing,
        path=path,
    )


def model_from_module(module: fx.GraphModule, name: str) -> Model:
    """The model of a captured ``torch.fx.GraphModule``, which it owns from then on.

    Its nodes need ``meta["val"]``, as torch.export leaves it. Example inputs are zeros. Raises
    NormswapError for inputs or outputs that are not tensors, and for writes in place that show
    elsewhere than in their result.
    """
    module.eval()
    for write in hidden_writes(module.graph, KERNELS_IN_PLACE):
        raise NormswapError(
            f"{name}: '{write.name}' ({write.target}) writes into a tensor that is read elsewhere; "
            f"capture it with torch.export.export(...).run_decompositions({{}})"
        )
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            raise NormswapError(f"{name}: its input '{node.name}' is not a tensor of known shape")
    restore_norms(module)
    graph = FxGraph(module)
    if any(value.shape is None for value in graph.outputs):
        raise NormswapError(f"{name}: an output is not a tensor of known rank")
    return Model(
        graph=graph,
        name=name,
        inputs=_specs([n.name for n in placeholders], [n.meta["val"] for n in placeholders]),
        output_names=tuple(value.name for value in graph.outputs),
        examples={v.name: np.zeros(cast(tuple[int, ...], v.shape), v.dtype) for v in graph.inputs},
    )


def program_from_model(model: Model, module: fx.GraphModule) -> ExportedProgram:
    """``module``, which is ``to_torch()`` or ``to_inference()`` of the model, captured again in
    evaluation mode with the same dynamic sizes.

    Output nodes carry the model's output names, parameters their paths.
    """
    args, kwargs, shapes = export_arguments(model, module)
    with torch.no_grad():
        program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    _name_outputs(program, model.output_names)
    return program


def export_arguments(
    model: Model, module: fx.GraphModule
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """What torch.export and torch.onnx.export take beside the ``module`` of a model: args, kwargs
    and dynamic shapes."""
    flat = [to_torch(np.array(model.examples[spec.name])) for spec in model.inputs]
    sizes = [
        {axis: Dim.DYNAMIC for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in model.inputs
    ]
    structure = module._in_spec
    args, kwargs = pytree.tree_unflatten(flat, structure)
    dynamic_args, dynamic_kwargs = pytree.tree_unflatten([_Sizes(s) for s in sizes], structure)
    shapes = pytree.tree_map_only(_Sizes, lambda s: s.sizes, (dynamic_args, dynamic_kwargs))
    if kwargs:
        names = [spec.name for spec in model.inputs][: len(args)]
        return args, kwargs, dict(zip(names, shapes[0], strict=False)) | shapes[1]
    return args, kwargs, shapes[0]


class _Sizes:
    """Dynamic sizes of one input, opaque to pytree."""

    def __init__(self, sizes: dict[int, Any]) -> None:
        self.sizes = sizes


def _specs(names: Sequence[str], values: Sequence[Any]) -> tuple[InputSpec, ...]:
    batches = {str(v.shape[0]) for v in values if v.dim() and not is_concrete_int(v.shape[0])}
    known: dict[str, str] = {}
    specs = []
    for name, value in zip(names, values, strict=True):
        for axis, size in enumerate(value.shape):
            if is_concrete_int(size) or str(size) in known:
                continue
            if axis == 0:
                known[str(size)] = "batch" if len(batches) == 1 else f"{name}_batch"
            else:
                known[str(size)] = f"{name}_{axis}"
        shape = tuple(int(s) if is_concrete_int(s) else known[str(s)] for s in value.shape)
        specs.append(InputSpec(name, shape, numpy_dtype(value.dtype)))
    return tuple(specs)


def _given_examples(program: ExportedProgram, model: Model) -> dict[str, np.ndarray]:
    """The inputs that the program was captured with, if it holds them."""
    given = pytree.tree_leaves(program.example_inputs or ())
    if len(given) != len(model.inputs) or not all(isinstance(t, torch.Tensor) for t in given):
        return {}
    return {s.name: to_numpy(t) for s, t in zip(model.inputs, given, strict=True)}


def _program_outputs(program: ExportedProgram) -> list[str]:
    return [str(name) for name in program.graph_signature.user_outputs]


def _name_outputs(program: ExportedProgram, names: Iterable[str]) -> None:
    """Renames the nodes behind the outputs, where that makes no clash."""
    output = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    flat: list[fx.Node] = []
    fx.map_arg(output.args, flat.append)
    taken = {node.name for node in program.graph.nodes}
    wanted = list(names)
    specs = program.graph_signature.output_specs
    if len({n.name for n in flat}) != len(wanted) or len(specs) != len(wanted):
        return
    for node, spec, name in zip(flat, specs, wanted, strict=True):
        if name.isidentifier() and name not in taken and hasattr(spec.arg, "name"):
            node.name = name
            spec.arg.name = name
