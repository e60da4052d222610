"""A trained model on any videos: their classes, and their features.

V views, T frames, H W pixels, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from everest.build import ModelSpec
from everest.checkpoint import Weights
from everest.clips import Classes
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.data.datasets import VideoClips, failures
from everest.data.folders import videos_under
from everest.data.lists import Sample
from everest.data.loading import batches, make_loader
from everest.data.views import EvalViews
from everest.errors import DataError, RecipeError
from everest.files import write_atomically
from everest.load import model_of, open_weights, require_kind
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.pixels import normalise
from everest.reports import Report, notice
from everest.run_folder import RECIPE
from everest.tokens import num_kept

FALLBACK: Final = "ucf101"  # whose stride and views are taken for a checkpoint without a recipe beside it


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint that is ready for videos."""

    module: VideoClassifier | MaskedAutoencoder
    weights: Weights
    recipe: Recipe  # says how videos are seen: stride, sampling, views

    @classmethod
    def open(cls, path: Path, *, clips: int | None = None, crops: int | None = None) -> Model:
        """Read a checkpoint.

        Args:
            clips, crops: views of a video; None as in the test of the run.
        Raises:
            CheckpointError: damaged, or not ours.
        """
        weights = open_weights(path)
        spec = ModelSpec.of(weights.settings, source=path)
        beside = path.parent / RECIPE
        recipe = load_recipe(beside if beside.is_file() else FALLBACK)
        views = replace(recipe.eval, clips=clips or recipe.eval.clips, crops=crops or recipe.eval.crops)
        data = replace(recipe.data, frames=spec.frames, size=spec.size)
        module = model_of(weights, source=path)
        return cls(module=module, weights=weights, recipe=replace(recipe, data=data, eval=views))

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device


def named_videos(paths: Sequence[Path]) -> list[Path]:
    """The videos that a user names: files, and all videos below folders.

    Raises:
        DataError: nothing at a path, or a folder without a video.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such video or folder")
        below = list(videos_under(path)) if path.is_dir() else [path]
        if not below:
            raise DataError(f"{path}: no videos below this folder")
        found += below
    return found


def predict(
    model: Model, videos: Sequence[Path], *, top: int, keep: float | None, workers: int, report: Report
) -> list[dict[str, Any]]:
    """The `top` most likely classes of every video, by the mean of its views' probabilities.

    Args:
        keep: the share of the tokens that is encoded; None as trained.
    Returns:
        `{"video", "predictions": [{"label", "index", "probability"}, …]}` each, in the order given; of
        several heads `heads` has such a list for each; what could not be read has `error` instead.
    Raises:
        CheckpointError: the model is no classifier.
        RecipeError: `keep` is no share that leaves a token.
    """
    _check_keep(model, keep)
    require_kind(model.weights, "classifier", source=Path(model.weights.recipe))
    assert isinstance(model.module, VideoClassifier)
    classes = Classes(count=model.module.num_classes, names=model.weights.classes, heads=model.module.heads)
    results: list[dict[str, Any]] = []
    for path, views in _views(model, videos, workers=workers, report=report):
        if isinstance(views, str):
            results.append({"video": str(path), "error": views})
            continue
        with torch.inference_mode():
            logits = model.module(views, keep=keep)
            probabilities = model.module.probabilities(logits).mean(dim=0)  # (classes,)
        parts = probabilities.split(model.module.head_sizes)
        likely = [_most_likely(part, classes, top) for part in parts]
        if classes.heads:
            results.append({"video": str(path), "heads": dict(zip(classes.heads, likely, strict=True))})
        else:
            results.append({"video": str(path), "predictions": likely[0]})
    return results


def _most_likely(probabilities: Tensor, classes: Classes, top: int) -> list[dict[str, Any]]:
    best = probabilities.topk(min(top, len(probabilities)))
    return [
        {"label": classes.name(index), "index": index, "probability": round(probability, 6)}
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def extract(
    model: Model, videos: Sequence[Path], out: Path, *, keep: float | None, workers: int, report: Report
) -> list[tuple[Path, str]]:
    """Write the features of videos: `features` (videos, V, D) float32, and `videos` (JSON) in the header.

    Of a classifier they are what its head sees, of an autoencoder the mean of all encoded tokens.

    Returns:
        What could not be read, and why; it is left out of the file.
    Raises:
        DataError: none could be read.
        RecipeError: `keep` is no share that leaves a token.
        EnvironmentProblem: the file cannot be written.
    """
    _check_keep(model, keep)
    found: dict[str, Tensor] = {}
    skipped: list[tuple[Path, str]] = []
    for path, views in _views(model, videos, workers=workers, report=report):
        if isinstance(views, str):
            skipped.append((path, views))
        else:
            with torch.inference_mode():
                found[str(path)] = _features(model.module, views, keep).float().cpu()  # (V, D)
    if not found:
        raise DataError(f"none of {len(videos)} videos can be read, first {skipped[0][0]}: {skipped[0][1]}")
    header = {"videos": json.dumps(list(found)), "recipe": model.weights.recipe}
    features = {"features": torch.stack(list(found.values()))}
    write_atomically(out, lambda part: save_file(features, part, metadata=header))
    return skipped


def _check_keep(model: Model, keep: float | None) -> None:
    tokens = model.module.encoder.grid.num_tokens
    if keep is not None and not (0 < keep <= 1 and num_kept(tokens, keep)):
        raise RecipeError(
            f"--keep {keep:g}: must be more than 0, at most 1, and leave some of {tokens} tokens"
        )


def _features(module: VideoClassifier | MaskedAutoencoder, views: Tensor, keep: float | None) -> Tensor:
    if isinstance(module, VideoClassifier):
        return module.features(views, keep)
    every = torch.arange(module.encoder.grid.num_tokens, device=views.device).expand(len(views), -1)
    return module.encoder(views, every).mean(dim=1)


def _views(
    model: Model, videos: Sequence[Path], *, workers: int, report: Report
) -> Iterator[tuple[Path, Tensor | str]]:
    """Every video with its normalised views (V, 3, T, H, W) on the model's device, or why there are none."""
    data, stage, shown = model.recipe.data, model.recipe.finetune, model.recipe.eval
    make_views = EvalViews(
        frames=data.frames,
        stride=stage.stride,
        size=data.frame_size,
        clips=shown.clips,
        crops=shown.crops,
        sampling=stage.sampling,
    )
    samples = [Sample(path=str(path)) for path in videos]
    clips = VideoClips(
        samples, make_views=make_views, seed=0, num_noise=0, decoder=data.decoder, replace_bad=False
    )
    order = [[(0, index)] for index in range(len(samples))]
    timeout = model.recipe.train.data_timeout
    loader = make_loader(clips, order, workers=min(workers, len(samples) - 1), timeout=timeout)
    for done, (path, clip) in enumerate(zip(videos, batches(loader), strict=True), start=1):
        failed = failures(clip)
        report({"event": "video", "done": done, "videos": len(videos)})
        if failed:
            reason = failed[0][0][1]
            report(notice(f"{path}: {reason}"))
            yield path, reason
        else:
            yield path, normalise(clip.frames[0].to(model.device))
