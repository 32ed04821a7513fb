"""The site holds together: every page is in its navigation, and every link leads somewhere."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

import pytest

from normswap.norms.site import ROLES
from normswap.parity import report
from normswap.passes import passes
from normswap.passes.dialects.writing import Dialect
from normswap.report import inspection, rewriting
from normswap.timing import bench_report
from normswap.train.study import results
from tests.docs.pages import DOCS, PAGES, ROOT, anchors, links, name_of, prose

_LONGEST_README = 120


def test_the_readme_opens_with_the_two_commands_and_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.match(r"# normswap\n\n    make demo .*\n    make test .*\n", text)
    assert len(text.splitlines()) <= _LONGEST_README


def test_the_navigation_names_every_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    named = re.findall(r"[: ] ?(\S+\.md)$", navigation, re.MULTILINE)
    there = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        assert target.exists(), link
        if page.is_relative_to(DOCS):
            assert target.resolve().is_relative_to(DOCS), f"{link} is not on the site"
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_referred_to_exists(page: Path) -> None:
    text = prose(page)
    names = re.findall(r"^::: (normswap\S+)$", text, re.MULTILINE)
    names += re.findall(r"\]\[(normswap[\w.]+)\]", text)
    for name in names:
        assert pydoc.locate(name) is not None, name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_machine(page: Path) -> None:
    assert not re.search(r"/(home|root|tmp|work)/", page.read_text("utf-8"))


def test_every_pass_role_and_schema_is_explained() -> None:
    dialects = {to for to, kind in passes().items() if issubclass(kind, Dialect)}
    pages = {page.stem for page in DOCS.glob("passes/*.md")}
    assert {"fold", "fold-affine", *(passes().keys() - dialects)} <= pages
    rows = (DOCS / "passes/dialects.md").read_text("utf-8").splitlines()
    assert dialects == {
        row.split("`")[1] for row in rows if row.startswith("| `") and "to`" not in row
    }
    roles = (DOCS / "concepts/roles.md").read_text("utf-8")
    assert not [role for role in ROLES if f"`{role}`" not in roles]
    schemas = (DOCS / "reference/json.md").read_text("utf-8")
    for module in (inspection, rewriting, report, bench_report, results):
        assert f"`{module.SCHEMA}`" in schemas
