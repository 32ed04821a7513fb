"""Checks the program of a .pt2 before torch turns it into objects and source.

Torch resolves operator names by ``getattr`` from the torch module ("torch.os.system" works),
evaluates size expressions and puts names into generated code. Here every string of the program
has a rule by the field that it stands in, and one without a rule must be an identifier.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._export.serde import schema
from torch._export.serde.union import _Union

from normswap.io.pt2.expr import check_expression, check_guard
from normswap.io.pt2.names import (
    Unsafe,
    check_name,
    check_path,
    check_plain,
    check_symbol,
    check_tree,
    shown,
)

Rule = Callable[[object], None]

_ARITHMETIC = """
    getitem add mul sub truediv floordiv mod pow neg pos abs lshift rshift
    ge le gt lt eq ne and_ or_ not_
"""
_PYTHON_OPERATORS = frozenset(_ARITHMETIC.split())
_SYMBOLIC = ("int", "float", "ite", "max", "min", "not", "sqrt", "sum")
_TORCH_FUNCTIONS = frozenset(f"torch.sym_{name}" for name in _SYMBOLIC)
_MATH_FUNCTIONS = frozenset({"math.ceil", "math.floor", "math.trunc"})
_HIGHER_ORDER = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast", "cond"})
# Operators without a tensor that shapes need; aten also has string and file functions.
_SCALAR_OPERATORS = frozenset(
    {"aten::_assert_scalar", "aten::sym_constrain_range", "aten::sym_constrain_range_for_size"}
)
_FILE_OPERATORS = frozenset({"aten::from_file"})
_NAMESPACES = frozenset({"aten", "prims", "normswap"})
# What normswap reads of a node's metadata; the rest torch resolves by getattr, or ignores.
_METADATA = frozenset({"nn_module_stack", "torch_fn", "stack_trace"})


def check_operator(target: object) -> None:
    """A call's target: an operator of aten, prims or normswap, or arithmetic on sizes."""
    text = target if isinstance(target, str) else ""
    module, _, name = text.rpartition(".")
    if module == "_operator" and name in _PYTHON_OPERATORS:
        return
    if text in _TORCH_FUNCTIONS | _MATH_FUNCTIONS:
        return
    if module == "torch.ops.higher_order" and name in _HIGHER_ORDER:
        return
    match = re.fullmatch(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", text)
    if match is None or match[1] not in _NAMESPACES:
        raise Unsafe(f"the operator {shown(target)}")
    if not _is_tensor_operator(*match.groups()):
        raise Unsafe(f"the operator {shown(target)}")


def check_calls(module: torch.fx.GraphModule) -> None:
    """The same once more on the loaded graph, before anything runs it."""
    for graph in (m.graph for m in module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in graph.nodes:
            if node.op == "call_function":
                check_operator(_target_name(node.target))
            elif node.op not in ("placeholder", "get_attr", "output"):
                raise Unsafe(f"the call {shown(node.target)}")


def check_program(program: schema.ExportedProgram) -> None:
    """Raises Unsafe unless every string in ``program`` is harmless; drops what is not needed."""
    program.graph_module.metadata = {}
    program.graph_module.treespec_namedtuple_fields = {}
    for dialect in program.verifiers:
        if dialect not in ("TRAINING", "ATEN", ""):
            raise Unsafe(f"the dialect {shown(dialect)}")
    _walk(program)


def _check_text(text: object) -> None:
    """A string argument of an operator: torch writes its repr."""
    if not isinstance(text, str) or len(text) > 100_000:
        raise Unsafe(f"the string {shown(text)}")


def _check_size_name(name: object) -> None:
    """A size that has a range: a symbol, or an expression such as 2*s26."""
    if isinstance(name, str) and name.isidentifier():
        check_symbol(name)
    else:
        check_expression(name)


def _check_optional(name: object) -> None:
    if name not in (None, ""):
        check_name(name)


_FIELDS: dict[tuple[str, str], Rule] = {
    ("SymExpr", "expr_str"): check_expression,
    ("Node", "target"): check_operator,
    ("Node", "name"): _check_optional,
    ("Node", "metadata"): _check_text,
    ("Argument", "as_operator"): check_operator,
    ("Argument", "as_string"): _check_text,
    ("Argument", "as_strings"): _check_text,
    ("NamedArgument", "name"): _check_optional,
    ("ConstantValue", "as_string"): check_plain,
    ("InputToParameterSpec", "parameter_name"): check_path,
    ("InputToBufferSpec", "buffer_name"): check_path,
    ("InputToTensorConstantSpec", "tensor_constant_name"): check_path,
    ("BufferMutationSpec", "buffer_name"): check_path,
    ("ParameterMutationSpec", "parameter_name"): check_path,
    ("GradientToParameterSpec", "parameter_name"): check_path,
    ("ModuleCallEntry", "fqn"): check_path,
    ("ModuleCallSignature", "in_spec"): check_tree,
    ("ModuleCallSignature", "out_spec"): check_tree,
    ("ExportedProgram", "guards_code"): check_guard,
    ("ExportedProgram", "torch_version"): check_plain,
    ("ExportedProgram", "verifiers"): _check_text,
    ("ExportedProgram", "range_constraints"): _check_size_name,
}


def _walk(item: Any) -> None:
    if isinstance(item, schema.CustomObjArgument):
        raise Unsafe("a custom object")
    if isinstance(item, schema.Node):
        item.metadata = {k: v for k, v in item.metadata.items() if k in _METADATA}
    if isinstance(item, schema.Graph):
        for argument in item.inputs:
            if argument.type == "as_string":
                check_plain(argument.value)
    kind = type(item).__name__
    for name, value in _fields(item):
        rule = _FIELDS.get((kind, name), check_name)
        # The keys of a node's metadata are the few kept above.
        keys = _check_text if (kind, name) == ("Node", "metadata") else rule
        _check_value(value, rule, keys)


def _fields(item: Any) -> list[tuple[str, Any]]:
    if isinstance(item, _Union):
        return [(str(item.type), item.value)]
    return [(field.name, getattr(item, field.name)) for field in dataclasses.fields(item)]


def _check_value(value: Any, rule: Rule, keys: Rule) -> None:
    if isinstance(value, str):
        rule(value)
    elif isinstance(value, bool | float) or value is None:
        return
    elif isinstance(value, int):
        if abs(value) >= 1 << 64:
            raise Unsafe("a number of more than 64 bits")
    elif isinstance(value, list | tuple):
        for element in value:
            _check_value(element, rule, keys)
    elif isinstance(value, dict):
        for key, element in value.items():
            keys(key)
            _check_value(element, rule, keys)
    elif dataclasses.is_dataclass(value):
        _walk(value)
    else:
        raise Unsafe(f"a value of type {type(value).__name__}")


def _is_tensor_operator(namespace: str, name: str, overload: str) -> bool:
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    if overload not in packet.overloads():
        return False
    qualified = f"{namespace}::{name}"
    if qualified in _FILE_OPERATORS:
        return False
    declared = getattr(packet, overload)._schema
    types = [str(entry.type) for entry in (*declared.arguments, *declared.returns)]
    return qualified in _SCALAR_OPERATORS or any("Tensor" in entry for entry in types)


def _target_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"torch.ops.higher_order.{target.__name__}"
    module = str(getattr(target, "__module__", ""))
    prefix = "torch" if module.startswith("torch") else module
    return f"{prefix}.{getattr(target, '__name__', '')}"
