"""Which names and container specs a .pt2 may use.

Torch writes the names of nodes, inputs and parameters into generated Python source as they are
(an exec), and imports the modules that container specs name. Each check lists what torch itself
writes; anything else raises Unsafe.
"""

from __future__ import annotations

import importlib
import json
import keyword
import re
import sys
from typing import Any

_OUTPUT_CLASS = re.compile(r"(transformers\.(?:modeling_outputs|models\.\w+\.modeling_\w+))\.\w+")


class Unsafe(Exception):
    """``args[0]`` names what a .pt2 holds that could run code, in a few words."""


def check_name(name: object) -> None:
    """A node or an input: an identifier in generated source."""
    plain = isinstance(name, str) and len(name) <= 1000 and name.isidentifier()
    if not plain or keyword.iskeyword(str(name)) or str(name).startswith("__"):
        raise Unsafe(f"the name {shown(name)}")


def check_symbol(name: object) -> None:
    """The name of a size, such as s77. Torch counts up to its number, so that must be small."""
    check_name(name)
    if len(re.sub(r"\D", "", str(name))) > 6:
        raise Unsafe(f"the name {shown(name)}")


def check_path(path: object) -> None:
    """A parameter's or module's dotted path: quoted in generated source."""
    plain = isinstance(path, str) and re.fullmatch(r"[\w.\-:/@ ]{0,1000}", path)
    if not plain or any(part.startswith("__") for part in str(path).split(".")):
        raise Unsafe(f"the name {shown(path)}")


def check_plain(text: object) -> None:
    """A string input: quoted in the guards that torch generates."""
    if not isinstance(text, str) or not re.fullmatch(r"[\w .,:;/+*<>=@()\-]{0,1000}", text):
        raise Unsafe(f"the string {shown(text)}")


def check_tree(text: object) -> None:
    """The serialised spec of nested containers of inputs or outputs."""
    try:
        protocol, spec = json.loads(text) if isinstance(text, str) else (None, None)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unsafe(f"the container {shown(text)}") from error
    if protocol != 1:
        raise Unsafe(f"the container {shown(text)}")
    _check_node(spec)


def shown(value: object) -> str:
    """``value`` on one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_node(spec: Any) -> None:
    if not isinstance(spec, dict) or set(spec) != {"type", "context", "children_spec"}:
        raise Unsafe(f"the container {shown(spec)}")
    if spec["type"] is not None:
        _check_container(spec["type"], spec["context"])
    children = spec["children_spec"]
    for child in children if isinstance(children, list) else [None]:
        _check_node(child)


def _check_container(kind: object, context: object) -> None:
    try:
        keys = json.loads(context) if isinstance(context, str) else None
    except (ValueError, RecursionError) as error:
        raise Unsafe(f"the container {shown(kind)}") from error
    if kind in ("builtins.tuple", "builtins.list"):
        allowed = keys is None
    else:
        # A list of keys; never a JSON object, because torch imports the module that one names.
        known = kind in ("builtins.dict", "collections.OrderedDict") or _is_output_class(kind)
        allowed = known and isinstance(keys, list) and all(map(_is_key, keys))
    if not allowed:
        raise Unsafe(f"the container {shown(kind)}")


def _is_key(key: object) -> bool:
    if isinstance(key, str):
        check_path(key)
        return True
    return isinstance(key, int)


def _is_output_class(kind: object) -> bool:
    """Whether ``kind`` is an output class of the installed transformers, which this imports."""
    match = _OUTPUT_CLASS.fullmatch(kind) if isinstance(kind, str) else None
    if match is None:
        return False
    if match[1] not in sys.modules:
        from normswap.io.torchvision_compat import ensure_torchvision_importable

        ensure_torchvision_importable()
        try:
            importlib.import_module(match[1])
        except Exception:  # whatever a missing or broken transformers raises
            return False
    return True
