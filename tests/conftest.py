"""Settings for all tests: fixed draws, or fresh ones that can be repeated.

``make test`` says the same on every run. Hypothesis draws what follows from a test's own source,
and every test begins with the generators of Python, numpy and torch at the same seed, as does
whatever tests share. With NORMSWAP_DRAWS=fresh (``make test-all``) all of it follows from one seed,
which is printed with the command that repeats a failure.
"""

from __future__ import annotations

import copy
import functools
import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from torch.onnx._internal.exporter._registration import ONNXRegistry

from normswap.graph.onnx.evaluate import SESSION_THREADS
from normswap.report import progress
from tests.effort import ALL, FRESH, SEED
from tests.zoo.ids import model_of

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which torch.compile may do in any test.
    os.environ["TRITON_INTERPRET"] = "1"

# Tables are as wide as they need, as where output is piped.
os.environ.pop("COLUMNS", None)
# The workers of pytest-xdist share the cores, and threads of ONNX Runtime wait busily.
SESSION_THREADS.set(1)
# On a busy machine a command may take so long that it says so, among what it is to print.
progress.SILENCE = 3600.0


class _TorchGenerator:
    """Torch's own generator, for Hypothesis to seed for each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_TORCH = _TorchGenerator()  # Hypothesis keeps a weak reference
hypothesis.register_random(_TORCH)
# A machine that is busy is no fault, and neither is what an earlier run has found.
_COMMON: dict[str, Any] = {
    "deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow],
    "print_blob": True,
}  # fmt: skip
settings.register_profile("fixed", derandomize=True, **_COMMON)
settings.register_profile("fresh", derandomize=False, **_COMMON)
settings.load_profile("fresh" if FRESH else "fixed")
if FRESH:
    hypothesis.core.global_force_seed = SEED
# Hypothesis also draws constants that it finds in the modules that happen to be imported, which
# depends on the tests that ran before in the same process.
providers._get_local_constants = providers.Constants  # type: ignore[assignment]


def _seed_all() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@contextmanager
def _generators_of_its_own() -> Iterator[None]:
    """Whatever is drawn inside is the same every time, and what is drawn afterwards too."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_all()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    with _generators_of_its_own():  # for what modules draw when they are imported
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    if fixturedef.scope == "function":
        return (yield)
    with _generators_of_its_own():  # whichever test asks for it first
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _seed_all()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How to repeat fresh draws."""
    if not FRESH:
        return
    names = ("NORMSWAP_DRAWS", "NORMSWAP_SEED", "NORMSWAP_ZOO", "PYTHONHASHSEED")
    variables = " ".join(f"{n}={os.environ[n]}" for n in names if n in os.environ)
    whole = f"make test-all SEED={SEED}" if ALL else f"{variables} python -m pytest"
    terminalreporter.section("fresh draws")
    terminalreporter.line(f"All of it again: {whole}")
    failed = [*terminalreporter.stats.get("failed", []), *terminalreporter.stats.get("error", [])]
    for report in failed:
        terminalreporter.line(f"{variables} python -m pytest -n 0 '{report.nodeid}'")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The zoo's models come last: many of a few seconds each, so that all workers end at once."""
    items.sort(key=lambda item: model_of(item.nodeid) is not None)


@pytest.fixture(scope="session", autouse=True)
def _torchlib_read_once() -> Iterator[None]:
    """Torch's exporter compiles its library of functions anew for each file: a second each."""
    read = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*args: Any, **kwargs: Any) -> ONNXRegistry:
        registry = copy.copy(read(*args, **kwargs))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield


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
