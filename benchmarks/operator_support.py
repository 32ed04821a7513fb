"""Which of ONNX's operators a runtime of this machine runs, for a capability file.

    python -m benchmarks.operator_support [--runtime onnxruntime|openvino] [--json FILE]

in the repository's root. Each of the tests that ``onnx`` itself ships for its operators is compiled
and run. An operator runs where one of them does and gives what it should to 1e-3. Of the others
nothing is said: a test may be refused for its opset or its dtype. The list is what a ``[[claim]]``
of ``normswap/lowering/capabilities/`` with ``measured`` holds.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from onnx.backend.test.loader import load_node_model_tests

_CLOSE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runtime", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--json", type=Path, help="write the list here too")
    options = parser.parse_args()
    runtime = importlib.import_module(f"normswap.runtimes.{options.runtime}")
    runs = set[str]()
    for case in load_node_model_tests():
        nodes = case.model.graph.node if case.model is not None else []
        if len(nodes) == 1 and nodes[0].domain == "":
            runs |= {nodes[0].op_type} if _runs(runtime, case) else set()
    rows = {"runtime": runtime.runtime_name(), "runs": sorted(runs)}
    print(json.dumps(rows, indent=2))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def _runs(runtime: ModuleType, case: Any) -> bool:
    """Whether a test is compiled and gives what it should."""
    try:
        compiled = runtime.compiled(case.model.SerializeToString(), threads=1)
        inputs, expected = case.data_sets[0]
        names = [value.name for value in case.model.graph.input]
        found = compiled(dict(zip(names, map(np.asarray, inputs), strict=True)))
        return all(
            np.allclose(f, e, _CLOSE, _CLOSE, equal_nan=True)
            for f, e in zip(found, expected, strict=True)
        )
    except Exception:  # runtimes raise what they like, and some tests hold no numbers
        return False


if __name__ == "__main__":
    main()
