"""Settings for all tests."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.zoo.ids import model_of

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which torch.compile may do in any test.
    os.environ["TRITON_INTERPRET"] = "1"

# New examples on every run of a developer, the same ones on every run of CI.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The zoo's models come last: many of a few seconds each, so that all workers end at once."""
    items.sort(key=lambda item: model_of(item.nodeid) is not None)


def pytest_collection_finish() -> None:
    """Models that many tests share make each collection of garbage long: have fewer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or extension modules take what is frozen for leaked


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import ByModel

    return ByModel(config, log) if config.getoption("dist") == "loadscope" else None
