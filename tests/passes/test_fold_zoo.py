"""Every architecture's norms, swapped for BatchNorms, fold away: in FX graphs and in ONNX files.

By default every fifth model is folded in one kind of graph, with NORMSWAP_ZOO=all all of them in
both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper

import normswap as ns
from normswap.graph.graph import Graph, Node
from normswap.graph.linear import linear_writing
from normswap.graph.onnx.graph import view
from normswap.graph.onnx.prepare import prepare
from tests.effort import ALL
from tests.passes.fold_checks import EXACT, check_fold
from tests.zoo.exports import FX, NotExportable, model_as, zoo_model
from tests.zoo.models import FAMILIES, build

ONNX = "onnx"
SHIFTED = ("torch_conv_stem",)  # what SHIFTS is about
CASES = [
    (name, kind)
    for number, name in enumerate(FAMILIES)
    for kind in (FX, ONNX)
    if ALL or name in SHIFTED or (number % 5 == 0 and kind == (FX, ONNX)[number // 5 % 2])
]
ELEMENTWISE = ("Add", "Mul", "Sub", "Div")
FOLDABLE = ("layer_norm", "rms_norm", "batch_norm")
SAMPLES = 24

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
MIXED = ("open_clip_mixed",)  # has to stay in half precision

# Norms of which the shift stays, as one Add, told of in the notes. Nothing else stays of any.
SHIFTS = {
    "torch_conv_stem-fx": ["stem.2"],  # a BatchNorm in front of a convolution that pads
    "torch_conv_stem-onnx": ["stem.2"],
}


def _model(name: str, kind: str) -> ns.Model:
    """In ONNX, the file of the exporter that takes a tenth of the time if it can write one."""
    if kind == FX:
        zoo = build(name)
        if name not in MIXED:
            zoo.module.double()
            zoo.inputs = {k: _double(t) for k, t in zoo.inputs.items()}
        dynamic = {key: {0: "batch"} for key in zoo.inputs}
        return ns.load(zoo.module, example_inputs=dict(zoo.inputs), dynamic_axes=dynamic)
    try:
        return model_as(name, "torchscript-14")
    except NotExportable:
        return model_as(name, "dynamo-18")


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _calibration(name: str, model: ns.Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    data = {}
    for (key, tensor), spec in zip(zoo_model(name).inputs.items(), model.inputs, strict=True):
        array = np.resize(tensor.numpy(), (SAMPLES, *tensor.shape[1:]))
        if tensor.is_floating_point():
            array = 0.5 + 2 * random.standard_normal(array.shape)
        data[key] = array.astype(spec.dtype)
    return data


def in_double(model: ns.Model) -> ns.Model:
    """An ONNX model in float64, in which folding rounds next to nothing."""
    proto = ir.serde.serialize_model(model.to_onnx_ir())
    del proto.graph.value_info[:]
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    scales = {name for node in proto.graph.node if node.op_type == "Resize" for name in node.input}
    tensors = [t for t in proto.graph.initializer if t.name not in scales]
    for node in proto.graph.node:
        if not scales.intersection(node.output):
            tensors += [a.t for a in node.attribute if a.HasField("t")]
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
    for tensor in tensors:
        if tensor.data_type in FLOATS:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    wide = {np.dtype(np.float32): np.dtype(np.float64), np.dtype(np.float16): np.dtype(np.float64)}
    types = {v.name: (v.shape, wide.get(v.dtype, v.dtype)) for v in model.graph.values()}
    double = ir.serde.deserialize_model(proto)
    prepare(double)
    graph = view(double, types)  # shapes that ORT has to find out
    inputs = tuple(replace(spec, dtype=wide.get(spec.dtype, spec.dtype)) for spec in model.inputs)
    return replace(model, graph=graph, inputs=inputs)


@pytest.mark.parametrize("case", CASES, ids=["-".join(case) for case in CASES])
def test_every_norm_folds(case: tuple[str, str]) -> None:
    name, kind = case
    original = _model(name, kind)
    swapped = ns.swap(original, to="batchnorm", sites="*", data=_calibration(name, original))
    assert {s.kind for s, _ in swapped.skipped} <= {"batch_norm", "group_norm", "instance_norm"}
    model = swapped.model if kind == FX else in_double(swapped.model)
    feeds = {spec.name: array.astype(spec.dtype) for spec, array in _examples(name, model)}
    rounded = kind == FX and name in MIXED
    result = check_fold(model, feeds, bound=2e-3 if rounded else EXACT, reload=False)
    assert not any(site.kind in FOLDABLE for site in ns.locate(result.model))
    shifts = SHIFTS.get(f"{name}-{kind}", [])
    told = [note for note in result.notes if "its shift stays" in note]
    assert [note.split("'")[1] for note in told] == shifts
    _no_residue(original.graph, model.graph, result.model.graph, len(shifts))
    report = ns.validate(swapped.model, ns.fold(swapped.model).model)
    assert report.passed, report


def _examples(name: str, model: ns.Model) -> Iterator[tuple[ns.InputSpec, np.ndarray]]:
    for spec, tensor in zip(model.inputs, zoo_model(name).inputs.values(), strict=True):
        yield spec, tensor.numpy()


def _no_residue(original: Graph, swapped: Graph, folded: Graph, shifts: int) -> None:
    """No more operators than the model has without its norms: the swapped one has each norm as
    one operator between two transposes, so it shows which operators are no part of a norm."""
    before, after = _per_channel(swapped), _per_channel(folded)
    before["Add"] += shifts
    assert not after - before, after - before
    counts = [Counter(node.op for node in graph.nodes) for graph in (original, swapped, folded)]
    assert counts[2]["Transpose"] <= counts[0]["Transpose"]
    for op in ("Mul", "Sub", "Div"):
        assert counts[2][op] <= counts[1][op], op


def _per_channel(graph: Graph) -> Counter[str]:
    """How many operators of each kind take a constant vector, other than as a Linear's bias."""
    return Counter(node.op for node in graph.nodes if _takes_vector(graph, node))


def _takes_vector(graph: Graph, node: Node) -> bool:
    if node.op not in ELEMENTWISE or len(node.dynamic_inputs()) != 1:
        return False
    if linear_writing(graph, node.output) is not None:
        return False
    (constant,) = (v for v in node.inputs if v is not None and v.is_constant)
    sizes = [n for n in constant.shape or () if n != 1]
    return len(sizes) == 1
