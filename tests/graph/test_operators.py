"""The table of operators is consistent, and no other code keeps one of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import normswap
from normswap.graph.operators import (
    OPERATORS,
    Operator,
    norm_operator,
    norm_with_sum_operator,
    operator,
)
from normswap.norms.site import KINDS

_SOURCE = Path(normswap.__file__).parent
# They state what operators are, what a map does at them, or what other versions of them meant.
_TABLES = ("graph/operators.py", "passes/algebra/rules.py", "graph/onnx/opset_rules.py")
# It translates torch's vocabulary into ONNX's.
_ADAPTER = "graph/fx/aten.py"
_KNOWN = {row.name for row in OPERATORS} | {f"{row.domain}.{row.name}" for row in OPERATORS}


def _first_versions() -> dict[tuple[str, str], int]:
    """The version that brought each of ONNX's operators, by domain and name."""
    versions: dict[tuple[str, str], int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        key = (schema.domain, schema.name)
        versions[key] = min(versions.get(key, schema.since_version), schema.since_version)
    return versions


class TestRows:
    def test_no_name_comes_twice(self) -> None:
        names = [row.name for row in OPERATORS]
        assert len(names) == len(set(names))

    def test_each_row_says_something(self) -> None:
        assert [row.name for row in OPERATORS if row == Operator(row.name)] == []

    def test_an_operator_came_with_the_version_that_onnx_says(self) -> None:
        first = _first_versions()
        known = {r.name: r.since for r in OPERATORS if ("", r.name) in first and not r.domain}
        assert len(known) > 60
        assert known == {name: first["", name] for name in known}

    def test_every_kind_of_norm_is_one_operator(self) -> None:
        plain = [row for row in OPERATORS if row.norm and not row.domain and not row.beside]
        assert sorted(row.norm for row in plain) == sorted(KINDS)
        assert [norm_operator(row.norm) for row in plain] == [row.name for row in plain]

    def test_norms_of_sums_can_be_told_from_their_input(self) -> None:
        assert all(row.beside for row in OPERATORS if row.norm_with_sum)
        assert {row.normalises for row in OPERATORS} <= {"", *KINDS}

    def test_parameters_are_inputs_or_attributes_in_some_version(self) -> None:
        names: dict[str, set[str]] = {}
        for schema in onnx.defs.get_all_schemas_with_history():
            inputs = {value.name for value in schema.inputs[1:]}
            names.setdefault(schema.name, set()).update(inputs, schema.attributes)
        for row in OPERATORS:
            assert set(row.parameters) <= names.get(row.name, set())

    def test_attributes_that_have_defaults_are_onnx_s(self) -> None:
        own = {("Split", "keepdims")}  # the view's own (see graph.py)
        for row in (row for row in OPERATORS if not row.domain):
            for name in row.defaults:
                attributes = onnx.defs.get_schema(row.name).attributes
                assert name in attributes or (row.name, name) in own


class TestQueries:
    def test_finds_an_operator_with_its_domain_and_without(self) -> None:
        assert operator("com.microsoft.QuickGelu") is operator("QuickGelu")
        assert operator("com.microsoft.Gelu").activation == ""

    @pytest.mark.parametrize(
        ("name", "pattern"),
        [
            ("aten.var_mean.correction", "aten.var*"),
            ("aten.conv_transpose2d.input", "aten.conv*"),
            ("com.microsoft.MultiHeadAttention", "*Attention"),
            ("aten._scaled_dot_product_flash_attention.default", "aten.*attention*"),
            ("RandomNormalLike", "Random*"),
        ],
    )
    def test_a_pattern_speaks_of_operators_without_a_row(self, name: str, pattern: str) -> None:
        assert operator(name).name == pattern

    def test_a_row_goes_before_a_pattern(self) -> None:
        assert operator("aten.repeat.default").move == "other"
        assert operator("aten.repeat_interleave.self_int").move == ""
        assert operator("Attention").since == 23

    def test_nothing_is_known_of_others(self) -> None:
        assert operator("com.example.Frobnicate") == Operator("com.example.Frobnicate")
        assert not operator("com.example.Frobnicate").is_barrier

    def test_norms_of_sums_belong_to_a_runtime(self) -> None:
        name = norm_with_sum_operator("layer_norm")
        assert name == "SkipLayerNormalization"
        assert operator(name).domain == "com.microsoft"
        assert operator(name).opset == 1
        assert norm_with_sum_operator("batch_norm") is None


class TestSource:
    def test_keeps_no_names_of_operators(self) -> None:
        kept = {}
        for path in sorted(_SOURCE.rglob("*.py")):
            name = path.relative_to(_SOURCE).as_posix()
            lines = list(_collections(path.read_text()))
            if lines and name not in (*_TABLES, _ADAPTER):
                kept[name] = lines
        assert kept == {}

    @pytest.mark.parametrize(
        "source",
        [
            'KINDS = ("Conv", "Gemm")',
            'KINDS = frozenset({"Conv", "Gemm"})',
            'KINDS = {"Conv": 1, "Gemm": 2}',
            'KINDS = {1: "Conv", 2: "Gemm"}',
            'KINDS = [("Conv", 1), ("Gemm", 2)]',
            'KINDS = ("aten.conv", "aten.mm")',
            'found = op == "Conv" or op == "Gemm"',
            'match op:\n    case "Conv" | "Gemm":\n        pass',
        ],
    )
    def test_a_collection_of_names_is_found(self, source: str) -> None:
        assert list(_collections(source)) != []

    @pytest.mark.parametrize(
        "source",
        ['op == "Conv"', 'kinds = ("Conv", "ViT")', 'pair(insert("Conv"), insert("Gemm"))'],
    )
    def test_single_names_may_stand_anywhere(self, source: str) -> None:
        assert list(_collections(source)) == []


def _collections(source: str) -> Iterator[str]:
    """The literals and alternatives in ``source`` that list two operators or more."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if len(set(_names(node))) > 1:
            yield f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"


def _names(node: ast.AST) -> Iterator[str]:
    """The operators that a literal lists, or one of which an expression or a pattern asks for."""
    match node:
        case ast.Tuple() | ast.List() | ast.Set():
            parts: list[ast.AST | None] = [*node.elts]
        case ast.Dict():
            parts = [*node.keys, *node.values]
        case ast.MatchOr():
            parts = [p.value for p in node.patterns if isinstance(p, ast.MatchValue)]
        case ast.BoolOp(op=ast.Or()):
            equal = [v for v in node.values if isinstance(v, ast.Compare)]
            parts = [v.comparators[0] for v in equal if isinstance(v.ops[0], ast.Eq)]
        case _:
            return
    for part in parts:
        if isinstance(part, ast.Starred):
            part = part.value
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            if part.value in _KNOWN or part.value.startswith("aten."):
                yield part.value
        elif part is not None and not isinstance(node, ast.MatchOr | ast.BoolOp):
            yield from _names(part)
