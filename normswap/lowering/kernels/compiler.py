"""Making the CPU kernels with the system's C compiler."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path

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
    parts = (*source().values(), version, shlex.join(compiler), shlex.join(flags), _cpu())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"norms-{digest[:32]}.so"


def compile_library(compiler: list[str], target: Path) -> None:
    """Writes the library to ``target``, whose folder gets the sources too. Raises CompilerError."""
    for name, text in source().items():
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


def source() -> dict[str, str]:
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
