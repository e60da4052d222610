"""The request for figures of a video: its clip, the model and the size of the frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from everest.models.spec import Transformer
from everest.models.video_model import VideoModel
from everest.tokenizer.network import AdaptiveTokenizer
from everest.video.file import VideoInfo

AnyModel = Transformer | AdaptiveTokenizer
TUBELET: Final = (2, 16, 16)  # of raw pixels, without a model


@dataclass(frozen=True, kw_only=True)
class FigureRequest:
    """The options that all figures of a video share.

    Args:
        frames: T, the length of a clip.
        stride: in frames of the video, or in frames at `fps`.
        size: pixels of the shorter side without a model, or with a tokenizer; another model has its own size.
        model: measures change; None for raw pixels.
    """

    frames: int
    stride: int
    size: int
    seed: int
    model: AnyModel | None
    fps: float | None = None

    def frame_size(self, video: VideoInfo, *, multiples: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the frames: the transformer's, else `size` rounded to whole `multiples`."""
        if isinstance(self.model, VideoModel):
            encoder = self.model.encoder
            _, p, q = encoder.patch_embed.tubelet
            return encoder.grid.h * p, encoder.grid.w * q
        scale = self.size / min(video.height, video.width)
        height, width = (
            max(round(side * scale / multiple), 1) * multiple
            for side, multiple in zip((video.height, video.width), multiples, strict=True)
        )
        return height, width
