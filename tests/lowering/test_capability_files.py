"""Every claim on a target has a source and names operators that exist; bad files are told of."""

from __future__ import annotations

from pathlib import Path

import onnx.defs
import pytest

from normswap.errors import NormswapError
from normswap.lowering import TARGETS, Lowering
from normswap.lowering.capability import Claim
from normswap.lowering.capability_files import capabilities_of, known_targets
from normswap.passes.registry import passes

_GOOD = """
schema = "normswap.capabilities/1"
title = "mine"
version = "1.2"
otherwise = "it fails"
[model]
opset = [11, 17]
source = "https://example.com/model"
[[claim]]
operators = ["Add"]
source = "https://example.com/add"
"""


def test_there_is_a_file_for_every_target() -> None:
    assert set(TARGETS) - {"generic"} == set(known_targets())
    assert len(known_targets()) >= 13


@pytest.mark.parametrize("target", known_targets())
def test_claims_name_operators_that_exist_and_say_who_says_so(target: str) -> None:
    found = capabilities_of(target)
    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            first[schema.name] = min(schema.since_version, first.get(schema.name, 1 << 30))
    newest = max(first.values())
    assert found.claims
    assert found.title
    assert found.otherwise
    for claim in (*found.claims, *([found.others] if found.others else [])):
        assert claim.source.startswith(("https://", "measured: "))
        for name in claim.operators:
            ours = name in ("Linear", "Rsqrt") and found.takes == "torch"  # of the view alone
            assert name.startswith("com.microsoft.") or ours or name in first, name
            if not ours and name in first and claim.runs:  # at the newest opset that it reads
                assert first[name] <= (claim.opset or found.opset or (1, newest))[1], name
        assert claim.dialects <= passes().keys()
        if claim.opset is not None:
            assert claim.opset[1] <= newest
    assert bool(found.source) == (found.opset is not None or found.static_shapes)


def _claims(version: str) -> tuple[Claim, ...]:
    return capabilities_of(f"onnxruntime-cpu{version}").claims


def test_a_version_of_a_target_has_the_claims_of_it() -> None:
    one_pass = {
        version: any("one pass" in claim.inaccurate for claim in _claims(version))
        for version in ("@1.24", "@1.26.1", "@1.27", "")
    }
    assert one_pass == {"@1.24": True, "@1.26.1": True, "@1.27": False, "": False}


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(_GOOD)
    found = capabilities_of(str(tmp_path / "mine.toml"))
    assert (found.title, found.opset, found.takes) == ("mine", (11, 17), "onnx")
    assert Lowering(str(tmp_path / "mine.toml")).target == str(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("/1", "/9", "schema is 'normswap.capabilities/9'"),
        ('title = "mine"', "", "title is missing"),
        ('title = "mine"', "title = 3", "title is not a text"),
        ('title = "mine"', 'title = "a"\nsize = 3', "'size' is none of"),
        ('title = "mine"', 'title = "a"\n"b\\n\\u001b[31m" = 3', "is none of"),
        ('version = "1.2"', 'version = "new"', "version is 'new'"),
        ("[11, 17]", "[17, 11]", "[model] opset is not the smallest and the largest"),
        ("[11, 17]", "[11, true]", "[model] opset is not a list of whole numbers"),
        ('source = "https://example.com/add"', "", "[[claim]] 1: needs a source"),
        ("https://example.com/add", "a book", "[[claim]] 1: source is no address"),
        ('operators = ["Add"]', "operators = []", "names neither operators nor dialects"),
        ('operators = ["Add"]', 'operators = "Add"', "operators is not a list of texts"),
        ("[[claim]]", "[claim]", "claim is not tables"),
        ('title = "mine"', 'takes = "caffe"\ntitle = ""', "takes is 'caffe'"),
        ('title = "mine"', "title = ", "is no TOML"),
        ('title = "mine"', f"title = {'[' * 20000}", "is no TOML"),
        ('["Add"]', '["Add"]\nversions = ["1.0"]', "versions is not two versions"),
    ],
)
def test_a_bad_file_is_an_error_of_one_line(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(_GOOD.replace(old, new))
    with pytest.raises(NormswapError) as error:
        capabilities_of(str(path))
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert "\n" not in message


def test_what_is_no_file_and_no_target(tmp_path: Path) -> None:
    for target in ("tpu", "mnn@new", str(tmp_path / "none.toml"), str(tmp_path)):
        with pytest.raises(NormswapError):
            Lowering(target)
    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    with pytest.raises(NormswapError, match="is no TOML"):
        Lowering(str(tmp_path / "binary.toml"))
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(NormswapError, match="more than 1 MiB"):
        Lowering(str(tmp_path / "large.toml"))
