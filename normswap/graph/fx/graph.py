"""The adapter for ``torch.fx`` graphs as ``torch.export`` captures them."""

from __future__ import annotations

import operator
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn

from normswap.errors import NormswapError
from normswap.graph.fx import aten
from normswap.graph.fx.half import Converter
from normswap.graph.fx.meta import (
    as_fake,
    call_arguments,
    fake_mode_of,
    is_tuple_call,
    module_scope,
    shape_and_dtype,
)
from normswap.graph.fx.module_tree import (
    BATCH_NORM_RANKS,
    BATCH_NORM_TENSORS,
    batch_norm_module,
    deepcopied,
    drop_unused,
    free_path,
    get_path,
    move_module,
    put_tensor,
    restore_batch_norms,
)
from normswap.graph.fx.runner import Handle, Number, fx_runner, outputs_of
from normswap.graph.graph import Array, Graph, Node, Runner, Value
from normswap.graph.operators import norm_operator
from normswap.graph.rounding import is_half
from normswap.graph.simulation import Simulation
from normswap.graph.tensors import numpy_dtype, to_numpy, to_torch

# What a new node takes over from the one that it replaces: what exporters read, and the notes of
# this project, which have this prefix.
_LENT = ("nn_module_stack", "stack_trace", "source_fn_stack")
NOTE = "normswap."


@dataclass
class _Attribute:
    """A constant that the module holds at the dotted path ``target``."""

    target: str


@dataclass
class _Literal:
    """A Python number in a call, which names it, or an array that no node reads yet."""

    array: Array
    number: Number | None = None


class FxGraph(Graph):
    """The view of a ``torch.fx.GraphModule`` in the ATen dialect, in evaluation mode.

    The module given is owned by the graph: edits change it. ``module.graph`` needs
    ``node.meta["val"]`` (torch.export fills it in).
    """

    kind = "fx"

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.module = module
        self._wanted_modules: dict[str, str] = {}
        for node in list(module.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                module.graph.erase_node(node)  # checks of the captured dtypes, not of values
        self._attributes: dict[str, Value] = {}
        self._node_names = {node.name for node in module.graph.nodes if node.op != "get_attr"}
        for node in module.graph.nodes:
            self._view(node)

    # -- building the view -----------------------------------------------------------------------

    def _view(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.inputs.append(self._dynamic(node))
        elif node.op == "get_attr":
            self._attribute(str(node.target))
        elif node.op == "output":
            self.outputs = [self._of(n) for n in outputs_of(self.module)]
        elif node.op == "call_module" and self._batch_norm(node) is not None:
            self._view_batch_norm(node)
        elif node.target is not operator.getitem or node.args[0].op in ("get_attr", "placeholder"):  # type: ignore[union-attr]
            self._view_call(node)

    def _view_call(self, node: fx.Node) -> None:
        arguments = call_arguments(node)
        reading = aten.read(node.target, arguments)
        slots = reading.slots if reading else ()
        op = reading.op if reading else str(node.target)
        inputs = [self._input(node, slot, arguments) for slot in slots]
        picked = [_pick(arguments, slot) for slot in slots]
        covered = {argument for argument in picked if isinstance(argument, fx.Node)}
        extra: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), extra.append)
        inputs += [self._of(n) for n in dict.fromkeys(extra) if n not in covered]
        attributes = dict(reading.attributes) if reading else {}
        if op == "Reshape" and (shape := arguments.get("size", arguments.get("shape"))) is not None:
            attributes["shape"] = tuple(s if isinstance(s, int) else None for s in shape)
        scope, nested = module_scope(node), self._nested(extra)
        view = Node(op, inputs, attributes, self._results(node), node, scope, nested)
        self._append(view, slots)

    def _nested(self, arguments: Sequence[fx.Node]) -> set[str]:
        """The operators in the submodules that a higher-order operator calls."""
        targets = [str(n.target) for n in arguments if n.op == "get_attr"]
        modules = [get_path(self.module, target) for target in targets]
        calls = [n for m in modules if isinstance(m, fx.GraphModule) for n in m.graph.nodes]
        readings = [aten.read(n.target, call_arguments(n)) for n in calls]
        return {r.op if r else str(n.target) for r, n in zip(readings, calls, strict=True)}

    def _view_batch_norm(self, node: fx.Node) -> None:
        target = str(node.target)
        module = cast(nn.modules.batchnorm._BatchNorm, self._batch_norm(node))
        constants = [
            self._attribute(f"{target}.{name}") if getattr(module, name) is not None else None
            for name in BATCH_NORM_TENSORS
        ]
        training = module.training or module.running_mean is None
        attributes = {"epsilon": float(module.eps), "training_mode": int(training)}
        inputs = [self._of(cast(fx.Node, node.args[0])), *constants]
        view = Node("BatchNormalization", inputs, attributes, self._results(node), node, target)
        self._append(view, (("input", None),))

    def _append(self, node: Node, slots: tuple[aten.Slot, ...]) -> None:
        node.raw = _Call(cast(fx.Node, node.raw), slots)
        node_constant = bool(node.inputs) and all(v is None or v.is_constant for v in node.inputs)
        for value in node.outputs:
            value.is_constant = node_constant and value.shape is not None
        self.nodes.append(node)

    def _results(self, node: fx.Node) -> list[Value]:
        if not isinstance(node.meta.get("val"), list | tuple) and not is_tuple_call(node):
            return [self._dynamic(node)]
        picked = {cast(int, user.args[1]): user for user in node.users}
        results = []
        for index in range(max(picked, default=0) + 1):
            getitem = picked.get(index)
            if getitem is None:
                results.append(Value(f"{node.name}.{index}", None))
            else:
                results.append(self._dynamic(getitem))
        return results

    def _dynamic(self, node: fx.Node) -> Value:
        value = Value(node.name, node, *shape_and_dtype(node))
        self._values[node.name] = value
        return value

    def _attribute(self, target: str) -> Value:
        """The value of an attribute: called by its path, unless a node goes by that name."""
        if target not in self._attributes:
            tensor = get_path(self.module, target)
            name = f"{target}.parameter" if target in self._node_names else target
            if isinstance(tensor, torch.Tensor):
                shape, dtype = tuple(tensor.shape), numpy_dtype(tensor.dtype)
                value = Value(name, _Attribute(target), shape, dtype, is_constant=True)
            else:  # a submodule that a higher-order operator calls
                value = Value(name, _Attribute(target))
            self._attributes[target] = self._values[name] = value
        return self._attributes[target]

    def _input(self, node: fx.Node, slot: aten.Slot, arguments: dict[str, Any]) -> Value | None:
        argument = _pick(arguments, slot)
        if isinstance(argument, fx.Node):
            return self._of(argument)
        if not isinstance(argument, int | float):
            return None
        array = np.asarray(argument)
        name = self._unique(f"{node.name}.{slot[0]}")
        raw = _Literal(array, Number(node, *slot))
        self._values[name] = Value(name, raw, (), array.dtype, is_constant=True)
        return self._values[name]

    def _of(self, node: fx.Node) -> Value:
        return (
            self._attributes[str(node.target)] if node.op == "get_attr" else self._values[node.name]
        )

    def _batch_norm(self, node: fx.Node) -> nn.modules.batchnorm._BatchNorm | None:
        module = get_path(self.module, str(node.target))
        return module if isinstance(module, nn.modules.batchnorm._BatchNorm) else None

    def call_of(self, node: Node) -> fx.Node:
        """The fx node behind a node of the view."""
        return cast(_Call, node.raw).node

    # -- reading and evaluating ------------------------------------------------------------------

    def slice(self, inputs: Sequence[Value], outputs: Sequence[Value], dtype: Any = None) -> Runner:
        if is_half(dtype):
            return Simulation(self, inputs, outputs, dtype)
        needed = self.ancestors(outputs, stop=inputs)
        known = set(inputs)
        for value in (v for n in needed for v in n.inputs if v is not None and v not in known):
            if value.producer is None and not value.is_constant and value in self.inputs:
                raise ValueError(f"the input '{value.name}' is needed and was not given")
        calls = [self.call_of(node) for node in needed]
        return fx_runner(
            self.module,
            calls,
            [self._handle(v) for v in inputs],
            [self._handle(v) for v in outputs],
            double=dtype is not None,
        )

    def signature(self, node: Node) -> Hashable | None:
        call = self.call_of(node)
        if call.op != "call_function":
            return None  # a module holds what it computes with
        numbers = {read: f"%{index}" for index, read in enumerate(call.all_input_nodes)}
        return str(call.target), repr(fx.map_arg((call.args, call.kwargs), numbers.__getitem__))

    def is_bare(self, node: Node) -> bool:
        call = self.call_of(node)
        given = [*call.args, *call.kwargs.values()]
        return call.op == "call_function" and all(isinstance(a, fx.Node) for a in given)

    def _handle(self, value: Value) -> Handle:
        """The fx node of a value, the path of an attribute, or the place of a number."""
        if isinstance(value.raw, _Attribute):
            return value.raw.target
        if isinstance(value.raw, _Literal):
            return cast(Number, value.raw.number)
        return cast(fx.Node, value.raw)

    def _read(self, value: Value) -> Array:
        if isinstance(value.raw, _Literal):
            return value.raw.array
        return to_numpy(get_path(self.module, cast(_Attribute, value.raw).target))

    def _compute_constant(self, value: Value) -> Array:
        return self.slice([], [value])([])[0]

    # -- editing ---------------------------------------------------------------------------------

    def replace_constant(self, value: Value, array: Array) -> None:
        if isinstance(value.raw, _Literal):
            raise ValueError(f"'{value.name}' is a literal of a call and cannot be replaced")
        target = cast(_Attribute, value.raw).target
        old = get_path(self.module, target)
        put_tensor(self.module, target, to_torch(array), isinstance(old, nn.Parameter))
        if not old.requires_grad:  # torch chooses its kernels by that, and so the rounding
            get_path(self.module, target).requires_grad_(False)
        self._replaced(value, array)

    def copy(self) -> FxGraph:
        module = fx.GraphModule(self.module, deepcopied(self.module.graph))
        module.eval()
        for node in module.graph.nodes:  # modules hold state, so they are not shared
            if node.op == "call_module":
                child = deepcopied(get_path(self.module, node.target))
                module.add_submodule(node.target, child)
        duplicate = FxGraph(module)
        duplicate._wanted_modules = dict(self._wanted_modules)
        self._carried_to(duplicate)
        return duplicate

    @property
    def has_fixed_sizes(self) -> bool:
        values = [cast(fx.Node, value.raw).meta.get("val") for value in self.inputs]
        return all(isinstance(v, torch.Tensor) and _is_fixed(v) for v in values)

    def require(self, op: str) -> None:
        if op not in aten.WRITTEN and op != norm_operator("batch_norm"):
            raise NormswapError(f"{op} is no operator of torch; export the model to ONNX first")

    def in_half(self, dtype: np.dtype[Any], wide: Collection[Node], keep_io: bool) -> FxGraph:
        module = self.copy().module
        names = {self.call_of(node).name for node in wide}
        Converter(module, names, to_torch(np.empty(0, dtype)).dtype, keep_io).run()
        drop_unused(module)
        return FxGraph(module)

    def to_module(self) -> fx.GraphModule:
        """A GraphModule with parameters of its own, in evaluation mode, ready to be trained."""
        self.module.graph.lint()
        module = self.copy().module  # the copy compiles the edited graph
        restore_batch_norms(module)
        module.recompile()
        module = deepcopied(module)
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return module

    def _store(self, array: Array, name: str) -> tuple[Any, str]:
        return _Literal(array), name

    def _place(self, value: Value) -> fx.Node:
        """The fx node that yields ``value``; a new constant becomes an attribute here."""
        if isinstance(value.raw, fx.Node):
            return value.raw
        if isinstance(value.raw, _Literal):
            target = free_path(self.module, value.name)
            frozen = not any(p.requires_grad for p in self.module.parameters())
            put_tensor(self.module, target, to_torch(value.raw.array), parameter=True)
            if frozen:  # as its others are: torch chooses its kernels by that
                get_path(self.module, target).requires_grad_(False)
            value.raw = _Attribute(target)
        target = cast(_Attribute, value.raw).target
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and node.target == target:
                return cast(fx.Node, node)
            if node.op != "get_attr":
                break  # attributes come first
        first = next(iter(self.module.graph.nodes))
        with self.module.graph.inserting_before(first):
            node = self.module.graph.get_attr(target)
        node.meta["val"] = as_fake(get_path(self.module, target), fake_mode_of(self.module))
        return node

    def _emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any],
        name: str,
        like: Node | None,
    ) -> tuple[Any, list[Value]]:
        if op == "BatchNormalization":
            node = self._emit_batch_norm(inputs, attributes, name)
            slots: tuple[aten.Slot, ...] = (("input", None),)
        elif op in aten.WRITTEN:
            placed = [self._place(v) if v is not None else None for v in inputs]
            target, args = aten.call_for(op, placed, inputs, attributes)
            with self.module.graph.inserting_after(_behind_inputs(max(n for n in placed if n))):
                node = self.module.graph.call_function(target, args)
            slots = aten.WRITTEN[op]
        else:
            raise ValueError(f"cannot write the operator {op} into an FX graph")
        node._rename(name.replace(".", "_"))
        self._describe(node, like)
        return _Call(node, slots), [self._dynamic(node)]

    def _emit_batch_norm(
        self, inputs: Sequence[Value | None], attributes: Mapping[str, Any], name: str
    ) -> fx.Node:
        """A trainable module, which the constants move into."""
        x = cast(Value, inputs[0])
        arrays = [self.constant(v) for v in inputs[1:] if v is not None]
        if len(arrays) != 4 or any(a is None for a in arrays) or x.rank not in BATCH_NORM_RANKS:
            raise ValueError(
                f"the BatchNormalization '{name}' needs four constants and rank 2 to 5"
            )
        tensors = {
            k: to_torch(np.array(a)) for k, a in zip(BATCH_NORM_TENSORS, arrays, strict=True)
        }
        module = batch_norm_module(x.rank, tensors, attributes["epsilon"])
        target = free_path(self.module, name)
        self._wanted_modules[target] = name
        self.module.add_submodule(target, module)
        for tensor_name, value in zip(BATCH_NORM_TENSORS, inputs[1:], strict=True):
            cast(Value, value).raw = _Attribute(f"{target}.{tensor_name}")
        operand = self._place(x)
        with self.module.graph.inserting_after(_behind_inputs(operand)):
            return self.module.graph.call_module(target, (operand,))

    def _describe(self, node: fx.Node, like: Node | None) -> None:
        """Fills in the metadata that torch.export and the exporters read."""
        if like is not None and isinstance(like.raw, _Call):
            lender = like.raw.node.meta
            for key in (*_LENT, *(key for key in lender if key.startswith(NOTE))):
                if key in lender:
                    node.meta[key] = lender[key]
        mode = fake_mode_of(self.module)
        values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in node.args]
        if node.op == "call_module":
            node.meta["val"] = torch.empty_like(cast(torch.Tensor, values[0]))
        elif mode is not None:
            with mode:
                node.meta["val"] = cast(Any, node.target)(*values, **node.kwargs)
        else:
            meta = [v.to("meta") if isinstance(v, torch.Tensor) else v for v in values]
            node.meta["val"] = cast(Any, node.target)(*meta, **node.kwargs)

    def _rewire(self, node: Node, index: int, value: Value) -> None:
        call = cast(_Call, node.raw)
        placed = self._place(value)
        if index >= len(call.slots):
            old = node.inputs[index]
            call.node.replace_input_with(self._place(cast(Value, old)), placed)
            return
        name, item = call.slots[index]
        if call.node.op == "call_module":
            call.node.args = (placed, *call.node.args[1:])
            return
        overload = cast(Any, call.node.target)
        if overload._overloadname == "Scalar" and name == "other":  # x + 1.0 becomes x + tensor
            overload = call.node.target = overload.overloadpacket.Tensor
        names = [a.name for a in overload._schema.arguments]
        position = names.index(name)
        argument: Any = placed
        if item is not None:
            argument = list(call_arguments(call.node)[name])
            argument[item] = placed
        if position < len(call.node.args):
            call.node.update_arg(position, argument)
        else:
            call.node.update_kwarg(name, argument)

    def _rewire_output(self, position: int, value: Value) -> None:
        output = next(n for n in reversed(self.module.graph.nodes) if n.op == "output")
        seen = iter(range(len(self.outputs)))
        placed = self._place(value)
        output.args = fx.map_arg(output.args, lambda n: placed if next(seen) == position else n)

    def _erase(self, nodes: Sequence[Node]) -> None:
        for node in reversed(nodes):
            raw = self.call_of(node)
            for user in list(raw.users):
                self.module.graph.erase_node(user)  # the getitems of a dead tuple
            self.module.graph.erase_node(raw)
        for raw in reversed(list(self.module.graph.nodes)):
            if raw.op == "get_attr" and not raw.users:
                self.module.graph.erase_node(raw)
        drop_unused(self.module)
        for target, wanted in list(self._wanted_modules.items()):
            if move_module(self.module, target, wanted):
                del self._wanted_modules[target]
                self._moved(target, wanted)

    def _moved(self, target: str, wanted: str) -> None:
        for value in list(self._values.values()):
            raw = value.raw
            if isinstance(raw, _Attribute) and raw.target.rpartition(".")[0] == target:
                del self._values[value.name]
                raw.target = f"{wanted}.{raw.target.rpartition('.')[2]}"
                value.name = raw.target
                self._values[value.name] = value
        for node in self.nodes:
            if self.call_of(node).target == wanted:
                node.scope = wanted


@dataclass
class _Call:
    """The fx node behind a view node, and which of its arguments the view's inputs are."""

    node: fx.Node
    slots: tuple[aten.Slot, ...]


def _is_fixed(tensor: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in tensor.shape)


def _behind_inputs(node: fx.Node) -> fx.Node:
    """``node``, or the last input where it is one: calls come after all inputs."""
    while node.next.op in ("placeholder", "get_attr"):
        node = node.next
    return node


def _pick(arguments: dict[str, Any], slot: aten.Slot) -> Any:
    name, item = slot
    value = arguments.get(name)
    return value if item is None else cast(Sequence[Any], value)[item]
