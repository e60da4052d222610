"""The line "starting" on a terminal while slow modules, such as torch, are imported for the first time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

from everest.system.terminal import writing_to_terminal

SLOW: Final = ("torch", "timm", "accelerate", "sklearn", "scipy", "matplotlib")
CLEARED: Final = "\r\x1b[2K"


class StartingLine(MetaPathFinder):
    """Shows the line while a slow module is imported; finds the modules by the other finders."""

    def __init__(self) -> None:
        self._importing = 0  # slow modules import each other

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in SLOW:
            return None
        found = (each.find_spec(fullname, path, target) for each in sys.meta_path if each is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            vars(spec.loader)["exec_module"] = self._with_line(spec.loader.exec_module)
        return spec

    def _with_line(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            self._show("starting", 1)
            try:
                execute(module)
            finally:
                self._show("", -1)

        return exec_module

    def _show(self, text: str, change: int) -> None:
        self._importing += change
        if self._importing == int(change > 0):  # the first begins, or the last ends
            with writing_to_terminal():
                print(CLEARED + text, end="", file=sys.stderr, flush=True)


def show_starting() -> None:
    """Show the line from now on, if stderr is a terminal whose lines can be cleared and -q is not given."""
    quiet = {"-q", "--quiet"} & set(sys.argv)
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "RANK" not in os.environ and not quiet:
        sys.meta_path.insert(0, StartingLine())


def stop_showing() -> None:
    """Leave the terminal to a progress bar."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, StartingLine)]
