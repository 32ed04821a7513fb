"""A model whose weights do not fit into one message: they stay in their file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normswap as ns
from benchmarks.large_vit import write_large_vit
from normswap.graph.onnx import graph as adapter
from normswap.graph.onnx import half
from normswap.graph.rounding import as_half
from normswap.io.onnx import data_files
from normswap.io.onnx.tensors import MappedTensor

DEPTH, WIDTH = 2, 256


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ViT with its weights beside it, which is taken to be a large one."""
    path = tmp_path / "large.onnx"
    write_large_vit(path, DEPTH, WIDTH)
    monkeypatch.setattr(data_files, "LARGEST_INLINE", 10_000)
    monkeypatch.setattr(half, "_LARGE", 10_000)
    return path


def _external(path: Path) -> dict[str, str]:
    """The data files of the tensors that have one."""
    proto = onnx.load(path, load_external_data=False)
    return {
        t.name: next(e.value for e in t.external_data if e.key == "location")
        for t in proto.graph.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
    }


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_weights_stay_in_their_file_and_are_written_beside_the_new_one(
    large: Path, format: str
) -> None:
    model = ns.load(large)
    converted = ns.convert(model, format).model
    graph = converted.graph
    assert isinstance(graph, adapter.OnnxGraph)
    held = graph.model.graph.initializers
    big = [v for v in held.values() if v.const_value is not None and v.const_value.nbytes >= 5000]
    assert len(big) >= 6 * DEPTH
    in_file = (ir.LazyTensor, MappedTensor)  # ONNX has no bfloat16 form of every operator
    assert all(isinstance(value.const_value, in_file) for value in big)
    assert any(isinstance(value.const_value, ir.LazyTensor) for value in big)

    path = large.with_name("half.onnx")
    ns.save(converted, path)
    external = _external(path)
    assert set(external.values()) == {"half.onnx.data"}
    assert {str(value.name) for value in big} <= set(external)
    written, original = ns.load(path).graph, model.graph
    for value in big:
        name = str(value.name)
        source = original.constant(original.value(name))
        array = written.constant(written.value(name))
        assert source is not None
        assert array is not None
        kept = isinstance(value.const_value, MappedTensor)
        assert array.dtype.name == ("float32" if kept else format)
        wanted = source if kept else as_half(source, array.dtype)
        np.testing.assert_array_equal(array.astype(np.float32), wanted.astype(np.float32))


def test_memory_does_not_grow_with_the_weights(large: Path) -> None:
    model = ns.load(large)
    total = large.with_name("large.onnx.data").stat().st_size
    sites = model.sites
    assert sites
    tracemalloc.start()
    converted = ns.convert(model, "float16").model
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert before < total / 4, f"{before:,} bytes are held of a model of {total:,}"
    assert converted.graph.kind == "onnx"


def test_a_constant_is_rounded_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from normswap.graph import rounding

    array = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32) * 1e5
    array[0, 0], array[6, 4], array[3, 3] = 3e38, -np.inf, 1e-12
    whole = as_half(array.T, np.float16)
    monkeypatch.setattr(rounding, "_AT_ONCE", 3)
    np.testing.assert_array_equal(as_half(array.T, np.float16), whole)
    assert whole[0, 0] == 65504
    assert whole[4, 6] == -np.inf
    assert as_half(np.array(1e-12), np.float16).shape == ()
