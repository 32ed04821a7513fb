"""What holds for the result of every pass: it loads, callers cannot override what it has fixed, and
reports say what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import normswap as ns
from normswap.model import Model
from normswap.passes.base import Pass, PassResult
from normswap.report.html.page import html_report

C = 8
RANDOM = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def _proto(
    nodes: Sequence[onnx.NodeProto],
    arrays: dict[str, np.ndarray],
    *,
    opset: int = 17,
    ir_version: int = 8,
    inputs: Sequence[str] = (),
    shape: Sequence[int | str] = ("b", C),
) -> onnx.ModelProto:
    """y from x; ``inputs``: the initializers that are inputs as well."""
    floats = TensorProto.FLOAT
    given = [helper.make_tensor_value_info("x", floats, shape)]
    given += [helper.make_tensor_value_info(n, floats, arrays[n].shape) for n in inputs]
    made = helper.make_tensor_value_info("y", floats, [f"y{a}" for a in range(len(shape))])
    initializers = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(list(nodes), "g", given, [made], initializers)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def _loaded(proto: onnx.ModelProto) -> Model:
    return ns.load(ir.serde.deserialize_model(proto))


def _session(model: Model) -> onnxruntime.InferenceSession:
    proto = ir.serde.serialize_model(model.to_onnx_ir())
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString())


# -- weights that a caller may override ------------------------------------------------------------

NORMED = [
    helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"]),
    helper.make_node("MatMul", ["n", "w"], ["p"]),
    helper.make_node("BatchNormalization", ["p", "s", "t", "m", "v"], ["q"]),
    helper.make_node("MatMul", ["q", "u"], ["y"]),
]
WEIGHTS = {
    **{name: _normal(C) for name in ("g", "b", "s", "t", "m")},
    **{"v": _normal(C) ** 2 + 1, "w": _normal(C, C), "u": _normal(C, C)},
}


@dataclass(kw_only=True)
class _Nothing(Pass):
    def run(self, model: Model) -> PassResult:
        return PassResult(model, False)


def _rewritten(model: Model, how: str) -> PassResult:
    data = {"x": _normal(32, C)}
    match how:
        case "fold":
            return ns.fold(model)
        case "fold_affine":
            return ns.fold_affine(model)
        case "rmsnorm":
            return ns.swap(model, to="rmsnorm")
        case _:
            return ns.swap(model, to=how, data=data)


@pytest.mark.parametrize("how", ["fold", "fold_affine", "batchnorm", "affine"])
def test_weights_that_could_be_overridden_are_constants_of_the_result(how: str) -> None:
    model = _loaded(_proto(NORMED, WEIGHTS, inputs=["g", "w", "s"]))
    result = _rewritten(model, how)
    assert result.modified
    (note,) = (n for n in result.notes if "inputs of the model" in n)
    assert all(f"'{name}'" in note for name in ("g", "w", "s"))
    session = _session(result.model)
    assert [value.name for value in session.get_inputs()] == ["x"]
    initializers = result.model.to_onnx_ir().graph.initializers.values()
    assert all(value.uses() for value in initializers), "a dead weight stays"
    assert [value.name for value in _session(model).get_overridable_initializers()] != []


def test_weights_that_could_be_overridden_still_can_where_nothing_is_done() -> None:
    model = _loaded(_proto(NORMED, WEIGHTS, inputs=["g"]))
    assert _Nothing()(model).model is model
    names = [value.name for value in _session(model).get_overridable_initializers()]
    assert names == ["g"]


@pytest.mark.parametrize("opset", [7, 8, 9, 11])
def test_a_file_of_ir_version_3_comes_out_valid(opset: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    arrays = {"k": _normal(C, 3, 2, 2)} | {n: WEIGHTS[n] for n in ("s", "t", "m", "v")}
    proto = _proto(nodes, arrays, opset=opset, ir_version=3, inputs=list(arrays),
                   shape=(2, 3, 5, 5))  # fmt: skip
    model = _loaded(proto)
    result = ns.fold(model)
    assert len(result.done) == 1
    assert not result.notes  # no weight of such a file can be overridden
    session = _session(result.model)
    feeds = {"x": _normal(2, 3, 5, 5)}
    np.testing.assert_allclose(
        session.run(None, feeds)[0], _session(model).run(None, feeds)[0], atol=1e-5
    )


# -- what does not load ----------------------------------------------------------------------------


def test_norms_are_spelled_out_if_the_runtime_does_not_load_the_new_opset() -> None:
    """RoiAlign is another operator from opset 22 on, and RMSNormalization needs 23."""
    nodes = [
        helper.make_node("RoiAlign", ["x", "rois", "batch"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "g", "b"], ["n"]),
        helper.make_node("MatMul", ["n", "u"], ["y"]),
    ]
    arrays = {
        "rois": np.array([[0, 0, 4, 4]], np.float32), "batch": np.array([0]),
        "w": _normal(1, C), **{name: WEIGHTS[name] for name in ("g", "b", "u")},
    }  # fmt: skip
    model = _loaded(_proto(nodes, arrays, shape=(1, 3, 6, 6)))
    result = ns.swap(model, to="rmsnorm")
    assert len(result.done) == 1
    session = _session(result.model)
    feeds = {"x": _normal(1, 3, 6, 6)}
    new, old = (s.run(None, feeds)[0] for s in (session, _session(model)))
    np.testing.assert_allclose(new, old, atol=1e-4)


def test_a_fused_norm_that_needs_such_an_opset_does_not_keep_the_others() -> None:
    def spelled(x: str, y: str, centred: bool) -> list[onnx.NodeProto]:
        steps = [("ReduceMean", [x], "m"), ("Sub", [x, "m"], "d")] if centred else []
        z = "d" if centred else x
        steps += [
            ("Mul", [z, z], "q"),
            ("ReduceMean", ["q"], "v"),
            ("Add", ["v", "eps"], "e"),
            ("Sqrt", ["e"], "r"),
            ("Div", [z, "r"], "n"),
            ("Mul", ["n", "g"], "y"),
        ]
        own = {out for _, _, out in steps} - {z if not centred else ""}
        named = lambda v: y if v == "y" else f"{y}_{v}" if v in own else v  # noqa: E731
        options = {"ReduceMean": {"axes": [-1]}}
        return [helper.make_node(op, [named(i) for i in ins], [named(out)], **options.get(op, {}))
                for op, ins, out in steps]  # fmt: skip

    nodes = [
        helper.make_node("RoiAlign", ["x", "rois", "batch"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["h"]),
        *spelled("h", "k", True),
        helper.make_node("MatMul", ["k", "u"], ["l"]),
        *spelled("l", "y", False),
    ]
    arrays = {
        "rois": np.array([[0, 0, 4, 4]], np.float32), "batch": np.array([0]),
        "w": _normal(1, C), "eps": np.array(1e-5, np.float32),
        **{name: WEIGHTS[name] for name in ("g", "u")},
    }  # fmt: skip
    model = _loaded(_proto(nodes, arrays, shape=(1, 3, 6, 6)))
    assert {site.kind for site in ns.locate(model)} == {"layer_norm", "rms_norm"}
    result = ns.swap(model, to="fused")
    assert [site.kind for site in result.done] == ["layer_norm"]
    ((_, why),) = result.skipped
    assert "with RMSNormalization the new model could not be loaded" in why
    _session(result.model)


@dataclass(kw_only=True)
class _Breaks(Pass):
    """Writes a weight that fits nothing."""

    def run(self, model: Model) -> PassResult:
        result = model.copy()
        node = next(n for n in result.graph.nodes if n.op == "MatMul")
        wrong = result.graph.add_constant(_normal(C + 1, C), "wrong")
        result.graph.set_input(node, 1, wrong)
        result.graph.prune()
        return PassResult(result, True, list(model.sites), [])


def test_a_result_that_does_not_load_is_dropped_with_the_reason() -> None:
    model = _loaded(_proto(NORMED, WEIGHTS))
    result = _Breaks()(model)
    assert not result.modified
    assert result.model is model
    assert not result.done
    assert len(result.skipped) == 2
    assert all("could not be loaded" in why for _, why in result.skipped)


def test_nothing_is_said_of_an_original_that_does_not_load_either() -> None:
    other = helper.make_node("Unheard", ["y0"], ["y"], domain="example.com")
    nodes = [*NORMED[:3], helper.make_node("MatMul", ["q", "u"], ["y0"]), other]
    proto = _proto(nodes, WEIGHTS)
    proto.opset_import.append(helper.make_opsetid("example.com", 1))
    assert ns.fold(_loaded(proto)).done


# -- which file a model is -------------------------------------------------------------------------


def test_a_report_names_what_it_compared(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(_proto(NORMED, WEIGHTS), path)
    model = ns.load(path)
    folded = ns.fold(model).model
    assert model.path == path
    assert folded.path is None
    report = ns.validate(model, folded)
    ours, theirs = report.reference, report.candidate
    assert (ours.name, ours.path, ours.size_bytes) == ("net.onnx", str(path), path.stat().st_size)
    assert (theirs.name, theirs.path) == ("net.onnx after fold", None)
    assert theirs.sha256 is None
    assert theirs.size_bytes is None
    assert "byte for byte" not in html_report(report)
    ns.save(folded, tmp_path / "folded.onnx")
    saved = ns.load(tmp_path / "folded.onnx")
    report = ns.validate(model, saved)
    assert report.candidate.name == "folded.onnx"
    assert report.candidate.sha256 not in (None, report.reference.sha256)
    same = ns.fold(ns.load(path), sites="n").model
    assert same.path == path
    assert "byte for byte" in html_report(ns.validate(model, same))


# -- matrices that a swap has made -----------------------------------------------------------------


def test_a_matrix_in_place_of_a_norm_that_stays_is_told_of(tmp_path: Path) -> None:
    """Behind it a Gelu reads, in front of it is another one; and the model's own stays untold."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["r"]),
        helper.make_node("LayerNormalization", ["r", "g", "b"], ["n"]),
        helper.make_node("Sigmoid", ["n"], ["k"]),
        helper.make_node("MatMul", ["k", "w"], ["h"]),
        helper.make_node("Sigmoid", ["h"], ["y"]),
    ]
    arrays = {name: WEIGHTS[name] for name in ("g", "b", "w")}
    swapped = ns.swap(_loaded(_proto(nodes, arrays)), to="affine", data={"x": _normal(64, C)})
    (norm,) = swapped.done
    ns.save(swapped.model, tmp_path / "swapped.onnx")
    for model in (swapped.model, ns.load(tmp_path / "swapped.onnx")):
        ((site, why),) = ns.fold(model).skipped
        assert site.kind == "affine"
        assert site.name == norm.name
        assert "Sigmoid" in why
