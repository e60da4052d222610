"""llms.txt: the pages of the documentation for programs that read text, each with its first sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes

SUMMARY = (
    "Train video classifiers and encoders on your own videos: a command-line toolkit and Python library for "
    "masked video autoencoders (EVEREST, LVMAE), from a folder of videos to an evaluated classifier."
)


def write_llms_text(app: Any, error: Exception | None) -> None:
    """Write the file next to the start page, with the pages in the order of the navigation."""
    if error is not None:
        return
    lines = ["# everest", "", f"> {SUMMARY}", ""]
    for page in _in_order(app.env, app.config.root_doc):
        title = app.env.titles[page].astext()
        lines.append(f"- [{title}]({page}.html){_first_sentence(app.env.get_doctree(page))}")
    Path(app.outdir, "llms.txt").write_text("\n".join([*lines, ""]))


def _in_order(env: Any, page: str) -> list[str]:
    children = [below for child in env.toctree_includes.get(page, []) for below in _in_order(env, child)]
    return [page, *children]


def _first_sentence(document: nodes.document) -> str:
    paragraph = next(document.findall(nodes.paragraph), None)
    if paragraph is None:
        return ""
    return f": {' '.join(paragraph.astext().split()).partition('. ')[0].rstrip('.:')}."
