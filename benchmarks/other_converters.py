"""Converts ONNX models to float16 with AutoCast and ONNX Runtime's converter; for half_converters.

    PYTHON other_converters.py FOLDER

in an environment that has nvidia-modelopt[onnx] and onnxruntime, of which normswap is no part.
Every folder in FOLDER that holds ``model.onnx`` and ``data/calibration.npz`` gets ``autocast.onnx``
and ``ort.onnx``, or a file of that name with ``.error`` behind it. Prints the versions as JSON.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("nvidia-modelopt", "onnxruntime", "onnx")


def _autocast(folder: Path) -> Any:
    """With what it does by default: nodes that see magnitudes above 512 stay in float32."""
    convert = importlib.import_module("modelopt.onnx.autocast").convert_to_mixed_precision
    return convert(
        str(folder / "model.onnx"),
        low_precision_type="fp16",
        keep_io_types=True,
        calibration_data=str(folder / "data"),
    )


def _ort(folder: Path) -> Any:
    """With what it does by default, inputs and outputs kept."""
    onnx = importlib.import_module("onnx")
    float16 = importlib.import_module("onnxruntime.transformers.float16")
    return float16.convert_float_to_float16(onnx.load(folder / "model.onnx"), keep_io_types=True)


CONVERTERS: dict[str, Callable[[Path], Any]] = {"autocast": _autocast, "ort": _ort}


def main() -> None:
    logging.disable(logging.WARNING)
    onnx = importlib.import_module("onnx")
    for folder in sorted(path.parent for path in Path(sys.argv[1]).glob("*/model.onnx")):
        for name, convert in CONVERTERS.items():
            try:
                onnx.save(convert(folder), folder / f"{name}.onnx")
            except Exception as error:  # whatever it is, it is what they give of the model
                line = (str(error).strip() or type(error).__name__).splitlines()[0]
                (folder / f"{name}.onnx.error").write_text(line, "utf-8")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(json.dumps(versions))


if __name__ == "__main__":
    main()
