"""The float64 evaluation of ONNX operators: each by the version that the opset names, held against
onnx's own cases and, in older versions, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import normswap as ns
from normswap.graph.onnx.graph import read_graph
from tests import effort
from tests.onnx_cases import cases, difference, exception, float64_difference, run

# Where ONNX Runtime and onnx differ, or ONNX Runtime knows no older version.
DISAGREE = {
    "test_maxunpool_export_with_output_shape": "ONNX Runtime puts the elements elsewhere",
    "test_resize_downsample_scales_linear_align_corners": "ONNX Runtime takes other corners",
    "test_resize_downsample_scales_cubic_align_corners": "ONNX Runtime takes other corners",
}


def test_it_has_the_expected_outputs_of_onnx_s_cases() -> None:
    assert len(cases()) > 1800
    wrong = {}
    for case in cases()[:: effort.examples_of(8, 1)]:
        skipped = exception(case) or case.has_sequences
        if not skipped and (problem := float64_difference(case)):
            wrong[case.name] = problem
    assert not wrong


def test_older_versions_have_their_own_meaning() -> None:
    wrong, compared = {}, 0
    step = effort.examples_of(8, 1)
    for case in cases()[::step]:
        if exception(case) or case.name in DISAGREE:
            continue
        for _, older in case.in_versions():
            try:
                wanted = run(older.model.SerializeToString(), older.inputs)
            except Exception:  # the runtime's exceptions share no base class
                continue
            compared += 1
            graph = read_graph(ir.serde.deserialize_model(older.model))
            found = graph.whole(np.float64)([older.feeds[value.name] for value in graph.inputs])
            for own, expected in zip(found, wanted, strict=True):
                is_float8 = np.asarray(expected).dtype == np.uint8  # the runtime hands it out so
                if not is_float8 and (problem := difference(own, expected, loose=2e-3)):
                    wrong[older.name] = problem
    assert not wrong
    assert compared > 150


# -- what no case of onnx's shows: versions that are gone ------------------------------------------

RNG = np.random.default_rng(0)


def _f(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def _batch_norm(*shape: int) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "s": np.abs(_f(*shape)) + 1,
        "b": _f(*shape),
        "m": 3 * _f(*shape),
        "v": np.abs(_f(*shape)) + 1,
    }


NORM = ["x", "s", "b", "m", "v"]
FIVE = ["y", "n", "w", "sn", "sw"]
SCALES = [[1, 1, 2, 2], [1, 1, 1.3, 2.7], [1, 1, 0.5, 0.7]]
OLD: list[tuple[onnx.NodeProto, dict[str, np.ndarray[Any, Any]], tuple[int, ...]]] = [
    (make_node("BatchNormalization", NORM, ["y"]), _batch_norm(5), (7, 8, 9, 13, 14, 15)),
    (make_node("BatchNormalization", NORM, FIVE), _batch_norm(5), (7, 8, 9, 13)),
    (make_node("BatchNormalization", NORM, ["y"], spatial=0), _batch_norm(5, 4, 6), (7, 8)),
    (make_node("BatchNormalization", NORM, FIVE[:3], training_mode=1), _batch_norm(5), (14, 15)),
    *(
        (make_node(op, ["x"], ["y"], **chosen), {}, (7, 11, 12, 13))
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for chosen in ({}, *({"axis": axis} for axis in (0, 1, 2, 3, -1, -2)))
    ),
    *(
        (make_node("Upsample", ["x"], ["y"], mode=mode, scales=[1.0, 1.0, 2.0, 1.5]), {}, (7, 8))
        for mode in ("nearest", "linear")
    ),
    *(
        (make_node("Upsample", ["x", "k"], ["y"], mode=mode), {"k": np.array(k, "f")}, (9,))
        for mode in ("nearest", "linear")
        for k in SCALES[:2]
    ),
    *(
        (make_node("Resize", ["x", "k"], ["y"], mode=mode), {"k": np.array(k, "f")}, (10,))
        for mode in ("nearest", "linear")
        for k in SCALES
    ),
    (
        make_node("Scatter", ["x", "i", "u"], ["y"], axis=2),
        {"i": RNG.integers(0, 4, (3, 5, 2, 6)), "u": _f(3, 5, 2, 6)},
        (9, 10),
    ),
    (
        make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=1),
        {"s": _f(1), "b": _f(1)},
        (18,),
    ),
    (make_node("MeanVarianceNormalization", ["x"], ["y"], axes=[1]), {}, (9, 12, 13, 17)),
    (make_node("GlobalMaxPool", ["x"], ["y"]), {}, (7, 13)),
    *(
        (
            make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=group, **chosen),
            {"w": _f(5, 2, 3, 3), "b": _f(2 * group)},
            (7, 11, 13),
        )
        for group in (1, 5)
        for chosen in (
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
            {"output_shape": [9, 14], "strides": [2, 2]},
            {"output_shape": [8, 12], "strides": [2, 2]},
            {"pads": [1, 0, 0, 1], "strides": [2, 2]},
            {"pads": [1] * 4, "output_padding": [1, 2], "dilations": [2, 1], "strides": [2, 3]},
        )
    ),
    *(
        (make_node("MaxPool", ["x"], ["y"], strides=[2, 2], kernel_shape=[3, 3], **chosen), {}, v)
        for chosen, v in (
            ({"auto_pad": "SAME_UPPER"}, (7, 8, 10, 11, 12)),
            ({"auto_pad": "SAME_LOWER"}, (7, 8, 10, 11, 12)),
            ({"ceil_mode": 1, "pads": [1, 1, 1, 1], "dilations": [1, 2]}, (10, 11, 12)),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("node", "held", "versions"), OLD, ids=lambda v: getattr(v, "op_type", ""))
def test_versions_that_are_gone(
    node: onnx.NodeProto, held: dict[str, np.ndarray[Any, Any]], versions: tuple[int, ...]
) -> None:
    x = _f(3, 5, 4, 6)
    for version in versions:
        model = _model(node, held, version)
        graph = read_graph(ir.serde.deserialize_model(model))
        pairs = zip(graph.whole(np.float64)([x]), run(model.SerializeToString(), [x]), strict=True)
        # The fifth output of a training BatchNormalization is what the runtime likes to keep.
        for own, expected in list(pairs)[:4]:
            # The runtime works in float32; another meaning is off by whole elements.
            assert difference(own, expected, loose=1e-4) is None, version
        assert not graph.not_in_double


def _model(
    node: onnx.NodeProto, held: dict[str, np.ndarray[Any, Any]], version: int
) -> onnx.ModelProto:
    graph = make_graph(
        [node],
        "old",
        [make_tensor_value_info("x", onnx.TensorProto.FLOAT, (3, 5, 4, 6))],
        [make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output],
        [onnx.numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return make_model(graph, opset_imports=[make_opsetid("", version)], ir_version=8)


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_a_global_maximum_is_over_all_that_is_no_batch_and_no_channel(
    shape: tuple[int, ...],
) -> None:
    graph = make_graph(
        [make_node("GlobalMaxPool", ["x"], ["y"])],
        "pool",
        [make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    x = _f(*shape)
    (y,) = read_graph(ir.serde.deserialize_model(model)).whole(np.float64)([x])
    np.testing.assert_array_equal(y, x.max(tuple(range(2, len(shape))), keepdims=True))


# -- operators that it lacks -----------------------------------------------------------------------


def test_an_operator_of_a_runtime_is_left_to_it_and_said_to_be(tmp_path: Any) -> None:
    graph = make_graph(
        [
            make_node("FusedGemm", ["x", "w"], ["h"], domain="com.microsoft", activation="Relu"),
            make_node("LayerNormalization", ["h", "g"], ["y"]),
        ],
        "mixed",
        [make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("n", 8))],
        [make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("n", 8))],
        [onnx.numpy_helper.from_array(a, n) for n, a in {"w": _f(8, 8), "g": _f(8)}.items()],
    )
    domains = [make_opsetid("", 17), make_opsetid("com.microsoft", 1)]
    onnx.save(make_model(graph, opset_imports=domains, ir_version=8), tmp_path / "mixed.onnx")
    model = ns.load(tmp_path / "mixed.onnx")
    report = ns.validate(model, model)
    (left,) = [finding for finding in report.findings if finding.kind == "float64"]
    assert left.message.startswith("com.microsoft.FusedGemm: ")
    assert not left.fatal
    assert not any(f.kind in ("error_bound", "reference") for f in report.findings)


def test_a_parameter_that_nothing_can_compute_stays_an_input() -> None:
    graph = make_graph(
        [
            make_node("Unheard", ["sizes"], ["shape"], domain="example.com"),
            make_node("Reshape", ["x", "shape"], ["r"]),
            make_node("LayerNormalization", ["r", "g"], ["y"]),
        ],
        "unknown",
        [make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2, 8))],
        [make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 8))],
        [
            onnx.numpy_helper.from_array(np.array([2, 8]), "sizes"),
            onnx.numpy_helper.from_array(np.ones(8, np.float32), "g"),
        ],
        value_info=[make_tensor_value_info("r", onnx.TensorProto.FLOAT, (2, 8))],
    )
    domains = [make_opsetid("", 17), make_opsetid("example.com", 1)]
    model = make_model(graph, opset_imports=domains, ir_version=8)
    reshape = read_graph(ir.serde.deserialize_model(model)).nodes[1]
    assert "shape" not in reshape.attributes
    assert [value.name for value in reshape.dynamic_inputs()] == ["x"]
    assert len(reshape.inputs) == 2
