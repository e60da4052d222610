"""Kills real training runs at random moments, resumes them, and compares the weights with unbroken runs.

    python benchmarks/kills.py --kills 100 --seed 0 --processes 1,2

Tiny runs of `pretrain` and `finetune` on rendered clips are killed (SIGKILL, sometimes SIGTERM)
while they start, in steps and in saves, and the same command is repeated until the run ends. The final
weights must be equal to the bit, and the logged losses as well. The script ends with code 1 if they are not,
or if a run cannot be resumed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import torch
from measuring import markdown
from safetensors.torch import load_file

from everest.system.run_folder import RunFolder
from everest.video.writer import write_video

STAGES = ("pretrain", "finetune")
KILLS_OF_RUN = 7  # at most; then the run may end
RECIPE = """
data: {{root: "{clips}", num_classes: 2, frames: 4, size: 32, val: train.csv, test: train.csv}}
model: {{backbone: vit-tiny, tubelet: [2, 8, 8], width: 128, depth: 2, heads: 2, decoder_width: 64,
        decoder_heads: 2, decoder_depth: 1}}
train: {{workers: 1, micro_batch: 2, precision: fp32, save_every: 2, ema: 0.9}}
pretrain: {{stride: 2, epochs: 10, warmup_epochs: 1, batch_size: 4, base_lr: 0.1}}
finetune: {{stride: 2, epochs: 10, warmup_epochs: 1, batch_size: 4, base_lr: 0.1, drop_path: 0.2, mixup: 0.8}}
"""
COMPARED = ("step", "epoch", "loss", "lr", "grad_norm", "val_top1")  # columns of metrics.jsonl
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


@dataclass(kw_only=True)
class Killed:
    """A run with its kills."""

    stage: str
    processes: int
    kills: list[End] = field(default_factory=list)
    refused: str | None = None  # the message of a call that did not resume the run
    equal: bool | None = None  # to the unbroken run; None: not finished
    leftovers: list[str] = field(default_factory=list)  # files that a finished run should not leave


class Killer:
    """Makes the input, the unbroken runs, and the killed ones below `folder`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self._seed = seed
        self._whole: dict[tuple[str, int], Path] = {}
        clips = folder / "clips"
        clips.mkdir(parents=True)
        _write_clips(clips)
        (folder / "recipe.yaml").write_text(RECIPE.format(clips=clips))

    def run(self, number: int, stage: str, processes: int, *, kills: int) -> Killed:
        """Kill run `number` up to `kills` times, let it end, and compare it with the unbroken one."""
        rng, whole = Random(f"{self._seed} {number}"), self.unbroken(stage, processes)
        place = Path(tempfile.mkdtemp(prefix=f"{stage}-{processes}-", dir=self.folder))
        killed = Killed(stage=stage, processes=processes)
        while True:
            call = self._call(stage, processes, place)
            last = len(killed.kills) >= kills
            end = call.finish() if last else call.kill(rng)
            if end.killed_by is None:
                break
            killed.kills.append(end)
        if end.code:
            killed.refused = _last_lines(end)
            return killed
        killed.equal = _same(whole / "run", place / "run")
        killed.leftovers = leftovers(place, whole)
        shutil.rmtree(place)
        return killed

    def unbroken(self, stage: str, processes: int) -> Path:
        """The place of the unbroken run, which the first call makes."""
        key = (stage, processes)
        if key not in self._whole:
            place = self.folder / f"whole-{stage}-{processes}"
            place.mkdir()
            end = self._call(stage, processes, place).finish()
            if end.code:
                raise RuntimeError(f"the unbroken run of {stage} failed: {_last_lines(end)}")
            self._whole[key] = place
        return self._whole[key]

    def _call(self, stage: str, processes: int, place: Path) -> Call:
        temporary = place / "tmp"
        temporary.mkdir(exist_ok=True)
        argv = [stage, "--recipe", str(self.folder / "recipe.yaml"), "-o", str(place / "run"), "-q"]
        if stage == "finetune":
            argv += ["--init", str(self.unbroken("pretrain", 1) / "run")]
        argv += ["--gpus", "cpu", "--processes", str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
        return Call(argv, place / "run", place / "log.txt", environment)


def _write_clips(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(8):
        pattern = torch.randint(0, 256, (6, 8, 3), generator=generator, dtype=torch.uint8)
        pattern = pattern.repeat_interleave(8, 0).repeat_interleave(8, 1)  # (48, 64, 3)
        frames = torch.stack([pattern.roll(frame * (number + 1), dims=1) for frame in range(16)])
        write_video(folder / f"clip{number}.mp4", frames, fps=16)
    (folder / "train.csv").write_text("".join(f"clip{i}.mp4 {i % 2}\n" for i in range(8)))


def _same(first: Path, second: Path) -> bool:
    """Whether weights, best weights and logged numbers of two runs are equal to the bit."""
    for name in ("model.safetensors", "best.safetensors"):
        files = [run / name for run in (first, second) if (run / name).is_file()]
        if len(files) == 1:
            return False
        if files:
            one, other = map(load_file, files)
            if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
                return False
    rows = [[{k: row.get(k) for k in COMPARED} for row in RunFolder(run).rows()] for run in (first, second)]
    return rows[0] == rows[1]


def leftovers(place: Path, whole: Path) -> list[str]:
    """Files of a run that the unbroken one does not have, and temporary files except torch's cache."""
    run, temporary = _names(place / "run") - _names(whole / "run"), _names(place / "tmp")
    return sorted([*run, *(name for name in temporary if not name.startswith("torchinductor_"))])


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _last_lines(end: End) -> str:
    return f"exit code {end.code}: {end.stderr.strip()[-600:]}"


def kill_runs(folder: Path, *, kills: int, seed: int, processes: Sequence[int], jobs: int) -> dict[str, Any]:
    """Kill runs of all stages in turns, `kills` times in all, `jobs` runs at a time."""
    killer = Killer(folder, seed)
    kinds = [(stage, number) for number in processes for stage in STAGES]
    for kind in kinds:  # before the threads, which share them
        killer.unbroken(*kind)
    runs: list[Killed] = []
    with ThreadPoolExecutor(jobs) as pool:
        while (left := kills - sum(len(run.kills) for run in runs)) > 0:
            calls = []
            while left > 0:
                number = len(runs) + len(calls)
                most = min(left, 1 + number % KILLS_OF_RUN)
                calls.append(pool.submit(killer.run, number, *kinds[number % len(kinds)], kills=most))
                left -= most
            for call in as_completed(calls):
                runs.append(call.result())
                _progress(runs, kills)
    ends = [end for run in runs for end in run.kills]
    left_over = (re.sub(r"(pymp|listener)-\w+", r"\1-…", name) for run in runs for name in run.leftovers)
    return {
        "kills": len(ends),
        "runs": len(runs),
        "unequal": sum(run.equal is False for run in runs),
        "refused": [run.refused for run in runs if run.refused],
        "leftovers": dict(Counter(left_over)),
        "tracebacks": sum("Traceback" in end.stderr and end.killed_by != "SIGKILL" for end in ends),
        "phases": dict(Counter(f"{end.phase} ({end.killed_by})" for end in ends).most_common()),
    }


def _progress(runs: Sequence[Killed], kills: int) -> None:
    run, done = runs[-1], sum(len(run.kills) for run in runs)
    result = "refused" if run.refused else "equal" if run.equal else "NOT EQUAL"
    text = f"{run.stage}, {run.processes} processes, killed {len(run.kills)} times: {result}"
    print(f"{done}/{kills} kills; {text}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", default="1,2", help="numbers of processes, in turns [1,2]")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time [2]")
    options = vars(parser.parse_args())
    options["processes"] = [int(part) for part in options["processes"].split(",")]
    with tempfile.TemporaryDirectory(prefix="everest-kills-") as folder:
        found = kill_runs(Path(folder), **options)
    phases = found.pop("phases")
    print(markdown(["phase and signal", "kills"], [[name, str(count)] for name, count in phases.items()]))
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n")
    if found["unequal"] or found["refused"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
