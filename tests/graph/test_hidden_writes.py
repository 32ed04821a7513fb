"""Programs that write into views compute the same once they are captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

import normswap as ns
from normswap.errors import NormswapError
from normswap.io.torch_model import model_from_module
from tests.effort import examples_of
from tests.zoo.exports import FX, captured_families, model_as, zoo_model


class _Writes(nn.Module):
    """Writes into a view of a tensor that is read as a whole later, as BEiT's positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[..., 0] += 3
        return self.norm(y.relu_())


def test_writes_into_views_are_kept() -> None:
    module, x = _Writes().eval(), torch.randn(2, 3, 8)
    model = ns.load(module, example_inputs=(x,))
    (got,) = model.run({"x": x.numpy()}).values()
    with torch.no_grad():
        np.testing.assert_array_equal(got, module(x).numpy())
        swapped = ns.swap(model, to="fused", lowering=ns.Lowering(kernels=True)).model
        torch.testing.assert_close(swapped.to_inference()(x), module(x), rtol=1e-6, atol=1e-6)


def test_a_bare_module_that_writes_into_views_is_refused() -> None:
    program = torch.export.export(_Writes().eval(), (torch.randn(2, 3, 8),))
    unlifted = program.module(check_guards=False)
    with pytest.raises(NormswapError, match=r"add_.* writes into a tensor that is read elsewhere"):
        model_from_module(fx.GraphModule(unlifted, unlifted.graph), "writes")


# torch.export's own program of AIMv2 masks its texts otherwise than the module does.
FAMILIES = sorted(set(captured_families()) - {"hf_aimv2"})


@pytest.mark.parametrize("family", FAMILIES[:: examples_of(3, 1)])
def test_the_view_computes_what_the_module_does(family: str) -> None:
    zoo, model = zoo_model(family), model_as(family, FX)
    feeds = {name: tensor.numpy() for name, tensor in zoo.inputs.items()}
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(zoo.module(**zoo.inputs))
    for got, wanted in zip(model.run(feeds).values(), expected, strict=True):
        tolerance = 1e-5 if wanted.dtype == torch.float32 else 2e-3
        np.testing.assert_allclose(got, wanted.numpy(), rtol=tolerance, atol=tolerance)
