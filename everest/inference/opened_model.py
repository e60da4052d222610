"""A trained model that is ready for any videos: opened on its device.

B clips, C channels, T frames, H W pixels, K encoded tokens, D width, O outputs of all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from everest.checkpoints.describe import make_clip_recipe, recover_recipe, with_pixels_of
from everest.checkpoints.graph import open_exported
from everest.checkpoints.load import ONNX_SUFFIX, Kind, open_model, wrong_kind
from everest.config.settings import Recipe
from everest.data.clip_dataset import ClipDataset
from everest.data.recipe_clips import evaluation_views
from everest.data.views import EvalViews
from everest.errors import CheckpointError, OptionError, RecipeError
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.methods.grid import is_keep_ratio, num_kept
from everest.methods.strategies import AllTokens
from everest.models.base import ClipModel
from everest.models.classifier import Classifier, SelectingModel, VideoEncoder
from everest.models.clip_spec import ClipSpec
from everest.models.image_classifier import NO_TOKENS
from everest.models.pooling import mean_and_change
from everest.models.spec import Transformer
from everest.system.accelerator import make_accelerator, make_runtime
from everest.system.compute import Runtime, choose_precision
from everest.system.events import Notify
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer


class Features(NamedTuple):
    """The output of an encoder for clips."""

    ids: Tensor  # (B, K) int64 ascending: the encoded tokens
    tokens: Tensor  # (B, K, D) after the last block
    pooled: Tensor  # the input of a classifier's head, (B, …); else `mean_and_change` of the tokens, (B, 4D)


def encode_clips(module: Transformer, frames: Tensor, keep: float | None) -> Features:
    """Encode normalized clips (B, C, T, H, W) with a transformer.

    Args:
        keep: the ratio of the tokens to encode. None: a classifier encodes as many as in training, an encoder
            those that its strategy chooses, and an autoencoder, whose strategy hides tokens, all of them.
    """
    if isinstance(module, SelectingModel):
        ids, tokens = module.encode_kept(frames, keep)
        return Features(ids, tokens, module.pooled(tokens, ids))
    module.encoder.check(frames)
    x = module.to_input(frames)
    ids = module.select_tokens(x, strategy=AllTokens().at_evaluation(keep)).visible
    tokens = module.encoder(x, ids)
    return Features(ids, tokens, mean_and_change(tokens, ids, module.encoder.grid))


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model on its device, and how it reads videos."""

    module: ClipModel
    recipe: Recipe  # clip size, stride, sampling and views of videos
    keep: float | None  # ratio of the tokens to encode; None: see `encode_clips`
    runtime: Runtime
    written_by: str = ""  # name of the recipe in the header of the weights

    @classmethod
    def open(
        cls,
        file: Path,
        *,
        kind: Kind = "clips",
        recipe: Recipe | None = None,
        views: tuple[int | None, int | None] = (None, None),
        keep: float | None = None,
        cpu: bool = False,
        notify: Notify | None = None,
    ) -> OpenedModel:
        """Open a checkpoint for a command, and set up this process to compute (`make_accelerator`).

        Args:
            kind: the kind of model to accept; see `open_model`.
            recipe: gives the size and stride of clips. None: see everest.checkpoints.describe.recover_recipe.
            views: clips and crops of a video; None: as in the evaluation of the recipe.
            notify: receives a notice when there is no recipe next to the weights.
        """
        if file.suffix == ONNX_SUFFIX and kind == "classifier":
            return cls._open_exported(file, views)
        checkpoint = open_model(
            file,
            kind=kind,
            frames=None if recipe is None else recipe.data.frames,
            size=None if recipe is None else recipe.data.frame_size,
            check=lambda spec: check_keep(keep, spec.num_tokens),
        )
        assert isinstance(checkpoint.spec, ClipSpec)
        if recipe is None:
            recipe = recover_recipe(checkpoint, notify=notify)
        else:
            recipe = with_pixels_of(recipe, checkpoint.spec, source=checkpoint.file)
        module = checkpoint.model
        module.recipe = recipe
        train = recipe.train
        runtime = make_runtime(make_accelerator(train.precision, cpu=cpu))
        return cls(
            module=module.to(runtime.device),
            recipe=_with_views(recipe, *views),
            keep=keep,
            runtime=runtime,
            written_by=checkpoint.weights.recipe,
        )

    @classmethod
    def _open_exported(cls, file: Path, views: tuple[int | None, int | None]) -> OpenedModel:
        """Open an ONNX file of `everest export`, on the CPU, for the clips that it was trained on."""
        module = open_exported(file)
        clip = {"stride": module.clip.stride, "sampling": module.clip.sampling, "fps": module.clip.fps}
        module.recipe = make_clip_recipe(module.spec, clip)
        runtime = make_runtime(make_accelerator("fp32", cpu=True))
        return cls(module=module, recipe=_with_views(module.recipe, *views), keep=None, runtime=runtime)

    @classmethod
    def of(
        cls,
        module: ClipModel | AdaptiveTokenizer,
        *,
        clips: int | None = None,
        crops: int | None = None,
        keep: float | None = None,
        workers: int | None = None,
        precision: str | None = None,
    ) -> OpenedModel:
        """Use a model of `everest.load_model` or `create_model` where it is, in evaluation mode; see `open`.

        Settings of the process stay, such as the precision of float32 products in torch.

        Args:
            workers: processes that read videos; None: as in the recipe.
        """
        if isinstance(module, AdaptiveTokenizer):
            raise wrong_kind("tokenizer", "transformer", source=type(module).__name__)
        if not isinstance(module, ClipModel):
            raise TypeError(f"expected a model, got {type(module).__name__}; everest.load_model opens one")
        check_keep(keep, module.spec.num_tokens)
        recipe = _with_views(module.recipe, clips, crops)
        if workers is not None:
            recipe = replace(recipe, train=replace(recipe.train, workers=workers))
        compute_precision = choose_precision(precision or recipe.train.precision, module.device)
        return cls(
            module=module.eval(),
            recipe=recipe,
            keep=keep,
            runtime=Runtime(module.device, compute_precision),
        )

    @property
    def file(self) -> Path:
        """The file of the weights; the model must have been opened from one."""
        assert self.module.file is not None
        return self.module.file

    @property
    def name_in_messages(self) -> str:
        """The subject of messages: the weights, or the class of a model without a file."""
        return str(self.module.file or type(self.module).__name__)

    @property
    def classes(self) -> Classes:
        """The classes of the classifier."""
        module = self.classifier
        return Classes(heads=module.heads, names=module.class_names)

    @property
    def transformer(self) -> Transformer:
        """The module as a transformer; raises CheckpointError if it does not encode tokens."""
        if isinstance(self.module, Transformer):
            return self.module
        raise wrong_kind(self.module.spec.dump()["kind"], "transformer", source=self.name_in_messages)

    @property
    def classifier(self) -> Classifier:
        """The module as a classifier; raises CheckpointError if it is not one."""
        if not isinstance(self.module, Classifier):
            kind = "encoder" if isinstance(self.module, VideoEncoder) else "pretrain"
            raise wrong_kind(kind, "classifier", source=self.name_in_messages)
        return self.module

    @property
    def sees_whole_clips(self) -> bool:
        """Whether nothing that is computed of a clip is of use for another one with some of its frames."""
        frames = self.module.spec.frames
        return frames in (part.piece_frames(self.keep) for part in self.module.parts)

    @property
    def views(self) -> EvalViews:
        return evaluation_views(self.recipe)

    def dataset(self, samples: Sequence[Sample]) -> ClipDataset:
        """The views of samples, without labels; unreadable samples are not replaced."""
        return ClipDataset(
            samples,
            views=self.views,
            seed=0,
            num_noise=0,
            decoder=self.recipe.data.decoder,
            replace_bad=False,
        )

    def normalize(self, clips: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) uint8 as the input of the module, on its device."""
        return self.module.pixels.normalize(clips.to(self.module.device, non_blocking=True))

    @torch.inference_mode()
    def outputs(self, clips: Tensor) -> dict[str, Tensor]:
        """Map (B, C, T, H, W) uint8 to `outputs` (B, O) on the CPU: probabilities, or numbers, all finite."""
        frames = self.normalize(clips)
        with self.runtime.autocast():
            return self.to_outputs(self.classifier(frames, keep=self.keep))

    def to_outputs(self, logits: Tensor) -> dict[str, Tensor]:
        """The dictionary of `outputs` from the logits (B, O)."""
        outputs = self.classifier.outputs(logits).cpu()
        require_finite_outputs(outputs, source=self.name_in_messages)
        return {"outputs": outputs}

    @torch.inference_mode()
    def features(self, clips: Tensor) -> dict[str, Tensor]:
        """Map (B, C, T, H, W) uint8 to Features (or to `pooled` alone), finite float32 on the CPU."""
        module, frames = self.module, self.normalize(clips)
        with self.runtime.autocast():
            if isinstance(module, Transformer):
                return self.to_features(encode_clips(module, frames, self.keep)._asdict())
            return self.to_features({"pooled": self.classifier.features(frames, self.keep)})

    def to_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The dictionary of `features` from its values in any precision and on any device."""
        features = {name: (x if name == "ids" else x.float()).cpu() for name, x in features.items()}
        require_finite_outputs(features["pooled"], source=self.name_in_messages)
        return features


def require_finite_outputs(outputs: Tensor, *, source: str | Path) -> None:
    """Raise CheckpointError if outputs of the weights `source` overflowed: their order means nothing."""
    if not outputs.isfinite().all():
        raise CheckpointError(
            f"{source}: its outputs are not finite; set the precision fp32, or take another checkpoint"
        )


def check_counts(**counts: int | None) -> None:
    """Raise RecipeError for a number of views, classes, or videos in one forward pass that is below 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise RecipeError(f"{name}={count}: must be at least 1")


def check_keep(keep: float | None, num_tokens: int | None) -> None:
    """Raise OptionError unless a keep ratio leaves some of the tokens of a clip."""
    if keep is None:
        return
    if num_tokens is None:
        raise OptionError(f"keep {keep}: {NO_TOKENS}; leave it out")
    if not (is_keep_ratio(keep) and num_kept(num_tokens, keep)):
        raise OptionError(
            f"keep {keep!r}: must be a number above 0 and at most 1, and leave some of {num_tokens} tokens"
        )


def _with_views(recipe: Recipe, clips: int | None, crops: int | None) -> Recipe:
    check_counts(clips=clips, crops=crops)
    views = replace(recipe.eval, clips=clips or recipe.eval.clips, crops=crops or recipe.eval.crops)
    return replace(recipe, eval=views)
