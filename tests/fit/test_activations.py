"""Arrays that wait: in memory up to the bound, bit for bit out of a file beyond it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from normswap.errors import NormswapError
from normswap.fit import activations
from normswap.fit.activations import Activations

_DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_)
_SHAPES = ((7,), (3, 5, 11), (), (0,), (4, 0, 3), (1, 5000))


def _array(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.asarray(100 * random.standard_normal(shape)).astype(dtype)


def _same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
@pytest.mark.parametrize("dtype", _DTYPES, ids=lambda d: np.dtype(d).name)
def test_comes_back_bit_for_bit(dtype: Any, shape: tuple[int, ...], memory: int) -> None:
    arrays = [_array(shape, dtype, seed) for seed in range(3)]
    with Activations(memory) as store:
        kept = [store.keep(array.copy()) for array in arrays]
        for handle, array in zip(kept, arrays, strict=True):
            _same_bits(handle.array(), array)
            _same_bits(handle.array(), array)  # as often as wanted


def test_arrays_that_are_not_contiguous() -> None:
    base = _array((6, 8, 10))
    views = [base[::2], base[:, 3], base.transpose(2, 0, 1), base[::-1, ::-2], base.T]
    broadcast = np.broadcast_to(base[0, 0], (4, 10))
    with Activations(0) as store:
        for view in [*views, broadcast, np.asfortranarray(base)]:
            _same_bits(store.keep(view).array(), np.ascontiguousarray(view))


def test_the_bound_holds_and_what_is_beyond_it_is_in_the_file() -> None:
    arrays = [_array((1000,), seed=seed) for seed in range(5)]
    with Activations(2 * 4000 + 100) as store:
        kept = [store.keep(array) for array in arrays]
        assert store.held == 8000
        assert store.spilled >= 3 * 4000
        small = store.keep(_array((25,)))  # there is room for it
        assert store.held == store.memory
        for handle, array in zip(kept, arrays, strict=True):
            _same_bits(handle.array(), array)
        for handle in [*kept, small]:
            handle.drop()
        assert store.held == 0


def test_what_is_in_memory_is_not_copied() -> None:
    array = _array((100,))
    with Activations(1000) as store:
        assert store.keep(array).array() is array
        assert store.spilled == 0


def test_nothing_is_kept_in_memory_without_any() -> None:
    with Activations(0) as store:
        store.keep(_array((1,)))
        store.keep(_array((0, 5)))
        assert store.held == 0
        assert store.spilled > 0


def test_what_is_borrowed_does_not_count() -> None:
    array = _array((1000,))
    with Activations(10) as store:
        handle = store.borrow(array)
        assert handle.array() is array
        assert (store.held, store.spilled) == (0, 0)
        handle.drop()
        assert store.held == 0


def test_space_that_was_dropped_is_used_again() -> None:
    with Activations(0) as store:
        first = [store.keep(_array((3000,), seed=seed)) for seed in range(4)]
        size = store.spilled
        for round_ in range(10):
            for handle in first:
                handle.drop()
            first = [store.keep(_array((3000,), seed=round_ + seed)) for seed in range(4)]
            assert store.spilled == size
            for seed, handle in enumerate(first):
                _same_bits(handle.array(), _array((3000,), seed=round_ + seed))


def test_arrays_of_other_sizes_do_not_overwrite_each_other() -> None:
    random = np.random.default_rng(0)
    with Activations(5000) as store:
        held: dict[int, Any] = {}
        for number in range(100):
            if held and random.random() < 0.45:
                held.pop(random.choice(list(held))).drop()
            held[number] = store.keep(_array((int(random.integers(1, 4000)),), seed=number))
            for seed, handle in held.items():
                array = handle.array()
                _same_bits(array, _array(array.shape, seed=seed))


def test_changing_what_was_read_does_not_change_what_is_kept() -> None:
    array = _array((10,))
    with Activations(0) as store:
        handle = store.keep(array)
        handle.array()[:] = 0
        _same_bits(handle.array(), array)


def test_the_file_goes_with_the_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(activations.tempfile, "tempdir", str(tmp_path))
    before = _descriptors()
    with contextlib.suppress(ZeroDivisionError), Activations(0) as store:
        store.keep(_array((10,)))
        assert _descriptors() == before + 1
        assert not list(tmp_path.iterdir())  # it has no name, so nothing can be left behind
        raise ZeroDivisionError
    assert _descriptors() == before


def _descriptors() -> int:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("this system does not list open files")
    return len(list(folder.iterdir()))


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["small", "large"])
def test_a_full_disk_is_told_in_one_line(size: int) -> None:
    """A limit on the size of files stands in for the disk: writing fails in the same places."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    array = _array((size,))
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(NormswapError, match="has no room") as caught, Activations(0) as store:
            store.keep(array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "TMPDIR" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(activations.tempfile, "TemporaryFile", refuse)
    with pytest.raises(NormswapError, match="No space left on device"), Activations(0) as store:
        store.keep(_array((10,)))
