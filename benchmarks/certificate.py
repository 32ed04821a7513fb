"""Certificates: the zoo, large models, and mutations of the table of rules.

    python -m benchmarks.certificate zoo [--names NAME ...] [--forms FORM ...] [--no-contract]
    python -m benchmarks.certificate large [--models vit clip] [--onnx]
    python -m benchmarks.certificate mutations [--names NAME ...]

in the repository's root. *zoo*: every exact pass on every model of ``tests/zoo``: whether it is
certified, the bound, and seconds beside those of the exact contract. *large*: ``fused`` on a
ViT-B/16 whose norms are spelled out, and on CLIP ViT-L/14 (random weights): seconds and the
process's largest memory; the models are built in memory, of torch's and transformers' classes.
*mutations*: ten faults planted in ``passes/algebra/rules.py``, each in a process of its own, with
``rmsnorm``, ``fold-affine`` and ``fold`` on models of the zoo and on random graphs of the tests:
how many rewrites it changes, how many of these the certificate finds, and how many the exact
contract in float64 does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

FORMS = ("fx", "torchscript-14")
MUTATED = ("spelled_vit", "hf_clip", "timm_convnext", "torch_conv_stem", "hf_swin")
_RULES = "normswap.passes.algebra.rules"
_COUNT = 1000  # classes
_TOLD = 10  # seconds between two lines
_RANDOM = 60  # graphs of a kind

MUTATIONS: tuple[tuple[str, str, str], ...] = (
    ("the mean of one channel more", "ratio(1, size)", "ratio(1, size + 1)"),
    ("the mean is not subtracted", "np.eye(size) - ratio", "np.eye(size) - 0 * ratio"),
    ("Sub adds shifts", "_sum(Arithmetic((1, -1)))", "_sum(SUM)"),
    ("Div multiplies", "lambda c: 1 / c", "lambda c: c"),
    ("a multiple leaves the shift", "known.shift * factor)", "known.shift)"),
    ("upward, a multiple leaves the shift", "known.shift / factor if", "known.shift if"),
    ("a sum shifts both operands", "if i == open_ends[0] else", "if i in open_ends else"),
    ("a sum shifts no operand", "rest * signs[i]", "0 * rest"),
    ("LayerScale is forgotten", "known.linear * factor.reshape(-1)", "known.linear"),
    (
        "Concat turns its operands",
        "section(total, axis, at,",
        "section(total, axis, at[::-1],",
    ),
)


def _passes() -> dict[str, Callable[..., Any]]:
    import normswap as ns

    def swap(to: str) -> Callable[..., Any]:
        return lambda model, **how: ns.swap(model, to=to, **how)

    words = ("fused", "rmsnorm", "product", "group", "instance", "lp", "scaled")
    swaps = {to: swap(to) for to in words}
    return swaps | {"fold-affine": ns.fold_affine, "fold": ns.fold}


def zoo(names: Sequence[str], forms: Sequence[str], contract: bool) -> None:
    """A row for each model, kind of graph and pass."""
    import normswap as ns
    from normswap.errors import NormswapError
    from tests.zoo.exports import NotExportable, model_as
    from tests.zoo.models import FAMILIES

    for name in names or FAMILIES:
        for form in forms:
            try:
                model = model_as(name, form)
            except NotExportable:
                continue
            for word, rewrite in _passes().items():
                try:
                    begin = time.perf_counter()
                    result = rewrite(model)
                    plain = time.perf_counter() - begin
                except NormswapError as error:
                    print(f"{name:24} {form:15} {word:12} {error}")
                    continue
                if not result.modified:
                    continue
                begin = time.perf_counter()
                found = rewrite(model, certify=True).certificate
                seconds, exact = time.perf_counter() - begin - plain, ""
                if contract:
                    begin = time.perf_counter()
                    passed = ns.validate(model, result.model).passed
                    exact = f"contract {time.perf_counter() - begin:6.1f} s {passed}"
                words = f"certified {found.error:.0e}" if found.certified else found.reason
                print(f"{name:24} {form:15} {word:12} {seconds:6.1f} s {exact} {words}", flush=True)


def large(models: Sequence[str], onnx: bool) -> None:
    """Seconds and memory of a certificate of ``fused``."""
    import normswap as ns
    from normswap.parity.certified import certified

    for name, model in _large_models(models, onnx):
        begin = time.perf_counter()
        result = ns.swap(model, to="fused")
        other = result.model if result.modified else ns.swap(model, to="product").model
        _stage(name, "pass", begin)
        begin = time.perf_counter()
        with _told(name):
            found = certified(model, other)
        _stage(name, "certificate", begin)
        print(f"{'':12} {found.words}")
        print(f"{'':12} degree {found.degree}, bits {found.bits:.0f}, symbols {found.symbols}, "
              f"{len(found.primes)} primes, error {found.error:.1e}", flush=True)  # fmt: skip


def _stage(name: str, stage: str, begin: float) -> None:
    seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:12} {stage:12} {seconds:7.1f} s  at most {memory:.1f} GiB", flush=True)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Tells how far each evaluation of a graph over the field is, every ten seconds."""
    from normswap.field import in_step

    real, begin, last, done = in_step.Walk, time.perf_counter(), [time.perf_counter()], [0]

    def told(*given: Any, **how: Any) -> Any:
        walk = real(*given, **how)
        compute, nodes = walk._compute, len(walk.nodes)

        def counted(at: Any) -> Any:
            done[0] += 1
            if time.perf_counter() - last[0] > _TOLD:
                last[0] = time.perf_counter()
                print(f"{name:12} {done[0]} nodes; of one graph's {nodes}", flush=True)
            return compute(at)

        walk._compute = counted
        return walk

    with patch.object(in_step, "Walk", told):
        yield
    _stage(name, "evaluation", begin)


def _large_models(models: Sequence[str], onnx: bool) -> Iterator[tuple[str, Any]]:
    import numpy as np
    import torch

    import normswap as ns
    from normswap.io.sources.packages import ensure_torchvision_importable

    ensure_torchvision_importable()
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    made: dict[str, Callable[[], tuple[torch.nn.Module, dict[str, torch.Tensor]]]] = {
        "vit": lambda: (
            ViTForImageClassification(ViTConfig(num_labels=_COUNT)),
            {"pixel_values": torch.randn(1, 3, 224, 224)},
        ),
        "clip": lambda: (CLIPModel(_clip_large(CLIPConfig)), _clip_inputs()),
    }
    for name in models:
        begin = time.perf_counter()
        module, inputs = made[name]()
        for norm in (m for m in module.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.weight.data.normal_(1, 0.1)
            norm.bias.data.normal_(0, 0.1)
            norm.eps = float(np.float32(norm.eps))  # or a spelling has another one
        model = ns.load(module.eval(), example_inputs=inputs)
        if onnx:
            path = Path(f"/tmp/certificate-{name}.onnx")
            ns.save(model, path)
            model = ns.load(path)
        model = ns.swap(model, to="elementary").model if name == "vit" else model
        _stage(name, "model", begin)
        yield name, model


def _clip_large(config: Any) -> Any:
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    vision |= {"num_hidden_layers": 24, "patch_size": 14}
    return config(text_config=text, vision_config=vision, projection_dim=768)


def _clip_inputs() -> dict[str, Any]:
    import torch

    ids = torch.randint(1, 49000, (1, 77))
    ids[0, -1] = 49407
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 224, 224),
        "attention_mask": torch.ones(1, 77, dtype=torch.int64),
    }


def mutations(names: Sequence[str]) -> None:
    """A row for each mutation, found in a process of its own."""
    for number, (what, _, _) in enumerate(MUTATIONS):
        command = [sys.executable, "-m", "benchmarks.certificate", "mutant", str(number)]
        command += ["--names", *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            print(f"{what:38} failed: {done.stderr.strip().splitlines()[-1:]}")
            continue
        row = json.loads(lines[-1])
        words = [f"certificate {row['certificate']} of {row['changed']}"]
        words += [f"contract {row['contract']}", f"ends with an error {row['errors']}"]
        words += [f"certified: {', '.join(row['certified'])}"] * bool(row["certified"])
        print(f"{what:38} {'; '.join(words)}", flush=True)


def mutant(number: int, names: Sequence[str]) -> None:
    """One mutation, on rewrites that it changes."""
    import normswap as ns

    passes = {word: _passes()[word] for word in ("rmsnorm", "fold-affine", "fold")}
    models = dict(_models_of_tests(names))
    right = {(n, w): _weights(run(m)) for n, m in models.items() for w, run in passes.items()}
    source = Path(importlib.util.find_spec(_RULES).origin or "")  # type: ignore[union-attr]
    text, (_, old, new) = source.read_text(), MUTATIONS[number]
    assert text.count(old) >= 1, old
    module = sys.modules[_RULES]
    before = dict(module.RULES)
    exec(compile(text.replace(old, new), str(source), "exec"), module.__dict__)
    _rewired(module, before)
    row: dict[str, Any] = {"changed": 0, "certificate": 0, "contract": 0, "errors": 0}
    row["certified"] = []
    for (name, word), weights in right.items():
        try:
            result = passes[word](models[name])
        except Exception:
            row["errors"] += 1
            continue
        if _weights(result) == weights:
            continue
        row["changed"] += 1
        certified = passes[word](models[name], certify=True).certificate.certified
        row["certificate"] += not certified
        row["certified"] += [f"{name} {word}"] * certified
        row["contract"] += not ns.validate(models[name], result.model).passed
    print(json.dumps(row))


def _models_of_tests(names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Those of the zoo, and random graphs, always the same."""
    import normswap as ns
    from tests.fuzz.seeds import drawn
    from tests.passes.fold_graphs import fold_graphs
    from tests.passes.norm_graphs import stream_graphs
    from tests.zoo.exports import model_as

    for name in names:
        yield name, model_as(name, "fx")
    for kind, strategy in (("fold graph", fold_graphs()), ("stream graph", stream_graphs())):
        for number, proto in enumerate(drawn(strategy, _RANDOM)):
            yield f"{kind} {number}", ns.load(proto)


def _rewired(module: Any, before: dict[str, Any]) -> None:
    """Lets all that imported from the table of rules have what is in it now."""
    for other in list(sys.modules.values()):
        if getattr(other, "__name__", "").startswith("normswap.passes") and other is not module:
            for name in ("rule_of", "RULES", "MEAN", "SCALE", "mean_subtraction", "SUM"):
                if hasattr(other, name) and hasattr(module, name):
                    setattr(other, name, getattr(module, name))


def _weights(result: Any) -> dict[str, bytes]:
    graph = result.model.graph
    fixed = [v for v in graph.values() if v.is_constant and v.producer is None]
    return {v.name: graph.constant(v).tobytes() for v in fixed}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["zoo", "large", "mutations", "mutant"])
    parser.add_argument("number", nargs="?", type=int, default=0)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--forms", nargs="*", default=FORMS)
    parser.add_argument("--models", nargs="*", default=["vit", "clip"])
    parser.add_argument("--no-contract", dest="contract", action="store_false")
    parser.add_argument("--onnx", action="store_true")
    given = parser.parse_args()
    if given.what == "zoo":
        zoo(given.names, given.forms, given.contract)
    elif given.what == "large":
        large(given.models, given.onnx)
    elif given.what == "mutations":
        mutations(given.names or MUTATED)
    else:
        mutant(given.number, given.names)


if __name__ == "__main__":
    main()
