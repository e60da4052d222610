"""A tiny recipe for `everest profile`, and a call of the command."""

from __future__ import annotations

from typer.testing import CliRunner

from everest_cli.main import app

TINY = (
    "model.backbone=vit-tiny",
    "model.tubelet=[2, 8, 8]",
    "data.frames=4",
    "data.size=32",
    "model.depth=2",
)


def run(*arguments: str):
    return CliRunner().invoke(app, ["profile", *arguments])
