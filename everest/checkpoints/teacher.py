"""The model that a recipe pre-trains, and the frozen teacher whose features it predicts.

B batch, C channels, T frames, H W pixels, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.checkpoints.load import build_model, find_weights, open_encoder
from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.foreign.timm_images import is_timm_name, open_image_weights
from everest.methods.grid import TokenGrid
from everest.methods.strategies import AllTokens
from everest.models.encoder import VideoEncoder
from everest.models.mae import MaskedAutoencoder
from everest.models.of_recipe import pretrain_spec
from everest.models.positions import INTERPOLATED
from everest.models.spec import ModelSpec
from everest.models.video_model import VideoModel
from everest.system.hub import is_hub_name
from everest.system.weights import state_hash
from everest.tokenizer.cache import tokenizer_for
from everest.tokenizer.cache_index import TokenIndex
from everest.tokenizer.feature_targets import FeatureTargets, TeacherUse
from everest.video.pixels import PixelStatistics

_INTERPOLATED: Final = {computed: name for name, computed in INTERPOLATED.items()}
_LAST_NORM: Final = "encoder.norm.weight"


def spec_of_pretraining(recipe: Recipe) -> ModelSpec:
    """The model that a recipe pre-trains, with the facts of its tokenizer and its teacher.

    Raises:
        UserError: the tokenizer, the teacher or the cache of their outputs cannot be read, or does not fit.
    """
    use = None if recipe.pretrain.teacher is None else _teacher_use(recipe, recipe.pretrain.cache)
    return pretrain_spec(recipe, tokenizer=tokenizer_for(recipe), teacher=use)


def _teacher_use(recipe: Recipe, cache: str | None) -> TeacherUse:
    """The facts of a recipe's teacher; with a cache, its index supplies them."""
    if cache is None:
        return open_teacher(recipe).use
    cached = TokenIndex.read(Path(cache), of="teacher").teacher
    assert cached is not None
    if cached.name != recipe.pretrain.teacher and open_teacher(recipe).use.sha256 != cached.sha256:
        raise CheckpointError(
            f"{cache}: its features are not of {recipe.pretrain.teacher} but of {cached.name}; name that "
            "teacher, or make the cache again with everest prepare tokens"
        )
    return cached


class FrozenEncoder(nn.Module):
    """A frozen encoder that maps clips of a model to the features of the model's tokens.

    Frames are resized so that its patches give the model's token grid. If it was trained on shorter clips,
    such as an image model on single images, a clip is divided into windows of as many slices, if possible.

    Args:
        pixels: of the model's clips.
    """

    def __init__(self, use: TeacherUse, encoder: VideoEncoder, pixels: PixelStatistics) -> None:
        super().__init__()
        self.use = use
        self.encoder = encoder.requires_grad_(False).eval()
        self.pixels = pixels

    @torch.compiler.disable()
    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode all tokens of clips (B, C, T, H, W), bytes or normalized by `pixels`: (B, N, D)."""
        if self.encoder.device != frames.device:
            self.encoder.to(frames.device)
        grid = self.encoder.encoder.grid
        t, p, q = self.encoder.encoder.patch_embed.tubelet
        clips = as_seen_by(self.encoder, frames, self.pixels, size=(grid.h * p, grid.w * q))
        windows = clips.unflatten(2, (-1, grid.t * t)).transpose(1, 2)  # (B, windows, C, T', H, W)
        windows = windows.flatten(0, 1)  # (B * windows, C, T', H, W)
        ids = torch.arange(grid.num_tokens, device=frames.device).expand(len(windows), -1)
        features = self.encoder.encode(windows, ids)  # (B * windows, N', D)
        return features.unflatten(0, (len(frames), -1)).flatten(1, 2)


def as_seen_by(
    teacher: VideoModel, frames: Tensor, pixels: PixelStatistics, *, size: tuple[int, int]
) -> Tensor:
    """Clips of a student as its teacher takes them: (B, C', T, H', W') float32, normalized as the teacher's.

    Args:
        frames: (B, C, T, H, W), bytes or normalized by `pixels`.
        size: height and width, to which frames are resized.
    """
    clips = pixels.to_unit_range(frames)
    if clips.size(1) != teacher.pixels.channels:  # luma for a teacher of colors
        clips = clips.expand(-1, teacher.pixels.channels, -1, -1, -1)
    if clips.shape[-2:] != size:
        flat = clips.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
        resized = F.interpolate(flat, size, mode="bilinear", antialias=True)
        clips = resized.unflatten(0, (len(frames), -1)).transpose(1, 2)
    return teacher.pixels.normalize_unit_range(clips)


def attach_teacher(model: nn.Module, recipe: Recipe) -> None:
    """Give a new model the teacher of its recipe, for targets that are not in a cache.

    Raises:
        CheckpointError: see `open_teacher`; or the features of the recipe's cache are of another teacher.
    """
    assert isinstance(model, MaskedAutoencoder)
    assert isinstance(model.targets, FeatureTargets)
    teacher = open_teacher(recipe)
    if model.spec.teacher.sha256 != teacher.use.sha256:
        raise CheckpointError(
            f"{recipe.pretrain.cache}: its features are of other weights than {teacher.use.name} has "
            "now; restore these, or make the cache again with everest prepare tokens --overwrite"
        )
    model.targets.teacher = teacher


def open_teacher(recipe: Recipe) -> FrozenEncoder:
    """Open the teacher of a recipe, on the CPU.

    Raises:
        CheckpointError: no such checkpoint, it is damaged or no encoder, or it has other tokens than the
            recipe's model can have.
        Unreachable: neither the hub nor its cache can provide the weights.
    """
    name = recipe.pretrain.teacher
    assert name is not None
    weights = open_image_weights(name) if is_timm_name(name) else open_encoder(find_weights(name))
    saved = ModelSpec.from_settings(weights.settings, source=Path(name))
    tensors = {key: x for key, x in weights.tensors.items() if key.startswith("encoder.")}
    spec = _spec_for_tokens(recipe, saved, name, has_norm=_LAST_NORM in tensors)
    use = TeacherUse(
        name=name,
        sha256=state_hash(tensors),
        width=spec.model.backbone_size.width,
        settings=spec.dump(),
    )
    with torch.random.fork_rng(devices=[]):  # the model's initial weights do not depend on the teacher
        encoder = build_model(spec, replace(weights, tensors=tensors), source=Path(name))
    assert isinstance(encoder, VideoEncoder)
    return FrozenEncoder(use, encoder, recipe.data.pixels)


def absolute_teacher(name: str) -> str:
    """Return the weights file of a teacher as an absolute path; names of the hub and of timm stay.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    return name if is_hub_name(name) or is_timm_name(name) else str(find_weights(name).resolve())


def _spec_for_tokens(recipe: Recipe, saved: ModelSpec, name: str, *, has_norm: bool) -> ModelSpec:
    """The encoder `saved` for clips with the tokens of a recipe's model."""
    data, tubelet = recipe.data, recipe.model.tubelet
    t, p, q = saved.model.tubelet
    if saved.channels > 1 and data.channels == 1 and saved.model.input == "differences":
        raise CheckpointError(f"{name}: a teacher of differences of colors; set data.channels=3")
    if saved.channels < data.channels:
        raise CheckpointError(f"{name}: the teacher sees luma only; set data.channels={saved.channels}")
    if t % tubelet[0] and tubelet[0] % t:
        raise CheckpointError(
            f"{name}: the teacher's tokens are of {t} frames, the recipe's of {tubelet[0]}; set "
            f"model.tubelet=[{t},{tubelet[1]},{tubelet[2]}]"
        )
    grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=tubelet)
    model = replace(saved.model, tubelet=(tubelet[0], p, q))
    trained = saved.trained_grid
    if (trained.h, trained.w) != (grid.h, grid.w) and model.positions in _INTERPOLATED:
        model = replace(model, positions=_INTERPOLATED[model.positions])
    is_interpolated = model.positions in INTERPOLATED
    window = grid.t if grid.t % saved.grid.t else saved.grid.t  # slices
    if window * tubelet[0] < 2 and model.input == "differences":
        window = grid.t
    return ModelSpec(
        kind="encoder",
        frames=window * tubelet[0],
        size=(grid.h * p, grid.w * q),
        model=model,
        selection=AllTokens(),
        norms=replace(saved.norms, after_encoder=has_norm),
        position_grid=(trained.t, trained.h, trained.w) if is_interpolated else None,
        pixels=saved.pixels,
    )
