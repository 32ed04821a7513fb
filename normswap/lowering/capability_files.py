"""Capability files: what the package knows of targets, and a file of one's own.

Those of the package are ``capabilities/*.toml``; docs/reference/capability-files.md describes them.
They claim what a public document says or a measurement found, and nothing else: an operator that a
file does not speak of is unknown, unless the file's source lists all that there are.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError, plain
from normswap.lowering.capability import Capabilities, Claim, version_numbers

SCHEMA = "normswap.capabilities/1"
_FOLDER = Path(__file__).parent / "capabilities"
_LARGEST = 1 << 20  # bytes of a file


def capabilities_of(target: str) -> Capabilities:
    """The capabilities that ``--target`` names: a target of the package, for a version of it where
    '@VERSION' stands behind the name, or a file.

    Raises NormswapError for a name that is neither, and for a file that says something else than
    docs/reference/capability-files.md has.

    Example: ``capabilities_of("onnxruntime-cpu@1.24")``
    """
    if target.endswith(".toml"):
        return _read(Path(target), target, "")
    name, at, version = target.partition("@")
    if name not in known_targets():
        known = ", ".join(known_targets())
        raise NormswapError(f"--target: '{target}' is none of {known}, and no .toml file")
    if at and not _is_version(version):
        raise NormswapError(f"--target {target}: '{version}' is no version such as 1.26")
    return _read(_FOLDER / f"{name}.toml", name, version)


@cache
def known_targets() -> tuple[str, ...]:
    """The targets that the package has a file of."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


_TEXT = (str, "a text")
_FLAG = (bool, "true or false")
_TEXTS = (list, "a list of texts", str)
_INTEGERS = (list, "a list of whole numbers", int)
_Kind = tuple[Any, ...]
_HEAD: dict[str, _Kind] = {
    "schema": _TEXT, "title": _TEXT, "version": _TEXT, "otherwise": _TEXT, "takes": _TEXT,
    "model": (dict, "a table"), "others": (dict, "a table"), "claim": (list, "tables", dict),
}  # fmt: skip
_MODEL: dict[str, _Kind] = {
    "opset": _INTEGERS, "static_shapes": _FLAG, "source": _TEXT, "measured": _TEXT
}  # fmt: skip
_CLAIM: dict[str, _Kind] = {
    "operators": _TEXTS, "runs": _FLAG, "source": _TEXT, "measured": _TEXT, "ranks": _INTEGERS,
    "axes": _INTEGERS, "dtypes": _TEXTS, "opset": _INTEGERS, "versions": _TEXTS,
    "inaccurate": _TEXT, "note": _TEXT, "dialects": _TEXTS,
}  # fmt: skip
_OTHERS = {name: _CLAIM[name] for name in ("runs", "source", "measured", "note")}


def _read(path: Path, target: str, version: str) -> Capabilities:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise NormswapError(f"{path}: has more than {_LARGEST >> 20} MiB; is it the right file")
        table = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise NormswapError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise NormswapError(f"{path}: is no TOML ({str(error).splitlines()[0]})") from error
    try:
        return _parsed(table, target, version)
    except _Bad as bad:
        raise NormswapError(f"{path}: {plain(str(bad))}") from None


class _Bad(Exception):
    """What is wrong with a file."""


def _parsed(table: dict[str, Any], target: str, version: str) -> Capabilities:
    _check(table, _HEAD, "", required=("schema", "title", "version", "otherwise"))
    if table["schema"] != SCHEMA:
        raise _Bad(f"schema is '{table['schema']}', not '{SCHEMA}'")
    takes = table.get("takes", "onnx")
    if takes not in ("onnx", "torch"):
        raise _Bad(f"takes is '{takes}', neither 'onnx' nor 'torch'")
    model = table.get("model", {})
    _check(model, _MODEL, "[model] ")
    about = _source(model, "[model] ") if model else ""
    version = version or table["version"]
    if not _is_version(version):
        raise _Bad(f"version is '{version}', not numbers such as 1.26")
    claims = [
        _claim(entry, f"[[claim]] {number}: ")
        for number, entry in enumerate(table.get("claim", []), start=1)
    ]
    others = None
    if "others" in table:
        _check(table["others"], _OTHERS, "[others] ", required=("runs",))
        source = _source(table["others"], "[others] ")
        note = table["others"].get("note", "")
        others = Claim(frozenset(), table["others"]["runs"], source, note=note)
    held = tuple(claim for claim in claims if claim.holds_for(version))
    by_operator: dict[str, list[Claim]] = {}
    for claim in held:
        for name in claim.operators:
            by_operator.setdefault(name, []).append(claim)
    return Capabilities(
        target, table["title"], version, table["otherwise"], takes, held, others,
        _pair(model, "opset", "[model] "), model.get("static_shapes", False), about, by_operator,
    )  # fmt: skip


def _claim(entry: dict[str, Any], where: str) -> Claim:
    _check(entry, _CLAIM, where)
    if not entry.get("operators") and not entry.get("dialects"):
        raise _Bad(f"{where}names neither operators nor dialects")
    versions = entry.get("versions", ["", ""])
    if len(versions) != 2 or not all(v == "" or _is_version(v) for v in versions):
        raise _Bad(f"{where}versions is not two versions such as ['', '1.26']")
    return Claim(
        operators=frozenset(entry.get("operators", ())),
        runs=entry.get("runs", True),
        source=_source(entry, where),
        ranks=_pair(entry, "ranks", where),
        axes=tuple(entry["axes"]) if "axes" in entry else None,
        dtypes=tuple(entry.get("dtypes", ())),
        opset=_pair(entry, "opset", where),
        versions=(versions[0], versions[1]),
        dialects=frozenset(entry.get("dialects", ())),
        inaccurate=entry.get("inaccurate", ""),
        note=entry.get("note", ""),
    )


def _check(
    table: dict[str, Any], kinds: Mapping[str, _Kind], where: str, required: Sequence[str] = ()
) -> None:
    for name in required:
        if name not in table:
            raise _Bad(f"{where}{name} is missing")
    for name, value in table.items():
        if name not in kinds:
            raise _Bad(f"{where}'{name}' is none of {', '.join(kinds)}")
        kind, called, *items = kinds[name]
        fits = type(value) is kind and all(type(v) is item for item in items for v in value)
        if not fits:
            raise _Bad(f"{where}{name} is not {called}")


def _source(entry: dict[str, Any], where: str) -> str:
    source, measured = entry.get("source", ""), entry.get("measured", "")
    if bool(source) == bool(measured):
        raise _Bad(f"{where}needs a source or what was measured, one of the two")
    if source and not source.startswith("https://"):
        raise _Bad(f"{where}source is no address with https://")
    return source or f"measured: {measured}"


def _pair(entry: dict[str, Any], name: str, where: str) -> tuple[int, int] | None:
    if name not in entry:
        return None
    pair = entry[name]
    if len(pair) != 2 or pair[0] > pair[1]:
        raise _Bad(f"{where}{name} is not the smallest and the largest")
    return pair[0], pair[1]


def _is_version(text: str) -> bool:
    try:
        version_numbers(text)
    except ValueError:
        return False
    return True
