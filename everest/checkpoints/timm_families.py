"""The families of timm's image models, and which of them load: a part of the table of `everest weights`."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from pydantic import ConfigDict, TypeAdapter

from everest.config.yaml import read_yaml

TABLE: Final = Path(__file__).with_suffix(".yaml")
NOT_VIT: Final = "all others"


@dataclass(frozen=True, kw_only=True)
class TimmFamily:
    """Names of timm with weights; the table itself explains its keys."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    family: str
    pattern: str
    names: int
    because: str | None = None

    @property
    def loads(self) -> bool:
        """Whether `--init timm:NAME` reads its names."""
        return self.because is None


def timm_families() -> list[TimmFamily]:
    """The whole table, which docs/timm_table.py makes."""
    return TypeAdapter(list[TimmFamily]).validate_python(read_yaml(TABLE.read_text(), str(TABLE)))


def is_of(name: str, patterns: str) -> bool:
    """Whether one of the patterns, ARCHITECTURE or ARCHITECTURE.TAG, is of a name."""
    architecture, _, tag = name.partition(".")
    for pattern in patterns.split():
        of_architecture, _, of_tag = pattern.partition(".")
        if fnmatchcase(architecture, of_architecture) and fnmatchcase(tag, of_tag or "*"):
            return True
    return False
