"""LayerNorms that become BatchNorms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normswap.errors import NormswapError
from normswap.train.progressive import (
    LayerNormOf,
    ProgressiveNorm,
    collapse,
    make_progressive,
    set_share,
    share_at,
)

C = 6
NORM = LayerNormOf(np.linspace(0.5, 2, C), np.linspace(-1, 1, C), 1e-3)


def batch_norm() -> nn.BatchNorm1d:
    made = nn.BatchNorm1d(C, eps=1e-2)
    for tensor in (made.weight, made.bias, made.running_mean):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    nn.init.uniform_(made.running_var, 0.5, 2)  # type: ignore[arg-type]
    return made.eval()


def wrapped(residual: bool = False) -> tuple[nn.Module, nn.BatchNorm1d, torch.Tensor]:
    torch.manual_seed(0)
    norm = batch_norm()
    module = nn.Sequential(nn.Sequential(norm))
    made = make_progressive(module, {"0.0": NORM}, residual)
    assert [type(new) for new in made] == [ProgressiveNorm]
    return module.eval(), norm, torch.randn(4, C, 5) * 2 + 1


def test_lambda_one_is_the_layer_norm_and_zero_the_batch_norm() -> None:
    module, norm, x = wrapped()
    weight, bias = (torch.tensor(a, dtype=torch.float32) for a in (NORM.weight, NORM.bias))
    expected = nn.functional.layer_norm(x.transpose(1, 2), (C,), weight, bias, 1e-3).transpose(1, 2)
    torch.testing.assert_close(module(x), expected)
    set_share(module, 0.0)
    torch.testing.assert_close(module(x), norm(x))
    set_share(module, 0.25)
    torch.testing.assert_close(module(x), 0.25 * expected + 0.75 * norm(x))


def test_collapse_leaves_one_batch_norm_that_computes_the_same() -> None:
    module, norm, x = wrapped(residual=True)
    mixed = module.get_submodule("0.0")
    nn.init.constant_(mixed.alpha, 0.7)  # type: ignore[arg-type]
    set_share(module, 0.0)
    before = module(x)
    assert not torch.allclose(before, norm(x), atol=0.1)
    collapse(module)
    assert module.get_submodule("0.0") is norm
    torch.testing.assert_close(module(x), before, rtol=1e-5, atol=1e-5)


def test_lambda_falls_to_nothing_in_half_of_the_steps() -> None:
    assert [share_at(step, 8) for step in range(8)] == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]


def test_what_is_no_batch_norm_is_refused() -> None:
    module = nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C + 1))
    for path in ("0", "1", "nowhere"):
        with pytest.raises(NormswapError, match=f"'{path}': is no BatchNorm of 6 channels"):
            make_progressive(module, {path: NORM})
