"""Completion in bash and zsh, with the scripts that ``_NORMSWAP_COMPLETE`` prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_program import environment
from tests.effort import ALL

_BASH = """
eval "$(_NORMSWAP_COMPLETE=bash_source normswap)"
compopt() { :; }
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_normswap_completion normswap
printf '%s\\n' "${COMPREPLY[@]}"
"""
_ZSH = """
compdef() { : }
compadd() { print -l -- ${(P)@[-1]} }
_describe() { print -l -- ${(P)@[-2]%%:*} }
_path_files() { print files }
eval "$(_NORMSWAP_COMPLETE=zsh_source normswap)"
words=("$@"); CURRENT=$#
_normswap_completion
"""


def _completed(shell: str, folder: Path, *words: str) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    program = folder / "normswap"
    program.write_text(
        f"#!{sys.executable}\nfrom normswap_cli.main import program\nprogram()\n", encoding="utf-8"
    )
    program.chmod(0o755)
    path = environment(PATH=f"{folder}:/usr/bin:/bin")
    script = {"bash": _BASH, "zsh": _ZSH}[shell]
    command = [shell, "-fc" if shell == "zsh" else "-c", script, shell, "normswap", *words]
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=120)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh"] if ALL else ["bash"])
def test_words_are_completed(shell: str, tmp_path: Path) -> None:
    assert _completed(shell, tmp_path, "sw") == ["swap"]
    assert _completed(shell, tmp_path, "swap", "m.onnx", "--to", "rm") == ["rmsnorm"]


def test_paths_are_left_to_the_shell(tmp_path: Path) -> None:
    assert _completed("zsh", tmp_path, "inspect", "m") == ["files"]
