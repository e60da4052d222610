"""A model as a graph that other programs run, which `everest.checkpoints.graph_files` writes.

The selection of tokens is part of the graph, and the graph takes any number of clips.

B batch, C channels, T frames, H W pixels, K kept tokens, D width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from everest.checkpoints.describe import sample_pixels, trained_clip
from everest.checkpoints.load import LoadedModel
from everest.config.heads import MULTI_LABEL, Head
from everest.errors import RecipeError
from everest.models.classifier import VideoClassifier
from everest.models.cost import count_tokens
from everest.models.embedding import model_input
from everest.models.encoder import VideoEncoder
from everest.models.spec import ModelSpec
from everest.models.video_model import PretrainingModel
from everest.video.pixels import PixelStatistics

INPUT: Final = "frames"
KEPT: Final = "kept"
GraphPrecision = Literal["fp32", "int8"]  # of the encoder's blocks; all else is float32
# Our choice: numbers whose mean is more stds away from 0 are compared in parts of that mean (rounding).
MEAN_IN_STDS: Final = 500.0


class SelectingGraph(nn.Module):
    """(B, C, T, H, W) normalized clips to outputs (B, outputs) and the ids (B, K) of the encoded tokens.

    An encoder has features. A classifier's head of classes has logits, its head of numbers has an output in
    the unit of the labels.
    """

    std: Tensor  # (outputs,) 1 for a class; of an encoder (0,), as `mean`
    mean: Tensor  # (outputs,) 0 for a class

    def __init__(self, model: VideoClassifier | VideoEncoder) -> None:
        super().__init__()
        self.model = model
        heads = model.heads if isinstance(model, VideoClassifier) else ()
        tasks = {head.task for head in heads}
        self.has_numbers = "regression" in tasks
        name = "values" if tasks == {"regression"} else "logits" if heads else "features"
        self.outputs = (name, KEPT)
        std = [head.std for head in heads for _ in range(head.outputs)]
        mean = [head.mean for head in heads for _ in range(head.outputs)]
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        ids = self.model.kept_tokens(frames)
        outputs = self.model.head(self.model.pooled(self.model.encode(frames, ids)))
        return outputs * self.std + self.mean if self.has_numbers else outputs, ids


class MeanGraph(nn.Module):
    """(B, C, T, H, W) normalized clips to features (B, D), the mean of all tokens, as `extract` does."""

    outputs = ("features",)

    def __init__(self, model: PretrainingModel) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.to_input = partial(model_input, kind=model.input_kind, pixels=model.pixels)

    def forward(self, frames: Tensor) -> tuple[Tensor]:
        ids = torch.arange(self.encoder.grid.num_tokens, device=frames.device).expand(frames.size(0), -1)
        return (self.encoder(self.to_input(frames), ids).mean(dim=1),)


class FramesGraph(nn.Module):
    """(B, T, H, W, C) uint8 frames, RGB or gray, to the outputs of a graph, which gets them normalized."""

    def __init__(self, graph: SelectingGraph | MeanGraph, pixels: PixelStatistics) -> None:
        super().__init__()
        self.pixels = pixels
        self.of_clips = graph  # not `graph`, which torch.fx uses
        self.outputs = graph.outputs

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return self.of_clips(self.pixels.normalize(frames.permute(0, 4, 1, 2, 3)))


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A model that is ready to be traced."""

    graph: SelectingGraph | MeanGraph | FramesGraph
    spec: ModelSpec
    metadata: dict[str, str]  # of the file; JSON unless the value is a string
    precision: GraphPrecision  # of the file; the graph is float32
    unit: Tensor  # (outputs,) or (1,): outputs are divided by it before they are compared
    head_widths: tuple[int, ...]  # the outputs of each head; of features their width

    @property
    def layout(self) -> str:
        """The shape, type and values of the input, for a reader."""
        (height, width), uint8 = self.spec.size, isinstance(self.graph, FramesGraph)
        channels, frames = self.spec.channels, self.spec.frames
        shape = (frames, height, width, channels) if uint8 else (channels, frames, height, width)
        values = f"uint8 {_colors(self.spec)}" if uint8 else "normalized"
        return f"clips x {' x '.join(map(str, shape))}, {values}"

    def sample(self, batch: int) -> Tensor:
        """Return `batch` clips of `sample_pixels` as the graph takes them."""
        return self.input(sample_pixels(self.spec, batch))

    def input(self, pixels: Tensor) -> Tensor:
        """Convert clips (B, C, T, H, W) uint8 to the input of the graph."""
        if isinstance(self.graph, FramesGraph):
            return pixels.permute(0, 2, 3, 4, 1).contiguous()
        return self.spec.pixels.normalize(pixels)


def exportable(
    opened: LoadedModel, *, keep: float | None, uint8: bool = False, precision: GraphPrecision = "fp32"
) -> Exportable:
    """Make a model ready for export. With `keep`, the selection of `opened` itself changes.

    Args:
        keep: the ratio of the tokens that the graph of a classifier or an encoder encodes; None: as trained.
        uint8: the graph takes frames as decoded, (B, T, H, W, C) uint8, and normalizes them.
        precision: of the file; the graph is float32.
    Raises:
        RecipeError: `keep` leaves no token, or the model selects no tokens.
    """
    spec, module, weights = opened.spec, opened.transformer, opened.weights
    assert isinstance(spec, ModelSpec)
    if isinstance(module, PretrainingModel):
        if keep is not None:
            raise RecipeError(
                "--keep: goes with a classifier or an encoder; of a pre-trained model all tokens are encoded"
            )
        graph = MeanGraph(module)
    else:
        if keep is not None:
            spec = replace(spec, selection=spec.selection.at_evaluation(keep))
            try:
                count_tokens(spec)
            except RecipeError as error:
                raise RecipeError(f"--keep {keep:g}: {error}") from error
            module.selector = spec.selection
        graph = SelectingGraph(module)
    colors = _colors(spec)
    heads = module.heads if isinstance(module, VideoClassifier) else ()
    values: dict[str, Any] = {
        "format": "everest",
        "kind": weights.kind,
        "recipe": weights.recipe,
        "step": weights.step,
        "precision": precision,
        "settings": spec.dump(),
        "classes": weights.classes,
        "heads": [_head(head) for head in heads] or None,
        "mean": spec.pixels.mean,
        "std": spec.pixels.std,
        "clip": _clip(opened, spec),
        "input": {
            "name": INPUT,
            "dtype": "uint8" if uint8 else "float32",
            "layout": f"batch, frames, height, width, {colors}"
            if uint8
            else f"batch, {colors}, frames, height, width",
            "values": "0 to 255" if uint8 else "(pixel / 255 - mean) / std",
        },
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    # A float32 number has 7 digits: two programs may round the last one of the mean differently.
    units = [max(head.std, abs(head.mean) / MEAN_IN_STDS) for head in heads for _ in range(head.outputs)]
    return Exportable(
        graph=FramesGraph(graph, spec.pixels) if uint8 else graph,
        spec=spec,
        metadata=texts,
        precision=precision,
        unit=torch.tensor(units or [1.0]),
        head_widths=tuple(head.outputs for head in heads) or (module.encoder.width,),
    )


def _head(head: Head) -> dict[str, Any]:
    """Return what a head answers, the mean and std of numbers, and what was chosen on data.val."""
    facts: dict[str, Any] = {"name": head.name, "task": head.task, "outputs": head.outputs}
    if head.task == "regression":
        return {**facts, "mean": head.mean, "std": head.std}
    if head.calibration is not None:
        facts["temperature"] = head.calibration.temperature
    return {**facts, "thresholds": list(head.thresholds)} if head.task == MULTI_LABEL else facts


def _colors(spec: ModelSpec) -> str:
    return "RGB" if spec.channels == 3 else "luma"


def _clip(opened: LoadedModel, spec: ModelSpec) -> dict[str, Any]:
    """Return how to choose the frames of a clip: null where the file does not state it."""
    clip = trained_clip(opened)
    return {
        "frames": spec.frames,
        "stride": None if clip is None else clip.stride,
        "sampling": None if clip is None else clip.sampling,
        "fps": None if clip is None else clip.fps,
        "height": spec.size[0],
        "width": spec.size[1],
    }
