"""Which versions of Python and of the packages normswap works with.

    python -m benchmarks.versions [CHANGE ...] [--python VERSION ...] [-o FILE] [--folder FOLDER]

CHANGE, as "torch==2.14.1" or "onnx==1.21.0 onnx-ir==1.0.0": what differs from constraints.txt;
without one, nothing does. For each Python this makes an environment with normswap's wheel, its
extras ``zoo`` and ``demo`` and the pins, and for each change a copy of it, in which pip makes the
change. There it runs the core of the tests (see CORE), and inspects, swaps and validates a model.
Bounds of pyproject.toml on the packages of a change are left out, for a bound is what this looks
for. A Markdown table is printed.

-o: a JSON file of the rows, which also keeps those of earlier runs for the table. --folder: where
the environments are made and stay; without, they are removed in the end. Downloads may take
gigabytes: an index may have torch for CUDA alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CORE = (
    "norms/test_decomposed.py",
    "norms/test_operator_parameters.py",
    "graph/test_linear.py",
    "graph/test_fx_batch_norm.py",
    "passes/test_fused.py",
    "passes/test_fold.py",
    "passes/test_rms_norm.py",
    "io/test_onnx_io.py",
    "io/test_pt2_io.py",
    "io/test_sources.py",
    "parity/test_exact.py",
)
LEFT_OUT = "not full_size"
TESTED = ("torch", "onnx", "onnxruntime", "onnx-ir", "onnxscript", "transformers", "timm", "numpy")
EXTRAS = ("", "zoo", "demo")
PYTHON = Path("bin", "python")
PIP = ("-m", "pip", "install", "-q", "--no-cache-dir", "--no-compile")
RUNNERS = ("pytest", "hypothesis")
SECONDS = 1800  # for one command: an installation, or the tests
MODELS = """
from importlib.resources import files
from pathlib import Path
from normswap.demo.spelled_out import onnx_variants, torch_variants
source, model, _ = torch_variants(Path(str(files("normswap.assets") / "digits-vit")))
onnx_variants(source, model, Path("original.onnx"), Path("spelled-out.onnx"))
"""
EXAMPLE = (
    "inspect spelled-out.onnx",
    "swap spelled-out.onnx -o fused.onnx --to fused",
    "validate spelled-out.onnx fused.onnx",
    "swap original.onnx -o rmsnorm.onnx --to rmsnorm",
    "validate original.onnx rmsnorm.onnx",
)

Row = dict[str, Any]


class Failed(Exception):
    """A command of a row failed; the message is the last line that it printed."""


def wheel(source: Path) -> Path:
    """Copies the source to ``source`` and builds normswap's wheel beside it."""
    shutil.rmtree(source.parent, ignore_errors=True)
    skipped = shutil.ignore_patterns(
        ".*", "*.egg-info", "__pycache__", "build", "site", "demo-output"
    )
    shutil.copytree(ROOT, source, ignore=skipped)
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", source.parent, source])
    (built,) = source.parent.glob("normswap-*.whl")
    return built


def requirements(built: Path, changed: set[str]) -> list[str]:
    """What the wheel requires with its extras, with no bound on the packages in ``changed``."""
    with zipfile.ZipFile(built) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    kept = []
    for requirement in map(Requirement, metadata.get_all("Requires-Dist", [])):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
            bounds = "" if canonicalize_name(requirement.name) in changed else requirement.specifier
            kept.append(f"{requirement.name}{bounds}")
    return sorted(set(kept))


def constraints(changes: Sequence[str]) -> list[str]:
    """The pins of constraints.txt, with ``changes`` in their place. With another torch go another
    torchvision, which has to match it, and whichever triton it asks for."""
    changed = {canonicalize_name(Requirement(change).name) for change in changes}
    result = list(changes)
    for change in changes:
        if found := re.fullmatch(r"torch==2\.(\d+)\..*", change):
            changed |= {"torchvision", "triton"}
            result.append(f"torchvision==0.{int(found[1]) + 15}.*")
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return result + [p for p in pins if canonicalize_name(Requirement(p).name) not in changed]


def python_of(version: str) -> str:
    """The interpreter of a version such as 3.12: on the PATH, or one of pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{version}.*/bin/python"))
    interpreter = str(found[-1]) if found else shutil.which(f"python{version}")
    if interpreter is None:
        raise SystemExit(f"there is no Python {version} here")
    return interpreter


def finished(
    command: Sequence[str | Path], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command that ran to its end. Raises Failed if it takes too long."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean["PYTHONHASHSEED"] = "0"
    try:
        return subprocess.run(
            command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"more than {SECONDS} s") from error


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """What a command printed. Raises Failed if it does not work."""
    done = finished(command, cwd)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or str(done.returncode)).splitlines()
        raise Failed(next((line for line in said if line.startswith("ERROR")), said[-1]))
    return done.stdout


class Environments:
    """Makes them in ``folder``, one with the pins for each Python and copies of that one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "built" / "source"
        self.wheel = wheel(self.source)

    def make(self, python: str, changes: Sequence[str]) -> Path:
        """A folder of one's own, with the interpreter ``environment/bin/python`` in it."""
        name = re.sub(r"[^\w.]+", "-", " ".join([python, *changes]))
        own = self.folder / name
        if not changes and own.exists():
            return own
        shutil.rmtree(own, ignore_errors=True)
        environment = own / "environment"
        if changes:  # pip replaces files, so that it does not change those of the original
            original = self.make(python, ()) / "environment"
            shutil.copytree(original, environment, symlinks=True, copy_function=os.link)
        else:
            run([python_of(python), "-m", "venv", environment])
        pins = own / "constraints.txt"
        pins.write_text("\n".join(constraints(changes)) + "\n", "utf-8")
        changed = {canonicalize_name(Requirement(change).name) for change in changes}
        needed = [*requirements(self.wheel, changed), *RUNNERS]
        run([environment / PYTHON, *PIP, "-c", pins, *needed])
        return own


def try_versions(environments: Environments, python: str, changes: Sequence[str]) -> Row:
    row: Row = {"python": python, "changes": " ".join(changes), "versions": {}, "failed": []}
    began = time.perf_counter()
    try:
        folder = environments.make(python, changes)
        interpreter = folder / "environment" / PYTHON
        run([interpreter, *PIP, "--force-reinstall", "--no-deps", environments.wheel])
        listed = json.loads(run([interpreter, "-m", "pip", "list", "--format", "json"]))
        versions = {canonicalize_name(p["name"]): p["version"] for p in listed}
        row["versions"] = {name: versions[name] for name in TESTED}
        row["install_s"] = round(time.perf_counter() - began)
        began = time.perf_counter()
        row["tests"], row["failed"] = core(interpreter, folder, environments.source)
        row["tests_s"] = round(time.perf_counter() - began)
        row["example"] = example(interpreter, folder)
    except Failed as error:
        row["error"] = str(error)
    return row


def core(interpreter: Path, folder: Path, source: Path) -> tuple[str, list[str]]:
    """The counts that pytest prints, and the tests that failed. The tests are copied, so that
    they import the normswap that is installed."""
    shutil.copytree(source / "tests", folder / "tests", dirs_exist_ok=True)
    shutil.copy(source / "pyproject.toml", folder)
    pytest = [interpreter, "-m", "pytest", "-p", "no:cacheprovider", "-rfE", "-k", LEFT_OUT]
    done = finished([*pytest, *(f"tests/{name}" for name in CORE)], folder)
    (folder / "tests.txt").write_text(done.stdout + done.stderr, "utf-8")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)(.*)$", done.stdout, re.MULTILINE)
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    counts = re.findall(r"(\d+) (passed|failed|errors?)", said[-1])
    summary = ", ".join(f"{n} {what}" for n, what in counts) or said[-1].removeprefix("E").strip()
    return summary, [f"{test}{why}" for test, why in failed]


def example(interpreter: Path, folder: Path) -> str:
    """'' if all commands of the example work, else which one does not and why."""
    commands = {"export": ["-c", MODELS]}
    commands |= {command: ["-m", "normswap", *command.split()] for command in EXAMPLE}
    for name, command in commands.items():
        try:
            run([interpreter, *command], folder)
        except Failed as error:
            return f"{name}: {error}"
    return ""


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, by Python and by what differs."""
    lines = [
        "| Python | what differs | core of the tests | inspect, swap, validate |",
        "|---|---|---|---|",
    ]
    for row in rows:
        answers = [row.get("tests", ""), row.get("example", "")]
        if "error" in row:
            answers = [f"not installed: {row['error']}", ""]
        elif not answers[1]:
            answers[1] = "work"
        cells = [row["python"], row["changes"].replace("==", " ") or "nothing", *answers]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


@contextlib.contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """``folder``, which stays, or a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="normswap-versions-") as made:
            yield Path(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("changes", nargs="*", default=[""], metavar="CHANGE")
    parser.add_argument("--python", nargs="+", default=["3.11"], metavar="VERSION")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE")
    parser.add_argument("--folder", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    rows: list[Row] = []
    if options.output is not None and options.output.exists():
        rows = json.loads(options.output.read_text("utf-8"))
    with place(options.folder) as folder:
        environments = Environments(folder)
        for python in options.python:
            for change in options.changes:
                row = try_versions(environments, python, change.split())
                same = (row["python"], row["changes"])
                rows = [r for r in rows if (r["python"], r["changes"]) != same] + [row]
                print(json.dumps(row), file=sys.stderr)
                if options.output is not None:
                    options.output.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
