"""Whole models in the runtimes that people deploy them with: see ``run_in``.

``torch``, ``onnxruntime`` and ``openvino`` each hold how one runtime compiles a model, so a new
runtime is one more file with the functions ``compiled``, ``runtime_name`` and ``reason``. They,
``worker`` and this file also run in a process without the rest of normswap: they import nothing of
it that imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray[Any, Any]]
Outputs = list[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Compiled:
    """A model ready to run: called with arrays by input name, it returns its outputs in order.

    ``name``: the runtime with its version and what it runs on, as 'onnxruntime 1.31.1
    CPUExecutionProvider'. Inputs that the model does not have are ignored.
    """

    name: str
    run: Callable[[Feeds], Outputs]

    def __call__(self, feeds: Feeds) -> Outputs:
        return self.run(feeds)
