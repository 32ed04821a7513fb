"""Private memory does not grow with the depth of a large ONNX model, ONNX Runtime's included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.large_vit import write_large_vit

WIDTH, DEPTHS = 512, (2, 6)
_MEASURED = """
import sys, threading
from pathlib import Path
import numpy as np
import normswap as ns
from normswap.graph.onnx import half, segments
from normswap.precision import magnitudes

segments.SEGMENT, segments._LARGE, half._LARGE = 1 << 23, 1 << 16, 1 << 16
magnitudes._ELEMENTS = 1 << 21
what, *paths = sys.argv[1:]

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

def watch():
    global most
    while not over.wait(0.01):
        most = max(most, private())

for path in paths:
    model = ns.load(path)
    most, over = private(), threading.Event()
    before, watcher = most, threading.Thread(target=watch, daemon=True)
    watcher.start()
    if what == "headroom":
        images = np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)
        ns.headroom(model, data=images)
    else:
        ns.save(ns.convert(model, what).model, path.replace(".onnx", ".half.onnx"))
    over.set()
    watcher.join()
    print(most - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("what", ["float16", "bfloat16", "headroom"])
def test_private_memory_does_not_grow_with_depth(what: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{depth}.onnx" for depth in DEPTHS]
    for path, depth in zip(paths, DEPTHS, strict=True):
        write_large_vit(path, depth, WIDTH)
    weights = [path.with_name(f"{path.name}.data").stat().st_size for path in paths]
    command = [sys.executable, "-c", _MEASURED, what, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    taken = [int(line) for line in done.stdout.split()]
    more = weights[1] - weights[0]
    assert taken[1] - taken[0] < more / 3, f"{taken} bytes for {weights} of weights"
