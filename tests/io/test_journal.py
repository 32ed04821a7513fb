"""What a killed run leaves, what is believed of it, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from normswap.errors import NormswapError
from normswap.io import journal
from normswap.io.atomic import atomic_path, replacing


def write(path: Path, text: str = "new") -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def left_behind(path: Path, *lines: object) -> Path:
    """The journal of a killed run, with these lines."""
    with replacing(path):
        (file,) = path.parent.glob(".*.lock")
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def inode(path: Path) -> int:
    return path.stat().st_ino


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_what_a_killed_run_made_goes(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    made = [
        tmp_path / "more" / "a.data",
        tmp_path / "b.data",
        tmp_path / ".p.0123456789ab.tmp.html",
    ]
    for file in made:
        file.write_text("half")
    lines = [["made", "more", inode(tmp_path / "more")]]
    lines += [["made", file.relative_to(tmp_path).as_posix(), inode(file)] for file in made]
    left_behind(tmp_path / "p.html", *lines, ["made", "empty", None])
    (tmp_path / "empty").touch()
    write(tmp_path / "p.html")
    assert names(tmp_path) == ["p.html"]


def test_old_data_goes_once_the_new_file_is_in_place(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("new")
    (tmp_path / "old.data").write_text("old")
    old = ["superseded", "old.data", inode(tmp_path / "old.data")]
    left_behind(tmp_path / "m", old)
    write(tmp_path / "m")
    assert names(tmp_path) == ["m", "old.data"]  # the file that was to replace it never came
    left_behind(tmp_path / "m", old, ["commit", "x", inode(tmp_path / "m")])
    write(tmp_path / "m")
    assert names(tmp_path) == ["m"]


def test_data_of_a_file_that_was_renamed_since_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.data").write_text("weights")
    (tmp_path / "final").write_text("my weights are in m.data")
    made = ["made", "m.data", inode(tmp_path / "m.data")]
    left_behind(tmp_path / "m", made, ["commit", "x", inode(tmp_path / "final")])
    write(tmp_path / "m")
    assert names(tmp_path) == ["final", "m", "m.data"]
    assert "m.data (another file may use it)" in caplog.messages[0]


def test_a_journal_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside").write_text("mine")
    (folder / "mine").write_text("mine")
    (folder / "link").symlink_to("..")
    (folder / "other").symlink_to("mine")
    before = names(tmp_path)
    lines = [
        ["made", "mine", inode(folder / "mine") + 1],
        ["made", "mine", None],
        ["made", "../outside", inode(tmp_path / "outside")],
        ["made", "link/outside", inode(tmp_path / "outside")],
        ["made", str(tmp_path / "outside"), inode(tmp_path / "outside")],
        ["made", "other", (folder / "other").lstat().st_ino],
        ["made", "", inode(folder)],
        ["made", ".", inode(folder)],
        ["made", "a\0b", 1],
        ["made", 3, 4],
        ["nonsense", "mine", 5],
        [[], {}],
        "text",
        None,
    ]
    file = left_behind(folder / "m", *lines)
    with open(file, "ab") as more:
        more.write(b"[" * 100_000 + b"\n\xff\xfe\n{")
    write(folder / "m")
    assert names(tmp_path) == sorted([*before, "folder/m"])


def test_hostile_things_in_place_of_a_journal(tmp_path: Path) -> None:
    file = left_behind(tmp_path / "m")
    (tmp_path / "mine").write_text("mine")
    for plant in (
        lambda: file.symlink_to("mine"),
        lambda: os.mkfifo(file),
        lambda: file.mkdir(),
    ):
        file.unlink(missing_ok=True)
        plant()
        with pytest.raises(NormswapError) as caught:
            write(tmp_path / "m")
        assert str(caught.value).startswith(f"{tmp_path / 'm'}: cannot be")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(tmp_path / "m")
    (line,) = caplog.messages
    assert (
        line
        == f"{tmp_path / 'm'}: its file system has no locks; write it from one process at a time"
    )
    monkeypatch.setattr(journal, "fcntl", None)
    write(tmp_path / "m", "again")
    assert (tmp_path / "m").read_text() == "again"
    assert names(tmp_path) == ["m"]


def test_it_waits_for_another_writer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import threading

    order = []
    entered = threading.Event()

    def second() -> None:
        entered.wait()
        write(tmp_path / "m", "second")
        order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with atomic_path(tmp_path / "m") as temporary:
        entered.set()
        while not caplog.messages:
            other.join(0.01)
        temporary.write_text("first")
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert (tmp_path / "m").read_text() == "second"
    assert caplog.messages == [f"{tmp_path / 'm'}: another process is writing it; waiting for that"]
    assert names(tmp_path) == ["m"]


def test_long_names_have_journals_of_their_own(tmp_path: Path) -> None:
    with replacing(tmp_path / ("ä" * 120)), replacing(tmp_path / ("ä" * 119)):
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == []
