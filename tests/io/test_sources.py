"""Modules from users, Hugging Face folders, timm and open_clip, and capturing them."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import normswap as ns
from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.io.capture import capture, module_source
from normswap.io.data import load_data
from normswap.io.preprocessing import Preprocessing
from normswap.io.pt2 import read_pt2, write_pt2
from normswap.io.sources import Source, example_texts, packages
from normswap.io.sources.huggingface import huggingface_source
from normswap.io.sources.open_clip import open_clip_source
from normswap.io.sources.packages import ensure_torchvision_importable
from normswap.io.sources.timm import timm_source
from tests.effort import thorough

ensure_torchvision_importable()
transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 16, "patch_size": 4}  # fmt: skip
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 60,
        "num_attention_heads": 2, "max_position_embeddings": 12, "eos_token_id": 59,
        "bos_token_id": 58, "pad_token_id": 0}  # fmt: skip


def error_of(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(NormswapError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def operator_names(program: torch.export.ExportedProgram) -> Counter[str]:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return Counter(str(node.target) for node in calls)


def check(source: Source) -> torch.export.ExportedProgram:
    """Captures, and compares with the module on other batch sizes and lengths of texts."""
    program = capture(source)
    for images, texts in ((1, 1), (3, 5)):

        def resized(
            name: str, tensor: torch.Tensor, sizes: tuple[int, int] = (images, texts)
        ) -> torch.Tensor:
            axes = source.dynamic_axes[name]
            size = sizes[0] if axes[0] == "batch" else sizes[1]
            chosen = tensor[[i % len(tensor) for i in range(size)]]
            return chosen[:, : 2 * size] if 1 in axes else chosen

        names = iter(source.dynamic_axes)
        args = tuple(resized(next(names), tensor) for tensor in source.args)
        kwargs = {name: resized(name, tensor) for name, tensor in source.kwargs.items()}
        with torch.no_grad():
            expected = source.module.eval()(*args, **kwargs)
            got = program.module()(*args, **kwargs)
        if isinstance(expected, torch.Tensor):
            expected, got = (expected,), (got,)
        assert len(got) == len(expected) == len(source.output_names)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    names_held = dict(source.module.named_parameters())
    assert set(names_held) <= set(program.state_dict)
    return program


def reloaded(program: torch.export.ExportedProgram, folder: Path) -> torch.export.ExportedProgram:
    write_pt2(program, folder / "m.pt2")
    return read_pt2(folder / "m.pt2")


# --- Hugging Face folders --------------------------------------------------------------------


def clip_model() -> Any:
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return transformers.CLIPModel(config)


def vit_model() -> Any:
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, num_labels=5))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    clip_model().save_pretrained(folder / "clip")
    vit_model().save_pretrained(folder / "vit")
    return folder


@pytest.fixture
def vit(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved / "vit", tmp_path / "vit")
    return tmp_path / "vit"


def test_clip_folder(saved: Path, tmp_path: Path) -> None:
    source = huggingface_source(str(saved / "clip"))
    assert source.name == "clip"
    assert source.output_names == (
        "logits_per_image",
        "logits_per_text",
        "text_embeds",
        "image_embeds",
    )
    assert {n: tuple(t.shape) for n, t in source.kwargs.items()} == {
        "pixel_values": (2, 3, 16, 16), "input_ids": (3, 12), "attention_mask": (3, 12)
    }  # fmt: skip
    for tokens, mask in zip(
        source.kwargs["input_ids"], source.kwargs["attention_mask"], strict=True
    ):
        used = tokens[mask.bool()]
        assert used[0] == 58
        assert used[-1] == 59
        assert 59 not in used[:-1]
        assert used.max() < 60
    program = check(source)
    counts = operator_names(reloaded(program, tmp_path))
    assert counts["aten.layer_norm.default"] == 7
    assert counts["aten.scaled_dot_product_attention.default"] == 2
    assert "text_model.encoder.layers.0.layer_norm1.weight" in program.state_dict
    copied = copy.deepcopy(source.module)  # its forward must be bound to the copy
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert not torch.equal(copied(**source.kwargs)[2], source.module(**source.kwargs)[2])


def test_classifier_folder_with_preprocessing(vit: Path) -> None:
    (vit / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": 0.25, "size": {"height": 16, "width": 16}}'
    )
    source = huggingface_source(str(vit))
    assert source.output_names == ("logits",)
    assert source.preprocessing == Preprocessing(
        "RGB",
        (0.5, 0.4, 0.3),
        (0.25, 0.25, 0.25),
        resize="squash",
        size=(16, 16),
        resample="bilinear",
        upright=True,
    )
    assert operator_names(check(source))["aten.layer_norm.default"] == 3
    expected = vit_model().eval()
    with torch.no_grad():
        torch.testing.assert_close(
            source.module(**source.kwargs)[0], expected(**source.kwargs).logits
        )


@pytest.mark.parametrize(
    "name", ["Dinov2Model", "SiglipModel", "BertModel", "CLIPVisionModel", "RobertaModel"]
)
def test_other_families(tmp_path: Path, name: str) -> None:
    model_class = getattr(transformers, name)
    config = model_class.config_class
    if name == "SiglipModel":
        made = config(text_config=TEXT, vision_config=VISION)
    else:
        made = config(**(TEXT if name in ("BertModel", "RobertaModel") else VISION))
    torch.manual_seed(0)
    model_class(made).save_pretrained(tmp_path / name)
    source = huggingface_source(str(tmp_path / name))
    assert operator_names(check(source))["aten.layer_norm.default"] >= 3
    texts = name in ("BertModel", "RobertaModel")
    assert ("attention_mask" in source.kwargs) == ("token_type_ids" in source.kwargs) == texts


def test_texts_of_one_type_have_no_input_for_it(tmp_path: Path) -> None:
    config = transformers.BertConfig(**TEXT, type_vocab_size=1)
    transformers.BertModel(config).save_pretrained(tmp_path)
    assert list(huggingface_source(str(tmp_path)).kwargs) == ["input_ids", "attention_mask"]


def test_texts_of_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(**TEXT)).eval()
    bert.save_pretrained(tmp_path / "bert")
    model = ns.load(tmp_path / "bert")
    assert [spec.shape for spec in model.inputs] == [("text_batch", "sequence")] * 3
    assert model.sites[0].role == "embedding"
    ns.save(ns.swap(model, to="fused").model, tmp_path / "bert.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "bert.onnx")
    assert [i.shape for i in session.get_inputs()] == [["text_batch", "sequence"]] * 3
    for rows, length in ((1, 1), (3, 2), (2, 7), (4, TEXT["max_position_embeddings"])):
        ids = torch.randint(3, TEXT["vocab_size"], (rows, length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        types = torch.randint(0, 2, (rows, length))
        for named in (given | {"token_type_ids": types}, given):
            with torch.no_grad():
                wanted = bert(**named).last_hidden_state.numpy()
            feeds = load_data(named, model).feeds
            found = session.run(["last_hidden_state"], feeds)[0]
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_images_of_the_preprocessors_size_where_the_model_adapts(tmp_path: Path) -> None:
    transformers.Dinov2Model(transformers.Dinov2Config(**VISION)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": {"height": 8, "width": 12}}')
    assert huggingface_source(str(tmp_path)).kwargs["pixel_values"].shape == (2, 3, 8, 12)


def test_sharded_weights(tmp_path: Path) -> None:
    vit_model().save_pretrained(tmp_path, max_shard_size="30KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert huggingface_source(str(tmp_path)).output_names == ("logits",)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"{shard}: is missing" in error_of(huggingface_source, str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    assert "files outside the folder" in error_of(huggingface_source, str(tmp_path))


def test_half_precision(tmp_path: Path) -> None:
    vit_model().half().save_pretrained(tmp_path)
    source = huggingface_source(str(tmp_path))
    assert source.kwargs["pixel_values"].dtype == torch.float16
    assert next(source.module.parameters()).dtype == torch.float16


def test_damaged_folders(vit: Path, tmp_path: Path) -> None:
    weights, config = vit / "model.safetensors", vit / "config.json"
    content, settings = weights.read_bytes(), json.loads(config.read_text())
    assert "there is no such folder" in error_of(huggingface_source, str(tmp_path / "no"))
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in error_of(huggingface_source, str(tmp_path / "empty"))
    for damaged in (b"", content[: len(content) // 2], os.urandom(1000)):
        weights.write_bytes(damaged)
        assert f"{weights}: is damaged" in error_of(huggingface_source, str(vit))
    weights.write_bytes(content)
    for text, expected in [
        ("", "config.json: is damaged"),
        ("[1]", "no JSON object"),
        ('{"model_type": "vit"}', "names no architecture"),
        (json.dumps(settings | {"hidden_size": "many"}), "cannot build ViTForImageClassification"),
        (json.dumps(settings | {"hidden_size": 64}), "do not fit its config"),
        (json.dumps(settings | {"quantization_config": {}}), "quantised"),
    ]:
        config.write_text(text)
        assert expected in error_of(huggingface_source, str(vit))


@pytest.mark.parametrize(
    "name", ["ViTForEverything", "pipeline", "ViTConfig", "os.system", "__doc__", "PreTrainedModel"]
)
def test_unknown_architectures(vit: Path, name: str) -> None:
    settings = json.loads((vit / "config.json").read_text())
    (vit / "config.json").write_text(json.dumps(settings | {"architectures": [name]}))
    message = error_of(huggingface_source, str(vit))
    assert "has no model" in message or "cannot build" in message


def test_weights_that_are_missing_or_have_no_place(vit: Path) -> None:
    weights = load_file(vit / "model.safetensors")
    head = weights.pop("classifier.weight")
    save_file(weights, vit / "model.safetensors", {"format": "pt"})
    message = error_of(huggingface_source, str(vit))
    assert "1 of its weights are missing, first 'classifier.weight'" in message
    weights |= {"classifier.weight": head, "decoder.weight": head.clone()}
    save_file(weights, vit / "model.safetensors", {"format": "pt"})
    assert "first 'decoder.weight'" in error_of(huggingface_source, str(vit))


def test_pickled_weights_are_refused_unread(vit: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (vit / "model.safetensors").unlink()
    assert "has no model.safetensors" in error_of(huggingface_source, str(vit))
    torch.save({"a": Evil()}, vit / "pytorch_model.bin")
    assert "pickled weights only" in error_of(huggingface_source, str(vit))
    assert not (tmp_path / "ran").exists()


def test_nothing_else_in_the_folder_runs(vit: Path, tmp_path: Path) -> None:
    """Remote code, kernels from the hub, adapters and checkpoint metadata are ways to run code."""
    marker = tmp_path / "ran"
    (vit / "modeling_evil.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    (vit / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/evil"}')
    (vit / ".metadata").write_bytes(b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR.")
    settings = json.loads((vit / "config.json").read_text()) | {
        "auto_map": {"AutoModelForImageClassification": "modeling_evil.Evil"},
        "_attn_implementation": "someone/evil-kernel",
        "attn_implementation": "someone/evil-kernel",
    }
    (vit / "config.json").write_text(json.dumps(settings))
    source = huggingface_source(str(vit))
    assert source.module.config._attn_implementation == "sdpa"
    assert not marker.exists()


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(packages, "_reachable", lambda endpoint: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = error_of(huggingface_source, "hf:someone/model")
    assert message.startswith("hf:someone/model: config.json could not be fetched")
    assert "could not be fetched" in error_of(huggingface_source, "hf:no such//id")
    assert constants.HF_HUB_OFFLINE is False


def test_hub(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    from huggingface_hub import errors

    def download(identifier: str, name: str) -> str:
        assert identifier == "someone/vit"
        if not (saved / "vit" / name).exists():
            raise errors.EntryNotFoundError("404")
        return str(saved / "vit" / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(packages, "_reachable", lambda endpoint: True)
    source = huggingface_source("hf:someone/vit")
    assert source.name == "hf:someone/vit"
    assert source.output_names == ("logits",)


# --- timm ------------------------------------------------------------------------------------


def test_timm_with_random_weights(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    source = timm_source("test_vit?pretrained=false")
    assert torch.equal(torch.get_rng_state(), state)
    again = timm_source("test_vit", pretrained=False)
    assert source.name == "timm:test_vit"
    assert source.output_names == ("logits",)
    for name, parameter in source.module.named_parameters():
        assert torch.equal(parameter, again.module.get_parameter(name))
    assert isinstance(source.preprocessing, Preprocessing)
    assert source.preprocessing.output_size == (160, 160)
    counts = operator_names(reloaded(check(source), tmp_path))
    assert counts["aten.scaled_dot_product_attention.default"] > 0


@thorough
def test_timm_full_size() -> None:
    source = timm_source("vit_base_patch16_224", pretrained=False)
    assert source.args[0].shape == (2, 3, 224, 224)
    assert operator_names(capture(source))["aten.layer_norm.default"] == 25


def test_timm_pretrained_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, pretrained: bool) -> nn.Module:
        asked.append(pretrained)
        raise OSError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(packages, "_reachable", lambda endpoint: False)
    message = error_of(timm_source, "test_vit")
    assert asked == [True]
    assert "could not be fetched (no network); timm:test_vit?pretrained=false takes" in message
    assert "cannot be built" in error_of(timm_source, "test_vit?pretrained=false")


def test_timm_names() -> None:
    assert "did you mean vit_base_patch16_224" in error_of(timm_source, "vit_bse_patch16_224")
    assert "no such model" in error_of(timm_source, "hf-hub:someone/model")
    assert "no such model" in error_of(timm_source, "local-dir:/tmp")
    assert "no such model" in error_of(timm_source, "")
    assert "unknown option" in error_of(timm_source, "test_vit?seed=1")
    assert "is not true or false" in error_of(timm_source, "test_vit?pretrained=maybe")


# --- open_clip -------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def tiny_open_clip(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "ViT-Tiny-Test.json").write_text(json.dumps(config))
    custom = config | {"custom_text": True, "init_logit_bias": -10}
    (folder / "ViT-Tiny-Bias.json").write_text(json.dumps(custom))
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (folder / "RN-Tiny-Test.json").write_text(json.dumps(config | {"vision_cfg": resnet}))
    open_clip.add_model_config(folder)


def test_open_clip(tmp_path: Path) -> None:
    source = open_clip_source("ViT-Tiny-Test?pretrained=false")
    assert source.output_names == ("image_features", "text_features", "logit_scale")
    tokens = source.kwargs["text"]
    assert tokens.shape == (3, 12)
    assert tokens.max() == 99
    assert tokens.dtype == torch.int64
    assert (tokens == 99).sum(1).tolist() == [1, 1, 1]
    assert (tokens[:, 0] == 98).all()
    assert len(set(tokens.argmax(1).tolist())) == 3
    program = check(source)
    counts = operator_names(reloaded(program, tmp_path))
    assert counts["aten.layer_norm.default"] == 7
    assert counts["aten.scaled_dot_product_attention.default"] == 2
    assert not any("multi_head" in name for name in counts)
    assert "visual.ln_pre.weight" in program.state_dict
    assert isinstance(source.preprocessing, Preprocessing)
    assert (source.preprocessing.resize, source.preprocessing.output_size) == ("shortest", (32, 32))


def test_open_clip_with_a_bias_and_its_own_text_tower() -> None:
    source = open_clip_source("ViT-Tiny-Bias", pretrained=False)
    assert source.output_names[2:] == ("logit_scale", "logit_bias")
    assert "text.ln_final.weight" in check(source).state_dict


@pytest.mark.parametrize("name", ["ViT-Tiny-Test", "ViT-Tiny-Bias"])
def test_open_clip_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    weights = open_clip.create_model("ViT-Tiny-Test").state_dict()
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    if name == "ViT-Tiny-Bias":
        weights["logit_bias"] = torch.tensor([-3.0])
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in weights.items()}},
               tmp_path / "epoch_1.pt")  # fmt: skip
    source = open_clip_source(name, checkpoint=tmp_path / "epoch_1.pt")
    assert source.name == f"epoch_1.pt (open_clip:{name})"
    own = source.module.state_dict()
    assert own["logit_scale"].shape == ()
    tower = "text." if name == "ViT-Tiny-Bias" else ""  # as open_clip calls it by now
    assert torch.equal(own[f"{tower}ln_final.weight"], weights["ln_final.weight"])
    del weights["visual.ln_pre.bias"]
    torch.save(weights, tmp_path / "epoch_1.pt")
    message = error_of(open_clip_source, f"{name}?checkpoint={tmp_path}/epoch_1.pt")
    assert "missing in it, first 'visual.ln_pre.bias'; name the architecture" in message
    assert "it takes pretrained, checkpoint" in error_of(open_clip_source, f"{name}?num_classes=1")


@pytest.mark.parametrize(
    ("name", "asked", "size"),
    [
        ("ViT-Tiny-Test", "48", (48, 48)),
        ("ViT-Tiny-Test", "32x64", (32, 64)),
        ("RN-Tiny-Test", "96", (96, 96)),
    ],
)
def test_open_clip_images_of_another_size(name: str, asked: str, size: tuple[int, int]) -> None:
    source = open_clip_source(f"{name}?img_size={asked}&pretrained=false")
    assert source.kwargs["image"].shape == (2, 3, *size)
    assert isinstance(source.preprocessing, Preprocessing)
    assert source.preprocessing.output_size == size
    if asked == "32x64":
        check(source)


def test_open_clip_weights_of_another_size(tmp_path: Path) -> None:
    sized = open_clip.create_model("ViT-Tiny-Test", force_image_size=48)
    file = tmp_path / "sized.pt"
    torch.save(sized.state_dict(), file)
    assert error_of(open_clip_source, f"ViT-Tiny-Test?checkpoint={file}").endswith(
        "; try open_clip:ViT-Tiny-Test?img_size=48"
    )
    source = open_clip_source(f"ViT-Tiny-Test?checkpoint={file}&img_size=48")
    assert torch.equal(source.module.visual.positional_embedding, sized.visual.positional_embedding)


def test_open_clip_names(monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_of(open_clip_source, "ViT-B-32")
    assert "needs a tag" in message
    assert "laion2b_s34b_b79k" in message
    assert "?pretrained=false" in message
    assert "has no pretrained tag 'opnai'" in error_of(open_clip_source, "ViT-B-32/opnai")
    assert "has no pretrained tag '/etc/passwd'" in error_of(
        open_clip_source, "ViT-B-32//etc/passwd"
    )
    assert "did you mean ViT-B-32" in error_of(open_clip_source, "ViT-B-33/openai")
    assert "it has no pretrained weights" in error_of(open_clip_source, "ViT-Tiny-Test")

    def create(*_: object, **options: object) -> nn.Module:
        assert options["pretrained"] == "openai"
        assert options["force_quick_gelu"] is True
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(packages, "_reachable", lambda endpoint: False)
    message = error_of(open_clip_source, "ViT-B-32/openai")
    assert "could not be fetched (no network); open_clip:ViT-B-32?pretrained=false" in message


# --- packages that are missing or do not fit -------------------------------------------------


@pytest.mark.parametrize(
    ("package", "load", "name"),
    [
        ("timm", timm_source, "vit_base_patch16_224"),
        ("open_clip", open_clip_source, "ViT-B-32/openai"),
        ("transformers", huggingface_source, "folder"),
    ],
)
def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, package: str, load: Any, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = error_of(load, name)
    assert message.endswith(install_command("zoo"))
    assert package in message


def test_torchvision_is_left_alone_where_it_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packages, "_declared", [])
    assert ensure_torchvision_importable() is False  # it was imported already
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert ensure_torchvision_importable() is False  # nms is declared by now
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert ensure_torchvision_importable() is False  # not installed
    assert not caplog.records


# --- users' modules --------------------------------------------------------------------------


class Two(nn.Module):
    """Two inputs, one of them in a list and with a name that torch.export changes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, Image: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:  # noqa: N803
        return self.drop(self.fc(Image)) @ others[0].T


def test_module_axes_and_names() -> None:
    module = Two()
    module.drop.eval()
    source = module_source(module, (torch.randn(1, 4), [torch.randn(3, 4)]))
    assert source.dynamic_axes == {"image": {0: "batch"}, "others_0": {0: "batch_2"}}
    assert source.args[0].shape == (2, 4)
    assert source.args[1][0].shape == (3, 4)
    program = capture(source)
    assert module.training
    assert not module.drop.training
    assert list(program.graph_signature.user_inputs) == ["image", "others_0"]
    for a, b in ((1, 1), (5, 2)):
        image, other = torch.randn(a, 4), torch.randn(b, 4)
        got = program.module()(image, [other])
        torch.testing.assert_close(got, module.fc(image) @ other.T)


def test_module_with_keywords_and_named_axes() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return x.cumsum(1) * (1 if mask is None else mask)

    inputs = {"mask": torch.ones(1, 5), "x": torch.randn(1, 5)}
    axes = {"x": {0: "n", 1: "length"}, "mask": {0: "n", 1: "length"}}
    program = capture(module_source(Attention(), inputs, axes))
    assert program.module()(x=torch.ones(3, 7), mask=torch.ones(3, 7)).shape == (3, 7)
    assert len(program.range_constraints) == 2
    single = capture(module_source(Attention(), torch.randn(6, 5)))
    assert single.module()(torch.randn(1, 5)).shape == (1, 5)


def test_fixed_batch_is_captured_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3) + y.sum(0)

    with caplog.at_level(logging.WARNING, logger="normswap"):
        program = capture(module_source(Fixed(), (torch.randn(2, 3), torch.randn(4, 3))))
    assert [r.getMessage() for r in caplog.records if r.name == "normswap"] == [
        "Fixed: captured for the example's size of axis 0 of 'x', which cannot vary"
    ]
    shapes = [n.meta["val"].shape for n in program.graph.find_nodes(op="placeholder")]
    assert type(shapes[0][0]) is int
    assert isinstance(shapes[1][0], torch.SymInt)
    assert program.module()(torch.randn(2, 3), torch.randn(9, 3)).shape == (2, 3)


def test_restricted_batch_is_dynamic_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Even(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 2, 3).sum(1)

    program = capture(module_source(Even(), torch.randn(4, 3)))
    assert program.module()(torch.randn(10, 3)).shape == (5, 3)
    assert not [record for record in caplog.records if record.name == "normswap"]


def test_modules_that_cannot_be_captured(capfd: pytest.CaptureFixture[str]) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    message = error_of(capture, module_source(Branch(), torch.randn(4, 3)))
    assert message.startswith("Branch: torch.export cannot capture it (")
    assert capfd.readouterr().err == ""


def test_wrong_example_inputs() -> None:
    module = Two()
    assert "does not take these inputs" in error_of(module_source, module, torch.ones(2, 4))
    assert "does not take these inputs" in error_of(module_source, module, {"z": torch.ones(2)})
    assert "holds no tensor" in error_of(module_source, nn.Linear(2, 2), (3,))
    x = torch.ones(2, 2)
    assert "'y' in dynamic_axes" in error_of(module_source, nn.Linear(2, 2), x, {"y": {0: "n"}})
    assert "no axis 2" in error_of(module_source, nn.Linear(2, 2), x, {"input": {2: "n"}})


def test_transformers_module_of_a_user(tmp_path: Path) -> None:
    """Its output class must be known again when the .pt2 is read."""
    program = capture(module_source(vit_model(), {"pixel_values": torch.randn(1, 3, 16, 16)}))
    again = reloaded(program, tmp_path)
    assert again.module()(pixel_values=torch.randn(5, 3, 16, 16)).logits.shape == (5, 5)


@pytest.mark.parametrize("length", [1, 2, 3, 77])
def test_example_texts(length: int) -> None:
    tokens, mask = example_texts(length, range(3, 50), 50, 51, 0)
    assert tokens.shape == mask.shape == (3, length)
    assert mask[0].all()
    assert (tokens == 51).any(1).all()
    assert tokens.max() == 51
    assert (tokens[mask == 0] == 0).all()
