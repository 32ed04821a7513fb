"""A torch graph in half precision: tensors, dtypes among arguments, and casts where dtypes meet."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher

from normswap.graph.fx.meta import as_fake, fake_mode_of
from normswap.graph.fx.module_tree import free_path, get_path, put_tensor
from normswap.graph.rounding import as_half
from normswap.graph.tensors import numpy_dtype, to_numpy, to_torch

_LENT = ("nn_module_stack", "stack_trace", "source_fn_stack")


class Converter:
    """Brings ``module`` into the dtype ``half``, in place.

    ``wide``: the names of the nodes that go on computing as they do; what they read and yield is
    cast. ``keep_io``: inputs and outputs keep their dtypes. Modules that the graph calls belong to
    it.
    """

    def __init__(
        self, module: fx.GraphModule, wide: Collection[str], half: torch.dtype, keep_io: bool
    ) -> None:
        self._module, self._wide, self._half, self._keep_io = module, set(wide), half, keep_io
        self._mode = fake_mode_of(module)
        self._before = {node: _dtype_of(node) for node in module.graph.nodes}
        self._made: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def run(self) -> None:
        for node in list(self._module.graph.nodes):
            if node.op == "placeholder":
                self._place_input(node)
            elif node.op == "get_attr":
                self._narrow_tensor(node)
            elif node.op == "output":
                self._cast_outputs(node)
            else:
                self._convert_call(node)

    def _place_input(self, node: fx.Node) -> None:
        if not self._keep_io and self._before[node] is not None:
            node.meta["val"] = self._faked(lambda value: value.to(self._half), node.meta["val"])

    def _narrow_tensor(self, node: fx.Node) -> None:
        """A parameter or a buffer, in place unless nodes in float32 read it too."""
        if self._before[node] is None:
            return
        target = str(node.target)
        users = {user for n in self._same_attribute(node) for user in n.users}
        if not users or any(user.name in self._wide or user.op == "output" for user in users):
            return  # its readers in half precision get one of their own
        tensor = get_path(self._module, target)
        if tensor.dtype != self._half:
            self._put(target, tensor)
        node.meta["val"] = as_fake(get_path(self._module, target), self._mode)

    def _same_attribute(self, node: fx.Node) -> list[fx.Node]:
        nodes = self._module.graph.nodes
        return [n for n in nodes if n.op == "get_attr" and n.target == node.target]

    def _put(self, path: str, tensor: torch.Tensor) -> None:
        """The tensor in half precision, a parameter if it is one, frozen if it is."""
        half = to_torch(as_half(to_numpy(tensor), numpy_dtype(self._half)))
        put_tensor(self._module, path, half, isinstance(tensor, nn.Parameter))
        get_path(self._module, path).requires_grad_(tensor.requires_grad)

    def _convert_call(self, node: fx.Node) -> None:
        narrow = node.name not in self._wide

        def wanted(argument: fx.Node) -> fx.Node:
            before = self._before.get(argument)
            if before is None:
                return argument
            return self._as(argument, self._half if narrow else before, node)

        node.args = fx.map_arg(node.args, wanted)
        node.kwargs = fx.map_arg(node.kwargs, wanted)
        if narrow:
            node.args, node.kwargs = self._retyped(node.args), self._retyped(node.kwargs)
        if node.op == "call_module":
            if narrow:
                get_path(self._module, str(node.target)).to(self._half)
            dtype = self._half if narrow else self._before[node]
            node.meta["val"] = self._faked(lambda value: value.to(dtype), node.meta["val"])
            return
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            values = fx.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
            node.meta["val"] = self._faked(node.target, *values[0], **values[1])

    def _faked(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        if self._mode is None:
            return function(*args, **kwargs)
        # As torch.export does: some operators know symbolic sizes by their decompositions alone.
        with self._mode, enable_python_dispatcher():
            return function(*args, **kwargs)

    def _retyped(self, value: Any) -> Any:
        """Arguments with their floating dtypes, and numbers that stand for infinity, changed."""
        if isinstance(value, torch.dtype):
            return self._half if value.is_floating_point else value
        if isinstance(value, float):
            most = torch.finfo(self._half).max
            finite = value not in (float("inf"), float("-inf")) and value == value
            return min(max(value, -most), most) if finite else value
        if isinstance(value, list | tuple):
            return type(value)(self._retyped(v) for v in value)
        if isinstance(value, dict):
            return {key: self._retyped(v) for key, v in value.items()}
        return value

    def _as(self, argument: fx.Node, dtype: torch.dtype, reader: fx.Node) -> fx.Node:
        """``argument`` in ``dtype``: by a cast, or, of a tensor that the module holds, as another
        one."""
        now = _dtype_of(argument)
        if now is None or now == dtype:
            return argument
        if (argument, dtype) not in self._made:
            if argument.op == "get_attr" and dtype == self._half:
                made = self._second_tensor(argument)
            else:
                made = self._cast(argument, dtype, reader)
            self._made[argument, dtype] = made
        return self._made[argument, dtype]

    def _second_tensor(self, argument: fx.Node) -> fx.Node:
        tensor = get_path(self._module, str(argument.target))
        name = str(self._half).removeprefix("torch.")
        path = free_path(self._module, f"{argument.target}_{name}")
        self._put(path, tensor)
        with self._module.graph.inserting_after(argument):
            made = self._module.graph.get_attr(path)
        made.meta["val"] = as_fake(get_path(self._module, path), self._mode)
        return made

    def _cast(self, argument: fx.Node, dtype: torch.dtype, reader: fx.Node) -> fx.Node:
        behind = argument
        while behind.next.op in ("placeholder", "get_attr"):
            behind = behind.next  # calls come after all inputs
        with self._module.graph.inserting_after(behind):
            made = self._module.graph.call_function(torch.ops.aten.to.dtype, (argument, dtype))
        lender = reader if argument.op in ("placeholder", "get_attr") else argument
        made.meta.update({key: lender.meta[key] for key in _LENT if key in lender.meta})
        made.meta["val"] = self._faked(lambda value: value.to(dtype), argument.meta["val"])
        return made

    def _cast_outputs(self, node: fx.Node) -> None:
        def wanted(argument: fx.Node) -> fx.Node:
            before = self._before.get(argument)
            if before is None:
                return argument
            return self._as(argument, before if self._keep_io else self._half, node)

        node.args = fx.map_arg(node.args, wanted)


def _dtype_of(node: fx.Node) -> torch.dtype | None:
    """The floating dtype of what a node yields."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.dtype
    return None
