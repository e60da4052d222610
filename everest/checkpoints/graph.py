"""What of a model is exported as a graph, and whether the written one says the same.

B batch, T frames, H W pixels, K kept tokens, D width.

A model as an ONNX file: any number of clips at once, the choice of tokens inside the graph.

A model as a program of torch.export, which runs without this package.
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

from everest.errors import EnvironmentProblem, RecipeError
from everest.methods.strategies import at_test
from everest.models.classifier import VideoClassifier
from everest.models.cost import count_tokens
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import ModelSpec
from everest.system.files import write_atomically
from everest.system.weights import Weights
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize

TOLERANCE: Final = 1e-4  # ours: of logits and features, in float32; above it a file is not written
BATCHES: Final = (1, 3)  # of the comparison; traced is another, so that none can have stuck to the graph
TRACED: Final = 2
INPUT: Final = "frames"


class ClassifierGraph(nn.Module):
    """(B, 3, T, H, W) normalised clips to logits (B, classes) and the ids (B, K) of the encoded tokens."""

    outputs = ("logits", "kept")

    def __init__(self, classifier: VideoClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        ids = self.classifier.kept_tokens(frames)
        return self.classifier.head(self.classifier.pooled(self.classifier.encoder(frames, ids))), ids


class EncoderGraph(nn.Module):
    """(B, 3, T, H, W) normalised clips to features (B, D), the mean of all tokens: what `extract` writes."""

    outputs = ("features",)

    def __init__(self, autoencoder: MaskedAutoencoder) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder

    def forward(self, frames: Tensor) -> tuple[Tensor]:
        ids = torch.arange(self.encoder.grid.num_tokens, device=frames.device).expand(frames.size(0), -1)
        return (self.encoder(frames, ids).mean(dim=1),)


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A model ready to be traced, and what its file tells of itself."""

    graph: ClassifierGraph | EncoderGraph
    spec: ModelSpec
    about: dict[str, Any]


def sample_clips(spec: ModelSpec, batch: int) -> Tensor:
    """(batch, 3, T, H, W) normalised noise, the same every time.

    Every token has another strength: of even noise all tokens were as important but for some rounding, in
    which two libraries differ.
    """
    generator, grid = torch.Generator().manual_seed(batch), spec.grid
    strength = torch.rand(batch, 1, grid.t, grid.h, grid.w, generator=generator)
    strength = F.interpolate(strength, size=(spec.frames, *spec.size))  # (batch, 1, T, H, W)
    noise = torch.rand(batch, 3, spec.frames, *spec.size, generator=generator)
    return normalize((256 * strength * noise).to(torch.uint8))


def exportable(
    model: VideoClassifier | MaskedAutoencoder, weights: Weights, spec: ModelSpec, *, keep: float | None
) -> Exportable:
    """What of a model is exported.

    Args:
        keep: the share of the tokens that the graph encodes; None as trained.
    Raises:
        RecipeError: `keep` leaves no token, or the model chooses none.
    """
    if isinstance(model, MaskedAutoencoder):
        if keep is not None:
            raise RecipeError("--keep: goes with a classifier; of an autoencoder all tokens are encoded")
        return Exportable(graph=EncoderGraph(model), spec=spec, about=_about(weights, spec))
    if keep is not None:
        spec = replace(spec, selection=at_test(spec.selection, keep))
        try:
            count_tokens(spec)
        except RecipeError as error:
            raise RecipeError(f"--keep {keep:g}: {error}") from error
        model.selector = spec.selection
    return Exportable(graph=ClassifierGraph(model), spec=spec, about=_about(weights, spec))


def _about(weights: Weights, spec: ModelSpec) -> dict[str, Any]:
    return {
        "format": "everest",
        "kind": weights.kind,
        "recipe": weights.recipe,
        "step": weights.step,
        "settings": spec.dump(),
        "classes": weights.classes,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


def about_text(about: dict[str, Any]) -> dict[str, str]:
    """The same as texts, as files take it: JSON where it is no text."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}


@torch.no_grad()
def trace(exported: Exportable) -> ExportedProgram:
    """The graph as torch.export writes it, for any number of clips at once."""
    batch = Dim("batch", min=1)
    return torch.export.export(
        exported.graph.eval(), (sample_clips(exported.spec, TRACED),), dynamic_shapes={INPUT: {0: batch}}
    )


@torch.no_grad()
def compare(exported: Exportable, run: Callable[[Tensor], Sequence[Tensor]], *, what: str) -> float:
    """The largest difference between what a written model and ours say of the same clips.

    Raises:
        EnvironmentProblem: it is above the tolerance, or other tokens are kept.
    """
    largest = 0.0
    for batch in BATCHES:
        clips = sample_clips(exported.spec, batch)
        for ours, theirs in zip(exported.graph(clips), run(clips), strict=True):
            if not ours.is_floating_point():
                largest = largest if torch.equal(ours, theirs) else float("inf")
            else:
                largest = max(largest, float((ours - theirs).abs().max()))
    if not largest <= TOLERANCE:
        raise EnvironmentProblem(
            f"{what} computes something else than this model (difference {largest:.1e}), so nothing was "
            "written; use the tested versions of its packages (everest doctor tells which)"
        )
    return largest


PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
LARGEST: Final = 2**31 - 2**24  # bytes: protobuf ends at 2 GB; some are left for the graph


def check_packages() -> None:
    """Raise EnvironmentProblem when a package is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"--to onnx: not installed: {', '.join(missing)}; run `pip install 'everest-video[export]'`"
        )


def write_onnx(path: Path, exported: Exportable) -> float:
    """Write an .onnx file; the largest difference between what onnxruntime makes of it and our model.

    Raises:
        RecipeError: the weights are larger than an ONNX file can be.
        EnvironmentProblem: a package is missing, or onnxruntime computes something else.
    """
    check_packages()
    size = sum(tensor.nbytes for tensor in exported.graph.state_dict().values())
    if size > LARGEST:
        raise RecipeError(
            f"--to onnx: {size / 1e9:.1f} GB of weights, an ONNX file ends at 2 GB; use --to torch"
        )
    program = _translated(exported)
    program.model.metadata_props.update(about_text(exported.about))
    differences = []

    def write(part: Path) -> None:
        program.save(part, external_data=False)
        differences.append(compare(exported, _runner(part), what="onnxruntime"))

    write_atomically(path, write)
    return differences[0]


def _translated(exported: Exportable) -> torch.onnx.ONNXProgram:
    outputs = exported.graph.outputs
    program = torch.onnx.export(
        trace(exported),
        (sample_clips(exported.spec, TRACED),),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(outputs),
        dynamic_shapes={INPUT: {0: "batch"}},  # its name
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort()},
        verbose=False,
    )
    assert program is not None
    return program


def _stable_sort() -> Callable[..., Any]:
    """ONNX's name for a stable sort, which torch 2.15 does not translate: TopK takes the first of equals."""
    import onnxscript

    op: Any = onnxscript.opset20

    def sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    return sort


def _runner(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """Computes the outputs of a file for clips (B, 3, T, H, W)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(clips: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {INPUT: clips.numpy()})]

    return run


def write_program(path: Path, exported: Exportable) -> float:
    """Write a .pt2 file; the largest difference between it, read again, and our model.

    Raises:
        EnvironmentProblem: it computes something else.
    """
    program, differences = trace(exported), []

    def write(part: Path) -> None:
        with part.open("wb") as file:
            torch.export.save(program, file, extra_files=about_text(exported.about))
        with part.open("rb") as file:
            written = torch.export.load(file).module()

        def run(clips: Tensor) -> Sequence[Tensor]:
            return written(clips)

        differences.append(compare(exported, run, what="the written program"))

    write_atomically(path, write)
    return differences[0]
