"""What holds for every command: help, exit status, what goes to which stream."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from normswap import __version__
from normswap_cli.main import main
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
COMMANDS = ("inspect", "swap", "fold", "validate", "bench", "distill", "compare", "export", "demo")


def command_line(*args: object) -> list[str]:
    return [sys.executable, "-m", "normswap", *(str(arg) for arg in args)]


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def test_help_lists_the_commands_without_importing_torch() -> None:
    code = (
        "import sys, normswap_cli.main as m\n"
        "try: m.main(['--help'], prog_name='normswap')\n"
        "finally: assert not {'torch', 'normswap', 'rich', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert not done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run: Run, name: str) -> None:
    outcome = run(name, "--help")
    assert outcome.status == 0
    assert outcome.out.startswith(f"Usage: normswap {name} [OPTIONS]")
    _, _, examples = outcome.out.partition("Examples:\n")
    assert examples
    assert isinstance(main, click.Group)
    for line in examples.splitlines():
        program, command, *words = shlex.split(line.partition(" > ")[0])
        assert (program, command) == ("normswap", name)
        with main.commands[name].make_context(name, words):
            pass  # click takes the options


def test_version(run: Run) -> None:
    assert run("--version").out == f"normswap {__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["inspect"],
        ["inspect", "a.onnx", "--nonsense"],
        ["swap", "a.onnx", "--to", "fused"],
        ["swap", "a.onnx", "-o", "b.onnx"],
        ["validate", "a.onnx"],
        ["validate", "a.onnx", "b.onnx", "--contract", "close"],
    ],
)
def test_usage_errors(run: Run, args: list[str]) -> None:
    outcome = run(*args)
    assert (outcome.status, outcome.out) == (2, "")
    assert "Error: " in outcome.err


def test_a_bug_shows_its_traceback(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_model: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("normswap.model.locate", broken)
    with pytest.raises(ZeroDivisionError):
        run("inspect", files / "spelled-out.onnx")


def test_interrupted(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    saving = importlib.import_module("normswap.io.save")
    monkeypatch.setattr(saving, "write_onnx", interrupted)
    outcome = run("export", files / "spelled-out.onnx", "-o", tmp_path / "out.onnx")
    assert (outcome.status, outcome.out) == (130, "")
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_interrupted_by_a_signal(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    args = ["swap", files / "vit-folder", "--to", "fused", "-o", out]
    running = subprocess.Popen(
        command_line(*args), env=environment(), stderr=subprocess.PIPE, text=True
    )
    _wait_until_it_has_worked(running, seconds=1.5)  # it is in its imports or in its work
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=300)
    if running.returncode == 0:
        pytest.skip("it was faster")
    assert running.returncode == 130
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


_INTERRUPTED_WITHIN = """
import os, signal, sys, types
from normswap_cli.main import main
main.watch_for_interrupts()

@main.command()
def wait():
    interrupt = "os.kill(os.getpid(), signal.SIGINT); sum(range(10**8))"
    {work}
    print("went on")

main(["wait"])
"""
_WITHIN = {
    "text that is executed": "exec(interrupt)",
    "another error": "try: exec(interrupt)\n    except BaseException: raise ValueError",
    "torch's import": """
    torch = sys.modules["torch"] = types.ModuleType("torch")
    torch.__spec__ = types.SimpleNamespace(_initializing=True)
    exec(interrupt)
    print("imported", flush=True)
    torch.__spec__._initializing = False
    import time; time.sleep(60)""",
}


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
@pytest.mark.parametrize("work", _WITHIN)
def test_interrupted_within(work: str, tmp_path: Path) -> None:
    """As a module, which CPython ends as it does not end a script. An import of torch is let to
    its end: it would abort."""
    (tmp_path / "waiting.py").write_text(_INTERRUPTED_WITHIN.format(work=_WITHIN[work]))
    command = [sys.executable, "-m", "waiting"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stdout == ("imported\n" if "torch" in work else "")


def _wait_until_it_has_worked(process: subprocess.Popen[str], seconds: float) -> None:
    """Until a process has used as much time of a processor, however busy the machine is."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        time.sleep(2 * seconds)
        return
    while process.poll() is None:
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        if (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") > seconds:
            break
        time.sleep(0.05)


def test_json_is_all_there_is_on_standard_output(files: Path) -> None:
    """With a real process: what libraries print or log goes elsewhere, whatever the encoding."""
    done = subprocess.run(
        command_line("inspect", files / "vit-folder", "--json"),
        env=environment(PYTHONIOENCODING="ascii", PYTHONWARNINGS="always"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["sites"]) == 5


def test_tables_in_any_encoding(files: Path) -> None:
    done = subprocess.run(
        command_line("inspect", files / "spelled-out.onnx"),
        env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "vit.layers.1.layernorm_after" in done.stdout.decode("ascii")
    assert not done.stderr


def test_verbose_logs_to_standard_error(run: Run, files: Path) -> None:
    outcome = run("-vv", "inspect", files / "spelled-out.onnx", "--json")
    assert outcome.status == 0
    assert len(outcome.json["sites"]) == 5
