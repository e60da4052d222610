"""What a command may do: end with a documented code and a short message, and leave other files alone."""

import hashlib
import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from .case import Case, CaseId

LONGEST_MESSAGE = 2000  # characters on stderr of a command that fails
MOST_LINES = 25
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


@dataclass(kw_only=True)
class Outcome:
    """How a case ended. `code` is None if it hung or ended its process."""

    id: CaseId
    argv: list[str]
    code: int | None
    problems: list[str] = field(default_factory=list)
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0  # of the resident memory, above that before the case
    note: str = ""

    @property
    def key(self) -> str:
        """Equal for failures of one cause: the innermost own line of a traceback, else the problem."""
        note = f" ({self.note})" if self.note else ""
        return traceback_end(self.stderr) or (self.problems[0] + note if self.problems else "")

    def __str__(self) -> str:
        problems = [f"PROBLEM: {problem}" for problem in self.problems] or ["no problem"]
        command = f"everest {' '.join(self.argv)}\nexit code {self.code}, {self.seconds:.2f} s"
        return "\n".join([self.id.command, command, self.stdout[:2000], self.stderr[-6000:], *problems])


def traceback_end(stderr: str) -> str:
    """The innermost own line of a traceback and the kind of error; empty without a traceback."""
    if "Traceback (most recent call last)" not in stderr:
        return ""
    frames = _FRAME.findall(stderr)
    own = [frame for frame in frames if "/everest" in frame[0] and "site-packages" not in frame[0]]
    errors = re.findall(r"^([\w.]+(?:Error|Exception|Interrupt|Exit))\b", stderr, flags=re.MULTILINE)
    if not frames or not errors:
        return "a traceback without an end"
    file, line, function = (own or frames)[-1]
    return f"{'/'.join(Path(file).parts[-3:])}:{line} in {function}: {errors[-1]}"


Snapshot = dict[str, tuple[int, str]]  # path -> (mode, digest)


def snapshot(folder: Path) -> Snapshot:
    """All files and folders below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = str(path.readlink())
        elif stat.S_ISREG(mode):
            content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        else:
            content = ""
        found[str(path.relative_to(folder))] = (mode, content)
    return found


def problems_of(case: Case, outcome: Outcome, folder: Path, before: Snapshot) -> list[str]:
    """Everything that a command must not do."""
    code, stderr = outcome.code, outcome.stderr
    problems = []
    if "Traceback" in stderr:
        problems.append("traceback")
    warning = re.search(r"^\S+:\d+: \w*Warning: .*", stderr, flags=re.MULTILINE)
    if warning:
        problems.append(f"Python's warning on stderr: {_shape(warning[0])}")
    if code:
        if code not in case.codes:
            problems.append(f"exit code {code}: {_first_line(stderr)}")
        if not stderr.strip():
            problems.append("fails without a message")
        if len(stderr) > LONGEST_MESSAGE or len(stderr.splitlines()) > MOST_LINES:
            problems.append(f"long message: {_first_line(stderr)}")
    if "--json" in case.argv and outcome.stdout.strip():
        try:
            json.loads(outcome.stdout, parse_constant=_no_constant)
        except ValueError as error:
            problems.append(f"stdout is not JSON: {str(error)[:60]}")
    problems += _problems_of_files(case, code, before, snapshot(folder))
    if case.check is not None and code is not None:
        problem = case.check(folder, code)
        problems += [problem] if problem else []
    return problems


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _problems_of_files(case: Case, code: int | None, before: Snapshot, after: Snapshot) -> list[str]:
    problems = []
    for path, content in before.items():
        if not case.is_output(path) and after.get(path) != content:
            problems.append(f"input {'removed' if path not in after else 'changed'}: {_shape(path)}")
        elif path not in after and code in (2, 5, 6):
            problems.append(f"a failed command removed {_shape(path)}")
    for path in after.keys() - before.keys():
        name = Path(path).name
        if name.endswith((".part", ".lock", ".tmp")) or name.startswith("pymp-"):
            problems.append(f"leftover {_shape(path)}")
        elif not case.is_output(path):
            problems.append(f"new file {_shape(path)}")
    return problems


def _shape(path: str) -> str:
    """A path without its numbers, so that equal failures look equal."""
    return re.sub(r"\d+", "N", path)[:80]


def _first_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("error:")] or stderr.splitlines() or [""]
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", lines[0])[:100]
