"""The comparison of converters without the other two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.half_converters import WAYS, WORKER, Row, table
from benchmarks.planted_overflow import digits_alone
from normswap.graph import simulation


def test_the_table_has_a_cell_for_each_way() -> None:
    rows = [Row("ViT", "logits", way, 100, 7, 2, 4, None) for way in WAYS]
    rows[0] = Row("ViT", "logits", "AutoCast", 0, 0, 0, 0, None, "it raises")
    rows[2] = Row("ViT", "logits", "rescale", 100, 0, 0, 2, 1.5e-3)
    (line,) = table(rows).splitlines()[2:]
    cells = "it raises | 7 (2), 4 casts, not finite | 0 (0), 2 casts, 1.5e-03"
    assert line == f"| logits | ViT | {cells} |"


def test_a_converter_that_is_not_there_is_told_in_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"no model")
    subprocess.run([sys.executable, WORKER, tmp_path], capture_output=True, check=False)
    for name in ("autocast.onnx", "ort.onnx"):
        assert (folder / f"{name}.error").read_text("utf-8")
        assert not (folder / name).exists()


def test_digits_alone_are_those_of_float16_without_its_range() -> None:
    array = np.random.default_rng(0).standard_normal(1000)
    with digits_alone():
        rounded = simulation.rounded(array, np.float16)
        np.testing.assert_array_equal(
            simulation.rounded(array * 2.0**40, np.float16), rounded * 2.0**40
        )
        np.testing.assert_array_equal(
            simulation.rounded(array * 2.0**-40, np.float16), rounded * 2.0**-40
        )
    normal = np.abs(array) >= 2.0**-14
    np.testing.assert_array_equal(rounded[normal], array.astype(np.float16).astype(float)[normal])
