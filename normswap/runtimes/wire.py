"""Messages with arrays between two processes: a line of JSON, then the arrays' bytes.

Not pickle: a process that reads a stranger's model may be made to say anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  (gives NumPy the names of its dtypes)
import numpy as np

Array = np.ndarray[Any, Any]


def send(stream: BinaryIO, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Writes a message and any number of arrays. Raises OSError where nobody reads any more, and
    TypeError, before anything is written, for arrays that do not hold numbers."""
    data = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    kinds = [(array.dtype.name, array.shape) for array in arrays]
    stream.write(json.dumps({**message, "arrays": kinds}).encode() + b"\n")
    for part in data:
        stream.write(part.data)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], list[Array]]:
    """Reads what ``send`` wrote. Raises EOFError where the other side has gone."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message = json.loads(line)
    arrays = []
    for dtype, shape in message.pop("arrays"):
        array = np.empty(shape, np.dtype(dtype))
        data = array.reshape(-1).view(np.uint8).data
        while data:
            count = stream.readinto(data)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            data = data[count:]
        arrays.append(array)
    return message, arrays
