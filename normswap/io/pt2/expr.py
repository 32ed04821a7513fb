"""Which expressions a .pt2 may hold.

Sizes go to ``sympy.sympify``, which is an eval that also evaluates the strings it is given, and
guards go into generated source. Both are checked here against the grammar of what torch prints,
with limits that keep their evaluation short.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from normswap.io.pt2.names import Unsafe, check_symbol, shown

Check = Callable[[ast.expr, object], None]

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


def check_expression(text: object) -> None:
    """A size as sympy's ``srepr`` prints it: ``Mul(Integer(2), Symbol('s0', integer=True))``."""
    _check_size(_parsed(text), text)


def check_guard(text: object) -> None:
    """A condition on input sizes: ``(L['x'].size()[0] % 2) == 0``."""
    _check_guard(_parsed(text), text)


def _parsed(text: object) -> ast.expr:
    # On one line and without comments, so that it reads the same after sympy's own rewriting.
    if not isinstance(text, str) or not _CHARACTERS.fullmatch(text):
        raise Unsafe(f"the expression {shown(text)}")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unsafe(f"the expression {shown(text)}") from error


def _check_size(node: ast.expr, text: object) -> None:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=name)]):
            check_symbol(name)
            _check_flags(node, text)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=digits)]):
            if not re.fullmatch(r"[-+\d.eE]{1,60}", str(digits)):
                raise Unsafe(f"the expression {shown(text)}")
            _check_flags(node, text)
        case ast.Call(func=ast.Name(id=function), args=args, keywords=[]) if function in _FUNCTIONS:
            if function in _POWERS:
                _check_power(args, text)
            for arg in args:
                _check_size(arg, text)
        case ast.Tuple(elts=elements):
            for element in elements:
                _check_size(element, text)
        case ast.Name(id=name) if name in _CONSTANTS or re.fullmatch(r"[a-z]+\d{1,6}", name):
            pass
        case _:
            _check_operation(node, text, _check_size)


def _check_guard(node: ast.expr, text: object) -> None:
    match node:
        case ast.Call(func=ast.Attribute(value=tensor, attr=method), args=[], keywords=[]) if (
            method in _METHODS
        ):
            _check_guard(tensor, text)
        case ast.Call(func=function, args=args, keywords=[]) if (
            ast.unparse(function) in _GUARD_FUNCTIONS
        ):
            for arg in args:
                _check_guard(arg, text)
        case ast.Subscript(value=inner, slice=ast.Constant(value=int())):
            _check_guard(inner, text)
        case ast.Subscript(value=inner, slice=ast.Constant(value=str() as key)) if re.fullmatch(
            r"[\w.\-]+", key
        ):
            _check_guard(inner, text)
        case ast.Name(id="L") | ast.Constant(value=None):
            pass
        case ast.Attribute() if ast.unparse(node) == "math.inf":
            pass
        case _:
            _check_operation(node, text, _check_guard)


def _check_operation(node: ast.expr, text: object, check: Check) -> None:
    match node:
        case ast.Constant(value=bool() | float()):
            operands: list[ast.expr] = []
        case ast.Constant(value=int() as number) if abs(number) < 1 << 64:
            operands = []
        case ast.UnaryOp(operand=operand):
            operands = [operand]
        case ast.BinOp(op=ast.Pow() | ast.LShift(), left=left, right=right):
            _check_power([left, right], text)
            operands = [left, right]
        case ast.BinOp(left=left, right=right):
            operands = [left, right]
        case ast.BoolOp(values=values):
            operands = values
        case ast.Compare(left=left, comparators=others):
            operands = [left, *others]
        case _:
            raise Unsafe(f"the expression {shown(text)}")
    for operand in operands:
        check(operand, text)


def _check_flags(node: ast.Call, text: object) -> None:
    for word in node.keywords:
        value = word.value.value if isinstance(word.value, ast.Constant) else None
        if word.arg is None or not isinstance(value, bool | int) or abs(value) > 1000:
            raise Unsafe(f"the expression {shown(text)}")


def _check_power(operands: list[ast.expr], text: object) -> None:
    """Small exponents, no power of a power: 9**9**9 would never end."""
    exponent = ast.unparse(operands[1]) if len(operands) == 2 else ""
    number = re.fullmatch(r"-?(?:Integer\()?(-?\d+(?:\.\d+)?)\)?", exponent)
    if exponent.startswith("Rational("):
        number = re.fullmatch(r"Rational\((-?\d+), \d+\)", exponent)
    if number is None or abs(float(number[1])) > 64:
        raise Unsafe(f"the expression {shown(text)}")
    for inner in ast.walk(operands[0]):
        called = isinstance(inner, ast.Call) and ast.unparse(inner.func) in _POWERS
        if called or isinstance(inner, ast.Pow | ast.LShift):
            raise Unsafe(f"the expression {shown(text)}")
