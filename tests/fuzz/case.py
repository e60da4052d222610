"""A case: a command, the files that it reads, and what may come of it."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from random import Random
from typing import Any

from .bases import Bases

Check = Callable[[Path, int], str | None]  # (folder of the case, exit code) -> problem


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command line, run inside the folder that `Kind.make` filled.

    Args:
        codes: exit codes that fit the input, besides 0.
        outputs: patterns of paths that the command may write; all other files must stay as they are.
        check: a further condition on the result.
        note: the damage, for the report.
    """

    argv: list[str]
    codes: frozenset[int]
    outputs: tuple[str, ...] = ()
    check: Check | None = None
    note: str = ""

    def is_output(self, path: str) -> bool:
        return any(fnmatch(path, pattern) for pattern in self.outputs)


def case_of(words: str, codes: frozenset[int], *more: str, **others: Any) -> Case:
    """A case of a command line in words; with `-o out` among them, it writes only there."""
    outputs = ("out", "out/*") if " -o out" in words else ()
    return Case(**{"argv": [*words.split(), *more], "codes": codes, "outputs": outputs, **others})


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input.

    Args:
        make: writes the input of a case into a folder.
        share: cases of a full run.
        needs: the names in `Bases` that the cases use.
    """

    name: str
    make: Callable[[Random, Path, Bases], Case]
    share: int
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, order=True)
class CaseId:
    kind: str
    seed: int
    index: int

    def rng(self) -> Random:
        return Random(f"{self.kind} {self.seed} {self.index}")

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}-{self.index}"

    @property
    def command(self) -> str:
        """The command that runs this case alone."""
        return f"python -m tests.fuzz {self.kind} --seed {self.seed} --index {self.index}"
