"""Importing the optional packages that models come from."""

from __future__ import annotations

import importlib
from types import ModuleType
from urllib.parse import parse_qsl

from normswap.errors import NormswapError, first_line
from normswap.io.torchvision_compat import ensure_torchvision_importable

_PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch", "transformers": "transformers"}


def import_extra(package: str, source: str) -> ModuleType:
    """Imports timm, open_clip or transformers for ``source``.

    Raises NormswapError, which names the extra to install, if it is missing or broken.
    """
    ensure_torchvision_importable()
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise NormswapError(
                f"{source}: {package} needs {error.name}, which is not installed; "
                'pip install "normswap[zoo]"'
            ) from error
        raise NormswapError(
            f'{source}: needs {_PACKAGES[package]}; pip install "normswap[zoo]"'
        ) from error
    except Exception as error:  # a package that does not fit the others may raise anything
        raise NormswapError(
            f"{source}: {package} cannot be imported ({first_line(error)}); "
            'pip install --upgrade "normswap[zoo]"'
        ) from error


def split_options(text: str, prefix: str) -> tuple[str, bool]:
    """The name and whether to take pretrained weights, of ``NAME`` or ``NAME?pretrained=false``.

    Raises NormswapError for another option.
    """
    name, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    choice = options.pop("pretrained", "true").lower()
    if options or choice not in ("true", "false") or (query and not parse_qsl(query)):
        raise NormswapError(f"{prefix}{text}: unknown option; the only one is ?pretrained=false")
    return name, choice == "true"
