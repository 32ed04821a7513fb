"""The compiled CPU kernels: found in the cache or made, loaded once, and given to torch.

The system's C compiler makes them of the ``.c`` files here. A library runs as this user, so one is
loaded only from a folder and a file that no other user can write, and only whole: it ends with the
SHA-256 of what comes before.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch

from normswap.errors import NormswapError

_LOG = logging.getLogger("normswap")
_LOCK = threading.Lock()
_DIGEST = hashlib.sha256().digest_size
SOURCES = ("forward.c", "backward.c", "operators.c")
HEADERS = ("norms.h", "rows.h", "torch_interface.h")
FLAGS = (
    *("-O3", "-std=gnu11", "-fno-math-errno", "-fPIC", "-w", "-fvisibility=hidden"),
    "-fexceptions",  # torch's C++ exceptions pass through C to its dispatcher
)
_LIBRARIES = ("-lm", "-ldl")
NATIVE = "-march=native"
_SECONDS = 120
_CPU = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")


class CompilerError(Exception):
    """No compiler, or one that failed; the message is one line."""


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
        if _prepare(folder):
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
            _store(made, path)
    return _registered(ctypes.CDLL(str(path)))


def _registered(library: ctypes.CDLL) -> Kernels:
    register = library.normswap_register
    register.restype = ctypes.c_void_p
    missing = ctypes.c_char_p()
    handle = register(os.fsencode(torch._C.__file__), ctypes.byref(missing))
    if not handle:
        raise OSError(f"torch {torch.__version__} lacks {(missing.value or b'').decode()}")
    return Kernels(library, handle)


# -- compiling -------------------------------------------------------------------------------------


def find_compiler() -> list[str]:
    """The command in $CC, or the system's ``cc``, ``gcc`` or ``clang``.

    Raises CompilerError if there is none.
    """
    command = shlex.split(os.environ.get("CC", ""))
    if command:
        if shutil.which(command[0]) is None:
            raise CompilerError(f"the compiler in $CC, {command[0]}, is not there")
        return command
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise CompilerError("there is no C compiler (cc, gcc or clang)")


def library_name(compiler: list[str]) -> str:
    """The name of the library that ``compiler`` makes on this machine.

    It changes with the source, the compiler, the flags and the CPU. Raises CompilerError.
    """
    version = _output([*compiler, "--version"])
    flags = (*FLAGS, NATIVE, *_LIBRARIES)
    parts = (*_sources().values(), version, shlex.join(compiler), shlex.join(flags), _cpu())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"norms-{digest[:32]}.so"


def compile_library(compiler: list[str], target: Path) -> None:
    """Writes the library to ``target``, whose folder gets the sources too. Raises CompilerError."""
    for name, text in _sources().items():
        (target.parent / name).write_text(text)
    with ThreadPoolExecutor() as threads:
        objects = list(threads.map(partial(_object, compiler, target.parent), SOURCES))
    _output([*compiler, "-shared", "-o", str(target), *objects, *_LIBRARIES])


def _object(compiler: list[str], folder: Path, name: str) -> str:
    made = str((folder / name).with_suffix(".o"))
    command = [*compiler, *FLAGS, "-c", "-o", made, str(folder / name)]
    try:
        _output([*command, NATIVE])
    except CompilerError:  # not every compiler knows every CPU
        _output(command)
    return made


def _sources() -> dict[str, str]:
    """The text of every source file, by name."""
    folder = files("normswap.lowering.kernels")
    return {name: folder.joinpath(name).read_text() for name in (*SOURCES, *HEADERS)}


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{command[0]} cannot be run ({error})") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "")
        raise CompilerError(f"{command[0]} failed with status {done.returncode} ({first.strip()})")
    return done.stdout


def _cpu() -> str:
    """What the compiler's ``native`` may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    known = [line for line in lines if line.split(":")[0].strip() in _CPU]
    return "\n".join([platform.machine(), *known])


# -- the cache -------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """``normswap`` in the user's cache folder: $XDG_CACHE_HOME, or ``~/.cache``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    base = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(base) / "normswap"


def _prepare(folder: Path) -> bool:
    """Makes ``folder`` for this user alone; whether it can be written and is safe to load from."""
    if not folder.is_absolute():  # no home folder is known
        return False
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return _is_ours(folder.stat())
    except OSError:
        return False


def is_whole(path: Path) -> bool:
    """Whether the library at ``path`` is there, this user's own, and as it was written."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not (stat.S_ISREG(status.st_mode) and _is_ours(status)):
            return False
        content = file.read()
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _store(library: Path, path: Path) -> None:
    """Puts the library at ``path``, in the same folder, at once: another process sees all of it or
    nothing. Loaders of libraries ignore what follows the last section. Raises OSError."""
    with open(library, "ab") as file:
        file.write(hashlib.sha256(library.read_bytes()).digest())
    library.chmod(0o700)
    os.replace(library, path)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
