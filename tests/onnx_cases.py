"""onnx's own cases for every operator, those that its backends are tested with.

``python -m tests.onnx_cases [TEXT]`` goes through all of them (of names with TEXT in them), as they
are and with all inputs but the first made initializers: the float64 evaluation against the expected
outputs, and every exact rewrite against the original in ONNX Runtime. The tests run the float64
evaluation of all and a sample of the rewrites.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from rich.progress import track

import normswap as ns
from normswap.errors import NormswapError
from normswap.graph.graph import is_floating
from normswap.graph.onnx.graph import read_graph

EXCEPTIONS = {
    "test_bernoulli": "draws at random",
    "test_dynamicquantizelinear": "rounds to integers, and float32 to the other side of a half",
    "test_optional_has_element_empty_optional_input": "has an optional as its input",
}
"""By the beginnings of their names: cases whose expected outputs a float64 evaluation need not
have, and why."""
LARGE = ("test_lppool_3d_default", "test_averagepool_3d_default", "test_maxpool_3d_default")
"""Cases that take seconds each and show nothing that smaller ones do not."""


@dataclass(frozen=True)
class Case:
    """One case: ``inputs`` and ``expected`` are arrays, lists of arrays (sequences) or None."""

    name: str
    model: onnx.ModelProto
    inputs: list[Any]
    expected: list[Any]

    @property
    def feeds(self) -> dict[str, Any]:
        names = [value.name for value in self.model.graph.input]
        return dict(zip(names, self.inputs, strict=True))

    @property
    def has_sequences(self) -> bool:
        values = [*self.model.graph.input, *self.model.graph.output]
        return any(not value.type.HasField("tensor_type") for value in values)

    def fixed(self) -> Case | None:
        """The same with all inputs but the first made initializers; None where there are none."""
        tensors = [isinstance(array, np.ndarray) for array in self.inputs[1:]]
        if not tensors or not all(tensors):
            return None
        model = onnx.ModelProto.FromString(self.model.SerializeToString())
        for value, array in list(zip(model.graph.input, self.inputs, strict=True))[1:]:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        del model.graph.input[1:]
        return Case(f"{self.name} (fixed)", model, self.inputs[:1], self.expected)

    def in_versions(self) -> Iterator[tuple[int, Case]]:
        """The case written in older versions of its operator, from opset 7 on, with the opset."""
        (node, *more), opset = self.model.graph.node, self.model.opset_import[0].version
        if more or node.domain or not all(isinstance(a, np.ndarray) for a in self.inputs):
            return
        history = _history()[node.op_type]
        newest = [schema for schema in history if schema.since_version <= opset][-1:]
        for schema, later in itertools.pairwise(history):
            if later.since_version > max(7, opset):
                break
            written = _written_in(self, schema, newest[0]) if later.since_version > 7 else None
            if written is not None:
                yield written.model.opset_import[0].version, written


@cache
def _history() -> dict[str, list[onnx.defs.OpSchema]]:
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            found.setdefault(schema.name, []).append(schema)
    return {n: sorted(schemas, key=lambda s: s.since_version) for n, schemas in found.items()}


_NAMES = {"constant_value": "value", "K": "k"}
"""Inputs that had another name as attributes."""


def _written_in(case: Case, schema: onnx.defs.OpSchema, newest: onnx.defs.OpSchema) -> Case | None:
    """The case by an older schema: inputs that were attributes are attributes. None where the older
    version has no place for something."""
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    node, feeds = model.graph.node[0], case.feeds
    held = {attribute.name: attribute for attribute in node.attribute}
    older, variadic = [formal.name for formal in schema.inputs], onnx.defs.OpSchema
    is_variadic = newest.inputs[-1].option == variadic.FormalParameterOption.Variadic
    inputs = []
    for index, name in enumerate(node.input):
        formal = newest.inputs[min(index, len(newest.inputs) - 1)].name
        place = _NAMES.get(formal, formal)
        if is_variadic or formal in older or place not in schema.attributes:
            inputs.append(name)
        elif name:
            flat = feeds.pop(name).reshape(-1).tolist()
            kind = schema.attributes[place].type
            lists = (variadic.AttrType.INTS, variadic.AttrType.FLOATS)
            if not flat:
                return None
            value = flat if kind in lists else flat[0]
            held[place] = onnx.helper.make_attribute(place, value)
    if len(inputs) > len(older) and not is_variadic:
        return None
    for name, attribute in list(held.items()):
        if name not in schema.attributes:
            if name not in newest.attributes or attribute != newest.attributes[name].default_value:
                return None
            del held[name]
    kept = [value for value in model.graph.input if value.name in feeds]
    for field, values in ((node.attribute, held.values()), (node.input, inputs)):
        del field[:]
        field.extend(values)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    version = max(schema.since_version, 7)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", version))
    model.ir_version = 8
    return Case(f"{case.name} ({version})", model, list(feeds.values()), case.expected)


@cache
def cases() -> list[Case]:
    """All cases of the installed onnx, but for ``LARGE`` ones."""
    import onnx.backend.test.case.base as base

    base.process_snippet = lambda *_: (
        "",
        "",
    )  # the sources for its documentation, half of the time
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return [
        Case(c.name, c.model, *([_array(a) for a in arrays] for arrays in c.data_sets[0]))
        for c in found
        if c.name not in LARGE
    ]


def _array(held: Any) -> Any:
    return onnx.numpy_helper.to_array(held) if isinstance(held, onnx.TensorProto) else held


def exception(case: Case) -> str | None:
    """Why the case need not hold, if it need not."""
    return next((why for name, why in EXCEPTIONS.items() if case.name.startswith(name)), None)


# -- the float64 evaluation ------------------------------------------------------------------------


def float64_difference(case: Case) -> str | None:
    """How the float64 evaluation differs from the expected outputs; None where it does not."""
    graph = read_graph(ir.serde.deserialize_model(case.model))
    found = graph.whole(np.float64)([case.feeds[value.name] for value in graph.inputs])
    for own, expected in zip(found, case.expected, strict=True):
        if problem := difference(own, expected, loose=1e-3):
            return problem
    return None


def difference(own: Any, expected: Any, loose: float) -> str | None:
    """How far results are off what is expected, where by more than ``loose``, relative."""
    if isinstance(expected, list) or expected is None:
        own, expected = _items(own), _items(expected)
        if len(own) != len(expected):
            return f"{len(own)} items, not {len(expected)}"
        pairs = zip(own, expected, strict=True)
        return next((p for a, b in pairs if (p := difference(a, b, loose))), None)
    own, expected = np.asarray(own), np.asarray(expected)
    if own.shape != expected.shape:
        return f"shape {own.shape}, not {expected.shape}"
    if expected.dtype.kind in "OUS":
        return None if (own.astype(str) == expected.astype(str)).all() else "other strings"
    if is_floating(expected.dtype):
        loose = max(loose, 4 * float(ml_dtypes.finfo(expected.dtype).eps))
    a, b = own.astype(np.float64), expected.astype(np.float64)
    finite = np.abs(b[np.isfinite(b)])
    if np.allclose(a, b, rtol=loose, atol=1e-2 * loose * finite.max(initial=0), equal_nan=True):
        return None
    return f"off by {np.nanmax(np.abs(a - b)):.3g}"


def _items(held: Any) -> list[Any]:
    if held is None:
        return []
    return held if isinstance(held, list) else [held]


# -- the rewrites ----------------------------------------------------------------------------------


def rewrite_problem(case: Case, folder: Path) -> str | None:
    """What is wrong with a rewrite of the case; None where nothing is, or where it is refused.

    An exception that is no NormswapError is raised.
    """
    path = folder / "case.onnx"
    path.write_bytes(case.model.SerializeToString())
    try:
        model = ns.load(path)
    except NormswapError:
        return None
    for change in (_fused, _without_means, _folded):
        try:
            changed = change(model)
        except NormswapError:
            continue
        if not changed.modified:
            continue
        ns.save(changed.model, folder / "changed.onnx")
        try:
            before = run(path, case.inputs)
        except Exception:  # the runtime's exceptions share no base class
            continue
        try:
            after = run(folder / "changed.onnx", case.inputs)
        except Exception as error:
            return f"{change.__name__}: does not run any more: {error}"
        for own, expected in zip(after, before, strict=True):
            if problem := difference(own, expected, loose=1e-5):
                return f"{change.__name__}: {problem}"
    return None


def _fused(model: ns.Model) -> ns.PassResult:
    return ns.swap(model, to="fused")


def _without_means(model: ns.Model) -> ns.PassResult:
    return ns.swap(model, to="rmsnorm")


def _folded(model: ns.Model) -> ns.PassResult:
    return ns.fold(model)


def run(model: Path | bytes, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a model in ONNX Runtime without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found: list[Any] = session.run(None, dict(zip(names, inputs, strict=False)))
    return found


def main() -> int:
    """Runs all cases; the number of those that fail."""
    wanted = [c for c in cases() if all(text in c.name for text in sys.argv[1:])]
    wanted += [fixed for case in wanted if (fixed := case.fixed())]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in track(wanted, "cases"):
            try:
                problem = None if exception(case) else float64_difference(case)
                problem = problem or rewrite_problem(case, Path(folder))
            except NormswapError as error:
                problem = f"refused: {error}"
            except Exception as error:  # a fault of ours
                problem = f"{type(error).__name__}: {error}"
            if problem:
                failed += 1
                print(f"{case.name}: {problem}")
    print(f"{len(wanted)} cases, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
