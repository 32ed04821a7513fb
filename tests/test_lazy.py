"""What the package offers is there whatever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import normswap
from normswap.lazy import lazily
from tests.cli.test_program import environment

SHADOWED = ("bench.statistics", "locate.site", "validate.bounds")
"""Modules of packages with the names of functions."""


def test_everything_that_is_named_is_there() -> None:
    assert set(normswap.__all__) <= set(dir(normswap))
    for name in normswap.__all__:
        assert getattr(normswap, name).__name__ == name


@pytest.mark.parametrize("module", SHADOWED)
def test_a_package_does_not_take_the_place_of_a_function(module: str) -> None:
    name = module.partition(".")[0]
    code = (
        f"import normswap.{module}, normswap\n"
        f"assert normswap.{name}.__name__ == '{name}' and callable(normswap.{name})\n"
        f"from normswap import {name}\n"
        f"assert callable({name})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()


def test_a_name_is_imported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    get = lazily(__name__, {"Fraction": "fractions"})
    assert get("Fraction") is sys.modules[__name__].Fraction  # type: ignore[attr-defined]
    monkeypatch.delattr(sys.modules[__name__], "Fraction")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        get("nonsense")
    with pytest.raises(AttributeError, match="module 'normswap' has no attribute 'nonsense'"):
        _ = normswap.nonsense  # type: ignore[attr-defined]
