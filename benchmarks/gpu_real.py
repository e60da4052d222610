"""Does pre-training pay on real clips? Four arms in one call of less than ten minutes on one GPU.

    python benchmarks/gpu_real.py CLIPS [--seed 0] [--limit 560]

CLIPS is the folder that `gpu_clips.py` writes. EVEREST's pixels, views with the task of the camera, and
VideoMAE are pre-trained for equal seconds, on clips of groups that are not tested. Each encoder, and one with
random weights, is then fine-tuned on four sets, with all labels and with two a class, and its frozen features
are probed. One call is one seed. Rows are written at once, to gpu_real.jsonl in the
folder OUT; `gpu_real_page.py` makes a page from the rows of all calls.

Models, selections, losses, optimizer and schedules are the library's. Settings are those of docs/evidence.md,
with a larger model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from gpu_clips import (
    Choice,
    Crops,
    Frames,
    Listed,
    Lists,
    PretrainingViews,
    center_views,
    finetuning_views,
    to_device,
)
from gpu_rows import Row, Rows
from measuring import machine
from numpy.typing import NDArray
from torch import Tensor

from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.engine.network import Network, stage_optimizer
from everest.engine.plan import cosine_lr
from everest.engine.step_log import StepNumbers, StepRecord
from everest.engine.update import Updater
from everest.inference.model import encode
from everest.methods.camera_task import NUMBERS
from everest.models.classifier import VideoClassifier, soft_targets, supervised_loss
from everest.models.of_recipe import classifier_spec, pretrain_spec
from everest.models.video_model import PretrainingModel
from everest.probes.baselines import difference_image
from everest.probes.list_probe import numbered, precision_of_nearest
from everest.probes.probe_heads import linear, nearest_neighbors
from everest.system.accelerator import make_accelerator

SCRATCH: Final = "from scratch"
IMAGE: Final = "difference image"
ARMS: Final = {
    "everest": (),
    "views and camera": (
        "pretrain.objective=views",
        "pretrain.selection={strategy: drawn, keep_ratio: 0.25, visible_ratio: null, uniform: 1.0}",
        "pretrain.camera_motion=1",
    ),
    "videomae": ("pretrain.selection={strategy: tube, mask_ratio: 0.9}",),
}
TESTED: Final = ("interaction6", "surveillance2", "tennis7", "letters26")
LABELS: Final = (None, 2)  # a class; None: all
BASE: Final = (
    *("data.frames=16", "model.positions=separable", "model.input=differences", "train.clip_grad=1.0"),
    *("pretrain.stride=2", "finetune.stride=2", "finetune.selection.keep_ratio=0.5"),
    *("finetune.rand_augment=null", "finetune.crop_area=[0.5,1.0]", "finetune.erasing=0"),
    *("finetune.drop_path=0", "data.flip=true"),
)
PEAK: Final = 1e-3  # learning rate of every arm
LEAST: Final = 1e-6
WARM_UP: Final = 0.05  # share of the steps with a rising learning rate
TICKS: Final = 10_000  # of the schedule: it follows the clock, so that arms have equal seconds
UNTIMED: Final = 8  # steps: compilation, choice of kernels
AHEAD: Final = 12  # steps whose views are chosen before they are needed
LOGGED: Final = 100  # steps between two rows of a loss


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is.

    Args:
        seconds: of pre-training, for each arm.
        steps: of fine-tuning, by the labels a class (0: all).
        decays: layer decays of fine-tuning: each run is made with each of them.
    """

    settings: tuple[str, ...]
    seconds: float
    batch: int
    small_batch: int
    steps: dict[int, int]
    decays: tuple[float, ...]
    sets: tuple[str, ...]
    most_clips: int | None = None
    processes: int


FULL: Final = Size(
    settings=("model.backbone=vit-s", "data.size=112"),
    seconds=75.0,
    batch=1024,
    small_batch=64,
    steps={2: 150, 0: 400},
    decays=(1.0,),
    sets=TESTED,
    processes=16,  # each waits for the device most of the time
)
MINIATURE: Final = Size(
    settings=(
        *("model.backbone=vit-tiny", "model.width=32", "model.depth=2", "model.heads=2", "data.size=32"),
        *("model.decoder_depth=1", "model.decoder_width=32", "model.decoder_heads=2"),
    ),
    seconds=2.0,
    batch=8,
    small_batch=8,
    steps={2: 4, 0: 6},
    decays=(1.0,),
    sets=("interaction6",),
    most_clips=24,
    processes=2,
)


def recipe_of(size: Size, seed: int, settings: Sequence[str] = ()) -> Recipe:
    return load_recipe("custom", overrides=[*BASE, *size.settings, f"train.seed={seed}", *settings])


# --- pre-training ---


def pretrain(
    recipe: Recipe, size: Size, frames: Frames, numbers: NDArray[np.int64], executor: Executor
) -> Iterator[Row | PretrainingModel]:
    """Yields rows, and last the trained model."""
    accelerator = make_accelerator(recipe.train.precision, tf32=False, cpu=not torch.cuda.is_available())
    device = accelerator.device
    torch.manual_seed(recipe.train.seed)
    model = cast(PretrainingModel, pretrain_spec(recipe, tokenizer=None).build().to(device).train())
    optimizer = stage_optimizer(model, recipe.pretrain)
    updater = Updater(accelerator, [Network(module=model, optimizer=optimizer)], recipe.train)
    crops = Crops(frames, recipe.data.frame_size, compiled=True)
    choose = PretrainingViews(recipe=recipe, numbers=numbers, sizes=frames.sizes, batch=size.batch)
    generator = torch.Generator(device).manual_seed(recipe.train.seed)
    compares = recipe.pretrain.objective == "views"
    noise_width = model.encoder.grid.num_tokens + (NUMBERS if recipe.pretrain.camera_motion else 0)
    waiting: list[Future[Choice]] = [executor.submit(choose, step) for step in range(AHEAD)]

    def step(number: int, lr: float) -> tuple[StepNumbers, float]:
        waiting.append(executor.submit(choose, number + AHEAD))
        began = time.perf_counter()
        choice = waiting.pop(0).result()
        waited = time.perf_counter() - began
        noise = torch.rand(size.batch, noise_width, device=device, generator=generator)
        videos = {"videos": to_device(choice.clips, device)} if compares else {}
        updater.set_lr(lr)
        record = StepRecord(device)
        with updater.one_pass(last=True):
            output = updater.model(crops(choice), noise=noise, **videos)
            record.add(output.loss, output.parts, passes=1)
            updater.backward([output.loss])
        computed = StepNumbers(accelerator, record, updater.clip_gradients())
        updater.step(computed)
        return computed, waited

    began = time.perf_counter()
    for number in range(UNTIMED):
        computed, _ = step(number, 0.0)
        computed.read()
    optimizer.state.clear()
    compiling = time.perf_counter() - began
    began, number, waits = time.perf_counter(), UNTIMED, 0.0
    previous: StepNumbers | None = None
    while (elapsed := time.perf_counter() - began) < size.seconds:
        tick = int(TICKS * elapsed / size.seconds)
        lr = cosine_lr(tick, steps=TICKS, warmup=int(WARM_UP * TICKS), peak=PEAK, minimum=LEAST)
        computed, waited = step(number, lr)
        number, waits = number + 1, waits + waited
        if previous is not None:  # a step late, so that the device does not wait
            totals = previous.read()
            if (number - UNTIMED) % LOGGED == 0:
                yield {"step": number - UNTIMED, "seconds": elapsed, "lr": lr, **totals.metrics.by_name}
        previous = computed
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, steps = time.perf_counter() - began, number - UNTIMED
    for future in waiting:
        future.cancel()
    yield {
        **{"steps": steps, "seconds": seconds, "clips": steps * size.batch, "warm_up_seconds": compiling},
        **{"ms": 1e3 * seconds / max(steps, 1), "waited_seconds": waits},
    }
    yield model.eval()


# --- fine-tuning and probes, in processes of their own ---


@dataclass(frozen=True, kw_only=True)
class Job:
    """A fine-tuning or a probe of an arm on a set.

    Args:
        weights: a file of the encoder's weights; None: new ones.
        labels: a class; None: all.
        decay: the layer decay; None: frozen features are probed instead.
    """

    arm: str
    set: str
    seed: int
    weights: str | None
    labels: int | None = None
    decay: float | None = None
    size: Size


@cache
def _shared(file: str) -> tuple[Frames, Lists]:
    """The frames and lists of this process, which the main process has written."""
    saved = torch.load(file, weights_only=False)
    frames = Frames(
        torch.from_file(saved["pixels"], size=saved["bytes"], dtype=torch.uint8),
        saved["first"],
        saved["sizes"],
        saved["index"],
    )
    return frames, saved["lists"]


@cache
def _frames_of(file: str, name: str) -> Frames:
    frames, lists = _shared(file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return frames.on(device, [clip.path for clip in lists.sets[name]])


def run_job(job: Job, file: str) -> Row:
    """The row of a job: which held-out clips it classifies correctly, and more."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    frames, clips = _frames_of(file, job.set), _shared(file)[1].sets[job.set]
    row = _finetune(job, frames, clips) if job.decay is not None else _probe(job, frames, clips)
    return {**_shown(job), **row, "seconds": time.perf_counter() - began}


def _shown(job: Job) -> Row:
    return {name: value for name, value in asdict(job).items() if name not in ("size", "weights")}


def _rows_of(
    clips: Sequence[Listed], frames: Frames, *, known: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers and labels of the known or of the held-out clips."""
    chosen = [clip for clip in clips if clip.is_known == known]
    return np.array([frames.index[clip.path] for clip in chosen]), np.array([clip.label for clip in chosen])


def _few(numbers: NDArray[np.int64], labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """The places of `count` random clips of each class."""
    order = np.random.default_rng(seed).permutation(len(numbers))
    return np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])


def _finetune(job: Job, frames: Frames, clips: Sequence[Listed]) -> Row:
    steps = job.size.steps[job.labels or 0]
    recipe = recipe_of(job.size, job.seed, [f"finetune.layer_decay={job.decay}"])
    if job.set != "surveillance2":  # as in docs/evidence.md: strokes and letters have a left and a right
        recipe = replace(recipe, data=replace(recipe.data, flip=False))
    accelerator = make_accelerator(recipe.train.precision, tf32=False, cpu=not torch.cuda.is_available())
    device = accelerator.device
    known, labels = _rows_of(clips, frames, known=True)
    if job.labels is not None:
        chosen = _few(known, labels, job.labels, job.seed)
        known, labels = known[chosen], labels[chosen]
    head = Head(outputs=max(clip.label for clip in clips) + 1)
    torch.manual_seed(job.seed)
    model = cast(VideoClassifier, classifier_spec(recipe, (head,)).build().to(device).train())
    if job.weights is not None:
        _start_from(model, job.weights)
    eager = replace(recipe.train, compile=False)
    optimizer = stage_optimizer(model, recipe.finetune)
    updater = Updater(accelerator, [Network(module=model, optimizer=optimizer)], eager)
    crops, rng = Crops(frames, recipe.data.frame_size), np.random.default_rng(job.seed)
    order = np.concatenate(
        [rng.permutation(len(known)) for _ in range(1 + steps * job.size.small_batch // len(known))]
    )
    loss = torch.zeros((), device=device)
    for step in range(steps):
        places = order[step * job.size.small_batch :][: job.size.small_batch]
        clip = crops(finetuning_views(recipe, frames.sizes, known[places], rng))
        updater.set_lr(cosine_lr(step, steps=steps, warmup=steps // 10, peak=PEAK, minimum=LEAST))
        answers = torch.from_numpy(labels[places]).to(device)[:, None].float()
        targets = soft_targets(answers, model.heads, smoothing=recipe.finetune.label_smoothing)
        with updater.one_pass(last=True):
            logits = updater.model(model.pixels.normalize(clip)).float()
            loss = supervised_loss(logits, targets, model.heads, [None])
            updater.backward([loss])
        updater.clip_gradients()
        updater.step()
    model.eval()
    tested, labels = _rows_of(clips, frames, known=False)
    with torch.no_grad(), accelerator.autocast():
        views = (crops(center_views(recipe, frames.sizes, part)) for part in _parts(tested))
        logits = torch.cat([model(model.pixels.normalize(view)).float() for view in views])
    right = (logits.argmax(dim=1).cpu().numpy() == labels).astype(int)
    return {"steps": steps, "loss": loss.item(), "top1": 100 * right.mean(), "right": right.tolist()}


def _parts(numbers: NDArray[np.int64], length: int = 128) -> list[NDArray[np.int64]]:
    return np.array_split(numbers, range(length, len(numbers), length))


def _start_from(model: VideoClassifier, weights: str) -> None:
    """Load the encoder of pre-training, without its last norm: a classifier norms the mean token."""
    kept = {name: value for name, value in torch.load(weights).items() if not name.startswith("norm.")}
    model.encoder.load_state_dict(kept)


@torch.no_grad()
def _probe(job: Job, frames: Frames, clips: Sequence[Listed]) -> Row:
    """Classifiers of frozen features, and the precision of the ten nearest clips of other groups."""
    recipe = recipe_of(job.size, job.seed)
    crops = Crops(frames, recipe.data.frame_size)
    numbers = np.array([frames.index[clip.path] for clip in clips])
    views = torch.cat([crops(center_views(recipe, frames.sizes, part)) for part in _parts(numbers)])
    features = _features(job, recipe, views).float().cpu().numpy()  # (N, D)
    labels, groups = np.array([clip.label for clip in clips]), numbered([clip.group for clip in clips])
    known = np.array([clip.is_known for clip in clips])
    head, right = Head(outputs=int(labels.max()) + 1), {}
    fitted = (features[known], labels[known], features[~known], head)
    for kind, outputs in (
        ("linear", linear(*fitted, seed=job.seed)[0]),
        ("knn", nearest_neighbors(*fitted)[0]),
    ):
        right[kind] = (outputs.argmax(axis=1) == labels[~known]).astype(int)
    near = precision_of_nearest(
        *(features[~known], labels[~known], groups[~known]), *(features[known], labels[known], groups[known])
    )
    return {
        **{f"{kind}_top1": 100 * of_kind.mean() for kind, of_kind in right.items()},
        **{f"{kind}_right": of_kind.tolist() for kind, of_kind in right.items()},
        "retrieval": near,
    }


def _features(job: Job, recipe: Recipe, views: Tensor) -> Tensor:
    """The features (N, D) of views (N, 3, T, H, W)."""
    if job.arm == IMAGE:
        return torch.cat([difference_image(part) for part in views.split(64)])
    torch.manual_seed(job.seed)
    model = cast(PretrainingModel, pretrain_spec(recipe, tokenizer=None).build().to(views.device).eval())
    if job.weights is not None:
        model.encoder.load_state_dict(torch.load(job.weights))
    return torch.cat([encode(model, model.pixels.normalize(part), None).pooled for part in views.split(64)])


# --- all of it ---


def jobs_of(size: Size, seed: int, weights: dict[str, str]) -> list[Job]:
    """Probes first; then the fine-tunings, so that those of one kind are complete for all arms."""
    arms = {**weights, SCRATCH: None}
    probes = [
        Job(arm=arm, set=name, seed=seed, weights=arms.get(arm), size=size)
        for name, arm in product(reversed(size.sets), (*arms, IMAGE))
    ]
    tunings = [
        Job(arm=arm, set=name, seed=seed, weights=arms[arm], labels=labels, decay=decay, size=size)
        for decay, labels, name, arm in product(size.decays, LABELS, size.sets, arms)
    ]
    return [*probes, *tunings]


def run(rows: Rows, clips: Path, size: Size, seed: int, executor: Executor, folder: Path) -> None:
    lists = Lists(clips, recipe_of(size, seed))
    if size.most_clips:
        few = {
            name: lists.sets[name][:: max(1, len(lists.sets[name]) // size.most_clips)] for name in size.sets
        }
        lists.sets, lists.unlabeled = few, lists.unlabeled[:4]
    began = time.perf_counter()
    frames = Frames.read(lists.all, executor, folder / "pixels")
    shared = {
        **asdict_of(frames),
        "pixels": str(folder / "pixels"),
        "bytes": len(frames.pixels),
        "lists": lists,
    }
    torch.save(shared, folder / "shared.pt")
    decoded = {
        "clips": len(frames.index),
        "frames": int(frames.sizes[:, 0].sum()),
        "bytes": len(frames.pixels),
    }
    rows.put("decoded", {**decoded, "seconds": time.perf_counter() - began})
    for name in size.sets:
        tested = [clip for clip in lists.sets[name] if not clip.is_known]
        columns = {"paths": [str(Path(clip.path).relative_to(clips)) for clip in tested]}
        columns |= {"labels": [clip.label for clip in tested], "groups": [clip.group for clip in tested]}
        rows.put(
            "tested", {"seed": seed, "set": name, "known": len(lists.sets[name]) - len(tested), **columns}
        )

    weights: dict[str, str] = {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = np.array([frames.index[path] for path in lists.for_pretraining])

    def pretrained(arm: str) -> Iterator[Row]:
        recipe = recipe_of(size, seed, ARMS[arm])
        for each in pretrain(recipe, size, frames.on(device), known, executor):
            if isinstance(each, dict):
                yield {"arm": arm, "seed": seed, **each}
            else:
                weights[arm] = str(folder / f"{len(weights)}.pt")
                torch.save(each.encoder.state_dict(), weights[arm])

    for arm in ARMS:
        rows.run(f"pretrain {arm}", partial(pretrained, arm), needs=size.seconds + 30)

    def of_jobs() -> Iterator[Row]:
        jobs = jobs_of(size, seed, weights)
        futures = {executor.submit(run_job, job, str(folder / "shared.pt")): job for job in jobs}
        for future in as_completed(futures):
            if future.cancelled():
                continue
            if rows.is_over:  # running jobs end, the others are rows
                for waiting in [each for each in futures if not each.done() and each.cancel()]:
                    job = futures[waiting]
                    yield {**_shown(job), "skipped": "the limit has passed"}
            error = future.exception()
            job = futures[future]
            yield (
                future.result()
                if error is None
                else {"arm": job.arm, "set": job.set, "error": repr(error)[:400]}
            )

    rows.run("job", of_jobs)


def asdict_of(frames: Frames) -> dict[str, Any]:
    return {"first": frames.first, "sizes": frames.sizes, "index": frames.index}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of gpu_clips.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=560.0, help="seconds after which no arm begins")
    parser.add_argument("--seconds", type=float, help="of pre-training an arm")
    parser.add_argument("--miniature", action="store_true", help="everything in seconds, for a test")
    options = parser.parse_args()
    size = MINIATURE if options.miniature else FULL
    if options.seconds is not None:
        size = replace(size, seconds=options.seconds)
    rows = Rows(Path(os.environ.get("OUT", ".")) / "gpu_real.jsonl", limit=options.limit)
    rows.put("machine", {**machine(), "size": asdict(size), "base": BASE, "arms": ARMS, "seed": options.seed})
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(size.processes, mp_context=spawn) as executor,
    ):
        run(rows, options.clips.absolute(), size, options.seed, executor, Path(folder))


if __name__ == "__main__":
    main()
