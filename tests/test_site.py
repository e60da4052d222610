"""The documentation as `make docs` builds it: its parts from the code, its examples, its pages."""

import json
import re
import subprocess
import sys
from html import unescape
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from from_commands import commands_part
from from_matrix import COLUMNS
from from_messages import SUBJECTS, messages
from from_settings import settings_part
from page_parts import MARK, PAGES, PARTS, written
from small_runs import run

from everest.checkpoints.public_weights import read_public_weights
from everest.config.model_settings import BACKBONES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
MATRIX = json.loads((ROOT / "benchmarks" / "results" / "support_matrix.json").read_text())


def rows(markdown: str) -> list[list[str]]:
    """The cells of all tables without their heads."""
    lines = [line for line in markdown.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_setting_has_values_and_a_meaning():
    found = rows(settings_part())
    assert len(found) > 150
    assert [row[0] for row in found if not row[1] or not row[3]] == []
    by_key = {row[0]: row for row in found}
    assert by_key["`magnitude`"][1:3] == ["number from 0 to 10", "`9`"]
    assert by_key["`freeze`"][1] == "none, encoder, embedding or first:N, such as first:6"


@pytest.mark.parametrize("page", [page for page in PAGES if "generated" in page.read_text()], ids=str)
def test_the_committed_tables_are_what_the_code_says(page: Path):
    text = page.read_text(encoding="utf-8")
    assert written(text) == text, "write it again by `make docs`"


def test_every_part_of_a_page_is_committed():
    texts = {page: page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md")}
    marked = {page for page, text in texts.items() if "<!-- generated" in text}
    assert marked <= set(PAGES)
    assert sorted(mark[2] for page in marked for mark in MARK.finditer(texts[page])) == sorted(PARTS)


def test_every_option_of_a_command_is_in_its_reference():
    text = commands_part()
    for command in ("eval", "prepare split", "recipes suggest"):
        section = text.partition(f"### everest {command}\n")[2].partition("\n### ")[0]
        options = set(re.findall(r"--[a-z][a-z-]+", run(command, "--help"))) - {"--help"}
        assert len(options) > 5
        assert [option for option in sorted(options) if option not in section] == []


def test_every_message_has_a_subject_and_quoted_ones_exist():
    found = messages()
    assert len(found) > 300
    assert {message.subject for message in found} == set(SUBJECTS)
    page = (DOCS / "help" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.*)`$", page, flags=re.MULTILINE)
    assert len(quoted) > 15
    raised = "\n".join(message.text for message in found)
    printed = (ROOT / "everest_cli" / "main.py").read_text()  # a lost process is no error of a user
    assert [text for text in quoted if text not in raised and text not in printed] == []


def test_the_matrix_has_every_backbone_and_kind_of_weights():
    first = {(weights.method, weights.layout): weights.name for weights in reversed(read_public_weights())}
    assert list(MATRIX["backbones"]) == list(BACKBONES)
    assert list(MATRIX["weights"]) == list(reversed(first.values()))
    assert {tuple(row) for table in MATRIX.values() for row in table.values()} == {COLUMNS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-tiny", "hf:MCG-NJU/videomae-base-finetuned-kinetics"])
def test_the_matrix_is_what_the_commands_do(name: str):
    script = ROOT / "benchmarks" / "support_matrix.py"
    ended = subprocess.run(
        [sys.executable, script, "--check", "--only", name], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module(name)


def test_the_example_of_a_strategy_computes_a_loss(monkeypatch: pytest.MonkeyPatch):
    assert 0.5 < example("own_strategy", monkeypatch).main() < 2  # of normalized pixels of noise


def test_the_example_of_an_encoder_has_an_answer_for_each_clip(monkeypatch: pytest.MonkeyPatch):
    assert example("encoder_in_a_project", monkeypatch).main() == (2, 3)


@pytest.mark.slow
def test_the_example_with_own_data_trains_and_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    top1 = example("own_data", monkeypatch).main(tmp_path)
    assert top1 in (0, 25, 50, 75, 100)
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 9  # a head, two animals with four videos


def test_the_cells_of_the_notebook_run_and_hold_no_output():
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in code)
    names: dict[str, object] = {}
    for cell in code:
        exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
    assert "probabilities" in names


def test_every_page_is_in_the_navigation():
    trees = "".join(re.findall(r"```{toctree}(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL))
    listed = set(re.findall(r"^(?:.* <)?([\w/-]+)>?$", trees, re.MULTILINE))
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert listed == pages - {"index"}


def dead_links(site: Path) -> list[str]:
    """The links of all pages that lead to no file or to no place in a page."""
    texts = {page: page.read_text() for page in site.rglob("*.html")}
    places = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in texts.items()}
    dead = []
    for page, text in texts.items():
        for link in map(unescape, re.findall(r'href="(?![a-z]+:)([^"?]+)"', text)):
            path, _, place = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (place and place not in places.get(target, {place})):
                dead.append(f"{page.relative_to(site)}: {link}")
    return dead


@pytest.mark.slow
def test_the_site_builds_without_a_warning_a_dead_link_or_the_network(tmp_path: Path):
    command = [sys.executable, "-m", "sphinx", "-c", DOCS / "sphinx", "-W", "--quiet", DOCS, tmp_path]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert dead_links(tmp_path) == []
    index = (tmp_path / "searchindex.js").read_text()
    for word in ("timelin", "memori", "strategi"):  # stems of the search
        assert f'"{word}":' in index
    listed = re.findall(r"\]\((.*?)\)", (tmp_path / "llms.txt").read_text())
    assert len(listed) > 29
    assert all((tmp_path / page).is_file() for page in listed)
    loaded = r'<(?:script|link|img)[^>]+(?:src|href)="https?:'
    assert [page.name for page in tmp_path.rglob("*.html") if re.search(loaded, page.read_text())] == []
