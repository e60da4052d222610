"""Apply strategies and models to a clip: which tokens they keep, see and predict; the request for a figure.

C channels, T frames, H W pixels, N tokens, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everest.config.values import Input
from everest.errors import RecipeError
from everest.figures.camera import view_camera
from everest.figures.mask_view import GRAY, MaskView, draws_evenly, in_colors, to_frames, to_patches
from everest.methods.grid import TokenGrid, TokenSelection
from everest.methods.importance import Embedding, RawPixels, ScoredEmbedding
from everest.methods.learned import LearnedImportance
from everest.methods.ranked import ByChange
from everest.methods.selector import Selector
from everest.models.embedding import model_input
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import Transformer
from everest.models.video_model import VideoModel
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.targets import FeatureTargets, FrozenTokenizer
from everest.video.file import VideoInfo
from everest.video.pixels import IMAGENET, PixelStatistics

AnyModel = Transformer | AdaptiveTokenizer
TUBELET: Final = (2, 16, 16)  # of raw pixels, without a model


@dataclass(frozen=True, kw_only=True)
class FigureRequest:
    """The options that all figures of a video share.

    Args:
        frames: T, the length of a clip.
        stride: in frames of the video, or in frames at `fps`.
        size: pixels of the shorter side, or height and width, without a model or with a tokenizer; another
            model has its own size.
        model: measures change; None for raw pixels.
    """

    frames: int
    stride: int
    size: int | tuple[int, int]
    seed: int
    model: AnyModel | None
    fps: float | None = None

    def frame_size(self, video: VideoInfo, *, multiples: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the frames: the transformer's, else `size`, a side in whole `multiples`."""
        if isinstance(self.model, VideoModel):
            encoder = self.model.encoder
            _, p, q = encoder.patch_embed.tubelet
            return encoder.grid.h * p, encoder.grid.w * q
        if not isinstance(self.size, int):
            return self.size
        scale = self.size / min(video.height, video.width)
        height, width = (
            max(round(side * scale / multiple), 1) * multiple
            for side, multiple in zip((video.height, video.width), multiples, strict=True)
        )
        return height, width


@torch.inference_mode()
def view_masks(
    clip: Tensor,
    selectors: Sequence[tuple[str, Selector]],
    *,
    model: AnyModel | None,
    tubelet: tuple[int, int, int] = TUBELET,
    pixels: PixelStatistics = IMAGENET,
    input_kind: Input = "frames",
    seed: int,
) -> list[MaskView]:
    """Apply strategies, given with their titles, to a clip (C, T, H, W) uint8.

    Args:
        model: its embedding measures change; an autoencoder also predicts. A tokenizer scores tokens, and
            rebuilds the clip from the kept tokens and the first slice of each window. None: raw pixels
            measure change.
        tubelet, pixels, input_kind: of the raw pixels; a model has its own.
    Raises:
        RecipeError: the clip does not divide into tubelets, a strategy does not fit its grid, or no token is
            visible to the model.
    """
    if model is None:
        embed: Embedding = RawPixels(tubelet, pixels)
    elif isinstance(model, AdaptiveTokenizer):
        embed = ScoredEmbedding(RawPixels(model.tubelet), FrozenTokenizer.wrap(model))
    else:
        embed = model.measure
    grid = TokenGrid.of_clip(frames=clip.size(1), size=(clip.size(2), clip.size(3)), tubelet=embed.tubelet)
    pixels = embed.pixels
    x = pixels.normalize(clip)[None]  # (1, C, T, H, W)
    generator = np.random.default_rng(seed)
    noise = generator.random((1, grid.num_tokens), dtype=np.float32)
    seen = model.to_input(x) if isinstance(model, VideoModel) else model_input(x, input_kind, pixels)
    views = []
    for number, (title, selector) in enumerate(selectors):
        if any(selector is before for _, before in selectors[:number]):  # another view draws other tokens
            noise = generator.random((1, grid.num_tokens), dtype=np.float32)
        importance = selector.importance(seen, embed)
        selection = selector(grid, importance=importance, noise=torch.from_numpy(noise))
        num_visible, num_targets = selection.visible.size(1), selection.target.size(1)
        if num_visible + num_targets == 0:
            raise RecipeError(f"--keep: {selector.strategy} keeps none of the tokens; keep more")
        scores_only = isinstance(selector, LearnedImportance) and selector.mask_ratio == 1
        if isinstance(model, MaskedAutoencoder) and not num_visible and not scores_only:
            raise RecipeError(f"--keep: {selector.strategy} lets the model see none of the tokens; keep more")
        prediction = None
        if (
            isinstance(model, MaskedAutoencoder)
            and not isinstance(model.targets, FeatureTargets)  # they have no pixels
            and num_visible
            and num_targets
        ):
            prediction = model(x, selection=selection).prediction
        view = _view(title, selector, x, selection, importance, prediction, model, grid, pixels)
        if isinstance(selector, ByChange) and selector.sees_camera:
            length = embed.tubelet[0]
            camera = view_camera(clip, selector, tubelet_frames=length, pixels=pixels)
            view = replace(view, camera=camera)
        if isinstance(model, AdaptiveTokenizer):
            view = replace(view, rebuilt=_rebuild(model, x, view.kept))
        views.append(view)
    return views


def _rebuild(tokenizer: AdaptiveTokenizer, x: Tensor, kept: Tensor) -> Tensor:
    """Rebuild a normalized clip (1, 3, T, H, W) from its tokens `kept` (K,): (T, H, W, 3) in [0, 1].

    As in training, the first slice of each window is kept completely.
    """
    clip = IMAGENET.unnormalize(x)
    grid = tokenizer.grid(clip)
    mask = torch.zeros(grid.num_tokens).index_fill_(0, kept, 1.0).view(1, grid.t, grid.h, grid.w)
    mask[:, :: tokenizer.window // tokenizer.tubelet[0]] = 1.0
    rebuilt = F.interpolate(
        tokenizer.reconstruct(clip, mask=mask), clip.shape[-3:]
    )  # the tokenizer may rebuild smaller frames
    return rebuilt[0].movedim(0, -1).clamp(0, 1)


@torch.inference_mode()
def view_model(model: MaskedAutoencoder, clip: Tensor, *, noise: Tensor) -> MaskView:
    """View the tokens that an autoencoder keeps, sees and predicts with its own strategy.

    Args:
        clip: (C, T, H, W) uint8, or the candidate frames that the model draws a clip from.
        noise: (N,) uniform in [0, 1), followed by one number for each candidate slice.
    """
    device = model.mask_token.device
    out = model(model.pixels.normalize(clip.to(device))[None], noise=noise[None].to(device))
    importance = model.selector.importance(model.to_input(out.frames), model.measure)
    grid, title = model.encoder.grid, model.selector.strategy
    return _view(
        title,
        model.selector,
        out.frames,
        out.selection,
        importance,
        out.prediction,
        model,
        grid,
        model.pixels,
    )


def _view(
    title: str,
    selector: Selector,
    x: Tensor,
    selection: TokenSelection,
    importance: Tensor | None,
    prediction: Tensor | None,
    model: AnyModel | None,
    grid: TokenGrid,
    pixels: PixelStatistics,
) -> MaskView:
    frames = pixels.unnormalize(x)[0].movedim(0, -1)  # (T, H, W, C)
    visible, target = selection.visible[0], selection.target[0]
    predicted, with_truth = None, False
    if isinstance(model, MaskedAutoencoder) and prediction is not None:
        with_truth = model.targets.needs_truth
        seen = model.to_input(x)
        patches = to_patches(pixels.unnormalize(seen)[0].movedim(0, -1), grid)
        shown = torch.full_like(patches, GRAY)
        shown[target] = model.targets.pixels(prediction, seen, selection.target)[0]
        shown[visible] = patches[visible]
        predicted = in_colors(to_frames(shown, grid))
    return MaskView(
        title=title,
        selector=selector,
        grid=grid,
        kept=torch.cat([visible, target]).unique().cpu(),
        visible=visible.cpu(),
        importance=None if importance is None or draws_evenly(selector) else importance[0].cpu(),
        frames=in_colors(frames.clamp(0, 1).cpu()),
        predicted=predicted,
        with_truth=with_truth,
    )
