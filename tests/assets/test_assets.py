"""The assets are what their cards say: real trained models, with the scores they claim."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normswap.assets import digits
from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.io.sources.packages import ensure_torchvision_importable

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sklearn")
ensure_torchvision_importable()

FOLDERS = [digits.DIGITS_VIT, digits.DIGITS_CLIP]


def load(folder: Path) -> Any:
    kinds = {"digits-vit": "ViTForImageClassification", "digits-clip": "CLIPModel"}
    kind = getattr(transformers, kinds[folder.name])
    return kind.from_pretrained(folder, local_files_only=True).eval()


def run(model: Any, images: np.ndarray) -> Any:
    inputs = {"pixel_values": torch.from_numpy(images)}
    if hasattr(model, "text_model"):
        inputs["input_ids"] = torch.from_numpy(digits.class_caption_ids()).flatten(0, 1)
    with torch.inference_mode():
        return model(**inputs)


def card_accuracy(folder: Path) -> float:
    front_matter = (folder / "README.md").read_text().split("---\n")[1]
    (value,) = re.findall(r"- type: accuracy\n +value: ([\d.]+)\n", front_matter)
    return float(value)


def test_the_split_is_fixed() -> None:
    data = digits.load_digits_split()
    assert data.train_images.shape == (1257, 1, 8, 8)
    assert data.test_images.shape == (540, 1, 8, 8)
    assert data.train_images.dtype == data.test_images.dtype == np.float32
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert (data.train_images.min(), data.train_images.max()) == (-1, 1)
    assert data.test_labels[:10].tolist() == [1, 4, 5, 6, 9, 1, 2, 2, 2, 0]
    again = digits.load_digits_split()
    np.testing.assert_array_equal(data.train_images, again.train_images)
    np.testing.assert_array_equal(data.test_labels, again.test_labels)
    shares = np.bincount(data.test_labels) / np.bincount(data.train_labels)
    np.testing.assert_allclose(shares, 540 / 1257, atol=0.02)


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(NormswapError, match=re.escape(install_command("demo")) + "$"):
        digits.load_digits_split()


def test_augment_moves_images_and_leaves_the_original() -> None:
    images = digits.load_digits_split().train_images[:50]
    before = images.copy()
    moved = digits.augment(images, np.random.default_rng(0), noise=0.0)
    np.testing.assert_array_equal(images, before)
    assert moved.shape == images.shape
    assert moved.dtype == np.float32
    padded = np.pad(images[:, 0], ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    windows = [padded[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
    found = [[bool((w[i] == moved[i, 0]).all()) for w in windows] for i in range(len(images))]
    assert np.all(np.any(found, axis=1))
    assert np.all(np.any(found, axis=0))  # every one of the nine shifts occurs
    noisy = [digits.augment(images, np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], noisy[2])


def test_vit_scores_what_its_card_says() -> None:
    data = digits.load_digits_split()
    labels = run(load(digits.DIGITS_VIT), data.test_images).logits.argmax(1).numpy()
    accuracy = 100 * (labels == data.test_labels).mean()
    assert accuracy == pytest.approx(card_accuracy(digits.DIGITS_VIT), abs=0.3)
    assert accuracy > 95


def test_clip_scores_what_its_card_says() -> None:
    data = digits.load_digits_split()
    outputs = run(load(digits.DIGITS_CLIP), data.test_images)
    texts = outputs.text_embeds.unflatten(0, (10, -1)).numpy()
    labels = digits.zero_shot_labels(outputs.image_embeds.numpy(), texts)
    accuracy = 100 * (labels == data.test_labels).mean()
    assert accuracy == pytest.approx(card_accuracy(digits.DIGITS_CLIP), abs=0.3)
    assert accuracy > 93


def test_clip_reads_the_text_at_its_end_and_not_the_padding() -> None:
    model = load(digits.DIGITS_CLIP)
    config = model.config.text_config
    ids = torch.from_numpy(digits.caption_ids(["seven", "a handwritten 7"]))
    assert config.eos_token_id == int(ids.max()) == config.vocab_size - 1 != 2
    changed = ids.clone()
    changed[ids == config.pad_token_id] = digits.VOCABULARY["three"]
    with torch.inference_mode():
        embeds, same = (model.get_text_features(i).pooler_output for i in (ids, changed))
    torch.testing.assert_close(embeds, same)


def test_tokenizer_gives_caption_ids() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        digits.DIGITS_CLIP, local_files_only=True
    )
    captions = [caption for group in digits.CAPTIONS for caption in group]
    captions += ["", "The Digit  SEVEN", "a word it has never seen", "on " * 30]
    ids = tokenizer(captions, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(np.array(ids), digits.caption_ids(captions))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_preprocessor_is_that_of_the_split(folder: Path) -> None:
    from sklearn.datasets import load_digits

    config = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = load_digits().images[:, None]
    images = (pixels * config["rescale_factor"] - config["image_mean"][0]) / config["image_std"][0]
    data = digits.load_digits_split()
    split = np.concatenate([data.train_images, data.test_images])
    expected, actual = (np.unique(i.reshape(1797, 64), axis=0) for i in (images, split))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_channel_is_dead(folder: Path) -> None:
    """Each LayerNorm and each hidden unit of each MLP varies over tokens: statistics are sound."""
    model = load(folder)
    deviations: dict[str, float] = {}

    def watch(name: str, module: Any) -> None:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            deviations[name] = float(output.flatten(0, -2).std(0).min())

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or name.endswith("activation_fn"):
            watch(name, module)
    run(model, digits.load_digits_split().test_images)
    assert len(deviations) == {"digits-vit": 13 + 6, "digits-clip": 14 + 9 + 6 + 4}[folder.name]
    assert min(deviations.values()) > 1e-3


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_files_are_whole_and_name_no_machine(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= names
    for path in folder.iterdir():
        text = path.read_bytes()
        assert not re.search(rb"_name_or_path|/tmp/|/home/|/root|/work/|[A-Z]:\\\\", text), path


def test_assets_are_small() -> None:
    files = [path for path in digits.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".pyc") < 4e6
