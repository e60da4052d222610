"""The settings of Sphinx: `make docs` builds docs/ into build/docs, without network. Warnings are errors."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]  # the programs that write parts of pages; everest of this checkout

from llms_text import write_llms_text  # noqa: E402
from page_parts import fill  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "everest"
version = release = version_of("everest-video")
author = "the authors of everest"
html_title = f"everest {version}"
extensions = [
    "myst_parser",
    "sphinx_copybutton",
]
exclude_patterns = ["examples"]  # programs and their notebook; using.md links to them

myst_heading_anchors = 4  # pages link to headings as GitHub numbers them

default_role = "code"  # docstrings write names in single backticks
smartquotes = False  # two hyphens begin an option
html_theme = "furo"
html_static_path = [str(HERE / "static")]
html_css_files = ["wrap.css"]
html_copy_source = False
html_show_copyright = False
copybutton_prompt_text = "$ "


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill)
    app.connect("build-finished", write_llms_text)
