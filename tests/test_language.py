"""What the project writes uses the words of the field: no retired word of `support/retired_words.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from retired_words import files, in_file, in_help, in_python, in_settings
from typer.main import get_command
from typer.testing import CliRunner

from everest_cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", "docs", "benchmarks", "recipes"]
LIBRARY = [
    "everest",  # the files at the root only
    *(f"everest/{folder.parent.name}" for folder in sorted((ROOT / "everest").glob("*/__init__.py"))),
    "everest_cli",
    *(["everest_demo"] if (ROOT / "everest_demo").is_dir() else []),
]


def commands() -> list[tuple[str, ...]]:
    """The words of every command and group, `()` for the whole program."""
    found, waiting = [], [((), get_command(app))]
    while waiting:
        words, command = waiting.pop()
        found.append(words)
        waiting += [((*words, name), child) for name, child in getattr(command, "commands", {}).items()]
    return sorted(found)


def retired(paths: list[Path], *suffixes: str) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{hit}"
        for file in files(paths)
        if file.suffix in suffixes
        for hit in in_file(file)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_pages_use_no_retired_word(page: str):
    hits = retired([ROOT / page], ".md", ".yaml", ".toml", ".py")
    assert not hits, "\n".join(["", *hits])


@pytest.mark.parametrize("folder", LIBRARY)
def test_code_uses_no_retired_word(folder: str):
    path = ROOT / folder
    paths = sorted(path.glob("*.py")) if folder == "everest" else [path]
    hits = retired(paths, ".py", ".html")
    assert not hits, "\n".join(["", *hits])


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words) or "everest")
def test_help_uses_no_retired_word(words: tuple[str, ...]):
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100"})
    assert shown.exit_code == 0, shown.output
    hits = [f"everest {' '.join(words)} --help:{hit}" for hit in in_help(shown.output)]
    assert not hits, "\n".join(["", *hits])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('x = "Every problem is told."', ["told"]),
        ('x = f"{told} {count} videos lie here"', ["lie"]),
        ('raise Error("goes "\n            "on")', ["goes on"]),
        ("# labels\n# stand here\nasked_for = 1", ["stand", "asked_for"]),
        ('def f():\n    """What a run costs, for its own videos."""', ["What"]),
        ('x = {"told": 1, "deviation": 2}', []),
        ('x = "the `told` of your own videos; standard deviation; next to T, which stands for time"', []),
        ("class Place: ...", ["class Place"]),
        ('x = "What does it cost? See normalise(x) and everest.normalise."', []),
        ('x = "normalised colours of own\\nvideos"', ["normalised", "colours", "own videos"]),
    ],
)
def test_the_checker_finds_words_in_code(text: str, words: list[str]):
    assert sorted(hit.word for hit in in_python(text)) == sorted(words)


def test_the_checker_names_the_line():
    hits = list(in_settings("summary: fine\ndata: {}  # the\n# deviation\nmodel: {told: 1}\n"))
    assert [str(hit) for hit in hits] == ["3: deviation → std, difference"]


def test_the_checker_reads_folders(tmp_path: Path):
    page = "Told.\n\n```sh\neverest told  # told\n```\n`told`\n\n## What is new?\n"
    (tmp_path / "page.md").write_text(page)
    (tmp_path / "told.txt").write_text("told")
    hits = [str(hit).split(" →")[0] for file in files([tmp_path]) for hit in in_file(file)]
    assert hits == ["1: Told", "4: told"]
