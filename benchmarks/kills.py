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
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from killing import Call, End
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
train: {{workers: 1, micro_batch: 2, precision: fp32, save_every: 2, keep_states: 2, ema: 0.9}}
pretrain: {{stride: 2, epochs: 10, warmup_epochs: 1, batch_size: 4, base_lr: 0.1}}
finetune: {{stride: 2, epochs: 10, warmup_epochs: 1, batch_size: 4, base_lr: 0.1, drop_path: 0.2, mixup: 0.8}}
"""
COMPARED = ("step", "epoch", "loss", "lr", "grad_norm", "val_top1")  # columns of metrics.jsonl


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
