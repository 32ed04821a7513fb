"""Checks the program of a .pt2 before torch turns it into objects and source.

Torch resolves operator names by ``getattr`` from the torch module ("torch.os.system" works),
evaluates size expressions (``sympy.sympify`` is an eval), imports the modules that container specs
name, and writes the names of nodes, inputs and parameters into generated source. Here every string
of the program has a rule, by the field that it is in; one without a rule must be an identifier.
The rules list what torch itself writes; anything else raises Unsafe.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import keyword
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._export.serde import schema
from torch._export.serde.union import _Union

from normswap.io.pt2.operators import is_allowed

Rule = Callable[[object], None]


class Unsafe(Exception):
    """``args[0]`` names what a .pt2 holds that could run code, in a few words."""


# -- the program ---------------------------------------------------------------------------------

# What normswap reads of a node's metadata; the rest torch resolves by getattr, or ignores.
_METADATA = frozenset({"nn_module_stack", "torch_fn", "stack_trace"})


def check_program(program: schema.ExportedProgram) -> None:
    """Raises Unsafe unless every string in ``program`` is harmless; drops what is not needed."""
    program.graph_module.metadata = {}
    program.graph_module.treespec_namedtuple_fields = {}
    for dialect in program.verifiers:
        if dialect not in ("TRAINING", "ATEN", ""):
            raise Unsafe(f"the dialect {shown(dialect)}")
    _check_record(program)


def check_calls(module: torch.fx.GraphModule) -> None:
    """Checks the operators again, in the loaded graph, before anything runs it."""
    for graph in (m.graph for m in module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in graph.nodes:
            if node.op == "call_function":
                check_operator(_target_name(node.target))
            elif node.op not in ("placeholder", "get_attr", "output"):
                raise Unsafe(f"the call {shown(node.target)}")


def shown(value: object) -> str:
    """``value`` on one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_record(item: Any) -> None:
    if isinstance(item, schema.CustomObjArgument):
        raise Unsafe("a custom object")
    if isinstance(item, schema.Node):
        item.metadata = {k: v for k, v in item.metadata.items() if k in _METADATA}
    if isinstance(item, schema.Graph):
        for argument in item.inputs:
            if argument.type == "as_string":
                _check_plain(argument.value)
    kind = type(item).__name__
    if isinstance(item, _Union):
        values = {str(item.type): item.value}
    else:
        values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    for name, value in values.items():
        rule = _FIELDS.get((kind, name), _check_name)
        # The keys of a node's metadata are the few kept above.
        keys = _check_text if (kind, name) == ("Node", "metadata") else rule
        _check_value(value, rule, keys)


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
        _check_record(value)
    else:
        raise Unsafe(f"a value of type {type(value).__name__}")


# -- names ---------------------------------------------------------------------------------------


def _check_name(name: object) -> None:
    """A node or an input: an identifier in generated source."""
    plain = isinstance(name, str) and len(name) <= 1000 and name.isidentifier()
    if not plain or keyword.iskeyword(str(name)) or str(name).startswith("__"):
        raise Unsafe(f"the name {shown(name)}")


def _check_optional(name: object) -> None:
    if name not in (None, ""):
        _check_name(name)


def _check_symbol(name: object) -> None:
    """The name of a size, such as s77. Torch counts up to its number, so that must be small."""
    _check_name(name)
    if len(re.sub(r"\D", "", str(name))) > 6:
        raise Unsafe(f"the name {shown(name)}")


def check_path(path: object) -> None:
    """A parameter's or module's dotted path: quoted in generated source."""
    plain = isinstance(path, str) and re.fullmatch(r"[\w.\-:/@ ]{0,1000}", path)
    if not plain or any(part.startswith("__") for part in str(path).split(".")):
        raise Unsafe(f"the name {shown(path)}")


def _check_plain(text: object) -> None:
    """A string input: quoted in the guards that torch generates."""
    if not isinstance(text, str) or not re.fullmatch(r"[\w .,:;/+*<>=@()\-]{0,1000}", text):
        raise Unsafe(f"the string {shown(text)}")


def _check_text(text: object) -> None:
    """A string argument of an operator: torch writes its repr."""
    if not isinstance(text, str) or len(text) > 100_000:
        raise Unsafe(f"the string {shown(text)}")


# -- operators -----------------------------------------------------------------------------------

_ARITHMETIC = """
    getitem add mul sub truediv floordiv mod pow neg pos abs lshift rshift
    ge le gt lt eq ne and_ or_ not_
"""
_PYTHON_OPERATORS = frozenset(_ARITHMETIC.split())
_SYMBOLIC = ("int", "float", "ite", "max", "min", "not", "sqrt", "sum")
_TORCH_FUNCTIONS = frozenset(f"torch.sym_{name}" for name in _SYMBOLIC)
_MATH_FUNCTIONS = frozenset({"math.ceil", "math.floor", "math.trunc"})
_HIGHER_ORDER = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast", "cond"})
# Operators without a tensor that shapes need; aten also has string functions.
_SCALAR_OPERATORS = frozenset(
    {"aten::_assert_scalar", "aten::sym_constrain_range", "aten::sym_constrain_range_for_size"}
)


def check_operator(target: object) -> None:
    """A call's target: an operator of aten, prims or normswap, or arithmetic on sizes."""
    text = target if isinstance(target, str) else ""
    module, _, name = text.rpartition(".")
    if (
        (module == "_operator" and name in _PYTHON_OPERATORS)
        or (module == "torch.ops.higher_order" and name in _HIGHER_ORDER)
        or text in _TORCH_FUNCTIONS | _MATH_FUNCTIONS
    ):
        return
    match = re.fullmatch(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", text)
    named = match.groups() if match is not None else ("", "", "")
    if not is_allowed(*named) or not _is_tensor_operator(*named):
        raise Unsafe(f"the operator {shown(target)}")


def _is_tensor_operator(namespace: str, name: str, overload: str) -> bool:
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or overload not in packet.overloads():
        return False
    declared = getattr(packet, overload)._schema
    types = [str(entry.type) for entry in (*declared.arguments, *declared.returns)]
    takes_tensors = any("Tensor" in entry for entry in types)
    writes_elsewhere = any(argument.is_out for argument in declared.arguments)
    scalar = f"{namespace}::{name}" in _SCALAR_OPERATORS
    return (takes_tensors or scalar) and not writes_elsewhere


def _target_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"torch.ops.higher_order.{target.__name__}"
    module = str(getattr(target, "__module__", ""))
    prefix = "torch" if module.startswith("torch") else module
    return f"{prefix}.{getattr(target, '__name__', '')}"


# -- containers ----------------------------------------------------------------------------------

_OUTPUT_CLASS = re.compile(r"(transformers\.(?:modeling_outputs|models\.\w+\.modeling_\w+))\.\w+")


def _check_tree(text: object) -> None:
    """The serialised spec of nested containers of inputs or outputs."""
    try:
        protocol, spec = json.loads(text) if isinstance(text, str) else (None, None)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unsafe(f"the container {shown(text)}") from error
    if protocol != 1:
        raise Unsafe(f"the container {shown(text)}")
    _check_spec(spec)


def _check_spec(spec: Any) -> None:
    if not isinstance(spec, dict) or set(spec) != {"type", "context", "children_spec"}:
        raise Unsafe(f"the container {shown(spec)}")
    if spec["type"] is not None:
        _check_container(spec["type"], spec["context"])
    children = spec["children_spec"]
    for child in children if isinstance(children, list) else [None]:
        _check_spec(child)


def _check_container(kind: object, context: object) -> None:
    try:
        keys = json.loads(context) if isinstance(context, str) else None
    except (ValueError, RecursionError) as error:
        raise Unsafe(f"the container {shown(kind)}") from error
    if kind in ("builtins.tuple", "builtins.list"):
        allowed = keys is None
    else:
        # A list of keys; never a JSON object, because torch imports the module that one names.
        known = kind in ("builtins.dict", "collections.OrderedDict") or _is_output_class(kind)
        allowed = known and isinstance(keys, list) and all(map(_is_key, keys))
    if not allowed:
        raise Unsafe(f"the container {shown(kind)}")


def _is_key(key: object) -> bool:
    if isinstance(key, str):
        check_path(key)
        return True
    return isinstance(key, int)


def _is_output_class(kind: object) -> bool:
    """Whether ``kind`` is an output class of the installed transformers, which this imports."""
    match = _OUTPUT_CLASS.fullmatch(kind) if isinstance(kind, str) else None
    if match is None:
        return False
    if match[1] not in sys.modules:
        from normswap.io.sources.packages import ensure_torchvision_importable

        ensure_torchvision_importable()
        try:
            importlib.import_module(match[1])
        except Exception:  # whatever a missing or broken transformers raises
            return False
    return True


# -- expressions: what torch prints, with limits that keep their evaluation short ------------------

_CHARACTERS = re.compile(r"[\w .,'\"()\[\]=<>!+\-*/%&|~^]{1,20000}", re.ASCII)
_FUNCTION_NAMES = """
    Add Mul Pow Mod Max Min Abs Integer Rational And Or Not Xor
    Equality Unequality GreaterThan LessThan StrictGreaterThan StrictLessThan
    Eq Ne Ge Gt Le Lt Piecewise ExprCondPair floor ceiling sqrt
    FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift
    PowByNatural FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat
    TruncToInt RoundToInt RoundDecimal ToFloat Identity
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_CONSTANTS = frozenset({"oo", "int_oo", "true", "false", "nan", "inf"})
_GUARD_NAMES = """
    max min abs Max Min FloorDiv Mod PythonMod IsNonOverlappingAndDenseIndicator
    math.floor math.ceil math.trunc math.sqrt math.isnan math.inf
    torch.sym_max torch.sym_min torch.sym_float torch.sym_int torch.sym_not torch.sym_ite
"""
_GUARD_FUNCTIONS = frozenset(_GUARD_NAMES.split())
_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel"})


def _check_size(text: object) -> None:
    """A size as sympy's ``srepr`` prints it: ``Mul(Integer(2), Symbol('s0', integer=True))``."""
    _check_expression(text, _is_size)


def _check_size_name(name: object) -> None:
    """A size that has a range: a symbol, or an expression such as 2*s26."""
    if isinstance(name, str) and name.isidentifier():
        _check_symbol(name)
    else:
        _check_size(name)


def _check_guard(text: object) -> None:
    """A condition on input sizes: ``(L['x'].size()[0] % 2) == 0``."""
    _check_expression(text, _is_guard)


def _check_expression(text: object, is_allowed: Callable[[ast.expr], bool]) -> None:
    # On one line and without comments, so that it reads the same after sympy's own rewriting.
    if not isinstance(text, str) or not _CHARACTERS.fullmatch(text):
        raise Unsafe(f"the expression {shown(text)}")
    try:
        expression = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unsafe(f"the expression {shown(text)}") from error
    if not is_allowed(expression):
        raise Unsafe(f"the expression {shown(text)}")


def _is_size(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=name)]):
            _check_symbol(name)
            return _has_plain_flags(node)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=digits)]):
            number = re.fullmatch(r"[-+\d.eE]{1,60}", str(digits))
            return number is not None and _has_plain_flags(node)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return (name not in _POWERS or _is_small_power(args)) and all(map(_is_size, args))
        case ast.Tuple(elts=elements):
            return all(map(_is_size, elements))
        case ast.Name(id=name) if name in _CONSTANTS or re.fullmatch(r"[a-z]+\d{1,6}", name):
            return True
    return _is_operation(node, _is_size)


def _is_guard(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=function, args=args, keywords=[]):
            if isinstance(function, ast.Attribute) and function.attr in _METHODS and not args:
                return _is_guard(function.value)
            return ast.unparse(function) in _GUARD_FUNCTIONS and all(map(_is_guard, args))
        case ast.Subscript(value=inner, slice=ast.Constant(value=key)):
            named = isinstance(key, str) and re.fullmatch(r"[\w.\-]+", key) is not None
            return (named or isinstance(key, int)) and _is_guard(inner)
        case ast.Name(id="L") | ast.Constant(value=None):
            return True
        case ast.Attribute() if ast.unparse(node) == "math.inf":
            return True
    return _is_operation(node, _is_guard)


def _is_operation(node: ast.expr, is_allowed: Callable[[ast.expr], bool]) -> bool:
    match node:
        case ast.Constant(value=bool() | float()):
            return True
        case ast.Constant(value=int() as number):
            return abs(number) < 1 << 64
        case ast.UnaryOp(operand=operand):
            return is_allowed(operand)
        case ast.BinOp(op=operator, left=left, right=right):
            power = isinstance(operator, ast.Pow | ast.LShift)
            small = not power or _is_small_power([left, right])
            return small and is_allowed(left) and is_allowed(right)
        case ast.BoolOp(values=values):
            return all(map(is_allowed, values))
        case ast.Compare(left=left, comparators=others):
            return all(map(is_allowed, [left, *others]))
    return False


def _has_plain_flags(node: ast.Call) -> bool:
    """Whether its keyword arguments are small numbers or booleans."""
    for word in node.keywords:
        value = word.value.value if isinstance(word.value, ast.Constant) else None
        if word.arg is None or not isinstance(value, bool | int) or abs(value) > 1000:
            return False
    return True


def _is_small_power(operands: list[ast.expr]) -> bool:
    """Whether the exponent is small and the base holds no power: 9**9**9 would never end."""
    exponent = ast.unparse(operands[1]) if len(operands) == 2 else ""
    number = re.fullmatch(r"-?(?:Integer\()?(-?\d+(?:\.\d+)?)\)?", exponent)
    if exponent.startswith("Rational("):
        number = re.fullmatch(r"Rational\((-?\d+), \d+\)", exponent)
    if number is None or abs(float(number[1])) > 64:
        return False
    for inner in ast.walk(operands[0]):
        called = isinstance(inner, ast.Call) and ast.unparse(inner.func) in _POWERS
        if called or isinstance(inner, ast.Pow | ast.LShift):
            return False
    return True


_FIELDS: dict[tuple[str, str], Rule] = {
    ("SymExpr", "expr_str"): _check_size,
    ("Node", "target"): check_operator,
    ("Node", "name"): _check_optional,
    ("Node", "metadata"): _check_text,
    ("Argument", "as_operator"): check_operator,
    ("Argument", "as_string"): _check_text,
    ("Argument", "as_strings"): _check_text,
    ("NamedArgument", "name"): _check_optional,
    ("ConstantValue", "as_string"): _check_plain,
    ("InputToParameterSpec", "parameter_name"): check_path,
    ("InputToBufferSpec", "buffer_name"): check_path,
    ("InputToTensorConstantSpec", "tensor_constant_name"): check_path,
    ("BufferMutationSpec", "buffer_name"): check_path,
    ("ParameterMutationSpec", "parameter_name"): check_path,
    ("GradientToParameterSpec", "parameter_name"): check_path,
    ("ModuleCallEntry", "fqn"): check_path,
    ("ModuleCallSignature", "in_spec"): _check_tree,
    ("ModuleCallSignature", "out_spec"): _check_tree,
    ("ExportedProgram", "guards_code"): _check_guard,
    ("ExportedProgram", "torch_version"): _check_plain,
    ("ExportedProgram", "verifiers"): _check_text,
    ("ExportedProgram", "range_constraints"): _check_size_name,
}
"""The rule of a field, by its record and its name; every other string must be an identifier."""
