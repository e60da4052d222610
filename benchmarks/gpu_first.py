"""The first ten minutes on one GPU: is it right, how fast is a step, and do videos come fast enough?

    python benchmarks/gpu_first.py [--out FOLDER] [--limit 540] [--only NAME,…] [--cpu]

In this order: machine and ceilings, losses and gradients against the CPU, steps without compilation, steps
with compiled blocks, the loader, training runs. Every row is written at once to FOLDER/gpu_first.jsonl, so a
call that is stopped loses nothing; an item that fails is a row with its error. The table of the steps is
printed at the end and written to FOLDER/gpu_first.md. `--cpu` runs all of it with tiny models on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from shutil import disk_usage
from typing import Any, Literal, cast

import torch
from measuring import HERE, REAL, machine, markdown
from plain_step import pretraining_loss
from steps import transformers_videomae
from torch import Tensor, nn

from everest.config.recipe import load_recipe
from everest.data.clip_dataset import StepSampler
from everest.data.loader import divide_batches, read_batches
from everest.data.recipe_clips import pretrain_dataset
from everest.engine.network import PlainTraining
from everest.engine.step import set_lr
from everest.models.mae import MaskedAutoencoder
from everest.profiling.profile import make_stage_spec
from everest.system.accelerator import make_accelerator
from everest.system.processes import num_cores
from everest.video.pixels import normalize

Row = dict[str, Any]

CLIP_BYTES = 3 * 16 * 224 * 224
SLOTS = 3  # of the loader's ring, at most as many batches
WARM_UP = 3  # steps: compilation, choice of kernels, moments of AdamW
WARM_UP_ROWS = 8  # of metrics.jsonl that are left out: compilation, filling of the ring
EVEREST, VIDEOMAE, VIEWS = "k400", "videomae-k400", "views"
TINY = ("model.width=32", "model.depth=2", "model.heads=2", "data.size=32", "data.frames=4")
TINY += ("model.tubelet=[2, 8, 8]",)

# Forward and backward pass of one clip, counted on shapes (benchmarks/steps.py, PyTorch 2.15); for ViT-S and
# ViT-B also in benchmarks/performance.md.
GFLOP = {
    (EVEREST, "vit-s"): 30.9,
    (EVEREST, "vit-b"): 110.9,
    (EVEREST, "vit-l"): 337.1,
    (VIDEOMAE, "vit-s"): 67.0,
    (VIDEOMAE, "vit-b"): 207.6,
    (VIEWS, "vit-b"): 332.2,  # a view of a quarter of the tokens, and the still frame of the camera task
}

# Makes videos number argv[1] to argv[2] of crops of a real clip if argv[3] is one, else of a drifting blur.
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


class Rows:
    """A file of rows, each written at once. An item that fails is a row with its error.

    Args:
        limit: seconds after which no item begins.
        only: beginnings of the names of the items that run; none: all.
    """

    def __init__(self, path: Path, *, limit: float, only: Sequence[str] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.folder = path.parent
        self.written: list[Row] = []
        self._path, self._limit, self._only = path, limit, tuple(only)
        self._began = time.perf_counter()

    def put(self, item: str, row: Row) -> None:
        whole = {"item": item, "at": round(time.perf_counter() - self._began, 1), **row}
        self.written.append(whole)
        with self._path.open("a") as file:
            file.write(json.dumps(whole) + "\n")
        print(whole, flush=True)

    def run(self, item: str, rows: Callable[[], Iterable[Row]], *, needs: float = 5.0) -> None:
        """Write the rows of an item; `needs` are the seconds that must be left."""
        if self._only and not item.startswith(self._only):
            return
        if time.perf_counter() - self._began + needs > self._limit:
            return self.put(item, {"skipped": f"fewer than {needs:g} s are left"})
        try:
            for row in rows():
                self.put(item, row)
        except Exception as error:  # the next item runs
            self.put(item, {"error": repr(error)[:600], "where": traceback.format_exc()[-700:]})
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


def spread(name: str, values: Iterable[float]) -> dict[str, float]:
    """The median, the 10th and the 90th percentile."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    ends = {f"{name}_p10": ordered[tenth], f"{name}_p90": ordered[-1 - tenth]}
    return {name: statistics.median(ordered), **ends}


@dataclass(frozen=True)
class Device:
    """Where everything is measured, and for how long."""

    device: torch.device
    seconds: float  # of an ordinary measurement

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _stamp(self) -> Any:
        """The present moment: of a GPU, when its queue comes to it."""
        if not self.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, work: Callable[[], object], *, warm_up: int = WARM_UP, most: int = 200) -> Row:
        """Milliseconds of a call: by events of a GPU, which queues calls as in training, or by the clock."""
        for _ in range(warm_up):
            work()
        stamps, began = [self._stamp()], time.perf_counter()
        while len(stamps) < 6 or (_since(began) < self.seconds and len(stamps) <= most):
            work()
            stamps.append(self._stamp())
            if self.is_gpu and len(stamps) % 8 == 0:  # otherwise calls queue for much longer than `seconds`
                torch.cuda.synchronize()
        if self.is_gpu:
            torch.cuda.synchronize()
            ms = [start.elapsed_time(end) for start, end in pairwise(stamps)]
        else:
            ms = [1000 * (end - start) for start, end in pairwise(stamps)]
        return {**spread("ms", ms), "calls": len(ms)}


def ceilings(on: Device) -> Iterator[Row]:
    """What the device can do: products, copies within it and to it, and the launch of a kernel."""
    size = 8192 if on.is_gpu else 256
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=on.device, dtype=dtype) for _ in range(2))
        times = on.timed(lambda a=a, b=b: a @ b)
        yield {"what": f"product {name}", "tflops": 2 * size**3 / times["ms"] / 1e9, **times}
    count = 256 * CLIP_BYTES if on.is_gpu else 2**20
    there = torch.empty(count, dtype=torch.uint8, device=on.device)
    times = on.timed(partial(torch.empty_like(there).copy_, there))
    yield {"what": "copy", "tb_per_second": 2 * count / times["ms"] / 1e9, **times}
    for pinned in (True, False) if on.is_gpu else ():
        here = torch.empty(count, dtype=torch.uint8, pin_memory=pinned)
        times = on.timed(lambda here=here: there.copy_(here, non_blocking=True), most=20)
        what = f"256 clips to the GPU, {'pinned' if pinned else 'pageable'}"
        yield {"what": what, "gb_per_second": count / times["ms"] / 1e6, **times}
    small = torch.zeros(1, device=on.device)
    yield {"what": "20 small kernels", **on.timed(lambda: [small.add_(1) for _ in range(20)])}


def same_as_the_cpu(on: Device) -> Iterator[Row]:
    """Loss and gradients in float32 on both devices: a wrong kernel shows here."""
    for recipe in (EVEREST, VIDEOMAE, VIEWS):
        losses, found = [], []
        spec = make_stage_spec(load_recipe(recipe, overrides=["model.backbone=vit-tiny", *TINY]), "pretrain")
        for device in (torch.device("cpu"), on.device):
            torch.manual_seed(0)
            model = spec.build().to(device).train()
            generator = torch.Generator().manual_seed(1)
            shape = (4, spec.channels, spec.candidate_frames, *spec.size)
            frames = torch.randn(shape, generator=generator).to(device)
            noise = torch.rand(4, model.noise_layout.total, generator=generator).to(device)
            loss = model(frames, noise=noise).loss
            loss.backward()
            grads = [weight.grad.flatten().cpu() for weight in model.parameters() if weight.grad is not None]
            losses.append(loss.item())
            found.append(torch.cat(grads))
        error = ((found[0] - found[1]).norm() / found[0].norm()).item()
        yield {"what": recipe, "losses": losses, "gradient_error": error}


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """A model, how its step runs, and its batches in ascending order.

    Args:
        code: whose model it is; the update is everest's for all.
        compiled: whether blocks are compiled, by `train.compile=auto`.
        needs: seconds for all batches, as far as they can be estimated.
    """

    name: str
    recipe: str
    backbone: str
    batches: tuple[int, ...]
    code: Literal["everest", "plain", "transformers"] = "everest"
    compiled: bool = False
    overrides: tuple[str, ...] = ()
    needs: float = 20.0


class TrainingStep:
    """The loss, the backward pass and the update of a case, on random bytes."""

    def __init__(self, case: StepCase, on: Device) -> None:
        size = () if on.is_gpu else TINY
        compiled = f"train.compile={'auto' if case.compiled and on.is_gpu else 'false'}"
        overrides = [f"model.backbone={case.backbone}", compiled, *size, *case.overrides]
        recipe = load_recipe(case.recipe, overrides=overrides)
        self.spec, self._code, self._on = make_stage_spec(recipe, "pretrain"), case.code, on
        self.accelerator = make_accelerator(recipe.train.precision, cpu=not on.is_gpu)
        torch.manual_seed(0)
        self._is_own = self._code == "transformers" and on.is_gpu  # its clips are 16 x 224 x 224
        self.model = transformers_videomae(case.backbone) if self._is_own else self.spec.build()
        self.model.to(on.device).train()
        self._training = PlainTraining(self.accelerator, self.model, recipe.pretrain, recipe.train)
        set_lr(self._training.network.optimizer, 1e-6)  # small: the weights remain near their start

    def clips(self, batch: int) -> tuple[Tensor, Tensor]:
        """Frames (B, C, T, H, W) of random bytes, and the noise (B, N) of their selection."""
        shape = (batch, self.spec.channels, self.spec.candidate_frames, *self.spec.size)
        device = self._on.device
        frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        return frames, torch.rand(batch, self.spec.noise_layout.total, device=device)

    def run(self, frames: Tensor, noise: Tensor) -> Tensor:
        """One step. Returns the loss, on the device."""
        if self._is_own:
            with self.accelerator.autocast():
                loss = self.model(normalize(frames).transpose(1, 2), bool_masked_pos=self._tube(noise)).loss
        elif self._code == "plain":
            with self.accelerator.autocast():
                loss = pretraining_loss(cast(MaskedAutoencoder, self.model), normalize(frames), noise)
        else:
            loss = self._training.model(frames, noise=noise).loss
        self._training.step(loss)
        return loss.detach()

    def _tube(self, noise: Tensor) -> Tensor:
        """VideoMAE's tube of 90 % (B, 1568): true is masked."""
        masked = noise[:1, :196].argsort(dim=1) >= 20
        return masked.repeat(len(noise), 8)


def measure(case: StepCase, on: Device, peak_tflops: float | None) -> Iterator[Row]:
    """A row for each batch: times, the fraction of the peak, memory, and whether the host waits.

    The memory of a clip is the growth of the peak since the batch before: weights and gradients drop out.
    """
    began = time.perf_counter()
    step = TrainingStep(case, on)
    before: tuple[int, int] | None = None  # the batch before, and its peak without what rests
    for batch in case.batches if on.is_gpu else (2,):
        clips = step.clips(batch)
        loss, first = step.run(*clips).item(), time.perf_counter() - began
        for _ in range(WARM_UP):
            step.run(*clips)
        peak, moving = _peak_bytes(step, clips) if on.is_gpu else (0, 0)
        waits = _find_waits(step, clips) if on.is_gpu else None
        times = on.timed(lambda step=step, clips=clips: step.run(*clips), warm_up=0)
        flop = GFLOP.get((case.recipe, case.backbone))
        tflops = batch * flop / times["ms"] if flop and on.is_gpu else None
        yield {
            **{"case": case.name, "batch": batch, "compiled": case.compiled, "loss": loss, **times},
            **{"waits": waits, "first_seconds": first, "clips_per_second": batch / times["ms"] * 1e3},
            **{"tflops": tflops, "of_peak": tflops / peak_tflops if tflops and peak_tflops else None},
            "peak_memory_bytes": peak,
            "memory_bytes_per_clip": (moving - before[1]) / (batch - before[0]) if before else None,
        }
        before = (batch, moving)
        del clips
        began = time.perf_counter()


def _peak_bytes(step: TrainingStep, clips: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """The most memory of a step, by torch's allocator: in all, and without weights, moments and clips."""
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step.run(*clips)
    peak = torch.cuda.max_memory_allocated()
    return peak, peak - resting


def _find_waits(step: TrainingStep, clips: tuple[Tensor, Tensor]) -> str | None:
    """Why the host waits for the device in a step, or None."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run(*clips)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        nn.Module.zero_grad(step.model)
        return str(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def _case(name: str, recipe: str, size: str, *batches: int, **options: Any) -> StepCase:
    return StepCase(name=name, recipe=recipe, backbone=f"vit-{size}", batches=batches, **options)


CASES = (
    _case("everest-b", EVEREST, "b", 64, 256, needs=30),
    _case("everest-s", EVEREST, "s", 256),
    _case("everest-l", EVEREST, "l", 128),
    _case("videomae-b", VIDEOMAE, "b", 64, 256, needs=30),
    _case("views-b", VIEWS, "b", 256),
    _case("checkpointing-b", EVEREST, "b", 128, 256, overrides=("train.checkpointing=true",)),
    _case("plain-everest-b", EVEREST, "b", 64, code="plain"),
    _case("plain-videomae-b", VIDEOMAE, "b", 64, code="plain"),
    _case("transformers-videomae-b", VIDEOMAE, "b", 64, code="transformers"),
    _case("everest-b", EVEREST, "b", 256, compiled=True, needs=50),
    _case("everest-s", EVEREST, "s", 256, compiled=True, needs=40),
    _case("views-b", VIEWS, "b", 256, compiled=True, needs=60),
    _case("videomae-b", VIDEOMAE, "b", 256, compiled=True, needs=50),
)


def step_table(rows: Sequence[Row]) -> str:
    """The table of the steps, and the items that failed."""
    head = ["step", "batch", "compiled", "ms, median (p10-p90)", "clips/s", "fraction of the peak"]
    head += ["peak memory (GB)", "memory per clip (MB)", "host waits"]
    cells = [
        [
            *(row["case"], str(row["batch"]), "blocks" if row["compiled"] else "no"),
            f"{row['ms']:.1f} ({row['ms_p10']:.1f}-{row['ms_p90']:.1f})",
            f"{row['clips_per_second']:.0f}",
            "" if row["of_peak"] is None else f"{row['of_peak']:.1%}",
            f"{row['peak_memory_bytes'] / 1e9:.1f}",
            "" if row["memory_bytes_per_clip"] is None else f"{row['memory_bytes_per_clip'] / 1e6:.1f}",
            "no" if row["waits"] is None else "yes",
        ]
        for row in rows
        if "case" in row
    ]
    failed = [(row["item"], row.get("error", row.get("skipped"))) for row in rows]
    lines = [f"- {item}: {problem}" for item, problem in failed if problem is not None]
    return "\n".join([markdown(head, cells), "", *lines])


def _python(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process of Python that finds this checkout."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, text=True, **options)


@dataclass(frozen=True)
class Videos:
    """H.264 videos of 320x240 with a keyframe every 12 frames, their list, and what reads them.

    Args:
        scene: a real clip that they are cut out of, if it is there.
        batch: clips in a batch of the loader and of a training run.
        overrides: of the recipe.
    """

    folder: Path
    scene: Path
    number: int
    batch: int
    overrides: tuple[str, ...] = ()

    def make(self) -> Iterator[Row]:
        self.folder.mkdir(parents=True, exist_ok=True)
        began, fraction = time.perf_counter(), -(-self.number // num_cores())
        parts = [(first, min(self.number, first + fraction)) for first in range(0, self.number, fraction)]
        processes = [_python("-c", MAKE, *part, self.scene, self.folder.resolve()) for part in parts]
        failed = sum(process.wait() != 0 for process in processes)
        names = sorted(path.name for path in self.folder.glob("*.mp4"))
        (self.folder / "train.csv").write_text("".join(f"{name} 0\n" for name in names) * 400)
        yield {"files": len(names), "failed": failed, "real": self.scene.is_file(), "seconds": _since(began)}

    def load(self, on: Device, workers: int, views: int) -> Iterator[Row]:
        """Clips/s of the loader alone."""
        settings = [f"data.root={self.folder.resolve()}", "data.train=train.csv", *self.overrides]
        recipe = load_recipe(EVEREST, overrides=[*settings, f"pretrain.views_per_decode={views}"])
        dataset, samples = pretrain_dataset(recipe), max(1, self.batch // views)
        size = len(dataset)
        order = StepSampler(
            num_samples=size, samples_per_step=samples, num_steps=10**6, samples_per_epoch=size, seed=0
        )
        with closing(read_batches(dataset, order, workers=workers, timeout=300.0)) as loaded:
            for _ in range(divide_batches(dataset, order, workers=workers).num_slots):
                next(loaded)  # what was read ahead would distort the rate
            began, batches = time.perf_counter(), 0
            while _since(began) < 10 * on.seconds:
                next(loaded)
                batches += 1
        speed = batches * samples * views / _since(began)
        yield {"workers": workers, "views": views, "batch": self.batch, "clips_per_second": speed}

    def train(self, rows: Rows, name: str, seconds: float, settings: Sequence[str]) -> Iterator[Row]:
        """Clips/s and the fraction of waiting for data of `everest pretrain`, stopped after `seconds`."""
        output, messages = rows.folder / f"run_{name}", rows.folder / f"run_{name}.txt"
        changes = ["data.train=train.csv", "train.save_every=1h", *self.overrides]
        changes += [f"pretrain.batch_size={self.batch}", f"train.micro_batch={self.batch}", *settings]
        command = ["-m", "everest_cli", "pretrain", "--recipe", EVEREST, "--data", self.folder.resolve()]
        command += ["--output", output, "--overwrite", *(f"--set={change}" for change in changes)]
        with messages.open("w") as errors:
            process = _python(*command, stdout=subprocess.DEVNULL, stderr=errors)
            for patience, end in ((seconds, signal.SIGINT), (40, signal.SIGKILL), (10, None)):
                try:
                    process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(end or signal.SIGKILL)
        metrics = output / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        steps = [row for row in map(json.loads, lines) if "data_wait" in row][WARM_UP_ROWS:]
        row: Row = {"run": name, "steps": len(steps), "code": process.returncode}
        for key in ("clips_per_second", "data_wait") if steps else ():
            row |= spread(key, (step[key] for step in steps))
        yield {**row, "messages": messages.read_text()[-300:]}


def _since(began: float) -> float:
    return time.perf_counter() - began


def measure_data(rows: Rows, on: Device) -> None:
    """Write the rows of the videos, of the loader and of training runs."""
    free = disk_usage("/dev/shm").free
    batch = next((n for n in (256, 128, 64, 32, 16) if SLOTS * n * CLIP_BYTES < 0.7 * free), 8)
    seconds, videos = 60.0, Videos(rows.folder / "videos", REAL, 320, batch)
    if not on.is_gpu:
        tiny = (*TINY, "model.backbone=vit-tiny", "pretrain.steps=12")
        videos = Videos(rows.folder / "videos", Path("none"), 2, 4, tiny)
    workers = max(1, num_cores() - 1)
    rows.run("videos", videos.make, needs=40)
    for views in (1, 4):
        rows.run(f"loader, {views} views", partial(videos.load, on, workers, views), needs=25)
        settings = (f"pretrain.views_per_decode={views}", f"train.workers={workers}")
        work = partial(videos.train, rows, f"{views}_views", seconds, settings)
        rows.run(f"run, {views} views", work, needs=seconds + 10)


def main() -> None:
    parser = argparse.ArgumentParser(description="The first ten minutes on one GPU")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of the rows"
    )
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which no item begins")
    parser.add_argument("--seconds", type=float, default=2.0, help="of an ordinary measurement")
    parser.add_argument("--only", help="beginnings of the names of items, with commas")
    parser.add_argument("--cpu", action="store_true", help="tiny models on a CPU: shows that all items run")
    options = parser.parse_args()
    on = Device(torch.device("cpu" if options.cpu else "cuda"), 0.05 if options.cpu else options.seconds)
    only = options.only.split(",") if options.only else ()
    rows = Rows(options.out / "gpu_first.jsonl", limit=options.limit, only=only)
    rows.run("machine", lambda: iter([machine()]))
    rows.run("ceilings", partial(ceilings, on), needs=20)
    peak = [row["tflops"] for row in rows.written if row.get("what") == "product bf16"]
    rows.run("same as the CPU", partial(same_as_the_cpu, on), needs=15)
    for case in CASES:
        name = f"step {case.name}{', compiled' if case.compiled else ''}"
        rows.run(name, partial(measure, case, on, peak[0] if peak else None), needs=case.needs)
    measure_data(rows, on)
    table = step_table(rows.written)
    (options.out / "gpu_first.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
