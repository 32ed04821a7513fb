"""Fetching from the Hugging Face hub, without a minute of retries where there is no network."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from normswap.errors import NormswapError, first_line, quiet

_INDEX = "model.safetensors.index.json"
_SECONDS = 5.0
_TALKATIVE = ("huggingface_hub", "httpx", "urllib3")


@contextlib.contextmanager
def reachable_hub() -> Iterator[None]:
    """While the block runs, the hub's client works from its cache alone if there is no network."""
    from huggingface_hub import constants

    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet(*_TALKATIVE))
        if not constants.HF_HUB_OFFLINE and not _reachable(constants.ENDPOINT):
            stack.callback(setattr, constants, "HF_HUB_OFFLINE", False)
            constants.HF_HUB_OFFLINE = True
        yield


def _reachable(endpoint: str) -> bool:
    if any(
        os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ):
        return True  # the proxy knows
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), _SECONDS).close()
    except OSError:
        return False
    return True


def fetch_folder(identifier: str) -> Path:
    """The local folder with config.json, the image processor's configuration if there is one,
    and safetensors.

    Raises NormswapError if they cannot be fetched.
    """
    with reachable_hub():
        config = _fetch(identifier, "config.json")
        if _fetch_optional(identifier, "preprocessor_config.json") is None:
            _fetch_optional(identifier, "processor_config.json")
        if _fetch_optional(identifier, "model.safetensors") is None:
            index = _fetch_optional(identifier, _INDEX)
            if index is None:
                raise NormswapError(
                    f"hf:{identifier}: no safetensors of it could be fetched, and pickled weights "
                    "are not loaded; name a local folder"
                )
            for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
                _fetch(identifier, name)
    return config.parent


def _fetch(identifier: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(identifier, name))
    except Exception as error:  # of the network, the hub or the id itself
        raise NormswapError(
            f"hf:{identifier}: {name} could not be fetched ({first_line(error)}); "
            "check the id and the network, or name a local folder"
        ) from error


def _fetch_optional(identifier: str, name: str) -> Path | None:
    """The file, or None if the repository has none, or the cache while there is no network."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _fetch(identifier, name)
    except NormswapError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise
