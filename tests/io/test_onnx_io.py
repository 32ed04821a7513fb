"""Reading and writing .onnx: what is kept, damaged and hostile files, and interrupted saves."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from normswap.errors import NormswapError
from normswap.io.onnx import data_files, read_onnx, write_onnx
from normswap.io.onnx import file as onnx_file
from normswap.io.onnx.tensors import MappedTensor, slots

WIDTH = 32


def array(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build(width: int = WIDTH) -> onnx.ModelProto:
    """y = (x + b) @ w @ w2, then the same again in a branch of an If, with all kinds of tags."""
    make = onnx.helper
    tensors = [
        onnx.numpy_helper.from_array(array(1, width, width), "w"),
        onnx.numpy_helper.from_array(array(2, width, width), "w2"),
        onnx.numpy_helper.from_array(array(3, width), "b"),
        onnx.numpy_helper.from_array(np.array([True]), "always"),
        make.make_tensor("typed", onnx.TensorProto.FLOAT, [2], [1.0, 2.0]),
    ]
    branch_weight = onnx.numpy_helper.from_array(array(4, width, width), "branch_w")
    then = make.make_graph(
        [make.make_node("MatMul", ["h2", "branch_w"], ["then_y"])],
        "then",
        [],
        [make.make_tensor_value_info("then_y", 1, None)],
        [branch_weight],
    )
    other = make.make_graph(
        [make.make_node("Identity", ["h2"], ["else_y"])],
        "else",
        [],
        [make.make_tensor_value_info("else_y", 1, None)],
    )
    constant = onnx.numpy_helper.from_array(array(5, width, width), "c")
    nodes = [
        make.make_node("Add", ["x", "b"], ["a"], name="add", doc_string="adds"),
        make.make_node("MatMul", ["a", "w"], ["h"], name="first"),
        make.make_node("MatMul", ["h", "w2"], ["h2"], name="second"),
        make.make_node("Constant", [], ["c"], value=constant),
        make.make_node("If", ["always"], ["i"], then_branch=then, else_branch=other),
        make.make_node("MatMul", ["i", "c"], ["y"]),
    ]
    nodes[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['blocks.0']")
    graph = make.make_graph(
        nodes,
        "graph",
        [make.make_tensor_value_info("x", 1, ["batch", width])],
        [make.make_tensor_value_info("y", 1, ["batch", width])],
        tensors,
        doc_string="a graph",
        value_info=[make.make_tensor_value_info("h", 1, ["batch", width])],
    )
    opsets = [make.make_opsetid("", 17), make.make_opsetid("com.example", 2)]
    model = make.make_model(graph, opset_imports=opsets, producer_name="tests", ir_version=9)
    model.metadata_props.add(key="licence", value="MIT")
    model.doc_string = "a model"
    return model


def then_branch(model: onnx.ModelProto) -> onnx.GraphProto:
    return next(a.g for a in model.graph.node[4].attribute if a.name == "then_branch")


def save(path: Path, external: dict[str, str] | None = None) -> Path:
    """Saves ``build()``; ``external`` maps initializer names to data files."""
    model = build()
    then = then_branch(model)
    attribute = model.graph.node[3].attribute[0].t
    by_file: dict[str, bytes] = {}
    for tensor in (*model.graph.initializer, *then.initializer, attribute):
        location = (external or {}).get(tensor.name)
        if location is None:
            continue
        raw = tensor.raw_data
        data = by_file.get(location, b"") + b"\0" * 16
        onnx.external_data_helper.set_external_data(tensor, location, len(data), len(raw))
        tensor.ClearField("raw_data")
        by_file[location] = data + raw
    for location, data in by_file.items():
        (path.parent / location).parent.mkdir(exist_ok=True)
        (path.parent / location).write_bytes(data)
    path.write_bytes(model.SerializeToString())
    return path


EXTERNAL = {"w": "m.data", "w2": "m.data", "b": "more/b.bin", "branch_w": "m.data", "c": "m.data"}


def run(path: Path) -> np.ndarray[Any, Any]:
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(None, {"x": array(9, 3, WIDTH)})[0]
    return result


def expected() -> np.ndarray[Any, Any]:
    a = array(9, 3, WIDTH) + array(3, WIDTH)
    for seed in (1, 2, 4, 5):
        a = a @ array(seed, WIDTH, WIDTH)
    return a


def check(path: Path) -> None:
    np.testing.assert_allclose(run(path), expected(), rtol=1e-4, atol=1e-2)


def layout(path: Path) -> dict[str, str | None]:
    """The data file of every tensor, as another reader sees it."""
    tensors = onnx.external_data_helper._get_all_tensors(onnx.load(path, load_external_data=False))
    return {
        t.name: next((e.value for e in t.external_data if e.key == "location"), None)
        for t in tensors
    }


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def tensor_of(model: ir.Model, name: str) -> ir.TensorProtocol:
    return next(slot.tensor for slot in slots(model) if slot.tensor.name == name)


def test_inline_round_trip_keeps_everything(tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx")
    write_onnx(read_onnx(source), tmp_path / "n.onnx")
    before, after = onnx.load(source), onnx.load(tmp_path / "n.onnx")
    for model in (before, after):
        opsets = sorted((o.domain, o.version) for o in model.opset_import)
        del model.opset_import[:]
        model.opset_import.extend(onnx.helper.make_opsetid(*o) for o in opsets)
        # onnx_ir also notes the types of initializers.
        infos = [v for v in model.graph.value_info if v.name == "h"]
        del model.graph.value_info[:]
        model.graph.value_info.extend(infos)
        del then_branch(model).value_info[:]
    assert str(before) == str(after)
    assert files(tmp_path) == ["m.onnx", "n.onnx"]
    check(tmp_path / "n.onnx")


def test_external_round_trip_keeps_the_layout(tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx", EXTERNAL)
    check(source)
    (tmp_path / "out").mkdir()
    write_onnx(read_onnx(source), tmp_path / "out" / "n.onnx")
    assert layout(tmp_path / "out" / "n.onnx") == layout(source)
    assert {name for name, place in layout(source).items() if place} == set(EXTERNAL)
    assert files(tmp_path / "out") == ["m.data", "more/b.bin", "n.onnx"]
    check(tmp_path / "out" / "n.onnx")
    check(source)


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    model = read_onnx(save(tmp_path / "m.onnx", EXTERNAL))
    tensor = tensor_of(model, "w")
    assert isinstance(tensor, MappedTensor)
    np.testing.assert_array_equal(tensor.numpy(), array(1, WIDTH, WIDTH))
    np.testing.assert_array_equal(np.asarray(tensor), array(1, WIDTH, WIDTH))
    assert not tensor.numpy().flags.owndata
    assert not tensor.numpy().flags.writeable
    assert tensor.tobytes() == array(1, WIDTH, WIDTH).tobytes()
    assert tensor.raw is tensor_of(model, "c").raw


def test_many_tensors_take_one_descriptor(tmp_path: Path) -> None:
    """onnx_ir alone takes one for each, and runs out."""
    make = onnx.helper
    count = 300
    tensors = [make.make_tensor(f"t{i}", 1, [1], b"\0" * 4, raw=True) for i in range(count)]
    for i, tensor in enumerate(tensors):
        onnx.external_data_helper.set_external_data(tensor, "t.data", 4 * i, 4)
        tensor.ClearField("raw_data")
    sums = [make.make_node("Sum", [f"t{i}" for i in range(count)], ["y"])]
    outputs = [make.make_tensor_value_info("y", 1, [1])]
    graph = make.make_graph(sums, "g", [], outputs, tensors)
    opsets = [make.make_opsetid("", 17)]
    (tmp_path / "t.onnx").write_bytes(
        make.make_model(graph, opset_imports=opsets).SerializeToString()
    )
    (tmp_path / "t.data").write_bytes(b"\0" * 4 * count)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    model = read_onnx(tmp_path / "t.onnx")
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        assert all(slot.tensor.numpy() == 0 for slot in slots(model))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_output_equal_to_input(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", EXTERNAL)
    model = read_onnx(path)
    write_onnx(model, path)
    # The old data went after the new was in place; its name was not reused while it was there.
    # What is not called like the model, and was not written here, may have other uses.
    kept = "more/b.bin"
    assert files(tmp_path) == ["m.onnx", "m.onnx.1.data", kept, "more/m.onnx.1.data"]
    check(path)
    for _ in range(3):  # the model in memory no longer has files, and is still whole
        write_onnx(model, path)
    check(path)
    assert len(files(tmp_path)) == 4
    np.testing.assert_array_equal(tensor_of(model, "w").numpy(), array(1, WIDTH, WIDTH))


def test_single_data_file_alternates(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", {"w": "m.onnx.data", "w2": "m.onnx.data"})
    names = []
    for _ in range(3):
        write_onnx(read_onnx(path), path)
        names.append(files(tmp_path))
    one, two = ["m.onnx", "m.onnx.1.data"], ["m.onnx", "m.onnx.data"]
    assert names == [one, two, one]
    check(path)


def test_plain_onnx_ir_model_over_its_own_file(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", EXTERNAL)
    model = ir.load(path)
    write_onnx(model, path)
    check(path)
    write_onnx(model, tmp_path / "again.onnx")
    check(tmp_path / "again.onnx")


def test_saving_does_not_change_the_model(tmp_path: Path) -> None:
    model = read_onnx(save(tmp_path / "m.onnx", EXTERNAL))
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(array(1, WIDTH, WIDTH), name="another name")
    before = [(slot.name, slot.tensor, slot.tensor.name) for slot in slots(model)]
    write_onnx(model, tmp_path / "n.onnx")
    after = [(slot.name, slot.tensor, slot.tensor.name) for slot in slots(model)]
    for (name, tensor, label), (name2, tensor2, label2) in zip(before, after, strict=True):
        assert (name, label) == (name2, label2)
        assert tensor is tensor2
    check(tmp_path / "n.onnx")


def test_new_tensors_go_to_the_main_data_file(tmp_path: Path) -> None:
    model = read_onnx(save(tmp_path / "m.onnx", EXTERNAL))
    for name, seed in (("w", 1), ("w2", 2)):
        model.graph.initializers[name].const_value = ir.tensor(array(seed, WIDTH, WIDTH), name=name)
    model.graph.initializers["b"].const_value = ir.tensor(array(3, WIDTH), name="b")
    (tmp_path / "out").mkdir()
    write_onnx(model, tmp_path / "out" / "m.onnx")
    places = layout(tmp_path / "out" / "m.onnx")
    assert places["w"] == places["w2"] == "m.data"
    assert places["b"] is None
    check(tmp_path / "out" / "m.onnx")


def test_data_file_is_remembered_when_all_tensors_are_new(tmp_path: Path) -> None:
    model = read_onnx(save(tmp_path / "m.onnx", {"w": "weights.bin"})).clone()
    model.graph.initializers["w"].const_value = ir.tensor(array(1, WIDTH, WIDTH), name="w")
    (tmp_path / "out").mkdir()
    write_onnx(model, tmp_path / "out" / "m.onnx")
    assert layout(tmp_path / "out" / "m.onnx")["w"] == "weights.bin"
    assert layout(tmp_path / "out" / "m.onnx")["w2"] is None
    check(tmp_path / "out" / "m.onnx")


def test_new_tensors_of_an_inline_model_stay_inline(tmp_path: Path) -> None:
    model = read_onnx(save(tmp_path / "m.onnx"))
    model.graph.initializers["w"].const_value = ir.tensor(array(1, WIDTH, WIDTH), name="w")
    write_onnx(model, tmp_path / "n.onnx")
    assert files(tmp_path) == ["m.onnx", "n.onnx"]
    check(tmp_path / "n.onnx")


def test_what_passes_two_gigabytes_goes_to_a_data_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_files, "LARGEST_INLINE", 3 * WIDTH * WIDTH * 4)
    write_onnx(read_onnx(save(tmp_path / "m.onnx")), tmp_path / "n.onnx")
    places = layout(tmp_path / "n.onnx")
    assert places["w"] == places["branch_w"] == "n.onnx.data"
    assert places["b"] is None
    check(tmp_path / "n.onnx")


def test_shared_bytes_are_written_once(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", {"w": "m.data", "w2": "m.data"})
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[1].external_data[1].value = "16"
    path.write_bytes(proto.SerializeToString())
    write_onnx(read_onnx(path), tmp_path / "n.onnx")
    assert (tmp_path / "n.onnx.data").stat().st_size == WIDTH * WIDTH * 4
    run(tmp_path / "n.onnx")


def test_other_files_are_never_overwritten_or_removed(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", {"w": "shared.data"})
    save(tmp_path / "other.onnx", {"w": "shared.data"})
    (tmp_path / "m.onnx.data").write_text("a user's own")
    write_onnx(read_onnx(path), path)
    assert (tmp_path / "m.onnx.data").read_text() == "a user's own"
    assert layout(path)["w"] == "m.onnx.1.data"
    for name in ("m.onnx", "other.onnx"):  # shared.data has another user, so it stays
        check(tmp_path / name)


def test_replacing_another_model_removes_its_data(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    old = save(tmp_path / "out" / "m.onnx", {"w": "m.data", "b": "m.onnx_data"})
    write_onnx(read_onnx(save(tmp_path / "m.onnx", {"w": "m.data"})), old)
    assert files(tmp_path / "out") == ["m.onnx", "m.onnx.data"]
    check(old)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("stage", ["data", "sync", "commit"])
def test_interrupted_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, stage: str
) -> None:
    path = save(tmp_path / "m.onnx", EXTERNAL)
    model = read_onnx(path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    def fail(*_: object) -> None:
        raise error

    places = {
        "data": (data_files, "stream"),
        "sync": (data_files, "sync"),
        "commit": (os, "replace"),
    }
    monkeypatch.setattr(*places[stage], fail)
    with pytest.raises((NormswapError, KeyboardInterrupt)) as caught:
        write_onnx(model, path)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    check(path)


def test_data_is_on_disk_before_the_model_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_onnx(save(tmp_path / "m.onnx", EXTERNAL))
    events: list[str] = []
    sync, replace = data_files.sync, os.replace

    def slow(file: Path) -> None:
        time.sleep(0.05)
        sync(file)
        events.append(str(file))

    def named(*args: Any) -> None:
        replace(*args)
        events.append("model")

    monkeypatch.setattr(data_files, "sync", slow)
    monkeypatch.setattr(os, "replace", named)
    monkeypatch.setattr(data_files, "_SYNCED_AT_ONCE", 1)
    write_onnx(model, tmp_path / "n.onnx")
    assert events[-1] == "model"
    assert len(events) > len(set(events)) == 3  # two data files, in several steps


def test_interrupt_after_the_commit_keeps_the_new_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "m.onnx", EXTERNAL)
    replace = os.replace

    def interrupted(*args: Any) -> None:
        replace(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_onnx(read_onnx(path), path)
    check(path)


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    model = read_onnx(save(tmp_path / "m.onnx", EXTERNAL))
    for path in (tmp_path / "m.onnx" / "m.onnx", tmp_path, tmp_path / "m.data"):
        with pytest.raises(NormswapError) as caught:
            write_onnx(model, path)
        assert str(caught.value).startswith(f"{path}: ")
    assert files(tmp_path) == ["m.data", "m.onnx", "more/b.bin"]


def test_small_and_empty_types_survive(tmp_path: Path) -> None:
    make = onnx.helper
    nibbles = onnx.helper.make_tensor("n", onnx.TensorProto.INT4, [3], b"\x21\x07", raw=True)
    onnx.external_data_helper.set_external_data(nibbles, "m.data", 0, 2)
    nibbles.ClearField("raw_data")
    empty = make.make_tensor("e", onnx.TensorProto.FLOAT, [0], b"", raw=True)
    onnx.external_data_helper.set_external_data(empty, "m.data", 2, 0)
    empty.ClearField("raw_data")
    nodes = [make.make_node("Cast", ["n"], ["y"], to=1), make.make_node("Identity", ["e"], ["z"])]
    outputs = [make.make_tensor_value_info(*spec) for spec in (("y", 1, [3]), ("z", 1, [0]))]
    graph = make.make_graph(nodes, "g", [], outputs, [nibbles, empty])
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "m.data").write_bytes(b"\x21\x07")
    model = read_onnx(tmp_path / "m.onnx")
    assert tensor_of(model, "n").numpy().astype(int).tolist() == [1, 2, 7]
    write_onnx(model, tmp_path / "n.onnx")
    onnx.checker.check_model(str(tmp_path / "n.onnx"))
    session = ort.InferenceSession(str(tmp_path / "n.onnx"), providers=["CPUExecutionProvider"])
    assert [r.tolist() for r in session.run(None, {})] == [[1.0, 2.0, 7.0], []]


# --- damaged and hostile files ---------------------------------------------------------------


def refused(path: Path, message: str) -> None:
    with pytest.raises(NormswapError, match=message) as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_empty_random_truncated(tmp_path: Path) -> None:
    refused(tmp_path / "no.onnx", "there is no such file")
    refused(tmp_path, "is not a file")
    path = save(tmp_path / "m.onnx")
    content = path.read_bytes()
    for damaged, message in [
        (b"", "is empty"),
        (np.random.default_rng(0).bytes(4000), "is not ONNX"),
        (b"PK\x03\x04" + bytes(100), "is not ONNX"),
        (b"\0" * 100, "is not ONNX"),
        (b"<html>", "is not ONNX"),
    ]:
        path.write_bytes(damaged)
        refused(path, message)
    for end in [*range(1, len(content), len(content) // 40), len(content) - 40]:
        path.write_bytes(content[:end])
        refused(path, "is not (ONNX|an ONNX model), or is truncated")


def test_flipped_bytes_never_give_a_traceback(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", EXTERNAL)
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= 0x5A
        path.write_bytes(changed)
        with contextlib.suppress(NormswapError):
            read_onnx(path)


def edit(path: Path, **entries: str | None) -> None:
    """Changes the external-data entries of 'w'."""
    proto = onnx.load(path, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.name == "w")
    held = {e.key: e.value for e in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in held.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../outside.data", "more/../../outside.data", "C:\\data", "\\\\host\\x", "..",
     "more\\..\\..\\x", "a\0b", "", "."],
)  # fmt: skip
def test_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "outside.data").write_bytes(bytes(10_000))
    path = save(tmp_path / "model" / "m.onnx", EXTERNAL)
    edit(path, location=location)
    refused(path, "outside its folder|not a regular file|cannot be read")


def test_data_behind_links(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(bytes(100_000))
    path = save(tmp_path / "model" / "m.onnx", EXTERNAL)
    data = tmp_path / "model" / "m.data"
    kept = data.rename(tmp_path / "model" / "kept.data")
    data.symlink_to("../secret")
    refused(path, "a link that leads outside its folder")
    data.unlink()
    (tmp_path / "model" / "folder").symlink_to("..")
    edit(path, location="folder/secret")
    refused(path, "a link that leads outside its folder")
    edit(path, location="m.data")
    os.link(tmp_path / "secret", data)
    refused(path, "several hard links")
    data.unlink()
    data.symlink_to("kept.data")  # a link within the folder is fine
    read_onnx(path)
    data.unlink()
    os.mkfifo(data)
    refused(path, "not a regular file")
    data.unlink()
    kept.rename(data)
    check(path)


def test_data_missing_short_or_senseless(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", EXTERNAL)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-1])
    refused(path, r"m.data is too short: 'c' ends at byte")
    (tmp_path / "m.data").write_bytes(b"")
    refused(path, "m.data is too short")
    (tmp_path / "m.data").unlink()
    refused(path, "its data file m.data is missing")
    (tmp_path / "m.data").write_bytes(data)
    for entries, message in [
        ({"offset": "-1"}, "is damaged"),
        ({"offset": "x"}, "is damaged"),
        ({"offset": str(1 << 62)}, "too short"),
        ({"offset": None, "length": "12"}, "takes 4096 bytes, but 12"),
        ({"offset": "0", "length": "-5"}, "is damaged"),
        ({"offset": "0", "length": str(1 << 62)}, "is damaged"),
    ]:
        edit(path, **entries)
        refused(path, message)
    edit(path, offset=None, length=None)
    read_onnx(path)


def test_inline_data_of_the_wrong_length(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    proto = onnx.load(path)
    proto.graph.initializer[0].raw_data = b"\0" * 8
    path.write_bytes(proto.SerializeToString())
    refused(path, "'w' takes 4096 bytes but has 8")


def test_what_onnx_ir_would_drop_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    proto = onnx.load(path)
    proto.graph.sparse_initializer.add().values.name = "s"
    path.write_bytes(proto.SerializeToString())
    refused(path, "sparse initializers")
    proto = build()
    proto.training_info.add()
    path.write_bytes(proto.SerializeToString())
    refused(path, "training information")


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx_ir skips its checks for a path without a folder, and then depends on the cwd."""
    save(tmp_path / "m.onnx", EXTERNAL)
    monkeypatch.chdir(tmp_path)
    model = read_onnx("m.onnx")
    monkeypatch.chdir("/")
    write_onnx(model, tmp_path / "n.onnx")
    check(tmp_path / "n.onnx")
    monkeypatch.chdir(tmp_path)
    write_onnx(model, "o.onnx")
    check(tmp_path / "o.onnx")
    edit(tmp_path / "m.onnx", location="../x")
    refused(Path("m.onnx"), "outside its folder")


def test_too_large_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_onnx(save(tmp_path / "m.onnx", EXTERNAL))
    monkeypatch.setattr(onnx_file, "_LARGEST_PROTO", 10)
    with pytest.raises(NormswapError, match="larger than 2 GB without its weights"):
        write_onnx(model, tmp_path / "n.onnx")
    assert files(tmp_path) == ["m.data", "m.onnx", "more/b.bin"]
