"""Whether commands on small files keep within bounds: ``python -m tests.fuzz.bounded PATH ...``.

PATH: files, or folders with .onnx and .pt2 files in them. ``inspect``, ``swap --to fused``,
``fold`` and ``validate`` of the file against itself, each in a forked child with limits on its CPU
time and memory. Prints what each took, and ends with status 1, after a list, if one of them broke a
bound, ended by a signal or with a traceback. ``--onnx-cases N``: every Nth of onnx's own tests too.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.trial import silence, warm

CPU_SECONDS = 20
MEMORY = 2 << 30  # bytes: resident in all, and of addresses beyond those that there are before
_WALL_SECONDS = 300  # the machine may be busy
_TOO_MUCH = re.compile(r"Unable to allocate [0-9.]+ [MG]iB")  # what another machine would give
SUFFIXES = (".onnx", ".pt2")


@dataclass(frozen=True)
class Ended:
    """How a command on a file ended. ``wrong``: what it did that it may not, '' if nothing."""

    command: str
    file: Path
    status: int
    cpu_seconds: float
    mib: float
    said: str
    wrong: str

    def __str__(self) -> str:
        taken = f"{self.cpu_seconds:5.1f} s {self.mib:6.0f} MiB  {self.command:8s} {self.file.name}"
        return f"{taken}: {self.wrong or self.said or 'done'}"


def commands(file: Path, out: Path) -> dict[str, list[str]]:
    """What is run on a file, which writes to ``out``."""
    return {
        "inspect": ["inspect", str(file)],
        "swap": ["swap", str(file), "-o", str(out), "--to", "fused"],
        "fold": ["fold", str(file), "-o", str(out)],
        "validate": ["validate", str(file), str(file)],
    }


def ended(file: Path, only: Sequence[str] = ()) -> list[Ended]:
    """How the commands on ``file`` end; ``only`` those of these names."""
    warm()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out{file.suffix}"
        told = Path(folder) / "told.txt"
        chosen = {n: args for n, args in commands(file, out).items() if not only or n in only}
        return [_one(name, args, file, told) for name, args in chosen.items()]


def _one(name: str, arguments: list[str], file: Path, told: Path) -> Ended:
    pid = os.fork()
    if pid == 0:
        _run(arguments, told)
    _, status, usage = os.wait4(pid, 0)
    seconds = usage.ru_utime + usage.ru_stime
    mib = usage.ru_maxrss / 1024
    lines = told.read_text(errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.strip()), "")
    wrong = ""
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        late = {signal.SIGXCPU: f"more than {CPU_SECONDS} s of CPU", signal.SIGALRM: "it hangs"}
        wrong = late.get(number, f"ended by {number.name}")
    elif any(line.startswith("Traceback") for line in lines):
        wrong = f"traceback: {said}"
    elif mib * (1 << 20) > MEMORY or _TOO_MUCH.search(said):
        wrong = f"more than {MEMORY >> 20} MiB: {said}"
    code = os.waitstatus_to_exitcode(status)
    return Ended(name, file, code, seconds, mib, said, wrong)


def _run(arguments: list[str], told: Path) -> None:
    """The child: never returns."""
    from normswap_cli.main import main

    nothing = os.open(os.devnull, os.O_RDWR)
    saying = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream, target in ((0, nothing), (1, nothing), (2, saying)):
        os.dup2(target, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest has its own
    silence()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    signal.alarm(_WALL_SECONDS)
    status = 1
    try:
        main(arguments, prog_name="normswap")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(status)


def _files(paths: Sequence[Path]) -> list[Path]:
    inside = [sorted(p.rglob("*")) if p.is_dir() else [p] for p in paths]
    return [file for found in inside for file in found if file.suffix in SUFFIXES]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.bounded", description=__doc__)
    parser.add_argument("paths", type=Path, nargs="*")
    parser.add_argument("--onnx-cases", type=int, metavar="N", help="every Nth of onnx's tests")
    parser.add_argument("--only", nargs="*", default=(), help="of the four commands")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = _files(given.paths)
        if given.onnx_cases:
            files += _onnx_cases(Path(folder), given.onnx_cases)
        broken = []
        for file in files:
            for end in ended(file, given.only):
                print(end, flush=True)
                broken += [end] if end.wrong else []
    print(f"\n{len(files)} files; {len(broken)} commands did what they may not")
    for end in broken:
        print(end)
    return 1 if broken else 0


def _onnx_cases(folder: Path, step: int) -> list[Path]:
    import onnx

    from tests.onnx_cases import cases

    files = []
    for case in cases()[::step]:
        files.append(folder / f"{case.name}.onnx")
        onnx.save(case.model, files[-1])
    return files


if __name__ == "__main__":
    sys.exit(main())
