"""Mutants of files: of their bytes, and of what ONNX and JSON documents and zip archives hold."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Random = np.random.Generator

_NUMBERS = (0, 1, -1, 2, 3, 4, 7, 8, 64, 255, 1 << 15, 1 << 31, (1 << 31) - 1, 1 << 40, -(1 << 62))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "x", "forward", "a/b", "a.b", "NOTSET", "linear", "\x1b[31m", "é", "x" * 300)
_OPERATORS = sorted({s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain})
_PIECE = 64  # bytes


def pick(random: Random, options: Sequence[Any]) -> Any:
    return options[int(random.integers(len(options)))]


# -- bytes -----------------------------------------------------------------------------------------


def bytes_mutant(content: bytes, random: Random) -> bytes:
    """Flips, overwrites, cuts, repeats or drops some bytes, a few times over."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 6))):
        if not data:
            break
        at, length = int(random.integers(len(data))), int(random.integers(1, _PIECE))
        match int(random.integers(6)):
            case 0:
                data[at] ^= 1 << int(random.integers(8))
            case 1:
                data[at] = pick(random, (0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at : at + length] = random.bytes(length)
            case 5:
                if random.random() < 0.2:
                    del data[at:]
    return bytes(data)


# -- ONNX ------------------------------------------------------------------------------------------


def onnx_mutant(content: bytes, random: Random) -> bytes:
    """Changes nodes, attributes, tensors, types or versions, one to three times."""
    proto = onnx.ModelProto.FromString(content)
    for _ in range(int(random.integers(1, 4))):
        change = pick(random, _CHANGES)
        graphs = [proto.graph]
        graphs += [a.g for n in proto.graph.node for a in n.attribute if a.HasField("g")]
        owner: Any = pick(random, [*graphs, *proto.functions])
        try:
            change(proto, owner, random)
        except (ValueError, TypeError, IndexError, AttributeError):
            continue  # what it needs is not there
    return proto.SerializeToString()


def _names(owner: Any) -> list[str]:
    names = [name for node in owner.node for name in (*node.input, *node.output)]
    if isinstance(owner, onnx.GraphProto):
        names += [v.name for v in (*owner.input, *owner.output)]
        names += [t.name for t in owner.initializer]
    return [*names, "", "nowhere"]


def _node(owner: Any, random: Random) -> onnx.NodeProto:
    return pick(random, owner.node)


def _other_input(_: Any, owner: Any, random: Random) -> None:
    node = _node(owner, random)
    node.input[int(random.integers(len(node.input)))] = pick(random, _names(owner))


def _other_output(_: Any, owner: Any, random: Random) -> None:
    node = _node(owner, random)
    node.output[int(random.integers(len(node.output)))] = pick(random, _names(owner))


def _count_of_inputs(_: Any, owner: Any, random: Random) -> None:
    names = pick(random, [_node(owner, random).input, _node(owner, random).output])
    if random.random() < 0.5:
        del names[int(random.integers(len(names)))]
    else:
        names.append(pick(random, _names(owner)))


def _exchanged_inputs(_: Any, owner: Any, random: Random) -> None:
    node = _node(owner, random)
    order = random.permutation(len(node.input))
    names = [node.input[int(i)] for i in order]
    del node.input[:]
    node.input.extend(names)


def _another_operator(_: Any, owner: Any, random: Random) -> None:
    node = _node(owner, random)
    if random.random() < 0.8:
        node.op_type = pick(random, [*_OPERATORS, *(n.op_type for n in owner.node)])
    else:
        node.domain = pick(random, ("", "ai.onnx", "com.microsoft", "own", "ai.onnx.ml"))


def _another_attribute(_: Any, owner: Any, random: Random) -> None:
    node = pick(random, [n for n in owner.node if n.attribute])
    attribute = pick(random, node.attribute)
    match int(random.integers(6)):
        case 0:
            node.attribute.remove(attribute)
        case 1:
            value = pick(
                random,
                [*_NUMBERS[:12], *_FLOATS, "x", [0], [1, 0], [0.5], [-1], [7, 7], [1 << 40], []],
            )
            name = attribute.name
            node.attribute.remove(attribute)
            kind = onnx.AttributeProto.INTS if value == [] else None
            node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
        case 2:
            if attribute.ints:
                at = int(random.integers(len(attribute.ints)))
                attribute.ints[at] = pick(random, _NUMBERS)
            attribute.i = pick(random, _NUMBERS)
            attribute.f = pick(random, _FLOATS)
        case 3:
            attribute.type = int(random.integers(0, 15))
        case 4:
            others = [a for n in owner.node for a in n.attribute]
            node.attribute.append(pick(random, others))
        case 5:
            if attribute.ints:
                del attribute.ints[int(random.integers(len(attribute.ints))) :]
            attribute.name = pick(random, ("axis", "axes", "perm", "epsilon", "to", "shape", "x"))


def _another_tensor(_: Any, owner: Any, random: Random) -> None:
    tensors = list(getattr(owner, "initializer", ()))
    tensors += [a.t for n in owner.node for a in n.attribute if a.HasField("t")]
    tensor = pick(random, tensors)
    match int(random.integers(7)):
        case 0:
            tensor.dims[int(random.integers(len(tensor.dims)))] = pick(random, _NUMBERS)
        case 1:
            tensor.data_type = int(random.integers(0, 25))
        case 2:
            tensor.raw_data = tensor.raw_data[: int(random.integers(len(tensor.raw_data) + 1))]
        case 3 | 4:
            array = numpy_helper.to_array(tensor).copy()
            values = _FLOATS if array.dtype.kind == "f" else _NUMBERS
            number = np.array(pick(random, values)).astype(array.dtype)
            array.reshape(-1)[random.integers(array.size) if random.random() < 0.5 else ...] = (
                number
            )
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        case 5:
            array = numpy_helper.to_array(tensor)
            shape = pick(random, [(), (1,), (2,), (3, 4), (1, *array.shape), array.shape[:1], (0,)])
            new = np.resize(array, shape)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
        case 6:
            tensor.name = pick(random, _names(owner))


def _another_type(_: Any, owner: Any, random: Random) -> None:
    info = pick(random, [*owner.input, *owner.output, *owner.value_info])
    kind = info.type.tensor_type
    dims = kind.shape.dim
    match int(random.integers(7)):
        case 0:
            kind.elem_type = int(random.integers(0, 25))
        case 1:
            dims[int(random.integers(len(dims)))].dim_value = pick(random, _NUMBERS)
        case 2:
            dims[int(random.integers(len(dims)))].dim_param = pick(random, ("N", "", "M", "batch"))
        case 3:
            dims.add().dim_value = pick(random, _NUMBERS[:8])
        case 4:
            kind.ClearField("shape")
        case 5:
            held = onnx.TypeProto.FromString(info.type.SerializeToString())
            pick(random, [info.type.sequence_type, info.type.optional_type]).elem_type.CopyFrom(
                held
            )
        case 6:
            info.name = pick(random, _names(owner))


def _another_order(_: Any, owner: Any, random: Random) -> None:
    nodes = list(owner.node)
    at = int(random.integers(len(nodes)))
    match int(random.integers(4)):
        case 0:
            del nodes[at]
        case 1:
            nodes.insert(int(random.integers(len(nodes))), nodes[at])
        case 2:
            nodes.append(nodes.pop(at))
        case 3:
            copy = onnx.NodeProto.FromString(nodes[at].SerializeToString())
            for index, name in enumerate(copy.output):
                copy.output[index] = f"{name}_again"
            nodes.append(copy)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del owner.node[:]
    owner.node.extend(nodes)


def _another_output(_: Any, owner: Any, random: Random) -> None:
    name = pick(random, _names(owner))
    if random.random() < 0.5:
        owner.output.append(onnx.ValueInfoProto(name=name))
    else:
        owner.output[int(random.integers(len(owner.output)))].CopyFrom(
            onnx.ValueInfoProto(name=name)
        )


def _initializer_as_input(_: Any, owner: Any, random: Random) -> None:
    tensor = pick(random, owner.initializer)
    owner.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if random.random() < 0.6:
        owner.initializer.remove(tensor)


def _another_version(proto: Any, _: Any, random: Random) -> None:
    if random.random() < 0.8:
        pick(random, proto.opset_import).version = int(random.integers(-1, 27))
    else:
        proto.ir_version = int(random.integers(0, 14))


def _a_body_around(_: Any, owner: Any, random: Random) -> None:
    at = int(random.integers(len(owner.node)))
    node = onnx.NodeProto.FromString(owner.node[at].SerializeToString())
    outputs = [name for name in node.output if name]
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    for index, name in enumerate(inner.output):
        inner.output[index] = f"{name}_inner" if name else ""
    results = [onnx.ValueInfoProto(name=f"{name}_inner") for name in outputs]
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [1])
    body = helper.make_graph([inner], "body", [], results)
    both = {"then_branch": body, "else_branch": body}
    owner.node[at].CopyFrom(helper.make_node("If", ["flag"], outputs, **both))
    owner.initializer.append(flag)


_CHANGES: tuple[Callable[[Any, Any, Random], None], ...] = (
    _other_input, _other_input, _other_output, _count_of_inputs, _exchanged_inputs,
    _another_operator, _another_operator, _another_attribute, _another_attribute,
    _another_attribute, _another_tensor, _another_tensor, _another_tensor, _another_type,
    _another_type, _another_order, _another_output, _initializer_as_input, _another_version,
    _a_body_around,
)  # fmt: skip


# -- JSON and archives -----------------------------------------------------------------------------


def json_mutant(content: bytes, random: Random) -> bytes:
    """Changes a few values, keys or lists of a JSON document."""
    document = json.loads(content)
    for _ in range(int(random.integers(1, 4))):
        places: list[tuple[Any, Any]] = []
        pending: list[Any] = [document]
        while pending:
            item = pending.pop()
            keys = list(item) if isinstance(item, dict) else range(len(item))
            places += [(item, key) for key in keys]
            pending += [item[key] for key in keys if isinstance(item[key], dict | list)]
        if not places:
            break
        owner, key = pick(random, places)
        other, its = pick(random, places)
        match int(random.integers(6)):
            case 0:
                del owner[key]
            case 1:
                owner[key] = pick(random, [*_NUMBERS, *_FLOATS, *_TEXTS, None, True, [], {}])
            case 2:
                owner[key] = json.loads(json.dumps(other[its]))
            case 3:
                if isinstance(owner, list):
                    owner.append(owner[key])
                else:
                    owner[pick(random, _TEXTS)] = owner.pop(key)
            case 4:
                if isinstance(owner[key], int | float):
                    owner[key] = pick(random, [*_NUMBERS, *_FLOATS])
                else:
                    owner[key] = pick(random, _TEXTS)
            case 5:
                if isinstance(owner[key], str):
                    owner[key] = bytes_mutant(owner[key].encode(), random).decode(errors="replace")
    return json.dumps(document).encode()


def zip_mutant(content: bytes, random: Random) -> bytes:
    """Changes a part of an archive, which is written again with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    documents = [i for i, (name, _) in enumerate(parts) if name.endswith(".json")]
    at = pick(random, documents if documents and random.random() < 0.8 else range(len(parts)))
    name, part = parts[at]
    match int(random.integers(8)):
        case 0:
            del parts[at]
        case 1:
            parts.append((pick(random, [name, f"{name}2", name.replace("data", "d")]), part))
        case _ if at in documents:
            parts[at] = name, json_mutant(part, random)
        case _:
            parts[at] = name, bytes_mutant(part, random)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in parts:
            archive.writestr(name, part)
    return buffer.getvalue()
