"""Makes torchvision importable when its compiled operators do not match the installed torch.

The wheels of the registry match the CUDA builds of torch only. Beside a CPU build,
``import torchvision`` fails with "operator torchvision::nms does not exist", and with it timm,
open_clip and the vision models of transformers, none of which need that operator. Declaring the
schemas is enough for the parts written in Python.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

import torch

_LOG = logging.getLogger("normswap")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# The schemas last as long as the library object that declared them.
_declared: list[torch.library.Library] = []


def ensure_torchvision_importable() -> bool:
    """Declares ``torchvision::nms`` and ``qnms`` where torchvision cannot; True if it had to.

    To be called before the first import of timm, open_clip or a vision model of transformers.
    Does nothing if torchvision is missing, works, or was imported already. Warns once, in a line.
    """
    if _declared or "torchvision" in sys.modules:
        return bool(_declared)
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _operators_load(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    _declared.append(library)
    _LOG.warning(
        "torchvision's compiled operators do not match torch %s; its Python parts are used",
        torch.__version__,
    )
    return True


def _operators_load(folder: Path) -> bool:
    # What torchvision/extension.py does; loading the same library again later is harmless.
    for file in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(file)
        except OSError:
            continue
    return bool(torch._C._jit_get_schemas_for_operator("torchvision::nms"))
