"""Weights inside .onnx files: left there until used, and read and written as protobuf does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import normswap as ns
from normswap.errors import NormswapError
from normswap.io.onnx import message, read_onnx, write_onnx
from normswap.io.onnx.tensors import InlineTensor, MappedTensor, slots

WIDTH, HIDDEN = 64, 96
NORM = """<ir_version: 9, opset_import: ["" : 14]>
norm (float[batch, 7, 64] x) => (float[batch, 7, 64] y) {
  mean = ReduceMean<axes=[-1]>(x)
  d = Sub(x, mean)
  square = Mul(d, d)
  variance = ReduceMean<axes=[-1]>(square)
  shifted = Add(variance, eps)
  root = Sqrt(shifted)
  n = Div(d, root)
  scaled = Mul(n, gamma)
  h = Add(scaled, beta)
  up = MatMul(h, w1)
  act = Relu(up)
  y = MatMul(act, w2)
}"""
UNTOUCHED = {"w1", "w2"}


def build() -> onnx.ModelProto:
    """y = relu(LayerNorm(x) @ w1) @ w2, with tensors of all kinds that nobody reads."""
    random = np.random.default_rng(0)
    arrays = {
        "eps": np.float32(1e-5),
        "gamma": random.normal(size=WIDTH).astype(np.float32),
        "beta": random.normal(size=WIDTH).astype(np.float32),
        "w1": random.normal(size=(WIDTH, HIDDEN)).astype(np.float32),
        "w2": random.normal(size=(HIDDEN, WIDTH)).astype(np.float32),
        "half": random.normal(size=(3, 400)).astype(np.float16),
        "integers": random.integers(0, 9, 300),
    }
    model: onnx.ModelProto = onnx.parser.parse_model(NORM)
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    make = onnx.helper.make_tensor
    model.graph.initializer.append(make("typed", onnx.TensorProto.FLOAT, [300], [0.5] * 300))
    model.graph.initializer.append(make("packed", onnx.TensorProto.INT4, [3000], [3] * 3000))
    model.graph.initializer.append(make("text", onnx.TensorProto.STRING, [2], [b"a" * 999, b"b"]))
    model.graph.initializer[3].doc_string = "the first"
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def tensors(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {str(slot.tensor.name): slot.tensor for slot in slots(model)}


@pytest.mark.parametrize("layout", ["inline", "external"])
def test_untouched_weights_are_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    source, proto = tmp_path / "m.onnx", build()
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save(build(), source, **(options if layout == "external" else {}))
    read: set[str] = set()

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: ir.TensorProtocol, *arguments: Any, **options: Any) -> Any:
            read.add(str(tensor.name))
            return method(tensor, *arguments, **options)

        return call

    for kind in (InlineTensor, MappedTensor):
        for name in ("numpy", "__array__", "tobytes"):
            monkeypatch.setattr(kind, name, counted(getattr(kind, name)))
    result = ns.swap(ns.load(source), to="fused")
    ns.save(result.model, tmp_path / "n.onnx")
    assert len(result.done) == 1
    if layout == "external":
        assert "gamma" in read  # what the swap needs is counted
    assert not read & UNTOUCHED
    swapped = {t.name: t for t in onnx.load(tmp_path / "n.onnx").graph.initializer}
    for tensor in proto.graph.initializer:
        if tensor.name in UNTOUCHED:
            assert swapped[tensor.name].raw_data == tensor.raw_data


def test_a_file_is_written_as_protobuf_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(build(), tmp_path / "m.onnx")
    model = read_onnx(source)
    held = tensors(model)
    inline = {name for name, tensor in held.items() if isinstance(tensor, InlineTensor)}
    assert inline == {"w1", "w2", "half", "integers"}
    model.graph.initializers["half"].const_value = ir.tensor(held["half"].numpy() + 1, name="half")
    write_onnx(model, tmp_path / "pieces.onnx")
    monkeypatch.setattr(message, "SMALLEST", 1 << 40)
    whole = read_onnx(source)
    assert not any(isinstance(tensor, InlineTensor) for tensor in tensors(whole).values())
    whole.graph.initializers["half"].const_value = model.graph.initializers["half"].const_value
    write_onnx(whole, tmp_path / "whole.onnx")
    assert (tmp_path / "pieces.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_values_are_those_of_the_file_and_aligned(tmp_path: Path) -> None:
    proto = build()
    for shift in range(1, 5):  # of all that follows
        proto.producer_name = "x" * shift
        held = tensors(read_onnx(save(proto, tmp_path / f"{shift}.onnx")))
        for tensor in proto.graph.initializer[:7]:
            array = held[tensor.name].numpy()
            assert array.flags.aligned
            np.testing.assert_array_equal(array, onnx.numpy_helper.to_array(tensor))
            assert held[tensor.name].tobytes() == tensor.raw_data


def test_what_is_said_of_a_weight_is_kept(tmp_path: Path) -> None:
    proto = build()
    proto.graph.initializer[3].metadata_props.add(key="trained", value="no")
    write_onnx(read_onnx(save(proto, tmp_path / "m.onnx")), tmp_path / "n.onnx")
    kept = onnx.load(tmp_path / "n.onnx").graph.initializer[3]
    assert kept == proto.graph.initializer[3]


def test_a_model_outlives_its_file(tmp_path: Path) -> None:
    proto, path = build(), tmp_path / "m.onnx"
    model = read_onnx(save(proto, path))
    replaced = read_onnx(path)
    for name in UNTOUCHED:
        shape = replaced.graph.initializers[name].const_value.shape.numpy()  # type: ignore[union-attr]
        replaced.graph.initializers[name].const_value = ir.tensor(
            np.zeros(shape, np.float32), name=name
        )
    write_onnx(replaced, path)
    assert not tensors(read_onnx(path))["w1"].numpy().any()
    write_onnx(model, path)  # the file that it reads from went two versions ago
    np.testing.assert_array_equal(
        tensors(read_onnx(path))["w1"].numpy(),
        onnx.numpy_helper.to_array(proto.graph.initializer[3]),
    )


# -- files that are damaged, or written in another way -------------------------------------------


def outcome(path: Path) -> object:
    """All tensors of a file, or why it is refused."""
    try:
        model = read_onnx(path)
    except NormswapError as error:
        return str(error)
    return [(t.name, t.dtype, t.shape.numpy(), content(t)) for t in tensors(model).values()]


def content(tensor: ir.TensorProtocol) -> object:
    """Whatever it has: what is damaged may have no bytes."""
    try:
        return tensor.numpy().tolist() if tensor.dtype == ir.DataType.STRING else tensor.tobytes()
    except Exception as error:
        return type(error)


def outcomes(path: Path) -> tuple[object, object]:
    """As it is read, and as protobuf alone reads it."""
    own = outcome(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message, "SMALLEST", 1 << 40)
        return own, outcome(path)


def test_damage_is_seen_as_protobuf_sees_it(tmp_path: Path) -> None:
    content = build().SerializeToString(deterministic=True)
    long = [t.raw_data for t in build().graph.initializer if len(t.raw_data) > 64]
    inside = [range(start + 8, start + len(raw)) for raw in long if (start := content.find(raw))]
    path = tmp_path / "m.onnx"
    refused = 0
    for at in range(0, len(content), 7):
        if any(at in span for span in inside) or content[at] == ord("a"):
            continue  # another weight, or text
        changed = bytearray(content)
        changed[at] ^= 0x1A
        path.write_bytes(changed)
        own, whole = outcomes(path)
        assert own == whole, at
        refused += isinstance(own, str)
    assert refused > 20


def varint(value: int, overlong: int) -> bytes:
    digits = [value >> shift & 0x7F for shift in range(0, max(1, value.bit_length()), 7)]
    digits += [0] * overlong
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


ODDITIES = ("none", "group", "twice", "short, then whole", "emptied", "absent", "split")
NAMES = ("", "w1", "gamma")


@st.composite
def rewritten(draw: st.DrawFn) -> bytes:
    """The model with its fields in any order, unknown ones and long-winded sizes, and perhaps one
    thing that few files have."""
    model = build()
    odd = draw(st.sampled_from([*ODDITIES, *NAMES]))
    chosen = draw(st.integers(3, 9))  # the large ones

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2, 0) + varint(len(content), draw(st.integers(0, 2))) + content

    unknown = [field(900, b"??"), varint(901 << 3, 0) + b"\x07", varint(902 << 3 | 5, 0) + b"abcd"]
    group = varint(903 << 3 | 3, 0) + varint(903 << 3 | 4, 0)
    graph: list[bytes] = []
    for index, tensor in enumerate(model.graph.initializer):
        raw = [field(9, tensor.raw_data)] if tensor.HasField("raw_data") else []
        tensor.ClearField("raw_data")
        parts = [draw(st.sampled_from(unknown))]
        if index == chosen:
            tensor.name = odd if odd in NAMES else tensor.name
            parts += [group] if odd == "group" else []
            raw = {
                "twice": [b"".join([*raw, *raw])],
                "short, then whole": [b"".join([field(9, b"short"), *raw])],
                "emptied": [b"".join([*raw, field(9, b"")])],
                "absent": [],
            }.get(odd, raw)
        parts += [*raw, tensor.SerializeToString()]
        graph.append(field(5, b"".join(draw(st.permutations(parts)))))
    del model.graph.initializer[:]
    graph.insert(draw(st.integers(0, len(graph))), model.graph.SerializeToString())
    model.ClearField("graph")
    half = draw(st.integers(1, len(graph) - 1)) if odd == "split" else len(graph)
    graphs = [field(7, b"".join(part)) for part in (graph[:half], graph[half:]) if part]
    return b"".join(draw(st.permutations([*graphs, model.SerializeToString(), unknown[0]])))


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=rewritten())
def test_any_protobuf_is_read_as_protobuf_reads_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    own, whole = outcomes(path)
    assert own == whole
