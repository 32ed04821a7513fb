"""What every fold has to show, whatever the graph: used by the tests of single rules, of random
graphs and of whole models."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from normswap import load
from normswap.graph.graph import Graph
from normswap.io.load import model_from_onnx
from normswap.model import Model
from normswap.norms import Site, locate
from normswap.passes import Fold
from normswap.passes.base import PassResult
from tests.zoo.captures import exporting

EXACT = 1e-10  # relative to the output's scale, where weights are float64
KINDS = ("fx", "torchscript")  # and "dynamo", which takes a second
Feeds = Mapping[str, np.ndarray]


def captured(module: nn.Module, x: torch.Tensor, kind: str, randomise: bool = True) -> Model:
    """``module`` in evaluation mode, by torch.export or as one of torch's exporters writes it.

    Its weights are float64, its BatchNorms' statistics and parameters random unless
    ``randomise`` is off.
    """
    if randomise:
        randomise_norms(module)
    module, x = module.double().eval(), x.double()
    if kind == "fx":
        return load(module, example_inputs=(x,), dynamic_axes={"x": {0: "batch"}})
    dynamo = kind == "dynamo"
    dynamic: dict[str, Any] = {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]}
    if dynamo:
        dynamic = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
    buffer = io.BytesIO()
    with exporting():
        result = torch.onnx.export(
            module, (x,), None if dynamo else buffer, dynamo=dynamo, opset_version=20, **dynamic
        )
    proto = result.model_proto if result else onnx.load_from_string(buffer.getvalue())
    return load(ir.serde.deserialize_model(proto))


def randomise_norms(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            for parameter in child.parameters():
                parameter.data.normal_()
            if child.running_mean is not None and child.running_var is not None:
                child.running_mean.normal_()
                child.running_var.uniform_(0.5, 1.5)


def fingerprint(graph: Graph) -> list[Any]:
    """All that a graph consists of: its nodes and the bytes of its constants."""
    nodes: list[Any] = [
        (n.op, [v and v.name for v in n.inputs], sorted(map(str, n.attributes.items())))
        for n in graph.nodes
    ]
    constants = [v for v in graph.values() if v.is_constant and v.producer is None]
    arrays = {v.name: graph.constant(v) for v in constants}
    nodes += sorted((k, a.dtype.str, a.tobytes()) for k, a in arrays.items() if a is not None)
    return [*nodes, *[v.name for v in graph.outputs]]


def batch_norms(model: Model) -> list[Site]:
    return [site for site in locate(model.graph).sites if site.kind == "batch_norm"]


def same(expected: Feeds, model: Model, feeds: Feeds, bound: float = EXACT) -> None:
    """The model computes these outputs in float64, relative to each one's largest element."""
    got = model.run(feeds, np.float64)
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape, name
        assert np.all(np.isfinite(got[name])), name
        error, scale = np.abs(got[name] - array).max(), np.abs(array).max()
        assert error <= bound * scale, f"'{name}' is off by {error:.3g} of {scale:.3g}"


def check_fold(
    model: Model,
    feeds: Feeds,
    fold: Callable[[Model], PassResult] | None = None,
    bound: float = EXACT,
    reload: bool = True,
) -> PassResult:
    """Folds ``model``; it computes the same, what is done is gone, what is skipped has a reason
    and is still there, the input is as it was, and there is nothing left to fold."""
    fold = fold or Fold()
    before, outputs = fingerprint(model.graph), model.run(feeds, np.float64)
    sites = batch_norms(model)
    result = fold(model)
    assert fingerprint(model.graph) == before, "the input has changed"
    for name, array in model.run(feeds, np.float64).items():
        assert array.tobytes() == outputs[name].tobytes(), f"'{name}' of the input has changed"
    same(outputs, result.model, feeds, bound)
    skipped = [(site, why) for site, why in result.skipped if site.kind == "batch_norm"]
    told = [site for site in [*result.done, *(s for s, _ in skipped)] if site.kind == "batch_norm"]
    assert sorted(s.name for s in told) == sorted(s.name for s in sites), "not all are told of"
    assert all(reason for _, reason in result.skipped), "a reason is missing"
    assert result.modified == bool(result.done), "modified, and nothing done, or the other way"
    assert (result.model is model) != result.modified, "a copy that is no other model"
    left = Counter(s.spelling for s in batch_norms(result.model))
    assert left == Counter(s.spelling for s, _ in skipped), "done and there, or skipped and gone"
    _nothing_added(model.graph, result)
    folded = result.model
    if reload and model.kind == "onnx":  # the view and the file tell the same
        folded = _reloaded(folded)
        same(outputs, folded, feeds, bound)
    again = fold(folded)
    assert not again.modified, f"folds only now: {[s.name for s in again.done]}"
    assert len(again.skipped) == len(result.skipped), "skips others than before"
    return result


def _nothing_added(original: Graph, result: PassResult) -> None:
    """No operator in place of a norm: but a product without a bias may have gained one, and the
    notes tell of each shift that stays."""
    before, after = (Counter(n.op for n in g.nodes) for g in (original, result.model.graph))
    assert after["BatchNormalization"] <= before["BatchNormalization"], "another norm"
    for op in ("Mul", "Sub", "Div", "Transpose", "Linear", "Conv"):
        assert after[op] <= before[op], f"{op} in place of a norm"
    products = before["MatMul"] if result.modified else 0
    shifts = sum("its shift stays" in note for note in result.notes)
    assert after["MatMul"] + after["Gemm"] <= before["MatMul"] + before["Gemm"], "another product"
    assert after["Add"] <= before["Add"] + products + shifts, "an Add in place of a norm"


def _reloaded(model: Model) -> Model:
    """An ONNX model as it comes back from its file."""
    proto = ir.serde.serialize_model(model.to_onnx_ir())
    onnx.checker.check_model(proto)
    return model_from_onnx(ir.serde.deserialize_model(proto), model.name)
