"""The form that is taken is exact, and not slower than what was there; measurements are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from normswap.lowering.measure import Measured, choose, described, key_of, recall, remember

_ORIGINAL = Measured(1.0, 1.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("default", "other", "taken"),
    [
        (Measured(0.5, 0.4, 0.6, 0.5), Measured(0.3, 0.2, 0.35, 0.5), "other"),
        (Measured(0.5, 0.4, 0.6, 0.5), Measured(0.3, 0.2, 0.45, 0.5), "default"),  # not clearly
        (Measured(0.5, 0.4, 0.6, 0.5), Measured(0.1, 0.1, 0.1, 1.1), "default"),  # not exact
        (Measured(1.0, 0.9, 1.1, 0.5), Measured(1.2, 1.1, 1.3, 0.5), "default"),  # no slower
        (Measured(1.2, 1.1, 1.3, 0.5), Measured(1.2, 1.1, 1.3, 0.5), "original"),
        (Measured(0.5, 0.4, 0.6, 2.0), Measured(1.2, 1.1, 1.3, 0.5), "original"),
        (Measured(0.5, 0.4, 0.6, 2.0), Measured(0.8, 0.7, 0.9, 0.5), "other"),
        (Measured(refusal="no"), Measured(refusal="no"), "original"),
    ],
)
def test_what_is_taken(default: Measured, other: Measured, taken: str) -> None:
    measured = {"original": _ORIGINAL, "default": default, "other": other}
    assert choose(measured, "default") == taken


def test_the_reason_names_times_errors_and_refusals() -> None:
    measured = {
        "original": _ORIGINAL,
        "a": Measured(0.5, 0.4, 0.6, 3.0),
        "b": Measured(refusal="it refuses"),
    }
    told = described(measured, "original")
    assert told == (
        "time beside original: a 0.50 (0.40-0.60), error 3.0 times what is allowed; b it refuses"
    )


def test_what_was_measured_is_recalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = key_of("runtime 1", "shape")
    assert recall(key, ["a"]) is None
    remember(key, {"a": 1})
    assert (recall(key, ["a"]) or {})["a"] == 1
    assert recall(key, ["a", "b"]) is None
    assert key != key_of("runtime 2", "shape")
    (file,) = (tmp_path / "normswap" / "tuning").iterdir()
    for damaged in ("", "[]", "{", '{"schema": "another", "a": 1}'):
        file.write_text(damaged)
        assert recall(key, ["a"]) is None


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "normswap").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember("key", {"a": 1})
    assert recall("key", ["a"]) is None
