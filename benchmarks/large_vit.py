"""A ViT of any size as an ONNX file, LayerNorms spelled out, whose weights are never all in memory.

    python -m benchmarks.large_vit FILE.onnx [--depth 48] [--width 1664]

By default 48 layers of width 1664 on images of 224 pixels in patches of 14: 1.6 billion weights,
6.4 GB, in one file beside FILE.onnx. The weights are random, scaled as for training.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from onnx import TensorProto, helper

IMAGE, PATCH, HEAD, RATIO = 224, 14, 64, 4
OPSET = 14
_BLOCK = 1 << 24  # random numbers, which all weights are cut from


@dataclass
class _Writer:
    """Nodes and weights, these straight into the data file."""

    data: IO[bytes]
    location: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._block = self._random.standard_normal(_BLOCK, np.float32)

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def weight(self, name: str, *shape: int, scale: float = 0.02, mean: float = 0.0) -> str:
        count, start = int(np.prod(shape)), self.data.tell()
        at = int(self._random.integers(_BLOCK))
        while count:
            part = self._block[at : at + count]
            self.data.write((mean + scale * part).astype("<f4").data)
            count, at = count - len(part), 0
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self.location),
            ("offset", start),
            ("length", self.data.tell() - start),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self.weights.append(tensor)
        return name

    def constant(self, value: float | list[int]) -> str:
        kind = TensorProto.FLOAT if isinstance(value, float) else TensorProto.INT64
        shape = () if isinstance(value, float) else (len(value),)
        values = [value] if isinstance(value, float) else value
        return self.node("Constant", value=helper.make_tensor("value", kind, shape, values))

    def linear(self, x: str, name: str, width: int, out: int) -> str:
        matrix = self.weight(f"{name}.weight", width, out, scale=width**-0.5)
        return self.node("Add", self.node("MatMul", x, matrix), self.weight(f"{name}.bias", out))

    def layer_norm(self, x: str, name: str, width: int) -> str:
        centred = self.node("Sub", x, self.node("ReduceMean", x, axes=[-1]))
        square = self.node("Pow", centred, self.constant(2.0))
        variance = self.node("ReduceMean", square, axes=[-1])
        deviation = self.node("Sqrt", self.node("Add", variance, self.constant(1e-6)))
        normed = self.node("Div", centred, deviation)
        scaled = self.node("Mul", normed, self.weight(f"{name}.weight", width, scale=0.1, mean=1.0))
        return self.node("Add", scaled, self.weight(f"{name}.bias", width, scale=0.1))

    def heads(self, x: str, perm: list[int]) -> str:
        split = self.node("Reshape", x, self.constant([0, 0, -1, HEAD]))
        return self.node("Transpose", split, perm=perm)

    def block(self, x: str, name: str, width: int) -> str:
        y = self.layer_norm(x, f"{name}.norm1", width)
        q, k, v = (self.linear(y, f"{name}.attention.{part}", width, width) for part in "qkv")
        scores = self.node("MatMul", self.heads(q, [0, 2, 1, 3]), self.heads(k, [0, 2, 3, 1]))
        weights = self.node("Softmax", self.node("Mul", scores, self.constant(HEAD**-0.5)), axis=-1)
        mixed = self.node("MatMul", weights, self.heads(v, [0, 2, 1, 3]))
        joined = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = self.node("Reshape", joined, self.constant([0, 0, width]))
        x = self.node("Add", x, self.linear(joined, f"{name}.attention.out", width, width))
        y = self.layer_norm(x, f"{name}.norm2", width)
        y = self.linear(y, f"{name}.fc1", width, RATIO * width)
        erf = self.node("Erf", self.node("Mul", y, self.constant(0.5**0.5)))
        half = self.node("Mul", y, self.constant(0.5))
        y = self.node("Mul", half, self.node("Add", erf, self.constant(1.0)))
        return self.node("Add", x, self.linear(y, f"{name}.fc2", RATIO * width, width))

    def tokens(self, x: str, width: int) -> str:
        kernel = self.weight("patches.weight", width, 3, PATCH, PATCH, scale=(3 * PATCH**2) ** -0.5)
        bias = self.weight("patches.bias", width)
        x = self.node("Conv", x, kernel, bias, strides=[PATCH, PATCH], kernel_shape=[PATCH, PATCH])
        flat = self.node("Reshape", x, self.constant([0, width, -1]))
        positions = self.weight("positions", 1, (IMAGE // PATCH) ** 2, width)
        return self.node("Add", self.node("Transpose", flat, perm=[0, 2, 1]), positions)


def write_large_vit(path: Path, depth: int, width: int) -> None:
    """Writes ``path`` and its weights, ``path`` with ``.data`` behind it."""
    with open(path.with_name(f"{path.name}.data"), "wb") as data:
        writer = _Writer(data, f"{path.name}.data")
        x = writer.tokens("pixel_values", width)
        for layer in range(depth):
            x = writer.block(x, f"blocks.{layer}", width)
        x = writer.node("ReduceMean", writer.layer_norm(x, "norm", width), axes=[1], keepdims=0)
        writer.nodes.append(helper.make_node("Identity", [x], ["features"]))
    image = ["batch", 3, IMAGE, IMAGE]
    graph = helper.make_graph(
        writer.nodes,
        "vit",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width])],
        writer.weights,
    )
    opset = [helper.make_opsetid("", OPSET)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--depth", type=int, default=48)
    parser.add_argument("--width", type=int, default=1664, help=f"a multiple of {HEAD}")
    options = parser.parse_args()
    write_large_vit(options.file, options.depth, options.width)


if __name__ == "__main__":
    main()
