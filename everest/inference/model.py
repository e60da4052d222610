"""What an encoder makes of clips: its tokens, and one vector a clip.

B clips, T frames, H W pixels, K encoded tokens, D width.

A trained model that is ready for any videos.

B clips, R videos that were read, V views, T frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from everest.checkpoints.load import open_weights, require_kind
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.data.classes import Classes
from everest.data.dataset import VideoClips
from everest.data.loader import batches, make_loader
from everest.data.samples import Sample
from everest.data.stages import evaluation_views
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.methods.grid import num_kept
from everest.methods.strategies import AllTokens, choose
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import ModelSpec
from everest.system.accelerator import make_accelerator
from everest.system.events import Report, notice
from everest.system.run_folder import RECIPE
from everest.system.weights import Weights, load_tensors
from everest.video.pixels import normalize


class Features(NamedTuple):
    """Clips as an encoder sees them."""

    ids: Tensor  # (B, K) int64 ascending: which tokens were encoded
    tokens: Tensor  # (B, K, D) after the last block
    pooled: Tensor  # (B, D): what the head of a classifier sees; of an autoencoder the mean token


def encode(module: VideoClassifier | MaskedAutoencoder, frames: Tensor, keep: float | None) -> Features:
    """Encode normalised clips (B, 3, T, H, W).

    Args:
        keep: the share of the tokens that is encoded. None: as a classifier was trained; all of an
            autoencoder's, which is trained to complete what it does not see.
    Raises:
        ValueError: the clips are not of the size the model was built for, or `keep` leaves no token.
    """
    encoder = module.encoder
    if isinstance(module, VideoClassifier):
        ids = module.kept_tokens(frames, keep)
        tokens = encoder(frames, ids)
        return Features(ids, tokens, module.pooled(tokens))
    encoder.check(frames)
    selector = AllTokens() if keep is None else AllTokens().keeping(keep)
    noise = frames.new_zeros(frames.size(0), encoder.grid.num_tokens)  # nothing here is drawn
    ids = choose(selector, frames, encoder.grid, encoder.patch_embed, noise).visible
    tokens = encoder(frames, ids)
    return Features(ids, tokens, tokens.mean(dim=1))


FALLBACK: Final = "ucf101"  # whose stride and views are taken for a checkpoint without a recipe beside it

Values = dict[str, Tensor]  # (V, …) each


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A checkpoint on its device."""

    file: Path
    spec: ModelSpec
    module: VideoClassifier | MaskedAutoencoder
    weights: Weights
    recipe: Recipe  # says how videos are seen: clip size, stride, sampling, views
    keep: float | None  # share of the tokens that is encoded; None: as `everest.inference.model.encode` says
    accelerator: Accelerator

    @classmethod
    def open(
        cls,
        file: Path,
        *,
        recipe: Recipe | None = None,
        clips: int | None = None,
        crops: int | None = None,
        keep: float | None = None,
        precision: str | None = None,
        cpu: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> OpenedModel:
        """Read a checkpoint.

        Args:
            recipe: says the size and stride of clips; None: that of the run, whose clips fit the weights; of
                weights without one, `ucf101` with clips that fit.
            clips, crops: views of a video; None as in the recipe's test.
            precision: as `train.precision`; None: the recipe's.
            cpu: compute there though there is a GPU.
            notify: told where no recipe says how videos are seen.
        Raises:
            CheckpointError: damaged, or not ours.
            RecipeError: `keep` is no share that leaves a token, or the clips do not divide into tubelets.
        """
        weights = open_weights(file)
        spec = ModelSpec.of(weights.settings, source=file)
        if recipe is None:
            recipe = _recipe_beside(file, notify)
            recipe = replace(recipe, data=replace(recipe.data, frames=spec.frames, size=spec.size))
        spec = replace(spec, frames=recipe.data.frames, size=recipe.data.frame_size)
        _check_keep(keep, spec.grid.num_tokens)
        module = spec.build()
        load_tensors(module, weights.tensors, source=str(file))
        train = replace(recipe.train, precision=precision or recipe.train.precision)
        views = replace(recipe.eval, clips=clips or recipe.eval.clips, crops=crops or recipe.eval.crops)
        accelerator = make_accelerator(train.precision, tf32=train.tf32, cpu=cpu)
        return cls(
            file=file,
            spec=spec,
            module=module.eval().to(accelerator.device),
            weights=weights,
            recipe=replace(recipe, train=train, eval=views),
            keep=keep,
            accelerator=accelerator,
        )

    @property
    def classes(self) -> Classes:
        """What the classifier tells apart.

        Raises:
            CheckpointError: it is none.
        """
        module = self.classifier
        return Classes(count=module.num_classes, names=self.weights.classes, heads=module.heads)

    @property
    def classifier(self) -> VideoClassifier:
        """The module.

        Raises:
            CheckpointError: it is no classifier.
        """
        require_kind(self.weights, "classifier", source=self.file)
        assert isinstance(self.module, VideoClassifier)
        return self.module

    @property
    def views(self) -> EvalViews:
        """How a video is cut into views, as in a test."""
        return evaluation_views(self.recipe)

    @torch.inference_mode()
    def probabilities(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W) uint8 to (B, classes) on the CPU; those of each head have the sum 1."""
        module = self.classifier
        with self.accelerator.autocast():
            logits = module(self._seen(clips), keep=self.keep)
        return module.probabilities(logits).cpu()

    @torch.inference_mode()
    def encode(self, clips: Tensor) -> Features:
        """(B, 3, T, H, W) uint8 to what the encoder makes of them, float32 on the CPU."""
        with self.accelerator.autocast():
            ids, tokens, pooled = encode(self.module, self._seen(clips), self.keep)
        return Features(ids.cpu(), tokens.float().cpu(), pooled.float().cpu())

    def _seen(self, clips: Tensor) -> Tensor:
        return normalize(clips.to(self.accelerator.device, non_blocking=True))


def over_videos(
    model: OpenedModel,
    samples: Sequence[Sample],
    compute: Callable[[Tensor], Values],
    *,
    batch: int,
    workers: int,
    report: Report,
    done: int = 0,
) -> Iterator[list[tuple[Sample, Values | str]]]:
    """What `compute` makes of the views of every video, or why it cannot be read, batch by batch.

    Args:
        compute: (B, 3, T, H, W) uint8 to tensors of B rows.
        batch: videos in one pass.
        workers: processes that read videos.
        done: videos that are done already, and left out.
    """
    clips = VideoClips(
        samples,
        make_views=model.views,
        seed=0,
        num_noise=0,
        decoder=model.recipe.data.decoder,
        replace_bad=False,
    )
    places = [range(first, min(first + batch, len(samples))) for first in range(done, len(samples), batch)]
    if not places:
        return
    order = [[(0, place) for place in part] for part in places]
    loader = make_loader(
        clips, order, workers=min(workers, len(order) - 1), timeout=model.recipe.train.data_timeout
    )
    for part, clip in zip(places, batches(loader), strict=True):
        found = _computed(clip.frames, [json.loads(text) for text in clip.failed], compute)
        pairs = [(samples[place], values) for place, values in zip(part, found, strict=True)]
        report({"event": "video", "done": part[-1] + 1, "videos": len(samples)})
        for sample, values in pairs:
            if isinstance(values, str):
                report(notice(f"{sample.video_id}: {values}"))
        yield pairs


def _computed(
    frames: Tensor, failed: Sequence[list[tuple[str, str]]], compute: Callable[[Tensor], Values]
) -> list[Values | str]:
    """The values of each video of (R, V, 3, T, H, W), or why it could not be read."""
    read = [place for place, tries in enumerate(failed) if not tries]
    values = compute(frames[read].flatten(0, 1)) if read else {}
    by_video = {name: tensor.unflatten(0, (len(read), -1)) for name, tensor in values.items()}  # (R, V, …)
    rows = {place: {name: of[row] for name, of in by_video.items()} for row, place in enumerate(read)}
    return [tries[0][1] if tries else rows[place] for place, tries in enumerate(failed)]


def _recipe_beside(file: Path, notify: Callable[[str], None] | None) -> Recipe:
    """The recipe of the run that wrote a file."""
    beside = file.parent / RECIPE
    if beside.is_file():
        return load_recipe(beside)
    recipe = load_recipe(FALLBACK)
    if notify:
        notify(
            f"{file}: no {RECIPE} beside it, so clips are drawn as recipe {FALLBACK} says, at stride "
            f"{recipe.finetune.stride}; --recipe names another"
        )
    return recipe


def _check_keep(keep: float | None, num_tokens: int) -> None:
    if keep is not None and not (0 < keep <= 1 and num_kept(num_tokens, keep)):
        raise RecipeError(
            f"--keep {keep:g}: must be more than 0, at most 1, and leave some of {num_tokens} tokens"
        )
