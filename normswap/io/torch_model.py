"""Models of torch modules and programs, and programs and ONNX models of such models again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from normswap.errors import NormswapError, first_line, plain, root_cause
from normswap.graph.fx.graph import FxGraph
from normswap.graph.fx.memory import hidden_writes
from normswap.graph.fx.module_tree import restore_batch_norms
from normswap.graph.tensors import numpy_dtype, to_numpy, to_torch
from normswap.io.calls import capturable, distinct
from normswap.io.capture import capture, module_source
from normswap.io.onnx import remove_softmax_guards
from normswap.io.preprocessing import Preprocessing, Unsupported
from normswap.io.sources import Source
from normswap.io.sources.huggingface import huggingface_source
from normswap.io.sources.open_clip import open_clip_source
from normswap.io.sources.timm import timm_source
from normswap.lowering.torch_kernels import KERNELS_IN_PLACE, restore_norms
from normswap.model import InputSpec, Model

_OPSET = 20  # Gelu is one operator from here on, LayerNormalization since 17

# Regions of a forward under autocast or no_grad, which torch.export keeps as nested modules.
_REGIONS = (
    torch.ops.higher_order.wrap_with_autocast,
    torch.ops.higher_order.wrap_with_set_grad_enabled,
)


def model_from_torch(
    source: object,
    example_inputs: Any,
    dynamic_axes: dict[str, dict[int, str]] | None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """The model of a module or an ExportedProgram; see ``load``.

    Raises NormswapError for anything else.
    """
    if isinstance(source, ExportedProgram):
        return model_from_program(source, "program")
    if not isinstance(source, nn.Module):
        kind = type(source).__name__
        raise NormswapError(
            f"load: '{kind}' is no model; give a path, a module, a program or an onnx_ir.Model"
        )
    if isinstance(source, torch.jit.ScriptModule):
        raise NormswapError(
            "load: a scripted or traced module cannot be captured; give the module that it was "
            "made of, or export it to ONNX"
        )
    if example_inputs is None and not example_kwargs:
        raise NormswapError("load: a module needs example_inputs, a tuple or dict of tensors")
    given = () if example_inputs is None else example_inputs
    return model_from_source(module_source(source, given, dynamic_axes, example_kwargs))


_ARCHITECTURES: Final = {"timm": timm_source, "open_clip": open_clip_source}


def named_source(text: str) -> Source:
    """The source that ``hf:ID``, ``timm:NAME``, ``open_clip:NAME`` or a folder's path names."""
    kind, _, name = text.partition(":")
    return _ARCHITECTURES[kind](name) if kind in _ARCHITECTURES else huggingface_source(text)


def source_of_weights(path: Path, arch: str) -> Source:
    """The source of a file of weights and the architecture that they are for.

    Raises NormswapError for an ``arch`` that is neither ``timm:NAME`` nor ``open_clip:NAME``.
    """
    kind, _, name = arch.partition(":")
    if kind not in _ARCHITECTURES or "?checkpoint=" in name or "&checkpoint=" in name:
        raise NormswapError(
            f"{path}: its architecture cannot be '{plain(arch)}'; name timm:NAME or open_clip:NAME"
        )
    return _ARCHITECTURES[kind](name, checkpoint=path)


def model_from_source(source: Source) -> Model:
    """The model that capturing ``source`` gives."""
    with capturable(source) as (simple, names):
        program = capture(simple)
    model = model_from_program(
        program, source.name, source.output_names or names, source.preprocessing
    )
    inputs = _with_names(model.inputs, source.dynamic_axes)
    return replace(model, inputs=inputs, classes=source.classes)


def model_from_program(
    program: ExportedProgram,
    name: str,
    output_names: Sequence[str] = (),
    preprocessing: Preprocessing | Unsupported | None = None,
    path: Path | None = None,
) -> Model:
    """The model of a captured program; weights are shared with it until they are replaced.

    ``output_names``: the program's own by default. Raises NormswapError for a program with inputs
    or outputs that are not tensors.
    """
    regions = any(node.target in _REGIONS for node in program.graph.nodes)
    if regions or hidden_writes(program.graph, KERNELS_IN_PLACE):
        # Inlines them, with autocast's casts as nodes, and gives what was written as new values.
        program = program.run_decompositions({})
    try:
        unlifted = program.module(check_guards=False)
    except Exception as error:  # a parameter called like a method of modules, or what a file holds
        reason = plain(first_line(error))
        raise NormswapError(
            f"{path or name}: torch cannot make a module of the program ({reason})"
        ) from error
    model = model_from_module(fx.GraphModule(unlifted, unlifted.graph), name)
    own = [spec.arg.name for spec in _tensor_outputs(program)]
    names = list(output_names) or distinct(own, {spec.name for spec in model.inputs})
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
    module.graph.eliminate_dead_code()  # what nothing reads: torch.export keeps it
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            raise NormswapError(f"{name}: its input '{node.name}' is not a tensor of known shape")
    restore_norms(module)
    restore_batch_norms(module)
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
    args, kwargs, shapes = _export_arguments(model, module)
    with torch.no_grad():
        program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    _name_outputs(program, model.output_names)
    return program


def onnx_from_torch(model: Model) -> ir.Model:
    """The torch model as ``onnx_ir.Model``, by torch's (dynamo) exporter at opset 20, without the
    guards that it puts behind a softmax where no row can need them.

    Raises NormswapError where the exporter cannot translate it, or for a model that is ONNX.
    """
    module = model.to_torch()
    args, kwargs, shapes = _export_arguments(model, module)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs,
                input_names=[spec.name for spec in model.inputs],
                output_names=list(model.output_names),
                dynamic_shapes=shapes,
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = plain(first_line(root_cause(error)))
        raise NormswapError(f"{model.name}: torch's ONNX exporter fails: {reason}") from error
    assert program is not None
    _name_dimensions(program.model, model)
    remove_softmax_guards(program.model)
    return program.model


def _export_arguments(
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
    shapes, named_shapes = pytree.tree_unflatten(sizes, structure)
    if kwargs:
        names = [spec.name for spec in model.inputs][: len(args)]
        return args, kwargs, dict(zip(names, shapes, strict=False)) | named_shapes
    return args, kwargs, shapes


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


def _with_names(
    inputs: Sequence[InputSpec], axes: Mapping[str, Mapping[int, str]]
) -> tuple[InputSpec, ...]:
    """The inputs with the names that their dynamic axes were asked to have; a size that was asked
    to have several keeps its own."""
    asked: dict[str, set[str]] = {}
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and axis in axes.get(spec.name, {}):
                asked.setdefault(size, set()).add(axes[spec.name][axis])
    new = {size: min(names) for size, names in asked.items() if len(names) == 1}
    return tuple(
        replace(s, shape=tuple(new.get(n, n) if isinstance(n, str) else n for n in s.shape))
        for s in inputs
    )


def _given_examples(program: ExportedProgram, model: Model) -> dict[str, np.ndarray]:
    """The inputs that the program was captured with, if it holds them."""
    given = pytree.tree_leaves(program.example_inputs or ())
    if len(given) != len(model.inputs) or not all(isinstance(t, torch.Tensor) for t in given):
        return {}
    return {s.name: to_numpy(t) for s, t in zip(model.inputs, given, strict=True)}


def _tensor_outputs(program: ExportedProgram) -> list[Any]:
    """The specs of the outputs without those that are a constant, such as None."""
    specs = program.graph_signature.output_specs
    return [spec for spec in specs if not isinstance(spec.arg, ConstantArgument)]


def _name_outputs(program: ExportedProgram, names: Iterable[str]) -> None:
    """Renames the nodes behind the outputs, where that makes no clash."""
    output = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    flat: list[fx.Node] = []
    fx.map_arg(output.args, flat.append)
    taken = {node.name for node in program.graph.nodes}
    wanted = list(names)
    specs = _tensor_outputs(program)
    if len({n.name for n in flat}) != len(wanted) or len(specs) != len(wanted):
        return
    for node, spec, name in zip(flat, specs, wanted, strict=True):
        if name.isidentifier() and name not in taken and node.op != "placeholder":
            node.name = name
            spec.arg.name = name


def _name_dimensions(exported: ir.Model, model: Model) -> None:
    """Gives the exporter's symbols (s77) the names that the model's dynamic sizes have."""
    names: dict[object, str] = {}
    for value, spec in zip(exported.graph.inputs, model.inputs, strict=True):
        for dim, size in zip(value.shape or (), spec.shape, strict=False):
            if isinstance(dim, ir.SymbolicDim) and isinstance(size, str):
                names[dim.value] = size
    values = [*exported.graph.inputs, *(v for n in exported.graph for v in n.outputs)]
    for value in values:
        if value.shape is not None:
            dims = [
                names.get(d.value, d) if isinstance(d, ir.SymbolicDim) else d for d in value.shape
            ]
            value.shape = ir.Shape(dims)
