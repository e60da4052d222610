"""A model as a program of torch.export, which runs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from everest.export.graph import Exportable, about_text, compare, trace
from everest.system.files import write_atomically


def write_program(path: Path, exported: Exportable) -> float:
    """Write a .pt2 file; the largest difference between it, read again, and our model.

    Raises:
        EnvironmentProblem: it computes something else.
    """
    program, differences = trace(exported), []

    def write(part: Path) -> None:
        with part.open("wb") as file:
            torch.export.save(program, file, extra_files=about_text(exported.about))
        with part.open("rb") as file:
            written = torch.export.load(file).module()

        def run(clips: Tensor) -> Sequence[Tensor]:
            return written(clips)

        differences.append(compare(exported, run, what="the written program"))

    write_atomically(path, write)
    return differences[0]
