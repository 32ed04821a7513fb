"""The compiled CPU kernels: found in the cache or made, loaded once, and given to torch."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from normswap.errors import NormswapError
from normswap.lowering.kernels.cache import cache_folder, is_whole, prepare, store
from normswap.lowering.kernels.compiler import (
    CompilerError,
    compile_library,
    find_compiler,
    library_name,
)

_LOG = logging.getLogger("normswap")
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Kernels:
    """The loaded library, and torch's handle of the operators' CPU kernels in it."""

    library: ctypes.CDLL
    handle: int


_loaded: list[Kernels | None] = []


def kernels() -> Kernels | None:
    """What runs the operators on CPU tensors, or None where torch's own operators have to do: with
    NORMSWAP_KERNELS=torch, and, after one line on the log, without a working compiler.

    Raises NormswapError for another value of NORMSWAP_KERNELS.
    """
    return _loaded[0] if _loaded else _load()


def wanted() -> bool:
    """Whether NORMSWAP_KERNELS leaves the kernels on. Raises NormswapError for an unknown value."""
    choice = os.environ.get("NORMSWAP_KERNELS", "c")
    if choice not in ("c", "torch"):
        raise NormswapError(f'NORMSWAP_KERNELS is "{choice}"; set it to "c" or "torch"')
    return choice == "c"


def _load() -> Kernels | None:
    with _LOCK:
        if not _loaded:
            _loaded.append(_found_or_made() if wanted() and os.name == "posix" else None)
        return _loaded[0]


def _found_or_made() -> Kernels | None:
    try:
        compiler = find_compiler()
        name = library_name(compiler)
        folder = cache_folder()
        if prepare(folder):
            return _opened(compiler, folder / name)
        private = Path(tempfile.mkdtemp(prefix="normswap-"))
        try:
            return _opened(compiler, private / name)
        finally:
            shutil.rmtree(private, ignore_errors=True)  # what is loaded stays
    except (CompilerError, OSError) as error:
        reason = " ".join(str(error).split())
        _LOG.warning("%s; norms run in torch's own operators, which is slower", reason)
        return None


def _opened(compiler: list[str], path: Path) -> Kernels:
    if not is_whole(path):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / "norms.so"
            compile_library(compiler, made)
            store(made, path)
    return _registered(ctypes.CDLL(str(path)))


def _registered(library: ctypes.CDLL) -> Kernels:
    register = library.normswap_register
    register.restype = ctypes.c_void_p
    missing = ctypes.c_char_p()
    handle = register(os.fsencode(torch._C.__file__), ctypes.byref(missing))
    if not handle:
        raise OSError(f"torch {torch.__version__} lacks {(missing.value or b'').decode()}")
    return Kernels(library, handle)
