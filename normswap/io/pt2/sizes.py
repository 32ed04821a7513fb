"""The operators of a .pt2 that trust the sizes of their parameters.

Where a program was decomposed, a BatchNorm is one of these. What its file says of sizes may be
wrong, so they are derived again: the program runs on tensors that have sizes and no elements.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from normswap.errors import quiet
from normswap.io.pt2.operators import TRUSTS_SIZES

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


class WrongSize(Exception):
    """``args[0]``: the operator."""


def check_sizes(program: torch.export.ExportedProgram) -> None:
    """Raises WrongSize if an operator would read beyond its parameters; any other exception where
    the program cannot be run."""
    modules = (m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    nodes = itertools.chain.from_iterable(module.graph.nodes for module in modules)
    if not any(_trusts_sizes(node.target) for node in nodes):
        return
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    held |= signature.inputs_to_lifted_tensor_constants
    tensors = {**program.state_dict, **program.constants}
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in inputs]
    mode = next(v.fake_mode for v in values if isinstance(v, FakeTensor))
    for index, node in enumerate(inputs):
        if node.name in held:
            values[index] = mode.from_tensor(tensors[held[node.name]], static_shapes=True)
    with quiet("torch"), torch.no_grad(), mode, _Checked():
        torch.fx.Interpreter(program.graph_module).run(*values)


class _Checked(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if _trusts_sizes(func):
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            channels = given["input"].shape[1]
            present = [given[name] for name in _PER_CHANNEL if given.get(name) is not None]
            fits = all(list(tensor.shape) == [channels] for tensor in present)
            trains = given.get("training", False)
            known = given.get("running_mean") is not None and given.get("running_var") is not None
            if not fits or not (trains or known):
                raise WrongSize(str(func))
        return func(*args, **(kwargs or {}))


def _trusts_sizes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.name in TRUSTS_SIZES
