"""The files that mutants are made of: models of every format and data, all of them small."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image
from torch import nn

import normswap as ns
from tests.fuzz.mutants import (
    Random,
    bytes_mutant,
    json_mutant,
    onnx_mutant,
    pick,
    zip_mutant,
)
from tests.norms.spellings import spellings
from tests.passes.fold_graphs import fold_graphs
from tests.passes.norm_graphs import stream_graphs

Mutator = Callable[[bytes, Random], bytes]
C = 8


@dataclass(frozen=True)
class Seed:
    """A file or a folder.

    ``kind``: 'onnx', 'pt2', 'folder' or 'data'. ``files``: their contents by path within a folder;
    the first one is what is loaded, of a 'folder' the folder is. ``mutators``: for the files, by
    path; bytes are changed in any.
    """

    kind: str
    name: str
    files: dict[str, bytes]
    mutators: dict[str, Mutator] = field(default_factory=dict)

    def mutant(self, random: Random) -> dict[str, bytes]:
        path = pick(random, list(self.files))
        mutator = self.mutators.get(path)
        if mutator is None or random.random() < 0.3:
            mutator = bytes_mutant
        return {**self.files, path: mutator(self.files[path], random)}


def seeds(kinds: tuple[str, ...], many: bool) -> list[Seed]:
    """The seeds of these kinds; ``many``: with those that take long to make."""
    made: list[Seed] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds:
            made += _MADE[kind](many)
    return made


# -- ONNX ------------------------------------------------------------------------------------------


NORM = (
    "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>(q) "
    "e = Add(v, eps) s = Sqrt(e) n = Div(d, s) g = Mul(n, gamma) z = Add(g, beta) "
)
IO = f"(float[B,3,{C}] x) => (float[B,3,{C}] y)"
TEXTS = {
    (14, "spelled"): f"{IO} {{ {NORM} y = MatMul(z, w) }}",
    (17, "sequence"): f"{IO} {{ z = LayerNormalization(x, gamma, beta) "
    "p = SplitToSequence<axis = 1>(z) y = ConcatFromSequence<axis = 1>(p) }",
    (7, "batchnorm7"): f"(float[2,3,{C}] x) => (float[2,3,{C}] y) {{ t = Transpose<perm = [0,2,1]>"
    "(x) b = BatchNormalization(t, gamma, beta, beta, var) u = Transpose<perm = [0,2,1]>(b) "
    "y = MatMul(u, w) }",
    (9, "batchnorm9"): f"(float[2,{C},4,4] x) => (float[2,{C},4,4] y) {{ "
    "c = Conv<pads = [1,1,1,1]>(x, k, beta) b = BatchNormalization(c, gamma, beta, beta, var) "
    "r = Relu(b) y = Conv<pads = [1,1,1,1]>(r, k) }",
    (18, "groupnorm"): f"(float[2,{C},4,4] x) => (float[2,{C},4,4] y) {{ "
    "r = Reshape(x, rows) i = InstanceNormalization(r, two2, two2) s = Shape(x) "
    "b = Reshape(i, s) g = Mul(b, wide) y = Add(g, wide) }",
    (17, "post_norm"): f"{IO} {{ h = MatMul(x, w) a = Add(x, h) {NORM.replace('(x', '(a')} "
    "t = Transpose<perm = [0,2,1]>(z) b = BatchNormalization(t, gamma, beta, beta, var) "
    "u = Transpose<perm = [0,2,1]>(b) f = Gemm2(u) y = Add(u, f) }".replace(
        "Gemm2(u)", "MatMul(u, w)"
    ),
    (17, "tokens"): f"(int64[B,T] ids) => (float[B,{C}] y) {{ x = Gather(w, ids) "
    "l = LayerNormalization(x, gamma, beta) h = MatMul(l, w) g = Erf(h) a = Add(x, g) "
    "f = LayerNormalization(a, gamma, beta) i = ArgMax<axis = 1, keepdims = 0>(ids) "
    "o = Gather<axis = 1>(f, nought) y = Squeeze(o, one) }",
    (17, "runtime"): f"{IO} {{ y, a, b, s = com.microsoft.SkipLayerNormalization(x, x, gamma) }}",
    (18, "sizes"): f"{IO} {{ s = Shape(x) b = Gather(s, nought) c = Concat<axis = 0>(b, minus) "
    f"r = Reshape(x, c) t = Reshape(r, s) l = LayerNormalization(t, gamma, beta) "
    "k = Slice(l, nought, three, one) p = Pad(k, pads) y = Add(p, l) }",
    (21, "int8"): f"{IO} {{ q = QuantizeLinear(x, eps, zero) d = DequantizeLinear(q, eps, zero) "
    "l = LayerNormalization(d, gamma, beta) y = MatMul(l, w) }",
    (23, "rms"): f"{IO} {{ r = RMSNormalization(x, gamma) h = MatMul(r, w) y = Add(x, h) }}",
}
CONSTANTS = {
    "two": np.float32(2), "eps": np.float32(1e-3), "gamma": np.linspace(0.5, 2, C, dtype="f"),
    "beta": np.linspace(-1, 1, C, dtype="f"), "var": np.linspace(0.5, 1, C, dtype="f"),
    "w": np.random.default_rng(0).standard_normal((C, C)).astype("f"),
    "k": np.random.default_rng(1).standard_normal((C, C, 3, 3)).astype("f"),
    "rows": np.array([0, 2, -1]), "two2": np.ones(2, "f"), "wide": np.ones((C, 1, 1), "f"),
    "nought": np.array([0]), "minus": np.array([-1]), "three": np.array([3]), "one": np.array([1]),
    "pads": np.zeros(6, np.int64), "zero": np.int8(0),
}  # fmt: skip
FUNCTION = f"""<ir_version: 9, opset_import: ["" : 17, "own" : 1]> test {IO}
{{ a = own.Norm(x, two, eps, gamma, beta) b = own.Norm(a, two, eps, gamma, beta) y = MatMul(b, w) }}
<domain: "own", opset_import: ["" : 17]>
Norm (x, two, eps, gamma, beta) => (z) {{ {NORM} }}"""


def _texts() -> dict[str, onnx.ModelProto]:
    made = {}
    for (opset, name), text in TEXTS.items():
        header = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> test '
        made[name] = onnx.parser.parse_model(header + text)
    made["function"] = onnx.parser.parse_model(FUNCTION)
    for proto in made.values():
        bodies = [proto.graph, *proto.functions]
        read = {name for body in bodies for node in body.node for name in node.input}
        tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in CONSTANTS.items()]
        proto.graph.initializer.extend(t for t in tensors if t.name in read)
    return made


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[onnx.ModelProto]:
    """Models of a strategy of the tests, always the same."""
    found: list[onnx.ModelProto] = []

    @settings(
        max_examples=count, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), deadline=None,
    )  # fmt: skip
    @given(strategy)
    def collect(case: Any) -> None:
        found.append(case.proto)

    collect()
    return found


def _exports() -> dict[str, onnx.ModelProto]:
    from tests.zoo.exports import exported

    forms = ("torchscript-14", "torchscript-17", "dynamo-18")
    made = {}
    for name in ("hf_vit", "timm_swin_v2", "hf_clip"):
        for form in forms:
            try:
                made[f"{name}-{form}"] = exported(name, form)
            except Exception:  # a form that torch cannot write
                continue
    return made


def _onnx(many: bool) -> list[Seed]:
    protos = _texts()
    for strategy, name in ((spellings(), "norm"), (fold_graphs(), "fold"), (stream_graphs(), "s")):
        found = drawn(strategy, 60 if many else 5)
        protos |= {f"{name}{i}": proto for i, proto in enumerate(found)}
    if many:
        protos |= _exports()
    return [
        Seed("onnx", name, {"m.onnx": proto.SerializeToString()}, {"m.onnx": onnx_mutant})
        for name, proto in protos.items()
        if proto.ByteSize() < 1 << 20
    ]


# -- torch -----------------------------------------------------------------------------------------


class Block(nn.Module):
    """``width`` None: with a BatchNorm instead."""

    def __init__(self, conv: bool) -> None:
        super().__init__()
        self.conv = conv
        if conv:
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU())
            self.head = nn.Linear(4, 2)
        else:
            self.norm, self.one, self.two = nn.LayerNorm(C), nn.Linear(C, 12), nn.Linear(12, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv:
            return self.head(self.layers(x).flatten(2).mean(-1))
        return x + self.two(nn.functional.gelu(self.one(self.norm(x))))


def _pt2(_: bool) -> list[Seed]:
    made = []
    for conv, x in ((False, torch.randn(2, 3, C)), (True, torch.randn(2, 3, 6, 6))):
        model = ns.load(Block(conv).eval(), example_inputs=(x,))
        with TemporaryDirectory() as folder:
            path = Path(folder) / "m.pt2"
            ns.save(model, path)
            content = path.read_bytes()
        made.append(Seed("pt2", f"conv={conv}", {"m.pt2": content}, {"m.pt2": zip_mutant}))
    return made


def _folder(_: bool) -> list[Seed]:
    from tests.zoo.exports import zoo_model

    with TemporaryDirectory() as folder:
        zoo_model("hf_vit").module.model.save_pretrained(folder)
        files = {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}
    files["preprocessor_config.json"] = (
        b'{"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, '
        b'"do_center_crop": true, "crop_size": {"height": 8, "width": 8}, "do_resize": true, '
        b'"resample": 2, "image_mean": [0.5], "image_std": [0.5], "rescale_factor": 0.004}'
    )
    mutators = {name: json_mutant for name in files if name.endswith(".json")}
    return [Seed("folder", "hf_vit", files, mutators)]


# -- data ------------------------------------------------------------------------------------------


def _data(_: bool) -> list[Seed]:
    array = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    labels = np.array([0, 1, 2])
    npy, npz, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, array)
    np.savez(npz, x=array, labels=labels)
    np.savez_compressed(packed, x=array, labels=labels)
    tensors = safetensors.numpy.save({"x": array, "labels": labels})
    made = [
        Seed("data", "npy", {"d.npy": npy.getvalue()}),
        Seed("data", "npz", {"d.npz": npz.getvalue()}, {"d.npz": zip_mutant}),
        Seed("data", "packed", {"d.npz": packed.getvalue()}),
        Seed("data", "safetensors", {"d.safetensors": tensors}),
    ]
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 5, 3), np.uint8))
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        buffer = io.BytesIO()
        pixels.save(buffer, kind)
        files = {f"images/0/a.{kind}": buffer.getvalue(), f"images/1/b.{kind}": buffer.getvalue()}
        made.append(Seed("data", kind, files))
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as archive:
        for number in range(3):
            part = io.BytesIO()
            np.save(part, array[number])
            for name, content in ((f"{number}.x.npy", part.getvalue()), (f"{number}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return [*made, Seed("data", "shard", {"d.tar": shard.getvalue()})]


_MADE: dict[str, Callable[[bool], list[Seed]]] = {
    "onnx": _onnx, "pt2": _pt2, "folder": _folder, "data": _data,
}  # fmt: skip
KINDS = tuple(_MADE)
