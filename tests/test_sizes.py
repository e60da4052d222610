"""The sizes that docs/architecture.md allows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
ROW = re.compile(r"^\| ((?:`[\w/*.]+`(?:, )?)+) \| ([\d,]+) \|", re.MULTILINE)
LIMITS = {names: int(most.replace(",", "")) for names, most in ROW.findall(PAGE)}


def lines_of(pattern: str) -> int:
    """The lines of a file, of the files of a pattern, or of all Python files below a folder."""
    path = ROOT / pattern
    files = path.rglob("*.py") if path.is_dir() else ROOT.glob(pattern)
    return sum(file.read_text("utf-8").count("\n") for file in files)


@pytest.mark.parametrize("names", LIMITS)
def test_a_package_has_no_more_lines_than_its_row_says(names: str):
    assert sum(map(lines_of, re.findall(r"`(.+?)`", names))) <= LIMITS[names]


def test_every_package_of_both_houses_has_a_row():
    named = {name for names in LIMITS for name in re.findall(r"`(.+?)`", names)}
    for house in ("everest", "everest_workflows"):
        packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / house).glob("*/__init__.py")}
        assert packages <= named
        assert house in named
