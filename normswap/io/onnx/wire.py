"""The weights in the protobuf message of an ONNX file, found without parsing it.

https://protobuf.dev/programming-guides/encoding: a message is a row of fields, each a tag (its
number and how it ends) and its content; a nested message or bytes come with their length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # in ModelProto, GraphProto, TensorProto
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_FIXED = {_I64: 8, _I32: 4}

Piece = Any
"""Bytes, or what has a ``len`` and stands for that many of them."""


class Unusual(Exception):
    """The message is damaged, or written in a way that only a full parser should read."""


@dataclass(frozen=True)
class Field:
    """Where a field is in its message: from ``tag`` to ``end``, its content from ``start``."""

    number: int
    tag: int
    start: int
    end: int


def with_raw_data(message: memoryview, new: Callable[[bytes, Field], Piece | None]) -> list[Piece]:
    """``message``, a ModelProto, in pieces, with other raw data in the initializers of its graph.

    ``new``: from the TensorProto of an initializer, less its raw data, and the field that holds
    that, to what is to be there, or None to leave it. Raises Unusual where the fields do not add
    up, or are doubled.
    """
    graph = _only(message, 0, len(message), _GRAPH)
    if graph is None:
        raise Unusual
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


def _only(message: memoryview, start: int, end: int, number: int) -> Field | None:
    found = [field for field in _fields(message, start, end) if field.number == number]
    if len(found) > 1:  # a parser merges the messages, and takes the last of the bytes
        raise Unusual
    return found[0] if found else None


def _fields(message: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields that come with a length; a parser takes the others for unknown ones here."""
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
            raise Unusual
        if at + length > end:
            raise Unusual
        if kind == _LEN:
            yield Field(number, tag, at, at + length)
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
    raise Unusual


def _sized(number: int, pieces: list[Piece]) -> list[Piece]:
    """A field of that content."""
    length = sum(len(piece) for piece in pieces)
    head = bytearray([number << 3 | _LEN])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return [bytes(head), *pieces]
