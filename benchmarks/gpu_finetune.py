"""Fine-tuning and probes of an encoder on a set of clips: jobs for processes that share one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from gpu_clips import Crops, Frames, Listed, center_views, finetuning_views
from gpu_pretrain import LEAST
from gpu_rows import Row
from numpy.typing import NDArray
from torch import Tensor

from everest.config.heads import Head
from everest.config.settings import Recipe
from everest.engine import network
from everest.engine.plan import cosine_lr
from everest.engine.step import StepRecord, clip_gradients, set_lr, step_optimizers
from everest.inference.model import encode_clips
from everest.models.classifier import VideoClassifier, soft_targets, supervised_loss
from everest.models.linear import difference_image
from everest.models.mae import PretrainingModel
from everest.models.spec import classifier_spec, pretrain_spec
from everest.probes.classifiers import nearest_neighbors
from everest.probes.linear import linear
from everest.probes.probe import DIFFERENCE_SIDE
from everest.system.accelerator import make_accelerator

IMAGE: Final = "difference image"  # a baseline of the probes, without an encoder
PEAK: Final = 1e-3  # learning rate of fine-tuning, of every arm


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
    optimizer = network.stage_optimizer(model, recipe.finetune)
    eager = replace(recipe.train, compile=False)
    wrapped = network.prepare_model(accelerator, model, eager)
    networks = [network.Network(module=model, optimizer=optimizer)]
    crops = Crops(frames, recipe.data.frame_size)
    epochs = 1 + job.steps * job.batch // len(chosen)
    order = np.concatenate([rng.permutation(chosen) for _ in range(epochs)])
    loss = torch.zeros((), device=device)
    for step in range(job.steps):
        places = order[step * job.batch :][: job.batch]
        clip = crops(finetuning_views(recipe, frames.sizes, numbers[places], rng))
        lr = cosine_lr(step, steps=job.steps, warmup=job.steps // 10, peak=PEAK, minimum=LEAST)
        set_lr(optimizer, lr)
        answers = torch.from_numpy(labels[places]).to(device)[:, None].float()
        targets = soft_targets(answers, model.heads, smoothing=recipe.finetune.label_smoothing)
        logits = wrapped(model.pixels.normalize(clip)).float()
        loss = supervised_loss(logits, targets, model.heads, [None])
        accelerator.backward(loss)
        record = StepRecord()
        record.add(loss, {}, passes=1)
        _, finite = record.gather(accelerator, clip_gradients(accelerator, networks, eager.clip_grad))
        step_optimizers(accelerator, networks, skipped=finite.logical_not().float())
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
    model = cast(PretrainingModel, pretrain_spec(job.recipe, tokenizer=None).build().to(views.device).eval())
    if job.weights is not None:
        model.encoder.load_state_dict(torch.load(job.weights))
    parts = map(model.pixels.normalize, views.split(64))
    return torch.cat([encode_clips(model, part, None).pooled for part in parts])
