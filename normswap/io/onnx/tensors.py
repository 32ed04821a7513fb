"""Where an ``onnx_ir`` model holds its tensors, and tensors whose bytes stay in a mapped file."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import onnx
import onnx_ir as ir

from normswap.errors import plain
from normswap.io.mapped import release_pages, stream


@dataclass(frozen=True)
class Slot:
    """A place in a model that holds a tensor: an initializer, or an attribute of a node."""

    owner: ir.Value | ir.Node
    attribute: str = ""
    index: int | None = None

    @property
    def is_initializer(self) -> bool:
        return isinstance(self.owner, ir.Value)

    @property
    def name(self) -> str:
        """What error messages call it."""
        if isinstance(self.owner, ir.Value):
            return plain(self.owner.name or "an unnamed initializer")
        unnamed = f"{self.owner.name or self.owner.op_type}.{self.attribute}"
        return plain(self.tensor.name or unnamed)

    @property
    def tensor(self) -> ir.TensorProtocol:
        if isinstance(self.owner, ir.Value):
            assert self.owner.const_value is not None
            return self.owner.const_value
        value = self.owner.attributes[self.attribute].value
        held: ir.TensorProtocol = value if self.index is None else value[self.index]
        return held

    def put(self, tensor: ir.TensorProtocol) -> None:
        if isinstance(self.owner, ir.Value):
            self.owner.const_value = tensor
            return
        old = self.owner.attributes[self.attribute]
        value: Any = tensor
        if self.index is not None:
            value = [*old.value[: self.index], tensor, *old.value[self.index + 1 :]]
        self.owner.attributes.add(ir.Attr(old.name, old.type, value, doc_string=old.doc_string))


Placed = list[tuple[Slot, ir.TensorProtocol]]
"""Which tensor a slot holds while the model is serialised."""


def slots(model: ir.Model) -> Iterator[Slot]:
    """Every tensor of the graph, its subgraphs and the functions, in the file's order."""
    scopes: list[ir.Graph | ir.Function] = [*reversed(model.functions.values()), model.graph]
    while scopes:
        scope = scopes.pop()
        if isinstance(scope, ir.Graph):
            held = (v for v in scope.initializers.values() if v.const_value is not None)
            yield from (Slot(value) for value in held)
        for node in scope:
            for name, attribute in node.attributes.items():
                if attribute.is_ref() or attribute.value is None:
                    continue
                match attribute.type:
                    case ir.AttributeType.TENSOR:
                        yield Slot(node, name)
                    case ir.AttributeType.TENSORS:
                        yield from (Slot(node, name, i) for i in range(len(attribute.value)))
                    case ir.AttributeType.GRAPH:
                        scopes.append(attribute.value)
                    case ir.AttributeType.GRAPHS:
                        scopes.extend(attribute.value)


def write_tensor(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    """Writes the bytes of a tensor, without a copy where they are in memory or in a file.

    Not by numpy's ``tofile``, whose error on a full disk does not say what it is.
    """
    if isinstance(tensor, MappedTensor | InlineTensor):
        tensor.tofile(file)
    elif tensor.dtype != ir.DataType.STRING and tensor.dtype.bitwidth >= 8:
        array = np.ascontiguousarray(tensor.numpy())
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        file.write(little.reshape(-1).view(np.uint8).data)
    else:
        file.write(tensor.tobytes())


class MappedTensor(ir.ExternalTensor):
    """An external tensor over one mapping that all tensors of its data file share.

    onnx_ir maps the whole file once per tensor and keeps a file descriptor for each, so a thousand
    tensors use up the descriptors. This one reads the file that was checked when the model was
    loaded, even after that was replaced or removed.
    """

    def __init__(self, source: ir.ExternalTensor, mapping: mmap.mmap | None) -> None:
        super().__init__(
            source.location,
            source.offset,
            source.length,
            source.dtype,
            shape=ir.Shape(source.shape),
            name=source.name,
            doc_string=source.doc_string,
            metadata_props=dict(source.metadata_props) or None,
            base_dir=source.base_dir,
        )
        self.raw = mapping

    @property
    def span(self) -> tuple[int, int]:
        """The offset of its first byte in the data file, and the offset after its last."""
        start = self.offset or 0
        return start, start + self.nbytes

    def numpy(self) -> np.ndarray[Any, Any]:
        dtype = self.dtype
        if self.raw is None or self.nbytes == 0:
            return np.empty(self.shape.numpy(), dtype.numpy())
        if dtype.bitwidth < 8:
            proto = onnx.TensorProto(
                data_type=dtype.value, dims=self.shape.numpy(), raw_data=self.tobytes()
            )
            return ir.serde.TensorProtoTensor(proto).numpy()
        little = np.dtype(dtype.numpy()).newbyteorder("<")
        flat = np.frombuffer(self.raw, little, count=self.size, offset=self.span[0])
        return flat.reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))

    def tobytes(self) -> bytes:
        start, end = self.span
        return b"" if self.raw is None else self.raw[start:end]

    def tofile(self, file: Any) -> None:
        if self.raw is not None:
            stream(self.raw, *self.span, file)

    def release(self) -> None:
        """Does nothing: the mapping is shared, and closed with the last tensor that uses it."""

    def release_pages(self) -> None:
        if self.raw is not None:
            release_pages(self.raw, *self.span)

    def __deepcopy__(self, memo: dict[int, Any]) -> MappedTensor:
        return self


class InlineTensor(ir.Tensor[Any]):
    """A tensor over its bytes in the mapped model file."""

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
        """A view of the file, or a copy where it is not aligned: torch and C need alignment."""
        return np.require(super().numpy(), requirements="A")

    def tofile(self, file: Any) -> None:
        stream(self._mapping, self._start, self._start + self.nbytes, file)

    def release_pages(self) -> None:
        release_pages(self._mapping, self._start, self._start + self.nbytes)

    def __deepcopy__(self, memo: dict[int, Any]) -> InlineTensor:
        return self
