"""Passes for workflows of Olive (the package olive-ai), which finds them by a package config.

    python -m normswap.hosts.olive > package.json
    olive run --config workflow.json --package-config package.json

The first command prints Olive's own package config with the passes of this file added: ``NormSwap``
and ``NormFold``, and Olive's ``GraphSurgeries`` with a surgeon ``NormSwap`` more. In the workflow::

    "passes": {
        "rmsnorm": {"type": "NormSwap", "to": "rmsnorm"},
        "rescale": {"type": "NormSwap", "to": "rescale"},
        "affine": {"type": "NormSwap", "to": "affine", "data": "images", "options": {...}},
        "fold": {"type": "NormFold"}
    }
"""

# ruff: noqa: E402  (torchvision has to be importable before Olive is, which imports it)

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from normswap.io.sources.packages import ensure_torchvision_importable

ensure_torchvision_importable()

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass as OlivePass
from olive.passes.onnx.common import get_external_data_config, ir_model_to_olive_model
from olive.passes.onnx.graph_surgeries import GraphSurgeries, Surgeon
from olive.passes.pass_config import BasePassConfig, PassConfigParam

import normswap
from normswap.errors import NormswapError
from normswap.model import Model
from normswap.options import options_of
from normswap.passes.base import Pass, PassResult
from normswap.passes.fold import Fold
from normswap.passes.registry import pass_called, passes
from normswap.pipelines import OnnxPass

__all__ = ["GraphSurgeries", "NormFold", "NormSwap", "NormSwapSurgeon", "package_config"]

_LOG = logging.getLogger("normswap")
_COMMON = {
    "supported_providers": ["*"],
    "supported_accelerators": ["*"],
    "supported_precisions": ["*"],
}


class WorkflowError(NormswapError, ValueError):
    """Ends an Olive workflow: Olive logs any other error than Python's own and goes on."""


@contextmanager
def _ending_the_workflow() -> Iterator[None]:
    try:
        yield
    except NormswapError as error:
        raise WorkflowError(str(error)) from error


def _common(default: str) -> dict[str, PassConfigParam]:
    return {
        "sites": PassConfigParam(
            type_=str, default_value=None, description="Which norms; all by default."
        ),
        "contract": PassConfigParam(
            type_=str,
            default_value=None,
            description=f"The contract that the result is held to, against what the pass was "
            f"given: exact or approximate. {default} 'none' for no validation.",
        ),
        "data": PassConfigParam(
            type_=str,
            default_value=None,
            description="A folder of images, or a .npz: what a fitted swap is fitted to. It is "
            "validated on as well.",
        ),
        **get_external_data_config(),
    }


class NormSwap(OlivePass):
    """A swap of normswap on an ONNX model, held to its contract.

    Config: ``to``, a word of ``normswap swap --to``; ``options`` of that pass by name; ``sites``,
    ``data`` and ``contract`` (by default exact for a swap that is, else approximate). Raises
    WorkflowError for a word or option that is none, data that is missing, and a result that does
    not keep the exact contract. What was left alone is on normswap's log.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "to": PassConfigParam(
                type_=str, required=True, description=f"One of {', '.join(passes())}."
            ),
            "options": PassConfigParam(
                type_=dict[str, Any], default_value=None, description="Options of that pass."
            ),
            **_common("By default that of the swap."),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        given: Any = config
        with _ending_the_workflow():
            swap = _swap(given.to, given.options or {}, given.sites)
            original = normswap.load(Path(model.model_path))
            result = normswap.swap(original, swap, data=given.data if swap.needs_data else None)
            return _saved(model, original, result, given, swap.exact, output_model_path)


class NormFold(OlivePass):
    """Folds BatchNorms and other affine maps into the neighbouring weights, exactly.

    Config: ``sites``, ``data`` and ``contract``. Raises WorkflowError as ``NormSwap`` does.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return _common("By default exact.")

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        given: Any = config
        with _ending_the_workflow():
            original = normswap.load(Path(model.model_path))
            result = normswap.fold(original, sites=given.sites)
            return _saved(model, original, result, given, Fold.exact, output_model_path)


class NormSwapSurgeon(Surgeon):
    """An exact swap among Olive's ``GraphSurgeries``, not validated.

    {"surgeon": "NormSwapSurgeon", "to": "lp"}, with ``options`` of that pass. Raises WorkflowError
    for a swap that needs data, which a surgery has none of.
    """

    def __init__(self, to: str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        with _ending_the_workflow():
            self.swap = _swap(to, options or {}, None)
            if self.swap.needs_data:
                raise NormswapError(f"NormSwapSurgeon: '{to}' needs data; use the pass NormSwap")

    def call_ir(self, model: ir.Model) -> ir.Model:
        taken = OnnxPass(self.swap)
        with _ending_the_workflow():
            changed = taken(model).model
        _tell(taken.last)
        return changed


def package_config() -> dict[str, Any]:
    """Olive's own package config with the passes of this file, for ``olive.workflows.run``."""
    config = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text("utf-8"))
    for kind in (NormSwap, NormFold):
        path = f"normswap.hosts.olive.{kind.__name__}"
        config["passes"][kind.__name__] = {"module_path": path, **_COMMON}
    # The surgeon is registered where Olive imports its own pass from here.
    config["passes"]["GraphSurgeries"]["module_path"] = "normswap.hosts.olive.GraphSurgeries"
    return config


def _swap(to: str, options: dict[str, Any], sites: str | None) -> Pass:
    kind = pass_called(to)
    if kind is None:
        raise NormswapError(f"NormSwap: to is '{to}', none of {', '.join(passes())}")
    known = {name for name, _ in options_of(kind)}
    if unknown := sorted(options.keys() - known):
        takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
        raise NormswapError(f"NormSwap: '{to}' has no option '{unknown[0]}'; {takes}")
    # A fitted pass cannot be made without data: swap() puts them in.
    return dataclasses.replace(kind(), sites=sites, **options)


def _saved(
    handler: ONNXModelHandler,
    original: Model,
    result: PassResult,
    config: Any,
    exact: bool,
    output_model_path: str,
) -> ONNXModelHandler:
    _tell(result)
    contract: Any = config.contract or ("exact" if exact else "approximate")
    if contract != "none":
        report = normswap.validate(original, result.model, data=config.data, contract=contract)
        worst = "; ".join(str(finding) for finding in report.findings[:3])
        if not report.passed:
            raise NormswapError(f"{original.label}: the {contract} contract is not met: {worst}")
        _LOG.info("%s: the %s contract is met", original.label, contract)
    path = resolve_onnx_path(output_model_path, Path(handler.model_path).name)
    return ir_model_to_olive_model(result.model.to_onnx_ir(), path, config)


def _tell(result: PassResult) -> None:
    _LOG.info("%d norms done, %d left alone", len(result.done), len(result.skipped))
    for site, reason in (*result.skipped, *result.kept):
        _LOG.info("%s was left alone: %s", site.name, reason)


if __name__ == "__main__":
    print(json.dumps(package_config(), indent=4))
