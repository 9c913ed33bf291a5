"""Links in the documents lead somewhere, and what the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/data/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:converter|passes|recipes|benchmarks|scripts|tests|demo_model)/[\w/.-]+)`")
OTHERS = {"docs/ContribOperators.md", "docs/OperatorKernels.md", "docs/operators.md"}
"""Documents of onnxruntime and onnx-tensorrt."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    named = PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def test_documents_that_code_names_exist() -> None:
    folders = ("converter", "passes", "recipes", "benchmarks", "scripts")
    files = [path for name in folders for path in ROOT.glob(f"{name}/**/*.*")]
    texts = (path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".yaml"))
    named = {name for text in texts for name in re.findall(r"\bdocs/[\w/]+\.md", text)}
    assert {name for name in named if not (ROOT / name).exists()} == OTHERS


def test_the_site_shows_every_page() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    written = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert listed == written
