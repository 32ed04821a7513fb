"""Swap and fold full-size ViT and CLIP models with random weights, in both kinds of graph.

    python benchmarks/real_architectures.py [NAME ...] [--form FORM ...] [--json FILE]

For each model (see MODELS) captured by torch.export (``fx``) and exported by torch's two exporters:
the sites found per tower, ``fused`` held to the exact contract against its input, ``batchnorm`` on
the image tower fitted to random images with FFN BatchNorms and folded, what is left of norms in
that tower, the folded model held to the exact contract against the unfolded one, and seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import normswap as ns
from normswap.io.huggingface import huggingface_source
from normswap.io.load import load
from normswap.io.open_clip import open_clip_source
from normswap.io.source import Source
from normswap.io.timm import timm_source

FORMS = ("fx", "torchscript-14", "torchscript-17", "dynamo-18", "dynamo-20", "dynamo-23")
DEFAULT_FORMS = ("fx", "torchscript-14", "dynamo-20")
CALIBRATION = 8
RESIDUE = ("Mul", "Add", "Sub", "Div", "Transpose")


def _timm() -> Source:
    return timm_source("vit_base_patch16_224?pretrained=false")


def _open_clip() -> Source:
    return open_clip_source("ViT-B-32?pretrained=false")


def _transformers(kind: str) -> Source:
    """A transformers model at its default (base) size, saved and loaded as a user would."""
    import transformers

    torch.manual_seed(0)
    if kind == "clip":
        model: Any = transformers.CLIPModel(transformers.CLIPConfig())
    else:
        model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return huggingface_source(folder)


MODELS = {
    "timm vit_base_patch16_224": _timm,
    "open_clip ViT-B-32": _open_clip,
    "transformers CLIP": lambda: _transformers("clip"),
    "transformers ViT": lambda: _transformers("vit"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--form", action="append", choices=FORMS)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    console, rows = Console(stderr=True), []
    for name in options.names or MODELS:
        source = _lively(MODELS[name]())
        for form in options.form or DEFAULT_FORMS:
            console.print(f"{name} as {form} ...")
            rows.append(_row(name, form, source))
            console.print(rows[-1])
            gc.collect()
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    _show(rows)


def _lively(source: Source) -> Source:
    """Moves every parameter away from its initial value, so that no gamma is one, no beta zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in source.module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * noise.to(parameter.dtype))
    return source


def _row(name: str, form: str, source: Source) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, seconds = _timed(lambda: _loaded(source, form, Path(folder) / "model.onnx"))
        except torch.onnx.errors.OnnxExporterError as error:
            return {"model": name, "form": form, "failed": f"export: {str(error).splitlines()[0]}"}
        return {"model": name, "form": form, "load_s": seconds} | _measure(model)


def _measure(model: ns.Model) -> dict[str, Any]:
    sites, locate_s = _timed(lambda: ns.locate(model))
    fused, fused_s = _timed(lambda: ns.swap(model, to="fused"))
    fused_exact = ns.validate(model, fused.model).passed if fused.modified else None
    data = _images(model)
    swapped, swap_s = _timed(lambda: ns.swap(model, ns.BatchNorm(ffn_batchnorm=True), data=data))
    folded, fold_s = _timed(lambda: ns.fold(swapped.model))
    fold_report = ns.validate(swapped.model, folded.model)
    left = [s for s in ns.locate(folded.model) if s.tower != "text"]
    before, after = (Counter(n.op for n in m.graph.nodes) for m in (model, folded.model))
    return {
        "nodes": len(model.graph.nodes),
        "image_sites": sum(s.tower == "image" for s in sites),
        "text_sites": sum(s.tower == "text" for s in sites),
        "locate_s": locate_s,
        "fused_done": len(fused.done),
        "fused_exact": fused_exact,
        "fused_s": fused_s,
        "swapped": len(swapped.done),
        "fold_skipped": len(folded.skipped),
        "norms_left": len(left) + after["BatchNormalization"],
        "residue": {op: after[op] - before[op] for op in RESIDUE if after[op] > before[op]},
        "folded_exact": fold_report.passed,
        "swap_s": swap_s,
        "fold_s": fold_s,
    }


def _images(model: ns.Model) -> dict[str, np.ndarray]:
    spec = next(s for s in model.inputs if len(s.shape) == 4)
    random = np.random.default_rng(0)
    shape = (CALIBRATION, *(s for s in spec.shape[1:] if isinstance(s, int)))
    return {spec.name: random.standard_normal(shape).astype(spec.dtype)}


def _loaded(source: Source, form: str, path: Path) -> ns.Model:
    names = list(source.dynamic_axes)
    if form == "fx":
        dynamic = {n: dict(axes) for n, axes in source.dynamic_axes.items()}
        inputs = source.args or dict(source.kwargs)
        return load(source.module, example_inputs=inputs, dynamic_axes=dynamic)
    exporter, _, opset = form.partition("-")
    torch.backends.mha.set_fastpath_enabled(False)
    arguments: dict[str, Any] = {
        "opset_version": int(opset),
        "input_names": names,
        "output_names": list(source.output_names),
    }
    if exporter == "dynamo":
        dims = {
            n: dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
            for n, axes in source.dynamic_axes.items()
        }
        arguments |= {"dynamo": True, "dynamic_shapes": dims, "verbose": False}
    else:
        arguments |= {"dynamo": False, "dynamic_axes": source.dynamic_axes}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(source.module, source.args, str(path), kwargs=source.kwargs, **arguments)
    return load(path)


def _timed(work: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, round(time.perf_counter() - start, 2)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="normswap on real architectures, random weights")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
