"""Reading ``.onnx`` files with their external data, and replacing them as a whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as ir

from normswap.errors import NormswapError, first_line, root_cause
from normswap.io.atomic import PathLike, atomic_path, check_writable
from normswap.io.mapped import MappedFile
from normswap.io.onnx.data_files import DataFiles, data_file, map_data_files, superseded_files
from normswap.io.onnx.message import Starts, blanks, filled, parse, put_into, write_pieces
from normswap.io.onnx.tensors import Placed, slots

_LARGEST_PROTO = (1 << 31) - 1
_EXPORT_AGAIN = "copy or export it again"


def read_onnx(path: PathLike) -> ir.Model:
    """The model in an ``.onnx`` file.

    Its weights stay mapped until they are used: meanwhile its files may be replaced or removed,
    but not overwritten in place.

    Raises NormswapError for a file that is missing, damaged or not ONNX, for data files that are
    missing, short or outside its folder, and for content that onnx_ir would drop silently.
    """
    path = Path(path)
    proto, starts, mapping = _parse(path)
    _check_content(path, proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # SerdeError around whatever the content led to
        raise NormswapError(
            f"{path}: is damaged ({first_line(root_cause(error))}); {_EXPORT_AGAIN}"
        ) from error
    put_into(model, proto, starts, mapping)
    map_data_files(model, path)
    _check_inline(path, model)
    return model


def write_onnx(model: ir.Model, path: PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Writes ``model`` to ``path`` with the external-data layout that it was read with.

    Inline tensors stay inline and external ones external, grouped in files of the same names
    beside ``path``; new ones of more than 1 KiB go to the model's main data file, if it has one.
    What does not fit into a protobuf message (2 GB) goes to ``<name>.data``. Existing files are
    never overwritten: data takes a free name (``<name>.1.data``), then ``path`` is replaced in
    one step, then the data files of the model that it held are removed unless another model in
    the folder uses them. ``model`` is unchanged, and stays usable if it was read from ``path``.
    ``metadata``: properties that the file gets in addition to the model's; they take precedence.
    Raises NormswapError if something cannot be written; then ``path`` is as it was.
    """
    path = Path(path)
    check_writable(path)
    files = DataFiles(model, path)
    superseded = superseded_files(path, data_files_of(path))
    with files.written() as placed:
        blank = blanks(model, besides={slot for slot, _ in placed})
        with _placed([*placed, *blank], model):
            proto = ir.serde.serialize_model(model)
        if metadata:
            onnx.helper.set_model_props(proto, {**model.metadata_props, **metadata})
        pieces = filled(proto.SerializeToString(), blank)
        if sum(len(piece) for piece in pieces) > _LARGEST_PROTO:
            raise NormswapError(f"{path}: is larger than 2 GB without its weights")
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as file:
                write_pieces(pieces, file)
            files.settle(temporary)
    files.remove(superseded)


def _parse(path: Path) -> tuple[onnx.ModelProto, Starts, MappedFile]:
    """The message without its large weights, their offsets, and the mapped file."""
    if not path.is_file():
        problem = "is not a file" if path.exists() else "there is no such file"
        raise NormswapError(f"{path}: {problem}; name an .onnx file")
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise NormswapError(f"{path}: is empty; {_EXPORT_AGAIN}")
            mapping = MappedFile(file.fileno())
        return *parse(mapping), mapping
    except google.protobuf.message.DecodeError as error:
        raise NormswapError(f"{path}: is not ONNX, or is truncated; {_EXPORT_AGAIN}") from error
    except OSError as error:
        raise NormswapError(f"{path}: cannot be read ({error.strerror or error})") from error


def _check_content(path: Path, proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph") or not proto.opset_import or not proto.graph.output:
        raise NormswapError(f"{path}: is not an ONNX model, or is truncated; {_EXPORT_AGAIN}")
    # onnx_ir keeps neither, and a model without its weights would be worse than none.
    if proto.graph.sparse_initializer:
        raise NormswapError(
            f"{path}: has sparse initializers, which normswap does not keep; make them dense"
        )
    if proto.training_info:
        raise NormswapError(
            f"{path}: has training information, which normswap does not keep; "
            "export it for inference"
        )


def _check_inline(path: Path, model: ir.Model) -> None:
    for slot in slots(model):
        tensor = slot.tensor
        if tensor.dtype == ir.DataType.UNDEFINED:
            raise NormswapError(f"{path}: is damaged: '{slot.name}' has no type; {_EXPORT_AGAIN}")
        if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
            wanted, length = tensor.nbytes, len(tensor.raw.raw_data)
            if length != wanted:
                raise NormswapError(
                    f"{path}: is damaged: '{slot.name}' takes {wanted} bytes but has {length}; "
                    f"{_EXPORT_AGAIN}"
                )


def data_files_of(path: Path) -> set[Path]:
    """The data files that the model at ``path`` refers to; none if there is no model."""
    files: set[Path] = set()
    if path.exists():
        # It is about to be replaced, so errors in it do not matter.
        with contextlib.suppress(Exception):
            for slot in slots(ir.serde.deserialize_model(_parse(path)[0])):
                if isinstance(slot.tensor, ir.ExternalTensor):
                    with contextlib.suppress(NormswapError):
                        files.add(data_file(path, str(slot.tensor.location), slot.name))
    return files


@contextlib.contextmanager
def _placed(placed: Placed, model: ir.Model) -> Iterator[None]:
    """Puts the tensors of the new file into the model, and the model's own back.

    Serialisation also renames tensors after their values; that is undone too.
    """
    held = [(slot, slot.tensor, slot.tensor.name) for slot in slots(model)]
    try:
        for slot, tensor in placed:
            slot.put(tensor)
        yield
    finally:
        for slot, tensor, name in held:
            if slot.tensor is not tensor:
                slot.put(tensor)
            if tensor.name != name:
                tensor.name = name
