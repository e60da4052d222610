"""Writes the graph of a model as an ONNX file, if the file computes the same as the model.

B clips of a batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from everest.checkpoints.describe import describe_sampling
from everest.checkpoints.graph import INPUT, INSTALL_FIX, Graph, sample_pixels
from everest.checkpoints.quantization import Int8Clips, quantize
from everest.errors import CheckpointError, EnvironmentProblem, RecipeError
from everest.models.classifier import outputs_of
from everest.models.clip_spec import ClipSpec
from everest.system.compute import time_passes
from everest.system.events import Emit, heading, ignore_event, notice
from everest.system.files import atomic_file
from everest.system.text import plural

TOLERANCE: Final = 1e-4  # heuristic: maximum float32 difference of outputs; above it no file is written
ROUNDING: Final = 1e-6  # heuristic: tolerance as a fraction of the largest output, if above TOLERANCE
MAX_PRECISION_LOSS: Final = 0.5  # heuristic: fraction of the outputs' std; above it the file is of no use
BARELY_FASTER: Final = 0.9  # heuristic: the fraction of fp32's time that makes int8 worth a change
COMPARED_BATCHES: Final = (1, 3)  # differ from the traced size, to detect a fixed batch size
TRACED_BATCH: Final = 2
IR_VERSION: Final = 9  # with opset 20: onnxruntime 1.17 and later; torch writes 10, which needs 1.18
PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
MAX_GIGABYTES: Final = 2.13  # maximum for weights: protobuf ends at 2**31 bytes; the rest is for the graph

RunFile = Callable[[Tensor], Sequence[Tensor]]  # maps normalized clips to the outputs of a file


class Difference(NamedTuple):
    """The difference between the outputs of a written file and of its model."""

    largest: float  # maximum over logits or features; numbers in units of their std
    relative: float  # RMS error as a fraction of the outputs' std over the clips, for the worst head
    num_changed: int | None  # clips whose class changes; None: outputs are not classes
    probability: float | None  # the largest change of a probability; None: outputs are not probabilities


def write_onnx(
    path: Path, graph: Graph, *, clips: Int8Clips | None = None, emit: Emit = ignore_event
) -> dict[str, Any]:
    """Write an .onnx file and return its facts for `everest export --json`.

    Args:
        clips: for int8, the clips on which file and model are compared; None: they are compared on noise.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(f"--to onnx: not installed: {', '.join(missing)}; {INSTALL_FIX}")
    size = sum(tensor.nbytes for tensor in graph.state_dict().values()) / 1e9
    if size > MAX_GIGABYTES:
        raise RecipeError(f"--to onnx: {size:.1f} GB of weights exceed the 2 GB of an ONNX file")
    emit(heading("tracing the model and writing the ONNX file"))
    spec, clip, program = graph.spec, json.loads(graph.metadata["clip"]), _export_program(graph)
    shape = " x ".join(map(str, ("clips", spec.channels, spec.frames, *spec.size)))
    notes = [f"frames ({shape}, normalized) to {', '.join(graph.outputs)}"]
    document: dict[str, Any] = {"precision": graph.precision}
    with atomic_file(path) as temporary_file:
        program.save(temporary_file, external_data=False)
        difference = compare(graph, _open_runner(temporary_file), subject="onnxruntime")
        if clips is not None:
            document["fp32"] = _measure_file(temporary_file, spec)
            difference, int8_notes = _write_int8(temporary_file, graph, clips, emit)
            document["relative_difference"] = difference.relative
            document["num_changed"] = difference.num_changed
            document["probability_change"] = difference.probability
            document["num_compared"] = len(clips.calibration) + len(clips.held_out)
            notes += int8_notes
        document |= _measure_file(temporary_file, spec, emit)
    if clips is not None:
        notes.append(_describe_gain(document["fp32"], document))
    if clip["stride"] is None:
        notes.append("the weights do not state the stride of their clips, so the file does not either")
    else:
        notes.append(describe_sampling(stride=clip["stride"], sampling=clip["sampling"], fps=clip["fps"]))
    return {**document, "difference": difference.largest, "clip": clip, "notes": notes}


def _measure_file(file: Path, spec: ClipSpec, emit: Emit = ignore_event) -> dict[str, Any]:
    """Measure the bytes of a file and its milliseconds per clip on one thread; warn of a busy CPU."""
    clip, run_file = spec.pixels.normalize(sample_pixels(spec, 1)), _open_runner(file, threads=1)
    network_time = time_passes(lambda: run_file(clip))
    for text in network_time.warnings:
        emit(notice(text))
    return {"network_ms": round(network_time.alone_ms, 2), "bytes": file.stat().st_size}


def _describe_gain(fp32: dict[str, Any], int8: dict[str, Any]) -> str:
    """How much faster and smaller a file in int8 is than the same file in fp32."""
    times = f"{int8['network_ms']:.3g} instead of {fp32['network_ms']:.3g} ms"
    sizes = f"{int8['bytes'] / 1e6:.1f} instead of {fp32['bytes'] / 1e6:.1f} MB"
    advice = "test both files by `everest eval` before you choose"
    if int8["network_ms"] > BARELY_FASTER * fp32["network_ms"]:
        advice = "take fp32, as int8 is not clearly faster"
    return f"int8: {times} for a clip on one CPU thread, {sizes}; {advice}"


def _write_int8(file: Path, graph: Graph, clips: Int8Clips, emit: Emit) -> tuple[Difference, list[str]]:
    """Quantize a float32 file; returns its difference from the model, and notes about it."""
    calibration, held_out = (list(map(graph.spec.pixels.normalize, part)) for part in clips)
    num_clips = plural(len(calibration) + len(held_out), "clip")
    emit(heading(f"calibrating int8 on {plural(len(calibration), 'clip')}"))
    num_int8, num_float32 = quantize(file, calibration)
    emit(heading(f"comparing int8 with the model on {num_clips}"))
    compared = [*calibration, *held_out]
    difference = compare(graph, _open_runner(file), subject="the file", calibration=compared)
    notes = [f"int8: the outputs differ by {100 * difference.relative:.2g} % of their standard deviation"]
    if difference.probability is not None:
        changed = "" if difference.num_changed is None else f"{difference.num_changed} get another class, "
        change = f"{changed}a probability changes by at most {difference.probability:.2g}"
        notes.append(f"int8: of {num_clips}, {change}")
    if not num_int8:
        notes.append("int8: nothing to quantize; the file is as large and as fast as with fp32")
    if num_float32:
        notes.append(f"{plural(num_float32, 'product')} with outliers in their input stay in float32")
    return difference, notes


@torch.no_grad()
def compare(
    graph: Graph, run_file: RunFile, *, subject: str, calibration: Iterable[Tensor] | None = None
) -> Difference:
    """Compare the outputs of a written file with the model's; an error if they differ too much.

    Args:
        run_file: computes the outputs of the file for normalized clips.
        subject: the subject of the error message.
        calibration: at least two clips, on which an int8 file is compared. A float32 file is compared on
            `sample_pixels`.
    """
    spec = graph.spec
    noise = (spec.pixels.normalize(sample_pixels(spec, batch)) for batch in COMPARED_BATCHES)
    batches = noise if calibration is None else calibration
    results = zip(*((graph(clips), run_file(clips)) for clips in batches), strict=True)
    (expected, *kept), (outputs, *kept_by_file) = (
        [torch.cat(parts) for parts in zip(*pairs, strict=True)] for pairs in results
    )
    difference = _measure_difference(graph, expected, outputs)
    magnitude = float((expected / graph.unit).abs().max())  # may be thousands for a steep linear model
    if not all(map(torch.equal, kept, kept_by_file)):
        problem = "keeps other tokens than this model"
    elif calibration is not None and not difference.relative <= MAX_PRECISION_LOSS:
        problem = f"changes the outputs by {difference.relative:.2f} of their standard deviation"
    elif calibration is None and not difference.largest <= max(TOLERANCE, ROUNDING * magnitude):
        problem = f"computes something else than this model (difference {difference.largest:.1e})"
    else:
        return difference
    if calibration is not None:
        raise CheckpointError(f"--precision int8: {subject} {problem}; use fp32")
    raise EnvironmentProblem(f"{subject} {problem}; install the versions that everest doctor names")


def _measure_difference(graph: Graph, expected: Tensor, outputs: Tensor) -> Difference:
    """Measure how outputs (B, outputs) of a file differ from those of the model."""
    heads, errors = graph.spec.heads, (outputs - expected) / graph.unit
    # Each output is centered at its mean: the means of numbers, such as years, are far apart.
    centered = (expected - expected.mean(dim=0)) / graph.unit
    parts = zip(
        *(x.split(graph.head_widths, dim=1) for x in (errors, centered, expected, outputs)), strict=True
    )
    relative, changes, changed = [], [], torch.zeros(len(expected), dtype=torch.bool)
    for head, (error, values, before, after) in zip(heads or (None,), parts, strict=True):
        relative.append(float(error.norm() / values.norm().clamp(min=1e-12)))
        if head is not None and head.task != "regression":
            changed |= before.argmax(dim=1) != after.argmax(dim=1)
            changes.append(float((outputs_of(before, (head,)) - outputs_of(after, (head,))).abs().max()))
    predicts_classes = bool(heads) and all(head.task == "single-label" for head in heads)
    return Difference(
        largest=float(errors.abs().max()),
        relative=max(relative),
        num_changed=int(changed.sum()) if predicts_classes else None,
        probability=max(changes, default=None),
    )


@torch.no_grad()
def _export_program(graph: Graph) -> Any:
    """Trace and translate the graph for any number of clips; the metadata is in the program."""
    import onnxscript

    op: Any = onnxscript.opset20

    def stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        # torch 2.15 does not translate a stable sort. TopK is stable: it takes the first of equal values.
        length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    clips = graph.spec.pixels.normalize(sample_pixels(graph.spec, TRACED_BATCH))
    traced = torch.export.export(graph, (clips,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}})
    program = torch.onnx.export(
        traced,
        dynamo=True,
        input_names=[INPUT],
        output_names=list(graph.outputs),
        dynamic_shapes={INPUT: {0: "batch"}},  # the name of the dynamic dimension
        custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
        verbose=False,
    )
    assert program is not None
    program.model.ir_version = IR_VERSION
    program.model.metadata_props.update(graph.metadata)
    return program


def _open_runner(file: Path, *, threads: int = 0) -> RunFile:
    """Return a function that runs an ONNX file on `threads` threads (0: one per core)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda clips: [torch.from_numpy(x) for x in session.run(None, {INPUT: clips.numpy()})]
