"""The optional packages that models come from: importing them and building models with them."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import torch

from normswap.errors import NormswapError, closest, first_line, quiet
from normswap.extras import install_command, pip_install

_LOG = logging.getLogger("normswap")
_PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch", "transformers": "transformers"}
_HUB_LOGGERS = ("huggingface_hub", "httpx", "urllib3")
_BUILD_LOGGERS = ("root", "timm", "transformers")  # open_clip logs to the root logger
_SECONDS = 5.0
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# The schemas exist as long as the library object that declared them.
_declared: list[torch.library.Library] = []


def import_extra(package: str, source: str, extra: str = "zoo") -> ModuleType:
    """Imports timm, open_clip or transformers for ``source``.

    Raises NormswapError if it is missing or broken; it says how to install ``extra``.
    """
    ensure_torchvision_importable()
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        needs = f"{package} needs {error.name}, which is not installed"
        if error.name == package:
            needs = f"needs {_PACKAGES[package]}"
        raise NormswapError(f"{source}: {needs}; {install_command(extra)}") from error
    except Exception as error:  # a package that does not fit the others may raise anything
        raise NormswapError(
            f"{source}: {package} cannot be imported ({first_line(error)}); "
            f"{pip_install('--upgrade', _PACKAGES[package])}"
        ) from error


def close_names(name: str, names: Sequence[str], listing: str) -> str:
    """Advice for an unknown name: similar ones, else where they are listed."""
    close = closest(name, names)
    return f"did you mean {', '.join(close)}" if close else f"see {listing}"


def build(label: str, make: Callable[[], Any], seed: int, pretrained: str | None) -> Any:
    """The model that ``make`` builds, its random weights drawn from ``seed``.

    ``pretrained``: the name of the architecture where pretrained weights are fetched, else None.
    Raises NormswapError, which begins with ``label``, if the model cannot be built or fetched.
    """
    try:
        with reachable_hub(), quiet(*_BUILD_LOGGERS), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()
    except Exception as error:  # of the network, the hub, or a name without pretrained weights
        reason = first_line(error)
        if pretrained is None:
            raise NormswapError(f"{label}: cannot be built ({reason})") from error
        raise NormswapError(
            f"{label}: its pretrained weights could not be fetched ({reason}); "
            f"{pretrained}?pretrained=false takes random ones"
        ) from error


@contextlib.contextmanager
def reachable_hub() -> Iterator[None]:
    """While the block runs, the Hugging Face client uses only its cache if there is no network.

    It would otherwise retry for about a minute.
    """
    from huggingface_hub import constants

    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet(*_HUB_LOGGERS))
        if not constants.HF_HUB_OFFLINE and not _reachable(constants.ENDPOINT):
            stack.callback(setattr, constants, "HF_HUB_OFFLINE", False)
            constants.HF_HUB_OFFLINE = True
        yield


def _reachable(endpoint: str) -> bool:
    if any(
        os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ):
        return True  # left to the proxy
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), _SECONDS).close()
    except OSError:
        return False
    return True


def ensure_torchvision_importable() -> bool:
    """Declares ``torchvision::nms`` and ``qnms`` where torchvision cannot; True if it had to.

    The wheels of the registry match the CUDA builds of torch only. Beside a CPU build,
    ``import torchvision`` fails with "operator torchvision::nms does not exist", and with it timm,
    open_clip and the vision models of transformers, none of which need that operator. Declaring
    the schemas is enough for the parts written in Python. A model that calls one of the operators
    fails with torch's own error, which names it.

    Call it before the first import of timm, open_clip or a vision model of transformers. Does
    nothing if torchvision is missing, works, or was imported already. Logs one line (``-v``).
    """
    if _declared or "torchvision" in sys.modules:
        return bool(_declared)
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _operators_load(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    _declared.append(library)
    _LOG.info(
        "torchvision's compiled operators do not match torch %s; its Python parts are used",
        torch.__version__,
    )
    return True


def _operators_load(folder: Path) -> bool:
    # As torchvision/extension.py does; loading the same library again later is harmless.
    for file in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(file)
        except OSError:
            continue
    return bool(torch._C._jit_get_schemas_for_operator("torchvision::nms"))
