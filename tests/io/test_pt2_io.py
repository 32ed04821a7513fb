"""Reading .pt2: what torch.export writes, damaged files, and files made to run code.

Every attack here works on torch.export.load or on what is done next with its result; each leaves
a marker file when it runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export.pt2_archive import constants

from normswap.errors import NormswapError
from normswap.io.pt2 import read_pt2, refuse_pickle, write_pt2
from normswap.io.pt2.file import TESTED_TORCH

Edit = Callable[[dict[str, bytes]], None]
MODEL = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)
        self.fc2 = nn.Linear(4, 4)
        self.fc2.weight = self.fc.weight
        self.register_buffer("scale", torch.arange(4.0))
        self.shift = torch.ones(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.fc2(self.fc(self.norm(x))) * self.scale + self.shift
        return y.reshape(-1, 2, 4), x.new_zeros(x.shape[0] // 2)


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(
        Block().eval(), (torch.randn(6, 4),), dynamic_shapes=({0: 2 * batch},), strict=False
    )


@pytest.fixture
def saved(program: torch.export.ExportedProgram, tmp_path: Path) -> Path:
    write_pt2(program, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


class Marker:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def rewrite(path: Path, edit: Edit, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(parts)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(f"archive/{name}", content)


def edit_model(change: Callable[[dict[str, Any]], None], part: str = MODEL) -> Edit:
    def edit(parts: dict[str, bytes]) -> None:
        document = json.loads(parts[part])
        change(document)
        parts[part] = json.dumps(document).encode()

    return edit


def torch_bytes(item: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(item, buffer)
    return buffer.getvalue()


def refused(path: Path, part: str = MODEL) -> str:
    with pytest.raises(NormswapError) as caught:
        read_pt2(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: its part {part} holds something other than tensors")
    assert message.endswith("was not loaded. Pass --trust if you know where the file comes from")
    assert "\n" not in message
    return message


def test_round_trip(program: torch.export.ExportedProgram, saved: Path) -> None:
    loaded = read_pt2(saved)
    for size in (4, 10):
        x = torch.randn(size, 4)
        for got, expected in zip(loaded.module()(x), program.module()(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert [n.name for n in loaded.graph.nodes] == [n.name for n in program.graph.nodes]
    assert loaded._guards_code == program._guards_code
    assert set(loaded.state_dict) == set(program.state_dict)
    assert loaded.state_dict["fc.weight"].data_ptr() == loaded.state_dict["fc2.weight"].data_ptr()
    assert isinstance(loaded.state_dict["fc.weight"], nn.Parameter)
    assert not isinstance(loaded.state_dict["scale"], nn.Parameter)
    stack = [n.meta["nn_module_stack"] for n in loaded.graph.nodes if n.name == "layer_norm"]
    assert "norm" in [path for path, _ in stack[0].values()]


def test_same_as_torch(saved: Path) -> None:
    ours, theirs = read_pt2(saved), read_pt2(saved, trust=True)
    assert str(ours.graph) == str(theirs.graph)
    assert ours.range_constraints == theirs.range_constraints
    for name, tensor in theirs.state_dict.items():
        torch.testing.assert_close(ours.state_dict[name], tensor, rtol=0, atol=0)
        assert ours.state_dict[name].requires_grad == tensor.requires_grad


def test_weights_are_mapped_and_outlive_the_file(saved: Path) -> None:
    loaded = read_pt2(saved)
    before = saved.read_bytes()
    with torch.no_grad():
        loaded.state_dict["fc.weight"].zero_()
    assert saved.read_bytes() == before
    write_pt2(loaded, saved)  # output equal to input
    again = read_pt2(saved)
    saved.unlink()
    assert not again.state_dict["fc.weight"].any()
    assert loaded.state_dict["norm.weight"].sum() == 4


def test_two_saves_are_equal(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    for name in ("a.pt2", "b.pt2"):
        write_pt2(program, tmp_path / name)
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()


def test_control_flow_autocast_and_guards_are_accepted(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor, flag: str = "mean") -> dict[str, Any]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = x @ x.transpose(0, 1)
            torch._check(x.shape[0] % 2 == 0)
            z = torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))
            return {"y": y, "z": [z[: x.shape[0] // 2], None, 3]}

    dynamic = ({0: torch.export.Dim.DYNAMIC}, None)
    exported = torch.export.export(Mixed(), (torch.randn(4, 3), "mean"), dynamic_shapes=dynamic)
    write_pt2(exported, tmp_path / "m.pt2")
    loaded = read_pt2(tmp_path / "m.pt2")
    assert loaded._guards_code
    assert loaded._guards_code == exported._guards_code
    x = torch.randn(8, 3)
    torch.testing.assert_close(loaded.module()(x, "mean")["z"], exported.module()(x, "mean")["z"])


def test_write_failure_leaves_the_old_file(
    program: torch.export.ExportedProgram, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: object, file: Any, **__: object) -> None:
        file.write(b"half")
        raise RuntimeError("broken\nin many lines")

    before = saved.read_bytes()
    monkeypatch.setattr(torch.export, "save", half)
    with pytest.raises(NormswapError, match=r"torch.export.save failed \(broken\)$"):
        write_pt2(program, saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


# --- damaged files ---------------------------------------------------------------------------


def one_line(path: Path, expected: str) -> None:
    with pytest.raises(NormswapError, match=expected) as caught:
        read_pt2(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_empty_random_truncated(saved: Path) -> None:
    one_line(saved.with_name("no.pt2"), "there is no such file")
    one_line(saved.parent, "is not a file")
    content = saved.read_bytes()
    for damaged, expected in [
        (b"", "is empty"),
        (os.urandom(5000), "not a zip archive, or is truncated"),
        (content[: len(content) // 2], "not a zip archive, or is truncated"),
        (content[:-10], "not a zip archive, or is truncated"),
        (b"PK\x03\x04" + os.urandom(100), "not a zip archive, or is truncated"),
    ]:
        saved.write_bytes(damaged)
        one_line(saved, expected)


def test_trusted_damage_is_one_line_too(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(NormswapError, match=r"torch\.export\.load failed") as caught:
        read_pt2(saved, trust=True)
    assert "\n" not in str(caught.value)


def test_flipped_bytes_never_give_a_traceback(saved: Path) -> None:
    content = saved.read_bytes()
    for at in range(0, len(content), len(content) // 60):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        saved.write_bytes(changed)
        with contextlib.suppress(NormswapError):
            read_pt2(saved)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("part", ["data/weights/weight_0", "data/constants/tensor_0"])
def test_a_flipped_bit_of_a_weight(saved: Path, part: str, trust: bool) -> None:
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        name = next(n for n in archive.namelist() if n.endswith(part))
        weight = archive.read(name)
    at = content.index(weight, content.index(name.encode()))  # the local header is before it
    content[at + len(weight) // 2] ^= 1
    saved.write_bytes(content)
    with pytest.raises(NormswapError, match=f"checksum of its part {part} does not") as caught:
        read_pt2(saved, trust)
    assert str(caught.value).startswith(f"{saved}: is damaged")
    assert "\n" not in str(caught.value)


def test_short_or_senseless_weights(saved: Path) -> None:
    content = saved.read_bytes()
    rewrite(saved, lambda parts: parts.update({"data/weights/weight_0": b"\0" * 4}))
    one_line(saved, "too short for its tensor")
    for key, value in [("strides", -1), ("storage_offset", -1), ("sizes", 10**12)]:
        saved.write_bytes(content)

        def change(config: dict[str, Any], key: str = key, value: int = value) -> None:
            meta = config["config"]["fc.weight"]["tensor_meta"]
            meta[key] = {"as_int": value} if key == "storage_offset" else [{"as_int": value}] * 2

        rewrite(saved, edit_model(change, "data/weights/model_weights_config.json"))
        one_line(saved, "is damaged")


def test_missing_parts_and_other_programs(saved: Path) -> None:
    content = saved.read_bytes()
    for part in (MODEL, "data/weights/weight_0", "data/constants/model_constants_config.json"):
        saved.write_bytes(content)
        rewrite(saved, lambda parts, part=part: parts.pop(part))  # type: ignore[misc]
        one_line(saved, "holds 0 programs|has no part")
    saved.write_bytes(content)
    rewrite(saved, lambda parts: parts.update({MODEL: b"[1, 2"}))
    one_line(saved, "is no JSON")
    saved.write_bytes(content)
    rewrite(saved, edit_model(lambda d: d["schema_version"].update(major=99)))
    one_line(saved, "cannot rebuild the program that torch '.*' wrote")


def test_pickled_modules(tmp_path: Path) -> None:
    torch.save(Block(), tmp_path / "model.pt2")
    one_line(tmp_path / "model.pt2", "a pickled module runs code")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "jit.pt2"))
    one_line(tmp_path / "jit.pt2", "a pickled module runs code")
    (tmp_path / "plain.pt2").write_bytes(pickle.dumps({"a": 1}))
    one_line(tmp_path / "plain.pt2", "a pickled module runs code")
    with pytest.raises(NormswapError, match=r"model.pth: a pickled module.*torch.export.save"):
        refuse_pickle(tmp_path / "model.pth")


def test_compressed_and_overlapping_archives(saved: Path) -> None:
    rewrite(saved, lambda parts: parts.update({"extra/bomb": bytes(10**6)}), zipfile.ZIP_DEFLATED)
    one_line(saved, "has a compressed part")


# --- files made to run code ------------------------------------------------------------------


def test_pickle_in_sample_inputs(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = torch_bytes(((Marker(marker),), {}))
    rewrite(saved, lambda parts: parts.update({SAMPLES: evil}))
    refused(saved, SAMPLES)
    assert not marker.exists()
    read_pt2(saved, trust=True)
    assert marker.exists()


@pytest.mark.parametrize(
    "prefix", ["weights/weight_0", "constants/tensor_0", "constants/opaque_obj_0"]
)
def test_pickled_weights_and_objects(saved: Path, tmp_path: Path, prefix: str) -> None:
    marker = tmp_path / "ran"
    kind, _, file = prefix.partition("/")
    dump = pickle.dumps if file.startswith("opaque") else torch_bytes
    config = f"data/{kind}/model_{kind}_config.json"

    def change(document: dict[str, Any]) -> None:
        meta = next(iter(document["config"].values()))
        meta.update(path_name=file, use_pickle=True)

    rewrite(saved, edit_model(change, config))
    rewrite(saved, lambda parts: parts.update({f"data/{prefix}": dump(Marker(marker))}))
    refused(saved, f"data/{prefix}")
    assert not marker.exists()
    with contextlib.suppress(NormswapError):  # what was unpickled is no tensor, but it ran
        read_pt2(saved, trust=True)
    torch_reads_it = file[:6] != "opaque" or hasattr(constants, "OPAQUE_OBJ_FILENAME_PREFIX")
    assert marker.exists() == torch_reads_it


def first_size(document: dict[str, Any]) -> dict[str, Any]:
    sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
    size: dict[str, Any] = sizes[0]["as_expr"]
    return size


@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_size_expression(saved: Path, tmp_path: Path, nested: bool) -> None:
    marker = tmp_path / "ran"
    code = f"__import__('os').mkdir({str(marker)!r})"
    evil = f"Max({code!r}, Integer(2))" if nested else f"{code} or Integer(2)"
    rewrite(saved, edit_model(lambda d: first_size(d).update(expr_str=evil)))
    refused(saved)
    assert not marker.exists()
    with pytest.raises(NormswapError):
        read_pt2(saved, trust=True)
    assert marker.exists()


@pytest.mark.parametrize(
    "expression",
    ["9**9**9**9", "Pow(Integer(9), Pow(Integer(9), Integer(9)))", "Symbol('u999999999999')",
     "LShift(Integer(1), Integer(99999999999))", "(lambda: 1)()", "Symbol.__class__", "open('x')",
     "[1 for _ in ()]", "Symbol('a b')", "Add(*[])", "Function('f')", "(" * 3000, "x" * 30000, ""],
)  # fmt: skip
def test_expressions_beyond_the_grammar(saved: Path, expression: str) -> None:
    rewrite(saved, edit_model(lambda d: first_size(d).update(expr_str=expression)))
    refused(saved)


@pytest.mark.parametrize(
    "target",
    ["torch.os.system", "torch.ops.aten.from_file.default", "torch.ops.aten.save.default",
     "torch.ops.load_library", "torch.ops.aten.add.__class__", "torch.ops.nothing.at.all",
     "torch.ops.higher_order.triton_kernel_wrapper_mutation", "_operator.attrgetter",
     "_operator.call", "math.factorial", "torch.load", "torch.hub.load", "#x:y", "eval", ""],
)  # fmt: skip
def test_operators_beyond_the_list(saved: Path, tmp_path: Path, target: str) -> None:
    def change(document: dict[str, Any]) -> None:
        node = document["graph_module"]["graph"]["nodes"][0]
        node["target"] = target
        node["inputs"] = [{"name": "", "arg": {"as_string": f"mkdir {tmp_path}/ran"}, "kind": 1}]

    rewrite(saved, edit_model(change))
    assert "the operator" in refused(saved)
    assert not (tmp_path / "ran").exists()


def rename(document: Any, old: str, new: str) -> Any:
    if isinstance(document, dict):
        return {rename(k, old, new): rename(v, old, new) for k, v in document.items()}
    if isinstance(document, list):
        return [rename(item, old, new) for item in document]
    return new if document == old else document


def test_code_in_the_name_of_an_input(saved: Path, tmp_path: Path) -> None:
    """Torch writes it into the generated signature, where a default value is evaluated."""
    marker = tmp_path / "ran"
    evil = f"x=__import__('os').mkdir({str(marker)!r})"
    rewrite(saved, edit_model(lambda d: d.update(rename(d, "x", evil))))
    assert "the name" in refused(saved)
    assert not marker.exists()
    with pytest.raises(NormswapError):
        read_pt2(saved, trust=True)
    assert marker.exists()


def test_code_in_the_path_of_a_parameter(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = f'a") or __import__("os")|mkdir({str(marker)!r})#'
    config = "data/weights/model_weights_config.json"
    rewrite(saved, edit_model(lambda d: d.update(rename(d, "fc.weight", evil))))
    rewrite(saved, edit_model(lambda d: d.update(rename(d, "fc.weight", evil)), config))
    assert "the name" in refused(saved)
    assert not marker.exists()


def test_code_in_a_guard(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = f"not __import__('os').mkdir({str(marker)!r})"
    rewrite(saved, edit_model(lambda d: d.update(guards_code=[evil])))
    refused(saved)
    trusted = read_pt2(saved, trust=True)
    assert not marker.exists()
    trusted.module()(torch.randn(6, 4))
    assert marker.exists()


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("builtins.dict", json.dumps(json.dumps([{"__enum__": 1, "fqn": "evil:A", "name": "A"}]))),
        (
            "collections.defaultdict",
            json.dumps({"default_factory_module": "evil", "default_factory_name": "A",
                        "dict_context": []}),
        ),
    ],
)  # fmt: skip
def test_a_module_to_import(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, context: str
) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(marker)!r}); A = int")
    monkeypatch.syspath_prepend(tmp_path)
    spec = f'[1, {{"type": "{kind}", "context": {context}, "children_spec": []}}]'

    def change(document: dict[str, Any]) -> None:
        document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec

    rewrite(saved, edit_model(change))
    assert "the container" in refused(saved)
    assert not marker.exists()
    with contextlib.suppress(NormswapError):
        read_pt2(saved, trust=True)
    assert marker.exists()
    sys.modules.pop("evil", None)


def test_quotes_in_the_keys_of_inputs(saved: Path) -> None:
    """They become part of the guards' source."""
    samples = torch_bytes((({'a" or 1': torch.ones(6, 4)},), {}))
    rewrite(saved, lambda parts: parts.update({SAMPLES: samples}))
    assert "the name" in refused(saved)


def test_custom_objects(saved: Path) -> None:
    custom = {"as_custom_obj": {"name": "x", "class_fqn": "__torch__.torch.classes.a.B"}}

    def change(document: dict[str, Any]) -> None:
        document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = custom

    rewrite(saved, edit_model(change))
    assert "a custom object" in refused(saved)


@pytest.mark.parametrize(
    "part",
    ["data/aotinductor/model/model.so", "executorch/model.pte", "serialized_example_inputs.pt",
     "data/weights2/x", "code/__torch__.py"],
)  # fmt: skip
def test_other_members(saved: Path, part: str) -> None:
    rewrite(saved, lambda parts: parts.update({part: b"\x7fELF"}))
    refused(saved, part)


@pytest.mark.parametrize("name", ["../../evil", "data/../x", "a\\b", "/etc/x", "a\nb", "data//x"])
def test_member_names(saved: Path, name: str) -> None:
    rewrite(saved, lambda parts: parts.update({name: b""}))
    one_line(saved, "unusable name")


def test_a_torch_without_the_parts_that_reading_uses(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "normswap.io.pt2.program", None)
    one_line(saved, f"cannot check .pt2 files with torch .* pip install {TESTED_TORCH}$")


def test_old_format(tmp_path: Path) -> None:
    """Its reader has the same fallback to unpickling, and torch.export.load falls back to it."""
    marker = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        for name, content in {
            "archive/version": b"8.20",
            "archive/serialized_exported_program.json": b"{}",
            "archive/serialized_state_dict.pt": torch_bytes({"a": Marker(marker)}),
        }.items():
            archive.writestr(name, content)
    one_line(tmp_path / "old.pt2", "before 2.8")
    with zipfile.ZipFile(tmp_path / "old2.pt2", "w") as archive:
        archive.writestr("version", b"8.20")
        archive.writestr("serialized_exported_program.json", b"{}")
    one_line(tmp_path / "old2.pt2", "before 2.8|not an archive written by torch")
    assert not marker.exists()
