"""The documentation as a site: it is built without a warning, every page stands in it, and no page asks others."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--nitpicky", "--builder", "html", "--quiet"]
    built = subprocess.run([*command, str(DOCS), str(out)], capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    return out


def test_every_page_is_built(site: Path) -> None:
    """One that stands in no contents is a warning, and so an error, above."""
    assert {page.stem for page in site.glob("*.html")} >= {page.stem for page in DOCS.glob("*.md")}


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    elsewhere = r"""["']?(?:https?:)?//"""
    asked = re.compile(
        rf"""<(?:script|img|iframe|source)\b[^>]*\bsrc={elsewhere}|@import\s+url\({elsewhere}"""
        rf"""|<link\b[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon)[^>]*href={elsewhere}"""
    )
    assert asked.search('<script src="https://elsewhere.example/a.js">')
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert asked.search(file.read_text(encoding="utf-8")) is None, file.name
