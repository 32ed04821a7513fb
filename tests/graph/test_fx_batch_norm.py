"""BatchNorms of a captured module are modules again, with their momentum and statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normswap.graph.fx.graph import FxGraph
from tests.graph.fx_capture import captured


@pytest.mark.parametrize("dims", [1, 2])
def test_restores_modules_that_train(dims: int) -> None:
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](3, momentum=0.25, eps=1e-3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    module = nn.Sequential(norm, nn.ReLU())
    x = np.random.default_rng(0).standard_normal((4, 3, 5, 5)[: dims + 2]).astype(np.float32)
    graph = FxGraph(captured(module, x))
    (node,) = [n for n in graph.nodes if n.op == "BatchNormalization"]
    assert node.scope == "0"
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        graph.evaluate(graph.outputs, {graph.inputs[0]: x})[0], expected, rtol=1e-6
    )
    restored = graph.to_module().train()
    found = restored.get_submodule("0")
    assert isinstance(found, type(norm))
    assert (found.momentum, found.eps) == (0.25, 1e-3)
    restored(torch.from_numpy(x))
    assert not torch.equal(found.running_mean, norm.running_mean)  # type: ignore[arg-type]


def test_a_batch_norm_in_training_mode_stays_an_operator() -> None:
    class Training(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.batch_norm(x, None, None, training=True)

    graph = FxGraph(captured(Training(), np.ones((4, 3), np.float32)))
    (node,) = [n for n in graph.nodes if n.op == "BatchNormalization"]
    assert node.attributes["training_mode"] == 1


def test_a_copy_keeps_the_names_of_values() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.norm(2 * x)  # type: ignore[no-any-return]

    graph = FxGraph(captured(Twice(), np.ones((4, 3), np.float32)))
    first, second = [n.output for n in graph.nodes if n.op == "BatchNormalization"]
    graph.replace_uses(second, first)
    graph.prune()  # now the tensors of the norm are the attributes of one module
    assert [v.name for v in graph.copy().values()] == [v.name for v in graph.values()]
    assert isinstance(graph.to_module().get_submodule("norm"), nn.BatchNorm1d)
