"""Reading ``.onnx`` files with their external data, and replacing them as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as ir

from normswap.errors import NormswapError, first_line, root_cause
from normswap.io.atomic import PathLike, replacing
from normswap.io.mapped import MappedFile
from normswap.io.onnx.data_files import DataFiles, map_data_files
from normswap.io.onnx.message import Piece, Starts, blanks, filled, parse, put_into, write_pieces
from normswap.io.onnx.old_data import WRITTEN, old_data, written_note
from normswap.io.onnx.tensors import Placed, slots

_LARGEST_PROTO = (1 << 31) - 1
_EXPORT_AGAIN = "copy or export it again"
_TRIES = 20


def read_onnx(path: PathLike) -> ir.Model:
    """The model in an ``.onnx`` file.

    Its weights stay mapped until they are used: meanwhile its files may be replaced or removed,
    but not overwritten in place.

    Raises NormswapError for a file that is missing, damaged or not ONNX, for data files that are
    missing, short or outside its folder, and for content that onnx_ir would drop silently.
    """
    path = Path(path)
    for _ in range(_TRIES):
        before = _version(path)
        try:
            model = _read(path)
        except NormswapError:
            if _version(path) == before:
                raise
        else:
            # Else the data may be another model's: a run that replaces a file also replaces them.
            if _version(path) == before:
                return model
    raise NormswapError(f"{path}: is replaced again and again by other processes; try it later")


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes when another process replaces the file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> ir.Model:
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
    one step, then the data files of the model that it held are removed where nothing else can need
    them (old_data.py); a warning names those that stay. Other processes that write ``path`` wait.
    ``model`` is unchanged, and stays usable if it was read from ``path``.
    ``metadata``: properties that the file gets in addition to the model's; they take precedence.
    Raises NormswapError if something cannot be written; then ``path`` is as it was.
    """
    path = Path(path)
    with replacing(path) as output:
        going, staying = _old_data(path)
        files = DataFiles(model, path, output.folder)
        files.hold(going)
        with output.temporary() as temporary, open(temporary, "wb") as file:
            output.supersedes(going, staying)
            with files.written(output) as placed:
                write_pieces(_message(path, model, placed, metadata), file)
        output.commit(temporary)


def _message(
    path: Path, model: ir.Model, placed: Placed, metadata: Mapping[str, str] | None
) -> list[Piece]:
    """The pieces of the message of ``model``, whose external tensors are ``placed``."""
    blank = blanks(model, besides={slot for slot, _ in placed})
    with _placed([*placed, *blank], model):
        proto = ir.serde.serialize_model(model)
    notes = {**model.metadata_props, **(metadata or {})}
    notes.pop(WRITTEN, None)  # of the file that it was read from
    places = {str(t.location) for _, t in placed if isinstance(t, ir.ExternalTensor)}
    if places:
        notes[WRITTEN] = written_note(path.parent, places)
    onnx.helper.set_model_props(proto, notes)
    pieces = filled(proto.SerializeToString(), blank)
    if sum(len(piece) for piece in pieces) > _LARGEST_PROTO:
        raise NormswapError(f"{path}: is larger than 2 GB without its weights")
    return pieces


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
    going, staying = _old_data(path)
    return {*going, *staying}


def _old_data(path: Path) -> tuple[list[Path], list[Path]]:
    if path.exists():
        # It is about to be replaced, so errors in it do not matter.
        with contextlib.suppress(Exception):
            return old_data(path, _parse(path)[0])
    return [], []


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
