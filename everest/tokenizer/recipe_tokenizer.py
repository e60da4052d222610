"""The tokenizer of a recipe: a new tokenizer, or the trained tokenizer that a model uses.

Gundavarapu et al., Extending Video Masked Autoencoders to 128 frames, 2024, §3.3.

B batch, C channels, T frames, H W pixels, N tokens, M target tokens, D code dimensions, P = D values, or the
sum of the levels of all dimensions; t p q a tubelet's frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from everest.config.settings import Recipe
from everest.config.tokenizer_settings import TokenizerSettings
from everest.errors import CheckpointError, RecipeError
from everest.methods.grid import gather_patches, gather_tokens
from everest.methods.targets import CodeSpace
from everest.system.weights import load_tensors, read_weights, state_hash
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer, TokenizerSpec
from everest.video.pixels import IMAGENET, PixelStatistics


def tokenizer_settings(recipe: Recipe) -> TokenizerSettings:
    """The `tokenizer` section of a recipe; raises RecipeError if it has none."""
    if recipe.tokenizer is None:
        raise RecipeError(
            f"{recipe.name}: has no tokenizer section; take a recipe of LVMAE, such as lvmae-demo"
        )
    return recipe.tokenizer


def tokenizer_spec(recipe: Recipe) -> TokenizerSpec:
    """The tokenizer of a recipe; raises RecipeError if it has none."""
    settings = tokenizer_settings(recipe)
    return TokenizerSpec(
        config=settings.config,
        window=settings.frames,
        size=recipe.data.frame_size,
        keep=settings.keep,
        select=settings.select,
        temperature=settings.temperature,
        checkpointing=recipe.train.checkpointing,
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerUse:
    """The tokenizer that a model is trained with, in a file that the model's file refers to."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    settings: TokenizerSpec
    path: str | None = None  # None: an untrained tokenizer, which is enough to compute costs
    sha256: str | None = None  # hash of the tokenizer's weights

    def load(self) -> AdaptiveTokenizer:
        """Load the tokenizer in eval mode, with new weights if `path` is None."""
        with torch.random.fork_rng(devices=[]):  # the model's initial weights must not depend on it
            tokenizer = self.settings.build().eval()
        if self.path is None:
            return tokenizer
        path = Path(self.path)
        weights = read_weights(path) if path.is_file() else None
        if weights is None or state_hash(weights.tensors) != self.sha256:
            problem = "missing" if weights is None else "another one"
            raise CheckpointError(f"{path}: the tokenizer of this model is {problem}; put it back")
        load_tensors(tokenizer, weights.tensors, source=self.path)
        return tokenizer


def tokenizer_use(recipe: Recipe) -> TokenizerUse:
    """The tokenizer `tokenizer.checkpoint` of a recipe, or an untrained tokenizer."""
    settings = tokenizer_settings(recipe)
    if settings.checkpoint is None:
        return TokenizerUse(settings=tokenizer_spec(recipe))
    path = Path(settings.checkpoint)
    weights = read_weights(path)
    if weights.kind != "tokenizer":
        raise CheckpointError(
            f"{path}: a {weights.kind} checkpoint where a tokenizer is needed; make one with train-tokenizer"
        )
    spec = TokenizerSpec.from_settings(weights.settings, source=path)
    if spec.config.tubelet != recipe.model.tubelet or recipe.data.frames % spec.window:
        raise CheckpointError(
            f"{path}: its tokens are of {spec.config.tubelet} in windows of {spec.window} frames; the recipe "
            f"has model.tubelet {recipe.model.tubelet} and clips of {recipe.data.frames} frames"
        )
    return TokenizerUse(settings=spec, path=str(path.resolve()), sha256=state_hash(weights.tensors))


class FrozenTokenizer:
    """A trained tokenizer that a model uses. It is not part of the model's weights, nor trained or copied.

    Args:
        load: called when the tokenizer is first needed; clips from a token cache never need it.
        levels: number of levels of each code dimension.
        pixels: pixel statistics of the model's clips. The tokenizer itself takes frames in [0, 1].
    """

    def __init__(
        self,
        load: Callable[[], AdaptiveTokenizer],
        levels: tuple[int, ...],
        pixels: PixelStatistics = IMAGENET,
    ) -> None:
        self._load = load
        self.levels = levels
        self.pixels = pixels

    @classmethod
    def wrap(cls, tokenizer: AdaptiveTokenizer, pixels: PixelStatistics = IMAGENET) -> FrozenTokenizer:
        """Freeze a tokenizer that is already loaded."""
        return cls(lambda: tokenizer, tokenizer.quantizer.levels, pixels)

    @cached_property
    def tokenizer(self) -> AdaptiveTokenizer:
        return self._load().eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTokenizer:
        return self  # the model's weight average shares it

    def on(self, device: torch.device) -> AdaptiveTokenizer:
        """The tokenizer, moved to the device of the clips."""
        if self.tokenizer.target_mean.device != device:
            self.tokenizer.to(device)
        return self.tokenizer

    @torch.no_grad()
    def scores(self, frames: Tensor) -> Tensor:
        """Score tokens (B, N) float32 of clips (B, C, T, H, W), bytes or normalized; high is important."""
        return self._in_parts(self.on(frames.device).scores, frames).flatten(1)

    @torch.no_grad()
    def latent(self, frames: Tensor) -> Tensor:
        """Encode clips (B, C, T, H, W), bytes or normalized: (B, N, D) float32, before the quantizer."""
        return self._in_parts(self.on(frames.device).latent, frames)

    # A graph would repeat the tokenizer for every part of a batch. `torch.compiler.disable` does the same but
    # imports the compiler immediately, which takes a second.
    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def _in_parts(self, code: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """Apply `code` to the pixels in [0, 1] of a few clips at a time, which saves memory."""
        parts = frames.split(self.tokenizer.clips_at_once(frames))
        return torch.cat([code(self.pixels.to_unit_range(part)) for part in parts])

    @torch.no_grad()
    def values(self, frames: Tensor, ids: Tensor, space: CodeSpace) -> Tensor:
        """Compute the targets (B, M, D) of the tokens `ids` (B, M): float32, or int64 levels for `codes`."""
        tokenizer = self.on(frames.device)
        latent = self.latent(frames)  # (B, N, D)
        values, codes = tokenizer.quantizer(latent)
        if space == "codes":
            return tokenizer.quantizer.digits(codes.gather(1, ids))
        values = values if space == "values" else tokenizer.quantizer.bound(latent)
        return (gather_tokens(values, ids) - tokenizer.target_mean) / tokenizer.target_std

    @torch.no_grad()
    def rebuilt(self, prediction: Tensor, frames: Tensor, ids: Tensor, space: CodeSpace) -> Tensor:
        """Decode the clip with predictions (B, M, P) at tokens `ids`: (B, M, C, t, p, q) in [0, 1]."""
        tokenizer = self.on(frames.device)
        values, _ = tokenizer.quantizer(self.latent(frames))  # (B, N, D)
        if space == "codes":
            parts = prediction.float().split(self.levels, dim=-1)
            digits = torch.stack([part.argmax(dim=-1) for part in parts], dim=-1)  # (B, M, D)
            predicted = digits / tokenizer.quantizer.steps - 1
        else:
            predicted = prediction.float() * tokenizer.target_std + tokenizer.target_mean  # (B, M, D)
        values = values.scatter(1, ids.unsqueeze(-1).expand(-1, -1, values.size(-1)), predicted)
        clips = tokenizer.decode(values, tokenizer.grid(frames)).clamp(0, 1)
        if clips.shape[-2:] != frames.shape[-2:]:
            clips = F.interpolate(clips, frames.shape[-3:])
        return gather_patches(clips, ids, tokenizer.tubelet)
