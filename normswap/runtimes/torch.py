"""How torch runs a model that ``torch.export.save`` wrote."""

from __future__ import annotations

import contextlib
import importlib

import torch
from torch.utils import _pytree as pytree

import normswap.lowering.kernels  # noqa: F401  (registers the operators that the file may hold)
from normswap.graph.fx.module_tree import with_inputs_in_order
from normswap.graph.tensors import to_numpy, to_torch
from normswap.runtimes import Compiled, Feeds, Outputs

# torch.export.load imports these when it is called: 180 MiB that do not belong to a model.
for _name in ("torch.export.pt2_archive._package", "torch._functorch.aot_autograd"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)


def compiled(model: str, threads: int | None = None, precise: bool = False) -> Compiled:
    """A ``.pt2`` file, run eagerly in inference mode. It must be a file that normswap has written:
    ``torch.export.load`` may run code from it. Inputs are taken in the model's order, whatever
    their names: the program may name them differently. ``precise`` changes nothing: float32 is
    float32."""
    if threads is not None:
        torch.set_num_threads(threads)
    module = with_inputs_in_order(torch.export.load(model).module(check_guards=False))

    def run(feeds: Feeds) -> Outputs:
        with torch.inference_mode():
            results = module(*map(to_torch, feeds.values()))
            return [to_numpy(tensor) for tensor in pytree.tree_leaves(results)]

    return Compiled(runtime_name(), run)


def runtime_name() -> str:
    return f"torch {torch.__version__} eager"


def reason(error: BaseException) -> str:
    """The message of an exception of torch, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
