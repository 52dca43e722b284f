"""How the pages of this folder become a site: `make docs`. A reader fetches nothing from elsewhere."""

import re
from pathlib import Path

from pygments.lexers import TextLexer
from sphinx.highlighting import lexers

VERSION = Path(__file__).parent.parent / "src" / "potstill" / "__init__.py"

project = "potstill"
author = "the makers of potstill"
project_copyright = "the makers of potstill"
release = re.search(r'__version__ = "(.+)"', VERSION.read_text(encoding="utf-8"))[1]

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
myst_heading_anchors = 4  # links to headings are written as GitHub makes them
myst_enable_extensions = ["colon_fence"]
# Beside the pages, links may lead to files of the repository, which the site leaves where they are.
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = "potstill"
html_copy_source = False
html_show_sphinx = False
lexers["jsonl"] = TextLexer()
pygments_style = "friendly"
pygments_dark_style = "monokai"
