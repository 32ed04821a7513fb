"""Weights inside an ``.onnx`` file, which stay there until they are used.

protobuf copies them at every step: from the file into the message, from the message into bytes.
Here the message is parsed and serialised without the large ones.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Container
from typing import IO, Any

import google.protobuf.message
import numpy as np
import onnx
import onnx_ir as ir

from normswap.io.mapped_file import stream
from normswap.io.onnx.tensors import Slot
from normswap.io.onnx.wire import Field, Piece, Unusual, with_raw_data

SMALLEST = 1024
"""Bytes; what is not larger is parsed and serialised with the message."""

Starts = dict[str, int]
"""Where in a file the raw data of initializers begins, by name."""


class InlineTensor(ir.Tensor[Any]):
    """A tensor over the bytes that the mapped model file holds for it."""

    def __init__(self, proto: onnx.TensorProto, mapping: mmap.mmap, start: int) -> None:
        dtype, shape = ir.DataType(proto.data_type), tuple(proto.dims)
        little = np.dtype(dtype.numpy()).newbyteorder("<")
        flat = np.frombuffer(mapping, little, count=math.prod(shape), offset=start)
        super().__init__(
            flat.reshape(shape),
            dtype,
            name=proto.name,
            doc_string=proto.doc_string or None,
            metadata_props={entry.key: entry.value for entry in proto.metadata_props} or None,
        )
        self._mapping, self._start = mapping, start

    def numpy(self) -> np.ndarray[Any, Any]:
        """A view of the file, or a copy where that is not aligned: torch and C rely on it."""
        return np.require(super().numpy(), requirements="A")

    def tofile(self, file: Any) -> None:
        stream(self._mapping, self._start, self._start + self.nbytes, file)

    def __deepcopy__(self, memo: dict[int, Any]) -> InlineTensor:
        return self


# -- reading -------------------------------------------------------------------------------------


def parse(mapping: mmap.mmap) -> tuple[onnx.ModelProto, Starts]:
    """The message in a file, without the raw data of its large initializers, and where that is.

    With all of it, and no starts, where the file is written in an unusual way. Raises protobuf's
    DecodeError where it is damaged.
    """
    view = memoryview(mapping)
    if os.name != "nt":  # where a file that is mapped cannot be replaced
        try:
            proto, starts = _without_weights(view)
        except (Unusual, google.protobuf.message.DecodeError):
            pass
        else:
            if len({t.name for t in proto.graph.initializer}) == len(proto.graph.initializer):
                return proto, starts
    proto = onnx.ModelProto()
    proto.ParseFromString(view)
    return proto, {}


def put_into(model: ir.Model, proto: onnx.ModelProto, starts: Starts, mapping: mmap.mmap) -> None:
    """Puts what ``parse`` left in the file into the model that was made of its message."""
    for tensor in proto.graph.initializer:
        if tensor.name in starts:
            value = model.graph.initializers[tensor.name]
            value.const_value = InlineTensor(tensor, mapping, starts[tensor.name])


def _without_weights(view: memoryview) -> tuple[onnx.ModelProto, Starts]:
    starts: Starts = {}

    def left_out(header: bytes, raw: Field) -> bytes | None:
        tensor, length = onnx.TensorProto.FromString(header), raw.end - raw.start
        if length <= SMALLEST or not _is_plain(tensor, length):
            return None
        starts[tensor.name] = raw.start
        return b""

    return onnx.ModelProto.FromString(b"".join(with_raw_data(view, left_out))), starts


def _is_plain(tensor: onnx.TensorProto, length: int) -> bool:
    """Whether raw data of that length is all its elements, each of whole bytes."""
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError):  # no type, or text
        return False
    inline = tensor.data_location == onnx.TensorProto.DEFAULT
    sizes = [*tensor.dims, bits // 8]
    return bool(tensor.name) and inline and min(sizes) >= 1 and math.prod(sizes) == length


# -- writing -------------------------------------------------------------------------------------


class _Blank(ir.LazyTensor):
    """A tensor that is serialised without its raw data."""

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


Blanks = list[tuple[Slot, ir.TensorProtocol]]


def blanks(model: ir.Model, besides: Container[Slot]) -> Blanks:
    """What to serialise in place of the large initializers of the main graph."""
    held = (Slot(v) for v in model.graph.initializers.values() if v.const_value is not None)
    return [
        (slot, _Blank(slot.tensor))
        for slot in held
        if slot not in besides and slot.tensor.nbytes > SMALLEST and _has_raw_data(slot.tensor)
    ]


def filled(message: bytes, blank: Blanks) -> list[Piece]:
    """``message``, serialised with ``blank``, in the pieces that ``write_pieces`` takes."""
    tensors = {slot.tensor.name: tensor for slot, tensor in blank}
    return with_raw_data(
        memoryview(message),
        lambda header, _: tensors.get(onnx.TensorProto.FromString(header).name),
    )


def write_pieces(pieces: list[Piece], file: IO[bytes]) -> None:
    """Writes a message, each weight straight from where it is."""
    for piece in pieces:
        if not isinstance(piece, _Blank):
            file.write(piece)
        elif hasattr(piece.tensor, "tofile"):
            piece.tensor.tofile(file)
        else:
            file.write(piece.tensor.tobytes())


def _has_raw_data(tensor: ir.TensorProtocol) -> bool:
    """Whether it is serialised as such, and not as the fields of a type that it was read with."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        return bool(tensor.raw.HasField("raw_data"))
    return tensor.dtype != ir.DataType.STRING
