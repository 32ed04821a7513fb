"""What the package offers is there whatever was imported first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import normswap
from normswap.lazy import public_names


def test_everything_that_is_named_is_there() -> None:
    assert set(normswap.__all__) <= set(dir(normswap))
    for name in normswap.__all__:
        assert getattr(normswap, name).__name__ == name


def test_a_name_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.pyi").write_text("from fractions import Fraction as Fraction\n")
    get, _, names = public_names(__name__, str(tmp_path / "m.py"))
    assert names == ["Fraction"]
    assert get("Fraction") is sys.modules[__name__].Fraction  # type: ignore[attr-defined]
    monkeypatch.delattr(sys.modules[__name__], "Fraction")
