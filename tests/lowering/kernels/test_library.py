"""The compiled library: when it is made, kept, refused, and done without."""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import multiprocessing
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from normswap.errors import NormswapError
from normswap.lowering.kernels import eager, library
from normswap.lowering.kernels.library import CompilerError
from normswap.lowering.kernels.signatures import NORMS

ops = torch.ops.normswap


@pytest.fixture(autouse=True)
def _forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process, with a cache of its own."""
    _forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NORMSWAP_KERNELS", raising=False)
    yield
    _forget()


def _forget() -> None:
    """Takes what is loaded from torch again."""
    for kernels in library._loaded:
        if kernels is not None:
            torch_library = ctypes.CDLL(torch._C.__file__)
            torch_library.aoti_torch_delete_library_object(ctypes.c_void_p(kernels.handle))
    library._loaded.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as the compiler makes it, without the digest, and quickly."""
    path = tmp_path_factory.mktemp("made") / "norms.so"
    flags = tuple("-O0" if flag == "-O3" else flag for flag in library.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "FLAGS", flags)
        try:
            library.compile_library(library.find_compiler(), path)
        except CompilerError:
            pytest.skip("no C compiler")
    return path


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that copies the library, and the file that has a line for each one it made."""
    log, script = tmp_path / "runs", tmp_path / "quick-cc"
    log.touch()
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo quick; exit; fi\n'
        '[ "$1" = -shared ] || exit 0\n'  # an object, which nothing reads
        f'echo run >> "{log}"\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'sleep 0.2; cp "{made}" "$2"\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    return log


def _count(log: Path) -> int:
    return len(log.read_text().splitlines())


def _cached(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache" / "normswap").iterdir()
    return found


def _works() -> bool:
    x = torch.randn(3, 40)
    y = ops.layer_norm(x, None, None, 1e-6)
    return library._loaded != [None] and torch.allclose(
        y, eager.forward(NORMS["layer_norm"], x, None, None, 1e-6), atol=1e-5
    )


def test_made_once_and_kept_for_this_user_alone(runs: Path, tmp_path: Path) -> None:
    assert _works()
    _forget()
    assert _works()
    assert _count(runs) == 1
    kept = _cached(tmp_path)
    assert library.is_whole(kept)
    for path in (kept, kept.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_damaged_or_exposed_files_are_made_again(runs: Path, tmp_path: Path) -> None:
    assert _works()
    kept = _cached(tmp_path)
    whole = kept.read_bytes()

    def exposed() -> None:
        kept.chmod(0o770)

    def linked() -> None:
        (tmp_path / "elsewhere.so").write_bytes(whole)
        (tmp_path / "elsewhere.so").chmod(0o700)
        kept.unlink()
        kept.symlink_to(tmp_path / "elsewhere.so")

    damages = [
        lambda: kept.write_bytes(whole[: len(whole) // 2]),
        lambda: kept.write_bytes(whole[:5000] + b"?" + whole[5001:]),
        lambda: kept.write_bytes(b""),
        exposed,
        linked,
    ]
    for times, damage in enumerate(damages, start=2):
        _damage(kept, damage)
        _forget()
        assert _works()
        assert _count(runs) == times
        assert kept.read_bytes() == whole
        assert not kept.is_symlink()


def _damage(kept: Path, damage: Any) -> None:
    """A new file, so that a library which this process has mapped stays whole."""
    content = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(content)
    kept.chmod(0o700)
    damage()


def test_another_users_cache_is_not_used(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _works()
    before = _cached(tmp_path).read_bytes()
    _forget()
    own = os.geteuid()
    opened: list[str] = []
    real = ctypes.CDLL
    monkeypatch.setattr(library.ctypes, "CDLL", lambda name: opened.append(str(name)) or real(name))
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    library.kernels()
    assert not any(str(tmp_path / "cache") in name for name in opened)
    assert _cached(tmp_path).read_bytes() == before


def test_unwritable_cache(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")  # root could write to any folder
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert _works()
    assert _count(runs) == 1
    assert os.listdir(temporary) == []


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    _falls_back(caplog, "no-such-compiler, is not there; norms run in torch's own operators")


def test_failing_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "failing-cc"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\necho forward.c: fatal error: broken >&2\nexit 3\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    _falls_back(caplog, r"failed with status 3 \(forward.c: fatal error: broken\)")
    assert os.listdir(tmp_path / "cache" / "normswap") == []


def test_a_torch_that_lacks_a_function(
    runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The C library is loaded, and none of torch's functions is in it.
    monkeypatch.setattr(torch._C, "__file__", ctypes.util.find_library("c"))
    _falls_back(caplog, "lacks aoti_torch_library_init_impl; norms run in torch's own operators")


def _falls_back(caplog: pytest.LogCaptureFixture, expected: str) -> None:
    x, weight = torch.randn(2, 6, 40), torch.rand(40)
    with caplog.at_level(logging.WARNING, "normswap"):
        for _ in range(2):
            y = ops.layer_norm(x, weight, None, 1e-6)
    assert torch.equal(y, eager.forward(NORMS["layer_norm"], x, weight, None, 1e-6))
    (record,) = caplog.records
    assert record.name == "normswap"
    assert re.search(expected, record.getMessage())
    assert "\n" not in record.getMessage()


def test_switched_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("NORMSWAP_KERNELS", "torch")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert library.kernels() is None
    assert not caplog.records
    _forget()
    monkeypatch.setenv("NORMSWAP_KERNELS", "cuda")
    with pytest.raises(NormswapError, match='NORMSWAP_KERNELS is "cuda"; set it to'):
        ops.rms_norm(torch.ones(2, 3), None, 1e-6)


def test_the_name_tells_cpus_and_compilers_apart(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = library.find_compiler()
    name = library.library_name(command)
    assert name == library.library_name(command)
    with monkeypatch.context() as patch:
        patch.setattr(library, "_cpu", lambda: "another CPU")
        assert library.library_name(command) != name
    Path(command[0]).write_text("#!/bin/sh\necho newer\n")
    assert library.library_name(command) != name


def test_processes_that_compile_at_once(runs: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(_in_a_process, range(2), chunksize=1) == [True, True]
    assert _count(runs) == 2  # neither waited for the other
    assert library.is_whole(_cached(tmp_path))


def _in_a_process(_: int) -> bool:
    _forget()
    torch.set_num_threads(1)  # a forked process has none of torch's threads
    return _works()
