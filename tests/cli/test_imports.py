"""What an exact swap of an ONNX file does not import: it would take longer than all else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.test_program import environment

# ONNX Runtime is imported: what is written is loaded there.
HEAVY = ("torch", "scipy", "matplotlib", "jinja2", "safetensors", "transformers")
CODE = f"""
import sys, normswap_cli.main as program
try: program.main(sys.argv[1:], prog_name="normswap")
finally: assert not set({HEAVY}) & set(sys.modules), set({HEAVY}) & set(sys.modules)
"""


def printed(code: str, *args: str) -> str:
    """What ``code`` prints in a process of its own, which has to end well."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("to", ["fused", "rmsnorm"])
def test_exact_swaps_of_onnx_need_no_torch(files: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out.onnx"
    args = ["swap", str(files / "spelled-out.onnx"), "--to", to, "-o", str(out)]
    assert printed(CODE, *args).startswith(f"{to}: 5 done, 0 skipped\n")
    assert out.exists()


def test_inspecting_onnx_needs_nothing_that_reads_data(files: Path) -> None:
    code = CODE.replace(str(HEAVY), str((*HEAVY, "normswap.io.data")))
    printed(code, "inspect", str(files / "spelled-out.onnx"))


UNUSED = ("sympy.core", "onnx.reference", "onnxruntime", "onnxscript.optimizer")
UNUSED += ("normswap.parity", "normswap.passes", "normswap.precision", "normswap.field")
SHORT = f"""
import sys, normswap_cli.main as program
try: program.program()
except SystemExit as ended: assert not ended.code
found = set({(*HEAVY, *UNUSED)}) & set(sys.modules)
assert not found, found
import sympy
assert sympy.Integer(2) + 1 == 3 and sys.modules["sympy"].__file__
import sympy.core
"""


def test_norms_that_are_operators_are_inspected_with_little(tmp_path: Path) -> None:
    """Nothing of proofs, passes, validation, and sizes in formulas, which are there when used."""
    text = "(float[2,4] x, float[4] w) => (float[2,4] y) { y = LayerNormalization(x, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> test {text}')
    model.graph.input.pop()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"))
    onnx.save(model, tmp_path / "norm.onnx")
    assert "1 norm" in printed(SHORT, "inspect", str(tmp_path / "norm.onnx"))
