"""The findings of a check, written as they come, so that a check that was killed goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from everest.errors import RecipeError
from everest.prepare.examine import Finding
from everest.system.files import write_error
from everest.video.folders import refusals_told

NAME: Final = "checked_videos.jsonl"
_SYNC_SECONDS: Final = 1.0  # a killed process loses nothing, a machine that loses power at most so much


class Journal:
    """Findings in a file, a line each. Use as a context.

    Raises:
        RecipeError: the file is there and is none.
        EnvironmentProblem: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._synced = 0.0

    def __enter__(self) -> Journal:
        kept = _read(self._path)
        self.findings = {finding.path: finding for finding, _ in kept}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what failed is not written again later.
            self._file: IO[bytes] = self._path.open("ab", buffering=0)
            self._file.truncate(sum(length for _, length in kept))  # half a line that a kill left
        except OSError as error:
            raise write_error(self._path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def known(self, paths: Iterable[str]) -> dict[str, Finding]:
        """What was found of those files that are still the same."""
        return {path: found for path in paths if (found := self.findings.get(path)) and _still_holds(found)}

    def add(self, finding: Finding) -> None:
        """Append a finding."""
        try:
            line = json.dumps(asdict(finding)).encode() + b"\n"
            while line:
                line = line[self._file.write(line) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise write_error(self._path, error) from error


def _read(path: Path) -> list[tuple[Finding, int]]:
    """The whole lines of a journal, and their lengths in bytes."""
    if not path.exists():
        return []
    with refusals_told(path):
        lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    try:
        return [(Finding(**json.loads(line)), len(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: is no journal of a check; remove it, or use --output DIR") from error


def _still_holds(finding: Finding) -> bool:
    try:
        status = Path(finding.path).stat()
    except OSError:
        return False
    return finding.lasting and (status.st_size, status.st_mtime_ns) == (finding.size, finding.modified)
