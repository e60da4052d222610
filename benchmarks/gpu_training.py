"""Pre-training by the clock on one device; fine-tuning and probes as jobs for processes that share it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from gpu_clips import (
    Choice,
    Crops,
    Frames,
    Listed,
    PretrainingViews,
    center_views,
    finetuning_views,
    to_device,
)
from gpu_rows import Row
from numpy.typing import NDArray
from torch import Tensor

from everest.config.heads import Head
from everest.config.settings import Recipe
from everest.engine.plain_training import PlainTraining
from everest.engine.stage_plan import cosine_lr
from everest.engine.step import NumbersInFlight, set_lr
from everest.inference.opened_model import encode_clips
from everest.models.base import PretrainingModel
from everest.models.classifier import VideoClassifier, soft_targets, supervised_loss
from everest.models.image_classifier import difference_image
from everest.models.spec import classifier_spec, pretrain_spec
from everest.probes.classifiers import nearest_neighbors
from everest.probes.linear import linear
from everest.probes.probe import DIFFERENCE_SIDE
from everest.system.accelerator import make_accelerator

IMAGE: Final = "difference image"  # a baseline of the probes, without an encoder
PEAK: Final = 1e-3  # learning rate of fine-tuning, of every arm
LEAST: Final = 1e-6  # learning rate at the end
WARM_UP: Final = 0.05  # share of the seconds with a rising learning rate
TICKS: Final = 10_000  # of the schedule, which follows the clock
UNTIMED: Final = 8  # steps: compilation, choice of kernels
AHEAD: Final = 12  # steps whose views are chosen before they are needed
PARTS: Final = 10  # of a run: the mean loss of each is kept


class Pretraining:
    """A model with its optimizer.

    Args:
        frames: of all clips that views are drawn from.
        executor: its processes choose the views.
    """

    def __init__(self, recipe: Recipe, frames: Frames, executor: Executor) -> None:
        self._recipe, self._frames, self._executor = recipe, frames, executor
        on_cpu = not torch.cuda.is_available()
        accelerator = make_accelerator(recipe.train.precision, tf32=False, cpu=on_cpu)
        self._device = accelerator.device
        torch.manual_seed(recipe.train.seed)
        self.model = cast(PretrainingModel, pretrain_spec(recipe).build().to(self._device))
        self._initial = {name: value.clone() for name, value in self.model.state_dict().items()}
        self._training = PlainTraining(accelerator, self.model, recipe.pretrain, recipe.train)
        self._optimizer = self._training.network.optimizer
        self._crops = Crops(frames, recipe.data.frame_size, compiled=True)

    def train(self, batch: int, base_lr: float, seconds: float) -> Row:
        """Train from the initial weights for `seconds`, after steps that are not timed.

        Returns:
            Its row: `losses` are means over tenths of the steps, `first_loss` is that of the first step.
        """
        recipe, device = self._recipe, self._device
        self.model.load_state_dict(self._initial)
        self.model.train()
        choose = PretrainingViews(recipe=recipe, sizes=self._frames.sizes, batch=batch)
        numbers = count()  # of steps, whose views are the same in each run
        waiting = [self._executor.submit(choose, next(numbers)) for _ in range(AHEAD)]
        generator = torch.Generator(device).manual_seed(recipe.train.seed)
        began = time.perf_counter()
        for _ in range(UNTIMED):
            waiting.append(self._executor.submit(choose, next(numbers)))
            self._step(waiting.pop(0), 0.0, generator).read()
        self._optimizer.state.clear()
        untimed = time.perf_counter() - began
        losses: list[float] = []
        pending: NumbersInFlight | None = None
        began = time.perf_counter()
        while pending is None or time.perf_counter() - began < seconds:
            waiting.append(self._executor.submit(choose, next(numbers)))
            tick = int(TICKS * (time.perf_counter() - began) / seconds)
            peak, warm_up = base_lr * batch / 256, int(WARM_UP * TICKS)
            lr = cosine_lr(tick, steps=TICKS, warmup=warm_up, peak=peak, minimum=LEAST)
            computed = self._step(waiting.pop(0), lr, generator)
            if pending is not None:  # a step late, so that the device does not wait
                losses.append(pending.read().figures["loss"])
            pending = computed
        last = pending.read().figures
        losses.append(last["loss"])
        seconds = time.perf_counter() - began
        for future in waiting:
            future.cancel()
        self.model.eval()
        return {
            **{"batch": batch, "base_lr": base_lr, "steps": len(losses), "clips": batch * len(losses)},
            **{"seconds": seconds, "untimed_seconds": untimed, "first_loss": losses[0]},
            "losses": [float(np.mean(part)) for part in np.array_split(losses, min(PARTS, len(losses)))],
            "last_step": last,
        }

    def _step(self, choice: Future[Choice], lr: float, generator: torch.Generator) -> NumbersInFlight:
        views, device = choice.result(), self._device
        section = self._recipe.pretrain
        width = self.model.noise_layout.total
        noise = torch.rand(len(views.clips), width, device=device, generator=generator)
        videos = {"videos": to_device(views.clips, device)} if section.objective == "views" else {}
        set_lr(self._optimizer, lr)
        output = self._training.model(self._crops(views), noise=noise, **videos)
        return self._training.step(output.loss, output.metrics)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A fine-tuning or a probe of an arm on a set.

    Args:
        weights: a file of the encoder's weights; None: new ones.
        labels: a class; None: all.
        steps: of fine-tuning; 0: frozen features are probed instead.
        batch: of fine-tuning.
    """

    arm: str
    set: str
    recipe: Recipe
    weights: str | None
    labels: int | None = None
    steps: int = 0
    batch: int

    @property
    def row(self) -> Row:
        """What identifies the job."""
        seed = self.recipe.train.seed
        return {"arm": self.arm, "set": self.set, "seed": seed, "labels": self.labels, "steps": self.steps}


def save_clips(folder: Path, frames: Frames, sets: dict[str, list[Listed]]) -> None:
    """Write what the processes of jobs read, beside the pixels of the frames."""
    torch.save((replace(frames, pixels=torch.empty(0)), sets), folder / "clips.pt")


@cache
def _clips_of(folder: Path, name: str) -> tuple[Frames, list[Listed]]:
    """The clips of a set, on the device."""
    frames, sets = torch.load(folder / "clips.pt", weights_only=False)
    file = folder / "pixels"
    pixels = torch.from_file(str(file), size=file.stat().st_size, dtype=torch.uint8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return replace(frames, pixels=pixels).on(device, [clip.path for clip in sets[name]]), sets[name]


def run_job(job: Job, folder: Path) -> Row:
    """The row of a job: which held-out clips it classifies correctly, and more."""
    torch.set_num_threads(1)
    frames, clips = _clips_of(folder, job.set)
    return {**job.row, **(_finetune(job, frames, clips) if job.steps else _probe(job, frames, clips))}


def _finetune(job: Job, frames: Frames, clips: Sequence[Listed]) -> Row:
    recipe, seed = job.recipe, job.recipe.train.seed
    accelerator = make_accelerator(recipe.train.precision, tf32=False, cpu=not torch.cuda.is_available())
    device = accelerator.device
    rng = np.random.default_rng(seed)
    numbers, labels, known = _columns(frames, clips)
    chosen = rng.permutation(np.flatnonzero(known))
    if job.labels is not None:
        few = [chosen[labels[chosen] == label][: job.labels] for label in np.unique(labels)]
        chosen = np.concatenate(few)
    head = Head(outputs=int(labels.max()) + 1)
    torch.manual_seed(seed)
    model = cast(VideoClassifier, classifier_spec(recipe, (head,)).build().to(device).train())
    if job.weights is not None:  # without its last norm: a classifier norms the mean token
        trained = torch.load(job.weights).items()
        kept = {name: value for name, value in trained if not name.startswith("norm.")}
        model.encoder.load_state_dict(kept)
    eager = replace(recipe.train, compile=False)
    training = PlainTraining(accelerator, model, recipe.finetune, eager)
    crops = Crops(frames, recipe.data.frame_size)
    epochs = 1 + job.steps * job.batch // len(chosen)
    order = np.concatenate([rng.permutation(chosen) for _ in range(epochs)])
    loss = torch.zeros((), device=device)
    for step in range(job.steps):
        places = order[step * job.batch :][: job.batch]
        clip = crops(finetuning_views(recipe, frames.sizes, numbers[places], rng))
        lr = cosine_lr(step, steps=job.steps, warmup=job.steps // 10, peak=PEAK, minimum=LEAST)
        set_lr(training.network.optimizer, lr)
        answers = torch.from_numpy(labels[places]).to(device)[:, None].float()
        targets = soft_targets(answers, model.heads, smoothing=recipe.finetune.label_smoothing)
        logits = training.model(model.pixels.normalize(clip)).float()
        loss = supervised_loss(logits, targets, model.heads, [None])
        training.step(loss)
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        views = (crops(center_views(recipe, frames.sizes, part)) for part in _parts(numbers[~known]))
        logits = torch.cat([model(model.pixels.normalize(view)).float() for view in views])
    right = logits.argmax(dim=1).cpu().numpy() == labels[~known]
    return {"loss": loss.item(), "right": right.astype(int).tolist()}


def _columns(
    frames: Frames, clips: Sequence[Listed]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The numbers and labels of clips (N,), and which are known."""
    paths, labels, _, known = zip(*clips, strict=True)
    return np.array([frames.index[path] for path in paths]), np.array(labels), np.array(known)


def _parts(numbers: NDArray[np.int64], length: int = 128) -> list[NDArray[np.int64]]:
    return np.array_split(numbers, range(length, len(numbers), length))


@torch.no_grad()
def _probe(job: Job, frames: Frames, clips: Sequence[Listed]) -> Row:
    """Classifiers of frozen features."""
    crops = Crops(frames, job.recipe.data.frame_size)
    numbers, labels, known = _columns(frames, clips)
    views = torch.cat([crops(center_views(job.recipe, frames.sizes, part)) for part in _parts(numbers)])
    features = _features(job, views).float().cpu().numpy()  # (N, D)
    fitted = (features[known], labels[known], features[~known], Head(outputs=int(labels.max()) + 1))
    logits = {"linear": linear(*fitted, seed=job.recipe.train.seed), "knn": nearest_neighbors(*fitted)}
    return {
        f"{kind}_right": (of_kind.argmax(axis=1) == labels[~known]).astype(int).tolist()
        for kind, of_kind in logits.items()
    }


def _features(job: Job, views: Tensor) -> Tensor:
    """The features (N, D) of views (N, 3, T, H, W)."""
    if job.arm == IMAGE:
        return torch.cat([difference_image(part, DIFFERENCE_SIDE) for part in views.split(64)])
    torch.manual_seed(job.recipe.train.seed)
    model = cast(PretrainingModel, pretrain_spec(job.recipe).build().to(views.device).eval())
    if job.weights is not None:
        model.encoder.load_state_dict(torch.load(job.weights))
    parts = map(model.pixels.normalize, views.split(64))
    return torch.cat([encode_clips(model, part, None).pooled for part in parts])
