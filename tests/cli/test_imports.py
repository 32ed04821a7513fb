"""What an exact swap of an ONNX file does not import: it would take longer than all else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_program import environment

# ONNX Runtime is imported: what is written is loaded there.
HEAVY = ("torch", "scipy", "matplotlib", "jinja2", "safetensors", "transformers")
CODE = f"""
import sys, normswap_cli.main as program
try: program.main(sys.argv[1:], prog_name="normswap")
finally: assert not set({HEAVY}) & set(sys.modules), set({HEAVY}) & set(sys.modules)
"""


@pytest.mark.parametrize("to", ["fused", "rmsnorm"])
def test_exact_swaps_of_onnx_need_no_torch(files: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out.onnx"
    args = ["swap", files / "spelled-out.onnx", "--to", to, "-o", out]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, args)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{to}: 5 done, 0 skipped\n")
    assert out.exists()


def test_inspecting_onnx_needs_nothing_that_reads_data(files: Path) -> None:
    code = CODE.replace(str(HEAVY), str((*HEAVY, "normswap.io.data")))
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(files / "spelled-out.onnx")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
