"""What a name in a file holds is shown in the terminal, and never obeyed by it."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from normswap.errors import NormswapError, plain, visible
from normswap.report import progress as progress_module
from normswap.report.progress import Progress
from normswap.report.terminal import bench_view, validation_view
from normswap_cli.console import show
from normswap_cli.main import main
from tests.cli.conftest import Run
from tests.cli.test_program import command_line, environment
from tests.report import html_samples

OBEYED = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
NAMES = {
    "a title": "\x1b]0;PWN\x07",
    "colours": "\x1b[31mRED\x1b[0m",
    "one byte for ESC [": "\x9b31m",
    "right to left": "abc\u202egnp.exe",
    "isolates": "\u2066abc\u2069",
    "zero width": "a\u200bb\ufeff",
    "lines": "a\nexact contract passed\rb\x0b\x0c\x85\u2028c",
    "backspaces": "good\b\b\b\bevil",
    "rich markup": "[red]a[/] [link=http://x]b[/link] :smile:",
    "a tab": "a\tb",
}  # fmt: skip


def hostile(path: Path, name: str) -> Path:
    """A model of a spelled-out norm, in which everything is called so."""

    def n(number: int) -> str:
        return f"{name}{number}"

    nodes = [
        helper.make_node("ReduceMean", [n(0)], [n(1)], n(1), axes=[-1]),
        helper.make_node("Sub", [n(0), n(1)], [n(2)], n(2)),
        helper.make_node("Mul", [n(2), n(2)], [n(3)], n(3)),
        helper.make_node("ReduceMean", [n(3)], [n(4)], n(4), axes=[-1]),
        helper.make_node("Add", [n(4), n(90)], [n(5)], n(5)),
        helper.make_node("Sqrt", [n(5)], [n(6)], n(6)),
        helper.make_node("Div", [n(2), n(6)], [n(7)], n(7)),
        helper.make_node("ReduceMean", [n(7)], [n(8)], n(8), axes=[0]),
        helper.make_node("Add", [n(7), n(8)], [n(9)], n(9)),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n(0), TensorProto.FLOAT, [name, 4, 8])],
        [helper.make_tensor_value_info(n(9), TensorProto.FLOAT, [name, 4, 8])],
        [numpy_helper.from_array(np.float32(1e-5), n(90))],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def assert_shown(text: str, name: str) -> None:
    found = OBEYED.search(text)
    assert found is None, ascii(text[max(0, found.start() - 80) : found.end() + 80])
    assert visible(name) in re.sub(r"\s+", " ", text) or visible(name)[:8] in text


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_in_tables_and_files(run: Run, tmp_path: Path, name: str) -> None:
    path, out = hostile(tmp_path / "m.onnx", name), tmp_path / "out.onnx"
    for args in (
        ["inspect", path],
        ["swap", path, "-o", out, "--to", "fused"],
        ["swap", path, "-o", out, "--to", "fused", "--sites", "none of them"],
        ["validate", path, out, "--bisect", "--reproducer", tmp_path / "r.npz"],
    ):
        outcome = run(*args)
        assert not OBEYED.search(outcome.out + outcome.err), ascii(outcome.out + outcome.err)
    assert_shown(run("inspect", path).out, name)
    for how in ("--json", "--mermaid"):
        text = run("inspect", path, how).out
        assert text.isascii()
        assert not OBEYED.search(text)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_in_errors(run: Run, tmp_path: Path, name: str) -> None:
    made = onnx.load(hostile(tmp_path / "m.onnx", name))
    made.graph.input[0].type.tensor_type.ClearField("shape")
    (tmp_path / "no-shape.onnx").write_bytes(made.SerializeToString())
    assert visible(name) in run("inspect", tmp_path / "no-shape.onnx").error
    file = name.replace("/", "")
    assert visible(file) in run("inspect", tmp_path / f"{file}.onnx").error
    path, wrong, right = (tmp_path / f"{file}{end}" for end in (".onnx", ".txt", "2.onnx"))
    hostile(path, "x")
    assert visible(file) in run("swap", path, "-o", wrong, "--to", "fused").error
    assert_shown(run("swap", path, "-o", right, "--to", "fused").out, file)
    outcome = run("inspect", path, file)
    assert outcome.status == 2
    assert not OBEYED.search(outcome.err.replace("\t", ""))


def test_in_every_view() -> None:
    report, times = html_samples.hostile()

    def views() -> None:
        show(validation_view(report), bench_view(times))

    runner = CliRunner()
    with runner.isolation() as (out, *_):
        views()
        text = out.getvalue().decode()
    assert len(text) > 2000
    assert not OBEYED.search(text)
    assert r"\x00\u202egnp" in text


def test_in_progress_and_logs(capsys: pytest.CaptureFixture[str], run: Run) -> None:
    with Progress(lines=True) as progress:
        progress(1, 2, "\x1b[31m[red]")
    assert capsys.readouterr().err == "[1/2] \\x1b[31m[red]\n"

    @main.command("warns")
    def warns() -> None:
        import logging
        import warnings

        logging.getLogger("normswap").warning("of %s\nand more", "\x1b[31m")
        warnings.warn("\u202e", stacklevel=1)

    try:
        outcome = run("-v", "warns")
    finally:
        del main.commands["warns"]
    assert "of \\x1b[31m\nand more" in outcome.err
    assert not OBEYED.search(outcome.err)
    assert "\\u202e" in outcome.err


def test_no_silence_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SILENCE", 0.05)
    with Progress() as progress:
        time.sleep(0.2)
        progress(3, 7, "probes")
        time.sleep(0.2)
    text = capsys.readouterr().err
    assert text.startswith("loading (0 s)\n")
    assert "[3/7] probes (0 s)\n" in text
    time.sleep(0.1)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_no_line_is_wider_than_columns(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    free = run("inspect", files / "vit.pt2").out
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run("inspect", files / "vit.pt2").out
    assert max(map(len, text.splitlines())) <= columns
    assert len("".join(text.split())) >= 0.9 * len("".join(free.split()))


@pytest.mark.parametrize("columns", ["0", "", "wide"])
def test_columns_that_say_nothing(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    free = run("inspect", files / "spelled-out.onnx").out
    monkeypatch.setenv("COLUMNS", columns)
    assert run("inspect", files / "spelled-out.onnx").out == free


def test_errors_are_visible_from_python_too() -> None:
    error = NormswapError("a\x1b[31m\n\ud800é 漢 \\x1b")
    assert str(error) == "a\\x1b[31m\\n\\ud800é 漢 \\x1b"
    assert plain("x" * 500 + "\x1b") == "x" * 200 + "..."
    assert visible("a\tb\n", keep="\n\t") == "a\tb\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
@pytest.mark.parametrize("args", [["--help"], ["inspect", "m.onnx", "--json"]])
def test_standard_output_that_is_full(tmp_path: Path, args: list[str]) -> None:
    hostile(tmp_path / "m.onnx", "x")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command_line(*args),
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("normswap: standard output cannot be written (No space left")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_standard_error_that_is_full(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = command_line("inspect", tmp_path / "none.onnx")
        assert subprocess.run(command, env=environment(), stderr=full).returncode == 2
