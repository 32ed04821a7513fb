"""A loss that is no number any more, and where in the model that began."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from normswap.errors import NormswapError
from normswap.graph.fx.meta import module_scope

_NORMS = ("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm")


class Diverged(NormswapError):
    """The loss or a gradient became NaN or infinite.

    ``step``: of the update that was not made. ``site``: the first norm, in the order of execution,
    whose output is not finite; None if it began behind the last one, as ``where`` says.
    """

    def __init__(
        self, step: int, learning_rate: float, loss: float, site: str | None, where: str
    ) -> None:
        self.step, self.learning_rate, self.loss = step, learning_rate, loss
        self.site, self.where = site, where
        what = f"the loss became {loss}" if not math.isfinite(loss) else "a gradient overflowed"
        super().__init__(
            f"training: {what} at step {step} with the learning rate {learning_rate:.3g}; first "
            f"not finite: {where}; take a lower learning rate or a longer warm-up"
        )


class Watch:
    """A context manager that notes the first norm, and the first operator of all, whose output is
    not finite in the forwards of ``module`` within it."""

    def __init__(self, module: nn.Module) -> None:
        self.site: str | None = None
        self.operator: str | None = None
        self._hooks: list[Any] = []
        self._module = module

    def __enter__(self) -> Watch:
        if isinstance(self._module, fx.GraphModule):
            self._watch_graph(self._module)
        else:
            for name, child in self._module.named_modules():
                if not list(child.children()):
                    kind = type(child).__name__
                    self._hooks.append(
                        child.register_forward_hook(self._hook(name, "Norm" in kind))
                    )
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        if isinstance(self._module, fx.GraphModule):
            self._module.__dict__.pop("forward", None)

    def _watch_graph(self, module: fx.GraphModule) -> None:
        watch = self

        class Interpreter(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                result = super().run_node(node)
                if node.op.startswith("call"):
                    called = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
                    name = type(called).__name__ if called is not None else str(node.target)
                    norm = "Norm" in name or any(word in name for word in _NORMS)
                    where = str(node.target) if called is not None else module_scope(node)
                    watch._see(where or node.name, norm, result)
                return result

        def forward(*args: Any, **kwargs: Any) -> Any:
            named = dict(zip(_names(module), pytree.tree_leaves(args), strict=False)) | kwargs
            flat = [named[name] for name in _names(module)]
            outputs = Interpreter(module).run(*flat, enable_io_processing=False)
            return module.graph.process_outputs(outputs)

        module.__dict__["forward"] = forward  # shadows the class's, until __exit__

    def _hook(self, name: str, norm: bool) -> Any:
        return lambda _module, _args, result: self._see(name, norm, result)

    def _see(self, name: str, norm: bool, result: Any) -> None:
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return
        if (norm and self.site is None) or self.operator is None:
            if bool(torch.isfinite(result).all()):
                return
            self.operator = self.operator or name
            if norm:
                self.site = self.site or name


def _names(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.find_nodes(op="placeholder")]


def first_bad_gradient(module: nn.Module) -> str | None:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return name
    return None
