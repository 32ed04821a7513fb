"""The result of a swap on an FX model trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import normswap as ns
from tests.zoo.exports import FX, model_as


def _swapped() -> ns.Model:
    model = model_as("timm_vit", FX)
    random = np.random.default_rng(0)
    images = random.standard_normal((16, 3, 32, 32)).astype(np.float32)
    return ns.swap(model, ns.BatchNorm(ffn_batchnorm=True), data=images).model


def _batch_norms(module: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm)
    }


def test_batch_norms_update_and_the_loss_goes_down() -> None:
    torch.manual_seed(0)
    swapped = _swapped()
    module = swapped.to_torch()
    norms = _batch_norms(module)
    assert set(norms) == {
        *(f"blocks.{i}.{n}" for i in (0, 1) for n in ("norm1", "norm2", "mlp.fc1_bn")),
        "norm",
    }
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}  # type: ignore[union-attr]
    x, y = torch.randn(32, 3, 32, 32) + 1, torch.randint(0, 10, (32,))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module.train()
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert all(p.grad is not None for norm in norms.values() for p in norm.parameters())
    for name, norm in norms.items():
        assert not torch.equal(norm.running_mean, before[name]), name  # type: ignore[arg-type]


def test_training_leaves_the_model_it_came_from_alone() -> None:
    swapped = _swapped()
    feeds = {"x": np.ones((2, 3, 32, 32), np.float32)}
    before = swapped.run(feeds)
    module = swapped.to_torch()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert swapped.run(feeds)["linear_8"].tobytes() == before["linear_8"].tobytes()


def test_batch_norms_convert_to_synchronised_ones() -> None:
    module = _swapped().to_torch()
    count = len(_batch_norms(module))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    found = [m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(found) == count
    x = torch.randn(2, 3, 32, 32)
    module.eval()
    converted.eval()
    torch.testing.assert_close(converted(x), module(x))


def test_statistics_may_be_cumulative() -> None:
    """momentum=None: the average over all batches, in the norm that reads the tokens first."""
    module = _swapped().to_torch()
    for norm in _batch_norms(module).values():
        norm.momentum = None
        norm.reset_running_stats()
    first = _batch_norms(module)["blocks.0.norm1"]
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    module.train()
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 32, 32))
    assert first.num_batches_tracked == 3
    means = torch.stack([x.mean((0, 2)) for x in seen])  # channels lie on axis 1 there
    torch.testing.assert_close(first.running_mean, means.mean(0))
