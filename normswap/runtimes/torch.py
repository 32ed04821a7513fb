"""How torch runs a model that ``torch.export.save`` wrote."""

from __future__ import annotations

import contextlib
import importlib

import torch
from torch.utils import _pytree as pytree

import normswap.lowering.kernels  # noqa: F401  (registers the operators that the file may hold)
from normswap.graph.fx.module_tree import with_inputs_in_order
from normswap.graph.tensors import to_numpy, to_torch
from normswap.runtimes.compiled import Compiled, Feeds, Outputs

# What torch.export.load imports when it is called: 180 MiB that are no model's.
for _name in ("torch.export.pt2_archive._package", "torch._functorch.aot_autograd"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)


def compiled(model: str, threads: int | None = None) -> Compiled:
    """A ``.pt2`` file, run eagerly in inference mode. It must be one that we have written:
    ``torch.export.load`` may run code from it. Inputs are taken in the order of the model's,
    whatever their names: the program may have others for them."""
    if threads is not None:
        torch.set_num_threads(threads)
    module = with_inputs_in_order(torch.export.load(model).module(check_guards=False))

    def run(feeds: Feeds) -> Outputs:
        with torch.inference_mode():
            results = module(*map(to_torch, feeds.values()))
            return [to_numpy(tensor) for tensor in pytree.tree_leaves(results)]

    return Compiled(runtime_name(), run)


compiled_precisely = compiled  # its float32 is float32


def runtime_name() -> str:
    return f"torch {torch.__version__} eager"


def reason(error: BaseException) -> str:
    """What an exception of torch's says, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
