"""Runs of a tiny model for tests that use one, and commands as a user calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_stages import RECIPE
from typer.testing import CliRunner

from everest_cli.main import app


def called(*arguments: object, code: int = 0) -> Any:
    """What a command said; it must end with `code`."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def small_recipe(folder: Path, clip_files: Path) -> Path:
    """A recipe whose data is the videos of `clip_files`."""
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.replace("data: {", f'data: {{root: "{clip_files}", '))
    return path


def small_run(folder: Path, clip_files: Path, command: str) -> Path:
    """A run folder: a classifier of two classes, or the autoencoder of `pretrain`."""
    options = ["--recipe", small_recipe(folder, clip_files), "-o", folder / command, "-q"]
    called(command, *options, *(["--init", "none"] if command == "finetune" else []))
    return folder / command
