"""The first minutes on one GPU, in three parts of less than ten minutes each.

    OUT=FOLDER python benchmarks/gpu_first.py A|B|C [--limit 520] [--only NAME,…]

A: checks and eager steps. B: compiled steps. C: videos, the loader, training runs. Every row is written at
once to FOLDER/PART.jsonl, so a part that is stopped loses nothing; an item that fails is a row with its
error. `gpu_page.py` makes the tables of benchmarks/performance.md from these files.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from shutil import disk_usage

import torch
from gpu_cases import COMPILED, EAGER, EVEREST, VIEWS, StepCase, gradients, measure_steps
from gpu_rows import Row, Rows, product, spread
from measuring import HERE, REAL, machine
from torch import Tensor

import everest
from everest.config.recipe import load_recipe
from everest.models.view_model import sigreg
from everest.profiling import timing
from everest.profiling.profile import make_stage_spec
from everest.system.processes import num_cores

ROOT = HERE.parent
CLIP_BYTES = 3 * 16 * 224 * 224
SLOTS = 3  # of the loader's ring, at most as many batches
WARM_UP_STEPS = 8  # rows of metrics.jsonl that are left out: compilation, filling of the ring
STEP_CLIPS_PER_SECOND = 2400.0  # of ViT-B with compiled blocks on an H100, which the loader is compared with

# Makes videos number argv[1] to argv[2]: crops of a real clip if argv[3] is one, else of a drifting blur.
MAKE = """
import sys, torch
from pathlib import Path
from everest.video.reader import read_frames
from everest.video.writer import write_video
torch.set_num_threads(1)
first, last, real, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
blur = torch.nn.functional.interpolate(255 * torch.rand(1, 3, 15, 20), (300, 400), mode="bicubic")
blur = blur.clamp(0, 255).byte()[0].permute(1, 2, 0)  # (300, 400, 3)
drifting = torch.stack([blur.roll((frame, 2 * frame), (0, 1)) for frame in range(150)])
scene = read_frames(real, range(0, 300, 2)) if real.is_file() else drifting
for number in range(first, last):
    generator = torch.Generator().manual_seed(number)
    room = (scene.shape[1] - 240, scene.shape[2] - 320)
    top, left = (int(torch.randint(0, size, (1,), generator=generator)) for size in room)
    crop = scene[:, top : top + 240, left : left + 320].contiguous()
    write_video(folder / f"video{number:04d}.mp4", crop, fps=30, crf=20, gop=12)
"""


def same_as_the_cpu() -> Iterator[Row]:
    """Loss and gradients in float32 on both devices: a wrong kernel shows here."""
    for kind, options in (("pretrain", {}), ("views", {}), ("classifier", {"num_classes": 5})):
        losses, found = [], []
        for device in ("cpu", "cuda"):
            loss, grad = _loss_and_gradients(kind, options, device)
            losses.append(loss)
            found.append(grad)
        yield {"what": kind, "losses": losses, "gradient_error": _error(*found)}
    losses, found = zip(*(_sigreg(device) for device in ("cpu", "cuda")), strict=True)
    yield {"what": "sigreg", "losses": losses, "gradient_error": _error(*found)}


def _sigreg(device: str) -> tuple[float, Tensor]:
    """The value and the gradient for 256 projections to 64 channels."""
    generator = torch.Generator().manual_seed(2)
    projections = torch.randn(256, 64, generator=generator).to(device).requires_grad_()
    directions = torch.nn.functional.normalize(torch.randn(64, 256, generator=generator), dim=0).to(device)
    value = sigreg(projections, directions)
    value.backward()
    assert projections.grad is not None
    return value.item(), projections.grad.cpu()


def _model(kind: str, options: dict[str, int]) -> torch.nn.Module:
    if kind != "views":
        return everest.create_model("vit-tiny", frames=8, size=64, kind=kind, **options)
    small = ["model.backbone=vit-tiny", "data.frames=8", "data.size=64"]
    return make_stage_spec(load_recipe(VIEWS, overrides=small), "pretrain").build()


def _loss_and_gradients(kind: str, options: dict[str, int], device: str) -> tuple[float, Tensor]:
    torch.manual_seed(0)
    model = _model(kind, options).to(device).train()
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(4, 3, 8, 64, 64, generator=generator).to(device)
    noise = torch.rand(4, model.encoder.grid.num_tokens, generator=generator).to(device)
    loss = model(frames).square().mean() if kind == "classifier" else model(frames, noise=noise).loss
    loss.backward()
    grads = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads)


def same_as_not_compiled() -> Iterator[Row]:
    """Loss and gradients of ViT-B with compiled blocks, in bf16."""
    losses, found = [], []
    clips = None
    for compiled in ("no", "blocks"):
        case = StepCase(name="", recipe=EVEREST, backbone="vit-b", batches=(16,), compiled=compiled)
        step = case.build()
        clips = clips or step.clips(16, random=True)
        loss, grad = gradients(step, clips)
        losses.append(loss)
        found.append(grad)
    yield {"what": "compiled blocks", "losses": losses, "gradient_error": _error(*found)}


def _error(expected: Tensor, found: Tensor) -> float:
    """The relative difference, by the norm."""
    return ((expected - found).norm() / expected.norm()).item()


def _python(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """A process of Python that finds this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **options)


@dataclass(frozen=True)
class Videos:
    """H.264 videos of 320x240 with a keyframe every 12 frames, and a list of them.

    Args:
        batch: clips in a batch of the loader.
    """

    folder: Path
    number: int
    batch: int

    def make(self, real: Path) -> Iterator[Row]:
        self.folder.mkdir(parents=True, exist_ok=True)
        began, cores = time.perf_counter(), num_cores()
        share = -(-self.number // cores)
        parts = [(first, min(self.number, first + share)) for first in range(0, self.number, share)]
        processes = [_python("-c", MAKE, *part, real, self.folder.resolve()) for part in parts]
        codes = [process.wait() for process in processes]
        paths = self.paths()
        (self.folder / "train.csv").write_text("".join(f"{path.name} 0\n" for path in paths) * 400)
        size = sum(path.stat().st_size for path in paths)
        yield {
            **{"files": len(paths), "bytes": size, "failed": sum(map(bool, codes))},
            **{"real": real.is_file(), "seconds": time.perf_counter() - began},
        }

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.mp4"))


def _fitting_batch() -> int:
    """Clips of a batch of which the loader's ring fits into the shared memory."""
    free = disk_usage("/dev/shm").free
    return next(
        batch for batch in (256, 128, 64, 32, 16, 8) if batch == 8 or SLOTS * batch * CLIP_BYTES < 0.7 * free
    )


def loader(videos: Videos, workers: int, views: int, seconds: float) -> Iterator[Row]:
    """Clips/s of the loader alone."""
    settings = [f"data.root={videos.folder.resolve()}", "data.train=train.csv", f"train.workers={workers}"]
    recipe = load_recipe("k400", overrides=[*settings, f"pretrain.views_per_decode={views}"])
    timing.LOADER_SECONDS = seconds
    batch = videos.batch
    found = timing.time_loader(recipe, "pretrain", batch=batch, step_clips_per_second=STEP_CLIPS_PER_SECOND)
    yield {"views": views, "batch": batch, **found}


def run(videos: Videos, rows: Rows, name: str, seconds: float, settings: tuple[str, ...]) -> Iterator[Row]:
    """Clips/s and the share of waiting for data of `everest pretrain`, stopped after `seconds`."""
    output, messages = rows.folder / f"run_{name}", rows.folder / f"run_{name}.txt"
    shared = ("data.train=train.csv", "pretrain.epochs=50", "train.save_every=1h")
    batch = (f"pretrain.batch_size={videos.batch}", f"train.micro_batch={videos.batch}")
    given = chain.from_iterable(("--set", setting) for setting in (*shared, *batch, *settings))
    command = ["-m", "everest_cli", "pretrain", "--recipe", "k400", "--data", videos.folder.resolve()]
    with messages.open("w") as errors:
        process = _python(
            *command, "--output", output, "--overwrite", *given, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    metrics = output / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    steps = [row for row in map(json.loads, lines) if "data_wait" in row][WARM_UP_STEPS:]
    figures = ("clips_per_second", "data_wait", "memory_bytes")
    spreads = [spread(key, [row[key] for row in steps]) for key in figures] if steps else []
    last_lines = messages.read_text()[-300:]
    yield (
        {"run": name, "batch": videos.batch, "steps": len(steps), "code": process.returncode}
        | {key: value for one in spreads for key, value in one.items()}
        | {"messages": last_lines}
    )


def measure_data(rows: Rows, *, number: int, batch: int | None, seconds: float, run_seconds: float) -> None:
    """Write the rows of all of it.

    Args:
        number: of videos.
        batch: clips in a batch; None: as many as fit into the shared memory, at most 256.
    """
    videos = Videos(rows.folder / "videos", number, batch or _fitting_batch())
    workers = max(1, num_cores() - 1)
    rows.run("videos", partial(videos.make, REAL), needs=60)
    for processes, views in ((8, 1), (workers, 1), (workers, 4)):
        work = partial(loader, videos, processes, views, 10 * seconds)
        rows.run(f"loader {processes} workers, {views} views", work, needs=20 * seconds)
    one, four = (f"train.workers={workers}",), (f"train.workers={workers}", "pretrain.views_per_decode=4")
    for name, settings, longer in (
        ("1_view", (*one, "train.compile=false"), 0.0),
        ("4_views", (*four, "train.compile=false"), 0.0),
        ("4_views_blocks", (*four, "train.compile=auto"), 40.0),
    ):
        lasts = run_seconds + longer
        work = partial(run, videos, rows, name, lasts, settings)
        rows.run(f"run {name}", work, needs=lasts + 40)


def part_a(rows: Rows, seconds: float) -> None:
    rows.run("same as the CPU", same_as_the_cpu, needs=15)
    measure_steps(rows, EAGER, 2 * seconds)


def part_b(rows: Rows, seconds: float) -> None:
    rows.run("product", lambda: iter([product(8192, torch.bfloat16, seconds=seconds)]))
    rows.run("same as not compiled", same_as_not_compiled, needs=40)
    measure_steps(rows, COMPILED, 2 * seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("A", "B", "C"))
    parser.add_argument("--limit", type=float, default=520.0, help="seconds after which no item begins")
    parser.add_argument("--seconds", type=float, default=1.0, help="of an ordinary measurement")
    parser.add_argument("--only", help="beginnings of the names of items, with commas")
    parser.add_argument("--videos", type=int, default=320)
    parser.add_argument("--batch", type=int, help="clips in a batch of part C, by default up to 256")
    parser.add_argument("--run-seconds", type=float, default=70.0, help="of each training run")
    options = parser.parse_args()
    path = Path(os.environ.get("OUT", ".")) / f"{options.part}.jsonl"
    rows = Rows(path, limit=options.limit, only=options.only.split(",") if options.only else ())
    rows.run("machine", lambda: iter([machine()]))
    if options.part == "A":
        part_a(rows, options.seconds)
    elif options.part == "B":
        part_b(rows, options.seconds)
    else:
        lasts = {"seconds": options.seconds, "run_seconds": options.run_seconds}
        measure_data(rows, number=options.videos, batch=options.batch, **lasts)


if __name__ == "__main__":
    main()
