"""A model as a graph that other programs run: an ONNX file or a program of torch.export.

The selection of tokens is part of the graph, and the graph takes any number of clips. A file is written only
if it computes the same as the model.

B batch, C channels, T frames, H W pixels, K kept tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from everest.checkpoints.describe import trained_clip
from everest.checkpoints.load import LoadedModel
from everest.config.values import Input
from everest.errors import EnvironmentProblem, RecipeError
from everest.models.classifier import VideoClassifier
from everest.models.cost import count_tokens
from everest.models.encoder import VideoEncoder
from everest.models.input import model_input
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import ModelSpec
from everest.system.files import write_atomically
from everest.video.pixels import PixelStatistics

TOLERANCE: Final = 1e-4  # our choice: of logits and features in float32; above it no file is written
BATCHES: Final = (1, 3)  # of the comparison; another size is traced, to find one that is fixed in the graph
TRACED: Final = 2
INPUT: Final = "frames"
PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
LARGEST: Final = 2**31 - 2**24  # bytes: protobuf ends at 2 GB; the rest is for the graph


class ClassifierGraph(nn.Module):
    """(B, C, T, H, W) normalized clips to logits (B, classes) and the ids (B, K) of the encoded tokens."""

    outputs = ("logits", "kept")

    def __init__(self, classifier: VideoClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        ids = self.classifier.kept_tokens(frames)
        return self.classifier.head(self.classifier.pooled(self.classifier.encode(frames, ids))), ids


class FeaturesGraph(nn.Module):
    """(B, 3, T, H, W) normalized clips to features (B, D) and the ids (B, K) of the encoded tokens."""

    outputs = ("features", "kept")

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        ids = self.encoder.kept_tokens(frames)
        return self.encoder.pooled(self.encoder.encode(frames, ids)), ids


class EncoderGraph(nn.Module):
    """(B, C, T, H, W) normalized clips to features (B, D), the mean of all tokens, as `extract` does."""

    outputs = ("features",)

    def __init__(self, autoencoder: MaskedAutoencoder) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.input_kind: Input = autoencoder.input_kind
        self.pixels = autoencoder.pixels

    def forward(self, frames: Tensor) -> tuple[Tensor]:
        ids = torch.arange(self.encoder.grid.num_tokens, device=frames.device).expand(frames.size(0), -1)
        return (self.encoder(model_input(frames, self.input_kind, self.pixels), ids).mean(dim=1),)


class FramesGraph(nn.Module):
    """(B, T, H, W, C) uint8 frames, RGB or gray, to the outputs of a graph, which gets them normalized."""

    def __init__(
        self, graph: ClassifierGraph | FeaturesGraph | EncoderGraph, pixels: PixelStatistics
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.of_clips = graph  # not `graph`, which torch.fx uses
        self.outputs = graph.outputs

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return self.of_clips(self.pixels.normalize(frames.permute(0, 4, 1, 2, 3)))


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A model that is ready to be traced."""

    graph: ClassifierGraph | FeaturesGraph | EncoderGraph | FramesGraph
    spec: ModelSpec
    metadata: dict[str, str]  # of the file; JSON unless the value is a string

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
        pixels = sample_pixels(self.spec, batch)
        if isinstance(self.graph, FramesGraph):
            return pixels.permute(0, 2, 3, 4, 1).contiguous()
        return self.spec.pixels.normalize(pixels)


def sample_clips(spec: ModelSpec, batch: int) -> Tensor:
    """Return (batch, C, T, H, W) float32: normalized `sample_pixels`."""
    return spec.pixels.normalize(sample_pixels(spec, batch))


def sample_pixels(spec: ModelSpec, batch: int) -> Tensor:
    """Return (batch, C, T, H, W) uint8 noise, the same at every call.

    Every token has its own strength. With uniform noise all tokens would be equally important up to rounding
    errors, in which two libraries differ. Half of the places, drawn for each clip, are still: they repeat the
    first slice. Tokens there are equally important, so the first ones in token order have to be kept.
    """
    generator, grid = torch.Generator().manual_seed(batch), spec.grid
    strength = torch.rand(batch, 1, grid.t, grid.h, grid.w, generator=generator)
    strength = F.interpolate(strength, size=(spec.frames, *spec.size))  # (batch, 1, T, H, W)
    noise = torch.rand(batch, spec.channels, spec.frames, *spec.size, generator=generator)
    pixels = (256 * strength * noise).to(torch.uint8)
    places = torch.rand(batch, grid.per_slice, generator=generator).argsort(dim=1) < grid.per_slice // 2
    still = F.interpolate(places.view(batch, 1, grid.h, grid.w).float(), size=spec.size).bool()
    repeated = pixels[:, :, : spec.model.tubelet[0]].repeat(1, 1, grid.t, 1, 1)
    return torch.where(still.unsqueeze(2), repeated, pixels)


def exportable(opened: LoadedModel, *, keep: float | None, uint8: bool = False) -> Exportable:
    """Make a model ready for export.

    Args:
        keep: the ratio of the tokens that the graph of a classifier or an encoder encodes; None: as trained.
        uint8: the graph takes frames as decoded, (B, T, H, W, C) uint8, and normalizes them.
    Raises:
        RecipeError: `keep` leaves no token, or the model selects no tokens.
    """
    spec, module, weights = opened.spec, opened.transformer, opened.weights
    assert isinstance(spec, ModelSpec)
    if isinstance(module, MaskedAutoencoder):
        if keep is not None:
            raise RecipeError(
                "--keep: goes with a classifier or an encoder; of an autoencoder all tokens are encoded"
            )
        graph = EncoderGraph(module)
    else:
        if keep is not None:
            spec = replace(spec, selection=spec.selection.at_evaluation(keep))
            try:
                count_tokens(spec)
            except RecipeError as error:
                raise RecipeError(f"--keep {keep:g}: {error}") from error
            module.selector = spec.selection
        graph = FeaturesGraph(module) if isinstance(module, VideoEncoder) else ClassifierGraph(module)
    colors = _colors(spec)
    values = {
        "format": "everest",
        "kind": weights.kind,
        "recipe": weights.recipe,
        "step": weights.step,
        "settings": spec.dump(),
        "classes": weights.classes,
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
    return Exportable(graph=FramesGraph(graph, spec.pixels) if uint8 else graph, spec=spec, metadata=texts)


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


@torch.no_grad()
def trace(exported: Exportable) -> ExportedProgram:
    """Trace the graph with torch.export, for any number of clips at once."""
    batch = Dim("batch", min=1)
    return torch.export.export(
        exported.graph.eval(), (exported.sample(TRACED),), dynamic_shapes={INPUT: {0: batch}}
    )


@torch.no_grad()
def compare(exported: Exportable, run: Callable[[Tensor], Sequence[Tensor]], *, what: str) -> float:
    """Return the largest difference between the outputs of a written file and of the model.

    Args:
        run: computes the outputs of the file for clips as the graph takes them.
        what: the subject of the error message.
    Raises:
        EnvironmentProblem: the difference is above the tolerance, or other tokens are kept.
    """
    largest = 0.0
    for batch in BATCHES:
        clips = exported.sample(batch)
        for expected, output in zip(exported.graph(clips), run(clips), strict=True):
            if not expected.is_floating_point():
                largest = largest if torch.equal(expected, output) else float("inf")
            else:
                largest = max(largest, float((expected - output).abs().max()))
    if not largest <= TOLERANCE:
        raise EnvironmentProblem(
            f"{what} computes something else than this model (difference {largest:.1e}), so nothing was "
            "written; use the tested versions of its packages (see everest doctor)"
        )
    return largest


def write_onnx(path: Path, exported: Exportable) -> float:
    """Write an .onnx file and return the largest difference between onnxruntime's outputs and the model's.

    Raises:
        RecipeError: the weights are larger than an ONNX file can be.
        EnvironmentProblem: a package is missing, or onnxruntime computes something else.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"--to onnx: not installed: {', '.join(missing)}; run `pip install 'everest-video[export]'`"
        )
    import onnxruntime
    import onnxscript

    size = sum(tensor.nbytes for tensor in exported.graph.state_dict().values())
    if size > LARGEST:
        raise RecipeError(
            f"--to onnx: {size / 1e9:.1f} GB of weights, an ONNX file ends at 2 GB; use --to torch"
        )
    op: Any = onnxscript.opset20

    def stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        # torch 2.15 does not translate a stable sort. TopK is one: it takes the first of equal values.
        length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    program = torch.onnx.export(
        trace(exported),
        (exported.sample(TRACED),),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(exported.graph.outputs),
        dynamic_shapes={INPUT: {0: "batch"}},  # its name
        custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(exported.metadata)
    differences = []

    def write(part: Path) -> None:
        program.save(part, external_data=False)
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        differences.append(
            compare(
                exported,
                lambda clips: [torch.from_numpy(x) for x in session.run(None, {INPUT: clips.numpy()})],
                what="onnxruntime",
            )
        )

    write_atomically(path, write)
    return differences[0]


def write_program(path: Path, exported: Exportable) -> float:
    """Write a .pt2 file and return the largest difference between the file, read again, and the model.

    Raises:
        EnvironmentProblem: the file computes something else.
    """
    program, differences = trace(exported), []

    def write(part: Path) -> None:
        with part.open("wb") as file:
            torch.export.save(program, file, extra_files=exported.metadata)
        with part.open("rb") as file:
            written = torch.export.load(file).module()
        differences.append(compare(exported, lambda clips: written(clips), what="the written program"))

    write_atomically(path, write)
    return differences[0]
