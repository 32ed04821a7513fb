"""The zoo: tiny configurations of models that others wrote, with weights not at their defaults."""

from __future__ import annotations

import torch
from torch import nn

from normswap.io.sources.packages import ensure_torchvision_importable
from tests.zoo import open_clip_models, timm_models, torch_models, transformers_models
from tests.zoo.model import Builder, ZooModel
from tests.zoo.truth import TrueNorm

ensure_torchvision_importable()

PRE_NORM_BLOCKS = 2

# The models that every pass is tested on: pre-norm ViTs and CLIPs.
BUILDERS: dict[str, Builder] = {
    "timm_vit": timm_models.timm_vit,
    "spelled_vit": torch_models.spelled_vit,
    "open_clip_clip": open_clip_models.open_clip_clip,
    "hf_clip": transformers_models.hf_clip,
    "hf_vit": transformers_models.hf_vit,
}

# All of them, for what has to hold for any architecture: finding norms and telling their roles.
FAMILIES: dict[str, Builder] = {
    **BUILDERS,
    **timm_models.BUILDERS,
    **transformers_models.BUILDERS,
    **open_clip_models.BUILDERS,
    **torch_models.BUILDERS,
}


def build(name: str) -> ZooModel:
    """The zoo's model called ``name``, the same weights at every call, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[name]()
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            _randomise_statistics(model.module)
    model.module.eval()
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    return model


def norms(zoo: ZooModel) -> tuple[TrueNorm, ...]:
    """The ground truth: the norms that run in ``zoo``, in the order of execution."""
    return zoo.norms


def _randomise_statistics(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_var is not None:
            assert child.running_mean is not None
            child.running_mean.normal_(0, 0.2)
            child.running_var.uniform_(0.5, 1.5)
