"""FX graphs for tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn


def captured(module: nn.Module, *arrays: np.ndarray) -> fx.GraphModule:
    """``module`` captured by torch.export with a dynamic first axis."""
    args = tuple(torch.from_numpy(a) for a in arrays)
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in args)
    with torch.no_grad():
        program = torch.export.export(module.eval(), args, dynamic_shapes=dynamic, strict=False)
    unlifted = program.module(check_guards=False)
    return fx.GraphModule(unlifted, unlifted.graph)
