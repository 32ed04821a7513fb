from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from normswap.errors import NormswapError
from normswap.io.atomic import atomic_path, check_writable


def test_replaces_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.onnx"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.pt2"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.pt2"]


def test_permissions_follow_the_umask_or_the_old_file(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "new") as temporary:
            temporary.write_text("")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o604)
    with atomic_path(tmp_path / "new") as temporary:
        temporary.write_text("")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604


def test_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "link").symlink_to("kept")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "kept").read_text() == "kept"
    assert (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()


def test_unwritable_destinations(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, expected in [
        (tmp_path / "file" / "b" / "a.onnx", "file is no folder"),
        (tmp_path / "folder", "is a folder"),
        (Path("/"), "not the name of a file"),
        (Path(os.devnull), "not a regular file"),
    ]:
        with pytest.raises(NormswapError, match=expected) as caught:
            check_writable(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)  # root may write anywhere, so no chmod would do
    with pytest.raises(NormswapError, match=r"cannot be written \(permission denied\)"):
        check_writable(tmp_path / "a.onnx")


def test_full_disk_is_one_line_and_an_input_error_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(NormswapError, match="no space left"), atomic_path(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        raise FileNotFoundError(2, "No such file", str(tmp_path / "input"))
    assert os.listdir(tmp_path) == []


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_made_when_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = Path("a/b/c.onnx")
    check_writable(target)
    assert os.listdir() == []
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert os.listdir("a") == ["b"]
    assert os.listdir("a/b") == ["c.onnx"]


def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a" / "b" / "c" / "d.onnx"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == []


def test_folders_that_others_use_by_then_stay(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "new" / "d.onnx"):
            (tmp_path / "new" / "other").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert os.listdir(tmp_path / "new") == ["other"]
