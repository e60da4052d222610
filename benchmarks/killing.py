"""A training command that is killed at a chosen moment, and the phase in which the kill met it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

POLL_SECONDS = 0.0003  # a save of a small state takes a few milliseconds
PATIENCE_SECONDS = 180.0  # for a moment, and for processes to end
START_SECONDS = 6.0  # imports take about this long
MOMENTS = {"start": 2, "first files": 4, "row": 4, "save": 10}  # and how often each is drawn
SIGNALS = {signal.SIGKILL: 8, signal.SIGTERM: 2}


@dataclass(frozen=True, kw_only=True)
class End:
    """How one call of the command ended."""

    code: int  # negative: the signal
    stderr: str
    killed_by: str | None = None  # None: it ended by itself
    phase: str = ""


class Call:
    """A call of the command in a run folder.

    Args:
        environment: of the process; TMPDIR is a folder of the run's.
    """

    def __init__(self, argv: Sequence[str], run: Path, log: Path, environment: dict[str, str]) -> None:
        self.run = run
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "everest_cli", *argv],
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=environment,
                start_new_session=True,
            )

    def finish(self) -> End:
        """Wait for the end of the command."""
        code = self._process.wait(timeout=PATIENCE_SECONDS)
        return End(code=code, stderr=self._log.read_text(errors="replace"))

    def kill(self, rng: Random) -> End:
        """Send a signal at a random moment, and wait until all processes of the call have ended."""
        moment = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
        number = rng.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        if not self._wait_for(moment, rng):
            return self.finish()
        members = [psutil.Process(self._process.pid)]
        try:
            members += members[0].children(recursive=True)
        except psutil.NoSuchProcess:
            return self.finish()
        for member in _victims(members, number, rng):
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        at_once = phase_of(self.run)
        code = self._process.wait(timeout=PATIENCE_SECONDS)  # before psutil, which would take its code
        psutil.wait_procs(members[1:], timeout=PATIENCE_SECONDS)
        # A process that gets another signal may end its step and save.
        phase = at_once if number == signal.SIGKILL else phase_of(self.run)
        stderr = self._log.read_text(errors="replace")
        if code == 0:
            return End(code=0, stderr=stderr)
        return End(code=code, stderr=stderr, killed_by=number.name, phase=phase)

    def _wait_for(self, moment: str, rng: Random) -> bool:
        """Wait for a moment of the run; False if the command ended before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        number, delay = rng.randint(1, 6), rng.random()
        match moment:
            case "start":
                return self._sleep(delay * START_SECONDS)
            case "first files":
                happened, number = _changes(lambda: _stamp(self.run / "env.json")), 1
                delay *= rng.choice((1, 10))
            case "row":
                happened = _changes(lambda: _stamp(self.run / "metrics.jsonl"))
            case _:
                happened = _changes(lambda: _is_saving(self.run))
                number = 2 * number - 1  # every other change is the end of a save
        while number > 0:
            if self._process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.run}: no moment '{moment}' within {PATIENCE_SECONDS:g} s")
            number -= next(happened)
            time.sleep(POLL_SECONDS)
        return self._sleep(delay * (0.003 if moment == "save" else 0.05))

    def _sleep(self, seconds: float) -> bool:
        time.sleep(seconds)
        return self._process.poll() is None


def _victims(members: list[psutil.Process], number: signal.Signals, rng: Random) -> list[psutil.Process]:
    """The command alone, one of the processes that it started, or all of them."""
    if number != signal.SIGKILL or len(members) == 1:
        return members[:1]
    return rng.choice((members[:1], [rng.choice(members[1:])], members))


def _changes(look: Callable[[], object]) -> Iterator[bool]:
    """Whether a look differs from the one before."""
    before = look()
    while True:
        now = look()
        yield now != before
        before = now


def phase_of(run: Path) -> str:
    """The phase in which a run was killed, by the files that it has left."""
    parts = [
        path.name for folder in (run, run / "state") for path in _listed(folder) if path.suffix == ".part"
    ]
    if parts:
        name = parts[0].removeprefix(".").removesuffix(".part")
        return f"in the save of {'a state' if name.startswith('step-') else name}"
    if not run.exists():
        return "before the run folder"
    if not (run / "recipe.yaml").is_file():
        return "before recipe.yaml"
    metrics = run / "metrics.jsonl"
    data = metrics.read_bytes() if metrics.is_file() else b""
    if not data:
        return "before the first step ended"
    if not data.endswith(b"\n"):
        return "in a row of metrics.jsonl"
    states = [path.stem for path in _listed(run / "state") if path.suffix == ".safetensors"]
    saved = max((int(name.removeprefix("step-")) for name in states), default=0)
    return "between two steps, saved" if saved == data.count(b"\n") else "after a step, before its save"


def _is_saving(run: Path) -> bool:
    """Whether weights or a state are being written."""
    names = [path.name for folder in (run, run / "state") for path in _listed(folder)]
    return any(name.endswith(".safetensors.part") for name in names)


def _listed(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
