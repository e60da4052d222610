"""The frozen networks that a recipe pre-trains with: its tokenizer, and the features of its teacher.

B batch, C channels, T frames, H W pixels, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.methods.targets import START, FeatureTargets, TeacherUse
from everest.models.classifier import EncoderSpec, VideoEncoder
from everest.models.clip_spec import ModelSpec
from everest.models.mae import AutoencoderSpec
from everest.models.spec import FrozenNetworks, Transformer, encoder_spec, teacher_spec
from everest.models.student import StudentSpec
from everest.system.private_apis import never_compile
from everest.system.weights import Weights, state_hash
from everest.tokenizer.spec import tokenizer_settings, tokenizer_use
from everest.video.pixels import PixelStatistics

FROZEN_KEYS: Final = ("tokenizer.checkpoint", "pretrain.target.teacher")  # keys of a recipe with their files


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Make the paths of a recipe's tokenizer or teacher (files or run folders) and token cache absolute."""
    from everest.checkpoints.load import find_weights  # here: it also reads weights of other programs
    from everest.system.hub import PREFIXES, absolute_name

    section = recipe.pretrain
    if recipe.tokenizer is not None and recipe.tokenizer.checkpoint is not None:
        recipe = with_tokenizer(recipe, find_weights(recipe.tokenizer.checkpoint))
    if section.objective == "views":
        return recipe
    target = section.target
    if isinstance(target, FeatureTargets) and section.has_decoder:
        on_hub = target.teacher.startswith(PREFIXES)
        teacher = absolute_name(target.teacher) if on_hub else str(find_weights(target.teacher).resolve())
        target = replace(target, teacher=teacher)
    elif target.cache is not None:
        target = replace(target, cache=str(Path(target.cache).resolve()))
    return replace(recipe, pretrain=replace(section, target=target))


def with_tokenizer(recipe: Recipe, path: Path) -> Recipe:
    """Return the recipe with its tokenizer replaced by the one at `path`."""
    return replace(recipe, tokenizer=replace(tokenizer_settings(recipe), checkpoint=str(path.resolve())))


def find_frozen(recipe: Recipe, *, init: str | None = None) -> FrozenNetworks:
    """Find the tokenizer and the teacher of a recipe.

    If the recipe has a token cache, the tokenizer is read from the index of the cache.

    Args:
        init: the weights that the run starts from, of a teacher that is this start. None: a new encoder of
            the recipe stands for it, of which cost and time can be told.
    """
    section, tokenizer = recipe.pretrain, None
    if section.needs_tokenizer and section.cache is not None:
        from everest.tokenizer.cache import TokenIndex  # imported here: most runs have no cache

        checkpoint = tokenizer_settings(recipe).checkpoint
        tokenizer = TokenIndex.read(Path(section.cache)).tokenizer
        if checkpoint is not None and tokenizer_use(recipe).sha256 != tokenizer.sha256:
            raise CheckpointError(
                f"{section.cache}: made with the tokenizer {tokenizer.path}, not {checkpoint}; set "
                "tokenizer.checkpoint to that tokenizer, or make the cache again with everest prepare tokens "
                "--overwrite"
            )
    elif section.needs_tokenizer:
        tokenizer = tokenizer_use(recipe)
    teacher, name = None, init if section.teacher == START else section.teacher
    if name is not None:
        teacher = _read_teacher(recipe, name)[0]
    elif section.teacher == START:
        own = encoder_spec(recipe)
        spec = teacher_spec(recipe, replace(own, model=replace(own.model, attention="slice")), name=START)
        width = spec.model.backbone_size.width
        teacher = TeacherUse(name=START, sha256="", width=width, settings=spec.dump())
    return FrozenNetworks(tokenizer=tokenizer, teacher=teacher)


def build_with_teacher(spec: ModelSpec, recipe: Recipe) -> Transformer:
    """A new model, which learns from the recipe's teacher if its targets are features."""
    if not isinstance(spec, AutoencoderSpec | StudentSpec) or spec.teacher is None:
        return spec.build()
    with torch.random.fork_rng(devices=[]):  # the model's initial weights do not depend on the teacher
        teacher = open_teacher(recipe, spec.teacher.name)
    return spec.build(teacher)


class FrozenEncoder:
    """A frozen encoder that maps clips of a model to the features of the model's tokens.

    It is not part of the model's weights, nor copied with them.

    Frames are resized so that the encoder's patches give the model's token grid. If the encoder was trained
    on shorter clips, such as single images, clips are divided into windows of that many time indices, if
    possible.

    Args:
        pixels: the pixel statistics of the model's clips.
    """

    def __init__(self, encoder: VideoEncoder, pixels: PixelStatistics) -> None:
        self.encoder = encoder.requires_grad_(False).eval()
        self.width = encoder.encoder.width
        self.pixels = pixels

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # the model's weight average shares it

    @never_compile
    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Encode all tokens of clips (B, C, T, H, W), bytes or normalized by `pixels`: (B, N, D)."""
        encoder, grid = self.encoder, self.encoder.encoder.grid
        if encoder.device != frames.device:
            encoder.to(frames.device)
        t, p, q = encoder.encoder.patch_embed.tubelet
        clips = self.pixels.to_unit_range(frames)
        clips = clips.expand(-1, encoder.pixels.channels, -1, -1, -1)  # luma, for a teacher of color images
        if clips.shape[-2:] != (grid.h * p, grid.w * q):
            images = clips.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
            images = F.interpolate(images, (grid.h * p, grid.w * q), mode="bilinear", antialias=True)
            clips = images.unflatten(0, (len(frames), -1)).transpose(1, 2)
        windows = encoder.pixels.normalize_unit_range(clips).unflatten(2, (-1, grid.t * t)).transpose(1, 2)
        windows = windows.flatten(0, 1)  # (B * windows, C, T', H', W')
        ids = torch.arange(grid.num_tokens, device=frames.device).expand(len(windows), -1)
        features = encoder.encode(windows, ids)  # (B * windows, N', D)
        return features.unflatten(0, (len(frames), -1)).flatten(1, 2)


def open_teacher(recipe: Recipe, name: str) -> FrozenEncoder:
    """Open a teacher of a recipe's model, on the CPU; for `start`, a new encoder stands for it."""
    from everest.checkpoints.load import build_model  # here: most runs have no teacher

    if name == START:
        teacher = find_frozen(recipe).teacher
        assert teacher is not None
        settings = EncoderSpec.from_settings(teacher.settings, source=Path(name))
        return FrozenEncoder(settings.build(), recipe.data.pixels)
    use, spec, weights = _read_teacher(recipe, name)
    encoder = build_model(spec, weights, source=Path(use.name))
    assert isinstance(encoder, VideoEncoder)
    return FrozenEncoder(encoder, recipe.data.pixels)


def _read_teacher(recipe: Recipe, name: str) -> tuple[TeacherUse, EncoderSpec, Weights]:
    """A teacher of a recipe's model, its spec, and the weights of its encoder alone."""
    from everest.checkpoints.load import open_encoder

    weights, saved = open_encoder(name)
    tensors = {key: tensor for key, tensor in weights.tensors.items() if key.startswith("encoder.")}
    spec = teacher_spec(recipe, saved, name=name)
    spec = replace(spec, norms=replace(spec.norms, after_encoder="encoder.norm.weight" in tensors))
    width, sha256 = spec.model.backbone_size.width, state_hash(tensors)
    use = TeacherUse(name=name, sha256=sha256, width=width, settings=spec.dump())
    return use, spec, replace(weights, tensors=tensors)
