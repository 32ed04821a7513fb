"""Messages between processes arrive as they were sent, and the peak of memory is measured."""

from __future__ import annotations

import io
import sys

import ml_dtypes
import numpy as np
import pytest

from normswap.runtimes.worker import PeakMemory, receive, send

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, dtype=np.int64).reshape(2, 3).T,  # not contiguous
    np.array(7.0),
    np.empty((0, 4), np.float16),
    np.array([True, False]),
    np.arange(4).astype(ml_dtypes.bfloat16),
]


def test_arrays_come_as_they_went() -> None:
    stream = io.BytesIO()
    send(stream, {"names": ["a"]}, ARRAYS)
    send(stream, {"second": True})
    stream.seek(0)
    message, arrays = receive(stream)
    assert message == {"names": ["a"]}
    for got, wanted in zip(arrays, ARRAYS, strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(got, wanted)
        got[...] = 0  # they are ours
    assert receive(stream) == ({"second": True}, [])


@pytest.mark.parametrize("kept", [0, 5, -1])
def test_a_message_that_ends_early(kept: int) -> None:
    stream = io.BytesIO()
    send(stream, {}, ARRAYS[:1])
    with pytest.raises(EOFError):
        receive(io.BytesIO(stream.getvalue()[:kept]))


def test_what_is_no_number_is_not_sent() -> None:
    stream = io.BytesIO()
    with pytest.raises(TypeError):
        send(stream, {}, [np.array(["a", None], object)])
    assert not stream.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of all time")
def test_the_peak_is_of_what_came_since_and_stays() -> None:
    before = np.ones(100 << 17)  # 100 MiB
    del before
    memory = PeakMemory()
    rise = memory.mib()
    array = np.ones(50 << 17)
    del array
    peak = memory.mib()
    assert rise is not None
    assert peak is not None
    assert rise < 10
    assert 45 < peak < 80
