"""A model that is replaced names files as its data: which of them go, and what is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normswap.io.onnx import read_onnx, write_onnx

VALUES = np.arange(600, dtype=np.float32)


def model(path: Path, spans: dict[str, tuple[str, int, int]]) -> Path:
    """A model of uint8 tensors, each of ``length`` bytes at ``offset`` of a file."""
    tensors, nodes, outputs = [], [], []
    for name, (location, offset, length) in spans.items():
        tensor = TensorProto(
            name=name,
            data_type=TensorProto.UINT8,
            dims=[length],
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        nodes.append(helper.make_node("Identity", [name], [f"{name}_out"]))
        outputs.append(helper.make_tensor_value_info(f"{name}_out", TensorProto.UINT8, [length]))
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def inline(path: Path) -> Path:
    """A model without data files."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [600])],
        [numpy_helper.from_array(VALUES, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def replaced(path: Path, folder: Path, log: pytest.LogCaptureFixture) -> str:
    """Writes another model over ``path``; returns what the user is told."""
    other = folder / "source"
    other.mkdir()
    source = read_onnx(inline(other / "source.onnx"))
    log.clear()
    write_onnx(source, path)
    onnx.checker.check_model(str(path))
    return "\n".join(log.messages)


def test_files_of_which_tensors_are_a_part_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {
        "docs/thesis.txt": b"chapter one",
        "m.data": b"remember me",
        "keys/m.onnx.data": b"x" * 10,
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    spans = {f"u{k}": (name, 1, 8) for k, name in enumerate(texts)}
    path = model(tmp_path / "m.onnx", spans)
    write_onnx(read_onnx(path), path)
    assert {name: (tmp_path / name).read_bytes() for name in texts} == texts
    (line,) = caplog.messages
    assert line.startswith(f"{path}: its former data stays: docs/thesis.txt, m.data, keys/m.onnx")


@pytest.mark.parametrize(
    "name", ["thesis.txt", "weights.bin", "sub/m.data", "m.txt", "m_train.data"]
)
def test_a_file_of_another_name_stays_though_it_is_all_tensor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"12345678")
    path = model(tmp_path / "m.onnx", {"u": (name, 0, 8)})
    told = replaced(path, tmp_path, caplog)
    assert (tmp_path / name).read_bytes() == b"12345678"
    assert f"stays: {name} (normswap did not write it)" in told


@pytest.mark.parametrize(
    "name", ["m.data", "m.onnx.data", "m.onnx_data", "m.onnx.3.data", "m.onnx_data_1"]
)
def test_data_that_is_called_like_the_model_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / name).write_bytes(b"12345678" + bytes(4088) + b"12345678" + bytes(100))
    path = model(tmp_path / "m.onnx", {"u": (name, 0, 8), "v": (name, 4096, 8)})
    assert replaced(path, tmp_path, caplog) == ""
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "source"]


def test_what_normswap_wrote_goes_under_any_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "weights.bin").write_bytes(b"12345678")
    source = read_onnx(model(made / "m.onnx", {"u": ("weights.bin", 0, 8)}))
    path = tmp_path / "m.onnx"
    write_onnx(source, path)
    assert (tmp_path / "weights.bin").exists()
    assert replaced(path, tmp_path, caplog) == ""
    assert not (tmp_path / "weights.bin").exists()


def test_what_was_written_by_others_since_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "weights.bin").write_bytes(b"12345678")
    path = tmp_path / "m.onnx"
    write_onnx(read_onnx(model(made / "m.onnx", {"u": ("weights.bin", 0, 8)})), path)
    (tmp_path / "weights.bin").write_bytes(b"my own..")
    assert "stays: weights.bin" in replaced(path, tmp_path, caplog)
    assert (tmp_path / "weights.bin").read_bytes() == b"my own.."


def test_a_note_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does one that makes no sense end in an error."""
    (tmp_path / "thesis.txt").write_bytes(b"12345678")
    path = model(tmp_path / "m.onnx", {"u": ("thesis.txt", 0, 8)})
    for note in ('{"thesis.txt": "0"}', '{"thesis.txt": [', "[1]", '["thesis.txt"]', "null"):
        made = onnx.load(path, load_external_data=False)
        onnx.helper.set_model_props(made, {"normswap.data_files": note})
        path.write_bytes(made.SerializeToString())
        write_onnx(read_onnx(path), path)
        assert (tmp_path / "thesis.txt").exists()
        path = model(tmp_path / "m.onnx", {"u": ("thesis.txt", 0, 8)})


Use = Callable[[Path], object]
USES: dict[str, Use] = {
    "another model": lambda f: model(f / "n.onnx", {"u": ("m.data", 0, 8)}),
    "a suffix in capitals": lambda f: model(f / "n.ONNX", {"u": ("./m.data", 0, 8)}),
    "a copy": lambda f: model(f / "m.onnx.bak", {"u": ("m.data", 0, 8)}),
    "another kind of model": lambda f: (f / "n.ort").write_bytes(b"ORTM\x06\0\0\0m.data\0"),
    "another framework": lambda f: (f / "n.pb").write_bytes(b"\x06m.data"),
    "a configuration": lambda f: (f / "config.json").write_text('{"data": ["m.data"]}'),
    "a script": lambda f: (f / "run").write_text("load m.data"),
    "a model above": lambda f: model(f.parent / "n.onnx", {"u": (f"{f.name}/m.data", 0, 8)}),
    "a configuration above": lambda f: (f.parent / "c.JSON").write_text(f'"{f.name}\\\\m.data"'),
    "a model below": lambda f: (
        (f / "b").mkdir(),
        model(f / "b/n.onnx", {"u": ("../m.data", 0, 8)}),
    ),
    "a model above that has the same": lambda f: (
        (f.parent / "m.data").write_bytes(b"12345678"),
        model(f.parent / "n.onnx", {"u": ("m.data", 0, 8), "v": (f"{f.name}/m.data", 0, 8)}),
    ),
    "a link": lambda f: (f / "n.data").symlink_to("m.data"),
    "a link below": lambda f: ((f / "b").mkdir(), (f / "b/m.data").symlink_to("../m.data")),
    "a hard link": lambda f: os.link(f / "m.data", f / "n.data"),
}


@pytest.mark.parametrize("use", USES)
def test_data_that_something_else_uses_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, use: str
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m.data").write_bytes(b"12345678")
    path = model(folder / "m.onnx", {"u": ("m.data", 0, 8)})
    USES[use](folder)
    assert "its former data stays: m.data" in replaced(path, folder, caplog)
    assert (folder / "m.data").read_bytes() == b"12345678"


def test_names_beyond_ascii_in_a_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "modèle.data").write_bytes(b"12345678")
    path = model(tmp_path / "modèle.onnx", {"u": ("modèle.data", 0, 8)})
    (tmp_path / "config.json").write_text(json.dumps({"data": "modèle.data"}))
    assert "stays" in replaced(path, tmp_path, caplog)


def test_data_behind_a_link_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kept").write_bytes(b"12345678")
    (tmp_path / "m.data").symlink_to("kept")
    path = model(tmp_path / "m.onnx", {"u": ("m.data", 0, 8)})
    assert "stays: m.data" in replaced(path, tmp_path, caplog)
    assert (tmp_path / "m.data").is_symlink()
    assert (tmp_path / "kept").exists()


def test_through_a_link_and_a_folder_above(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far" / "models").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/models")
    (tmp_path / "link" / "m.data").write_bytes(b"12345678")
    model(tmp_path / "link" / "m.onnx", {"u": ("m.data", 0, 8)})
    (tmp_path / "far" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "far" / "deep")
    for path in (Path("../../link/m.onnx"), Path("../models/m.onnx"), Path("../../link/../m.onnx")):
        before = path.exists()
        write_onnx(read_onnx(tmp_path / "link" / "m.onnx"), path)
        assert caplog.messages == []
        if before:
            assert len(list((tmp_path / "link").iterdir())) == 2
        onnx.checker.check_model(str(path))
    assert (tmp_path / "far" / "m.onnx").exists()


def test_a_longer_name_is_no_mention(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for stem in ("m", "big_m"):
        (tmp_path / f"{stem}.data").write_bytes(b"12345678")
        model(tmp_path / f"{stem}.onnx", {"u": (f"{stem}.data", 0, 8)})
    assert replaced(tmp_path / "m.onnx", tmp_path, caplog) == ""
    assert not (tmp_path / "m.data").exists()
    assert (tmp_path / "big_m.data").exists()


def test_a_file_of_the_same_name_elsewhere_is_no_mention(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (tmp_path, tmp_path / "out", tmp_path / "out" / "more"):
        folder.mkdir(exist_ok=True)
        (folder / "m.data").write_bytes(b"12345678")
        model(folder / "m.onnx", {"u": ("m.data", 0, 8)})
    assert replaced(tmp_path / "out" / "m.onnx", tmp_path / "out", caplog) == ""
    kept = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.data")]
    assert sorted(kept) == ["m.data", "out/more/m.data"]


def test_hostile_names_in_what_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "\x1b[31m.txt"
    (tmp_path / name).write_bytes(b"12345678")
    path = model(tmp_path / "m.onnx", {"u": (name, 0, 8)})
    assert r"stays: \x1b[31m.txt" in replaced(path, tmp_path, caplog)
