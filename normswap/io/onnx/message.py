"""The protobuf message of an ``.onnx`` file, parsed and serialised without its large weights.

protobuf copies every weight from the file into the message, and from the message into bytes. Here
the weights are cut out of the encoded message first: when reading they stay in the mapped file,
when writing each goes straight to the file.

https://protobuf.dev/programming-guides/encoding: a message is a sequence of fields, each a tag (a
number and a kind) and its content; a nested message or bytes begin with their length.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import IO, Any

import google.protobuf.message
import onnx
import onnx_ir as ir

from normswap.io.onnx.tensors import InlineTensor, Placed, Slot, write_tensor

SMALLEST = 1024
"""Bytes; weights up to this size are parsed and serialised with the message."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # in ModelProto, GraphProto, TensorProto
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_FIXED = {_I64: 8, _I32: 4}

Starts = dict[str, int]
"""Offsets in a file of the raw data of initializers, by name."""

Piece = Any
"""Bytes, or an object with a ``len`` that stands for that many bytes."""


# -- reading -------------------------------------------------------------------------------------


def parse(mapping: mmap.mmap) -> tuple[onnx.ModelProto, Starts]:
    """The message in a file without the raw data of its large initializers, and their offsets.

    Where the encoding is unusual: the whole message, and no offsets. Raises protobuf's DecodeError
    where the file is damaged.
    """
    view = memoryview(mapping)
    if os.name != "nt":  # where a file that is mapped cannot be replaced
        try:
            proto, starts = _without_weights(view)
        except (_Unusual, google.protobuf.message.DecodeError):
            pass
        else:
            if len({t.name for t in proto.graph.initializer}) == len(proto.graph.initializer):
                return proto, starts
    proto = onnx.ModelProto()
    proto.ParseFromString(view)
    return proto, {}


def put_into(model: ir.Model, proto: onnx.ModelProto, starts: Starts, mapping: mmap.mmap) -> None:
    """Gives the model made of ``proto`` the weights that ``parse`` left in the file."""
    for tensor in proto.graph.initializer:
        if tensor.name in starts:
            value = model.graph.initializers[tensor.name]
            value.const_value = InlineTensor(tensor, mapping, starts[tensor.name])


def _without_weights(view: memoryview) -> tuple[onnx.ModelProto, Starts]:
    starts: Starts = {}

    def left_out(header: bytes, raw: _Field) -> bytes | None:
        tensor, length = onnx.TensorProto.FromString(header), raw.end - raw.start
        if length <= SMALLEST or not _is_plain(tensor, length):
            return None
        starts[tensor.name] = raw.start
        return b""

    return onnx.ModelProto.FromString(b"".join(_with_raw_data(view, left_out))), starts


def _is_plain(tensor: onnx.TensorProto, length: int) -> bool:
    """Whether raw data of this length is exactly its elements, each of whole bytes."""
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError):  # no type, or strings
        return False
    inline = tensor.data_location == onnx.TensorProto.DEFAULT
    sizes = [*tensor.dims, bits // 8]
    return bool(tensor.name) and inline and min(sizes) >= 1 and math.prod(sizes) == length


# -- writing -------------------------------------------------------------------------------------


class _Blank(ir.LazyTensor):
    """Stands for ``tensor`` while the model is serialised, without raw data."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        super().__init__(
            lambda: tensor,
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props) or None,
        )
        self.tensor = tensor

    def __len__(self) -> int:
        return self.tensor.nbytes

    def tobytes(self) -> bytes:
        return b""


def blanks(model: ir.Model, besides: Container[Slot]) -> Placed:
    """What to serialise in place of the large initializers of the main graph."""
    held = (Slot(v) for v in model.graph.initializers.values() if v.const_value is not None)
    return [
        (slot, _Blank(slot.tensor))
        for slot in held
        if slot not in besides and slot.tensor.nbytes > SMALLEST and _has_raw_data(slot.tensor)
    ]


def filled(message: bytes, blank: Placed) -> list[Piece]:
    """``message``, serialised with ``blank``, as the pieces that ``write_pieces`` takes."""
    tensors = {slot.tensor.name: tensor for slot, tensor in blank}
    return _with_raw_data(
        memoryview(message),
        lambda header, _: tensors.get(onnx.TensorProto.FromString(header).name),
    )


def write_pieces(pieces: list[Piece], file: IO[bytes]) -> None:
    """Writes a message, each weight directly from where it is stored."""
    for piece in pieces:
        if isinstance(piece, _Blank):
            write_tensor(piece.tensor, file)
        else:
            file.write(piece)


def _has_raw_data(tensor: ir.TensorProtocol) -> bool:
    """Whether it is serialised as raw data, and not in the typed fields it was read from."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        return bool(tensor.raw.HasField("raw_data"))
    return tensor.dtype != ir.DataType.STRING


# -- the encoding --------------------------------------------------------------------------------


class _Unusual(Exception):
    """The message is damaged, or encoded in a way that only a full parser should read."""


@dataclass(frozen=True)
class _Field:
    """Where a field is in its message: from ``tag`` to ``end``, its content from ``start``."""

    number: int
    tag: int
    start: int
    end: int


def _with_raw_data(
    message: memoryview, new: Callable[[bytes, _Field], Piece | None]
) -> list[Piece]:
    """``message``, a ModelProto, in pieces, with other raw data in the initializers of its graph.

    ``new``: takes the TensorProto of an initializer without its raw data, and the field that holds
    the data; returns what replaces it, or None to keep it. Raises _Unusual where the fields do not
    add up, or occur twice.
    """
    graph = _only(message, 0, len(message), _GRAPH)
    if graph is None:
        raise _Unusual
    inside: list[Piece] = []
    done = graph.start
    for tensor in _fields(message, graph.start, graph.end):
        if tensor.number != _INITIALIZER:
            continue
        raw = _only(message, tensor.start, tensor.end, _RAW_DATA)
        if raw is None:
            continue
        before, behind = message[tensor.start : raw.tag], message[raw.end : tensor.end]
        piece = new(bytes(before) + bytes(behind), raw)
        if piece is None:
            continue
        content = [before, *_sized(_RAW_DATA, [piece]), behind]
        inside += [message[done : tensor.tag], *_sized(_INITIALIZER, content)]
        done = tensor.end
    inside.append(message[done : graph.end])
    return [message[: graph.tag], *_sized(_GRAPH, inside), message[graph.end :]]


def _only(message: memoryview, start: int, end: int, number: int) -> _Field | None:
    fields = [field for field in _fields(message, start, end) if field.number == number]
    if len(fields) > 1:  # a parser merges the messages, and takes the last of the bytes
        raise _Unusual
    return fields[0] if fields else None


def _fields(message: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields with a length; a parser takes fields of another kind here for unknown ones."""
    at = start
    while at < end:
        tag = at
        key, at = _varint(message, at, end)
        number, kind = key >> 3, key & 7
        if kind == _LEN:
            length, at = _varint(message, at, end)
        elif kind == _VARINT:
            length = _varint(message, at, end)[1] - at
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise _Unusual
        if at + length > end:
            raise _Unusual
        if kind == _LEN:
            yield _Field(number, tag, at, at + length)
        at += length


def _varint(message: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Unusual


def _sized(number: int, pieces: list[Piece]) -> list[Piece]:
    """A field with that content."""
    length = sum(len(piece) for piece in pieces)
    head = bytearray([number << 3 | _LEN])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return [bytes(head), *pieces]
