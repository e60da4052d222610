"""The graph of a model as an ONNX file, written only if it computes the same.

B clips of a batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from everest.checkpoints.describe import describe_sampling, recover_recipe
from everest.checkpoints.graph import INPUT, INSTALL_FIX, KEPT_IDS, Graph, sample_pixels
from everest.checkpoints.load import LoadedModel
from everest.config.settings import DataSettings
from everest.data.recipe_clips import clip_format
from everest.errors import CheckpointError, DataError, EnvironmentProblem, RecipeError
from everest.lists.inputs import LIST_SUFFIXES, find_samples
from everest.lists.sample import Sample, choose_evenly
from everest.models.clip_spec import ClipSpec
from everest.system.compute import time_passes
from everest.system.events import Report, heading, ignore_event, notice
from everest.system.files import atomic_file
from everest.system.text import plural
from everest.video.reader import VideoError

TOLERANCE: Final = 1e-4  # heuristic: of logits and features in float32; above it no file is written
ROUNDING: Final = 1e-6  # heuristic: share of the largest output, where this is more than TOLERANCE
MOST_PRECISION_LOSS: Final = 0.5  # heuristic: of the outputs' std; above it, they hardly follow the model's
COMPARED_BATCHES: Final = (1, 3)  # not the traced size, to find a size that is fixed in the graph
TRACED_BATCH: Final = 2
PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
MOST_GIGABYTES: Final = 2.13  # of weights: protobuf ends at 2**31 bytes; the rest is for the graph
LEAST_CLIPS: Final = 2  # of calibration, so that outputs vary
MOST_CALIBRATION: Final = 32  # heuristic: scales from 100 clips were not better (ViT-Ti, four robots)
MOST_COMPARED: Final = 100  # heuristic: further clips, which do not calibrate
# Heuristic: the range of a product's input in units of its root mean square; one of 256 steps is then a
# quarter of it. One of 48 products is above in ViT-Ti (173; the next 33) and in DINOv2 ViT-S (82; 47).
MOST_INPUT_RANGE: Final = 64.0

RunFile = Callable[[Tensor], Sequence[Tensor]]  # the outputs of a file for clips as its graph takes them


class Difference(NamedTuple):
    """The distance of the outputs of a written file from the model's."""

    largest: float  # of a logit or feature; of a number in units of its standard deviation
    relative: float  # the root mean square, as a share of the outputs' std over the clips, of the worst head
    num_changed: int | None  # clips that get another class; None: other outputs than classes


class Int8Clips(NamedTuple):
    """Typical clips (1, C, T, H, W) uint8, on which a file in int8 is compared with the model."""

    calibration: list[Tensor]  # the scales of activations come from these
    held_out: list[Tensor]  # only compared
    samples: list[Sample]  # of the calibration


def write_onnx(
    path: Path, graph: Graph, *, clips: Int8Clips | None = None, report: Report = ignore_event
) -> dict[str, Any]:
    """Write an .onnx file, and return the facts about it, of `everest export --json`.

    Args:
        clips: for int8, on which it is compared with the model; None: the file is compared on noise.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(f"--to onnx: not installed: {', '.join(missing)}; {INSTALL_FIX}")
    size = sum(tensor.nbytes for tensor in graph.state_dict().values()) / 1e9
    if size > MOST_GIGABYTES:
        raise RecipeError(f"--to onnx: {size:.1f} GB of weights exceed the 2 GB of an ONNX file")
    report(heading("tracing the model and writing the ONNX file"))
    spec, clip, program = graph.spec, json.loads(graph.metadata["clip"]), _export_program(graph)
    shape = " x ".join(map(str, ("clips", spec.channels, spec.frames, *spec.size)))
    notes = [f"frames ({shape}, normalized) to {', '.join(graph.outputs)}"]
    document: dict[str, Any] = {"precision": graph.precision}
    with atomic_file(path) as part:
        program.save(part, external_data=False)
        difference = compare(graph, _open_runner(part), subject="onnxruntime")
        if clips is not None:
            document["fp32"] = _measure_file(part, spec)
            difference, int8_notes = _write_int8(part, graph, clips, report)
            document["relative_difference"] = difference.relative
            document["num_changed"] = difference.num_changed
            document["num_compared"] = len(clips.calibration) + len(clips.held_out)
            notes += int8_notes
        document |= _measure_file(part, spec, report)
    if clip["stride"] is None:
        notes.append("the weights do not state the stride of their clips, so the file does not either")
    else:
        notes.append(describe_sampling(stride=clip["stride"], sampling=clip["sampling"], fps=clip["fps"]))
    return {**document, "difference": difference.largest, "clip": clip, "notes": notes}


def write_test_file(file: Path, graph: Graph, calibration: Sequence[Tensor], report: Report) -> None:
    """Write an .onnx file whose outputs will be tested, so that they are not compared with the model's.

    Args:
        calibration: clips as in `Int8Clips`; empty: the file is in fp32.
    """
    report(heading("tracing the model and writing the ONNX file"))
    _export_program(graph).save(file, external_data=False)
    if calibration:
        report(heading(f"calibrating int8 on {plural(len(calibration), 'clip')}"))
        quantize(file, list(map(graph.spec.pixels.normalize, calibration)), report=report)


def _measure_file(file: Path, spec: ClipSpec, report: Report = ignore_event) -> dict[str, Any]:
    """The bytes of a file and its milliseconds for a clip on one thread; warns of a busy CPU."""
    clip, run = spec.pixels.normalize(sample_pixels(spec, 1)), _open_runner(file, threads=1)
    network_time = time_passes(lambda: run(clip))
    for text in network_time.warnings:
        report(notice(text))
    return {"network_ms": round(network_time.alone_ms, 2), "bytes": file.stat().st_size}


def _write_int8(file: Path, graph: Graph, clips: Int8Clips, report: Report) -> tuple[Difference, list[str]]:
    """Quantize a float32 file; returns its difference from the model, and notes about it."""
    normalize, num_clips = graph.spec.pixels.normalize, len(clips.calibration) + len(clips.held_out)
    calibration = list(map(normalize, clips.calibration))
    report(heading(f"calibrating int8 on {plural(len(calibration), 'clip')}"))
    num_int8, num_float32 = quantize(file, calibration, report=report)
    report(heading(f"comparing int8 with the model on {plural(num_clips, 'clip')}"))
    compared = _report_clips(chain(calibration, map(normalize, clips.held_out)), num_clips, report)
    difference = compare(graph, _open_runner(file), subject="the file", calibration=compared)
    notes = [f"int8: the outputs differ by {100 * difference.relative:.2g} % of their standard deviation"]
    if not num_int8:
        notes.append("int8: nothing to quantize; the file is as large and as fast as with fp32")
    if num_float32:
        notes.append(f"{plural(num_float32, 'product')} with outliers in their input stay in float32")
    return difference, notes


def _report_clips(clips: Iterable[Tensor], num_clips: int, report: Report) -> Iterator[Tensor]:
    """Yield `num_clips` clips; report each one when it is used."""
    for num_done, clip in enumerate(clips, start=1):
        yield clip
        report({"event": "video", "done": num_done, "videos": num_clips})


@torch.no_grad()
def compare(
    graph: Graph, run: RunFile, *, subject: str, calibration: Iterable[Tensor] | None = None
) -> Difference:
    """Compare the outputs of a written file with the model's.

    Args:
        run: computes the outputs of the file for normalized clips.
        subject: of the message.
        calibration: of a file in int8 at least two clips, on which it is compared. A file in float32 is
            compared on `sample_pixels`.
    """
    spec = graph.spec
    noise = (spec.pixels.normalize(sample_pixels(spec, batch)) for batch in COMPARED_BATCHES)
    batches = noise if calibration is None else calibration
    results = zip(*((graph(clips), run(clips)) for clips in batches), strict=True)
    (expected, *kept), (outputs, *kept_by_file) = (
        [torch.cat(parts) for parts in zip(*pairs, strict=True)] for pairs in results
    )
    errors = (outputs - expected) / graph.unit  # (B, outputs)
    magnitude = float((expected / graph.unit).abs().max())  # thousands, of a steep linear model
    # Each output around its own mean: the means of numbers, such as years, are far from each other.
    centered = (expected - expected.mean(dim=0)) / graph.unit
    heads = zip(*(part.split(graph.head_widths, dim=1) for part in (errors, centered)), strict=True)
    relative = torch.stack([error.norm() / values.norm().clamp(min=1e-12) for error, values in heads])
    num_changed = None
    if spec.heads and all(head.task == "single-label" for head in spec.heads):
        classes = (
            [part.argmax(dim=1) for part in x.split(graph.head_widths, dim=1)] for x in (expected, outputs)
        )
        num_changed = int(torch.stack([a != b for a, b in zip(*classes, strict=True)]).any(dim=0).sum())
    difference = Difference(float(errors.abs().max()), float(relative.max()), num_changed)
    if not all(map(torch.equal, kept, kept_by_file)):
        problem = "keeps other tokens than this model"
    elif calibration is not None and not difference.relative <= MOST_PRECISION_LOSS:
        problem = f"changes the outputs by {difference.relative:.2f} of their standard deviation"
    elif calibration is None and not difference.largest <= max(TOLERANCE, ROUNDING * magnitude):
        problem = f"computes something else than this model (difference {difference.largest:.1e})"
    else:
        return difference
    if calibration is not None:
        raise CheckpointError(f"--precision int8: {subject} {problem}; use fp32")
    raise EnvironmentProblem(f"{subject} {problem}; install the versions that everest doctor names")


@torch.no_grad()
def _export_program(graph: Graph) -> Any:
    """Trace and translate the graph for any number of clips; the metadata is in the program."""
    import onnxscript

    op: Any = onnxscript.opset20

    def stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        # torch 2.15 does not translate a stable sort. TopK is one: it takes the first of equal values.
        length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    clips = graph.spec.pixels.normalize(sample_pixels(graph.spec, TRACED_BATCH))
    traced = torch.export.export(graph, (clips,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}})
    program = torch.onnx.export(
        traced,
        dynamo=True,
        input_names=[INPUT],
        output_names=list(graph.outputs),
        dynamic_shapes={INPUT: {0: "batch"}},  # its name
        custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(graph.metadata)
    return program


def _open_runner(file: Path, *, threads: int = 0) -> RunFile:
    """Return the function that runs an ONNX file, on a number of threads (0: one for each core)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda clips: [torch.from_numpy(x) for x in session.run(None, {INPUT: clips.numpy()})]


def quantize(file: Path, batches: Sequence[Tensor], *, report: Report = ignore_event) -> tuple[int, int]:
    """Quantize a float32 graph in its file; the scales of activations come from `batches`.

    Only the products of encoded tokens with weights change. The nodes of importance, selection and
    embedding stay as they are, so the file keeps the tokens of the float32 graph. The head stays float32, and
    so do the products of attention, which take longer in integers: both factors change with every clip.

    Returns:
        The number of products in integers, and of those that stay float32 because a few values of their
        input are much larger than the others, which integers would round away (Dettmers et al. 2022,
        LLM.int8()).
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(file)
    add_pre_process_metadata(model)  # torch has inferred all shapes; without it there is a warning
    initializers = {tensor.name for tensor in model.graph.initializer}
    selection_nodes = {node.name for node in find_upstream_nodes(model, KEPT_IDS)}
    product_inputs = {
        node.name: node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in initializers and node.name not in selection_nodes
    }
    if not product_inputs:  # a linear model
        return 0, 0
    clips = _report_clips(batches, len(batches), report)
    ranges, ratios = _measure_ranges(model, set(product_inputs.values()), clips)
    products = [name for name, source in product_inputs.items() if ratios[source] <= MOST_INPUT_RANGE]
    if not products:  # with an empty list, onnxruntime would quantize all nodes
        return 0, len(product_inputs)
    sources = {product_inputs[name] for name in products}
    one_batch = iter([{INPUT: batches[0].numpy()}])  # onnxruntime needs one; the ranges are of all
    reader: Any = SimpleNamespace(get_next=partial(next, one_batch, None))
    quantize_static(
        model,
        file,
        reader,
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=products,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            "TensorQuantOverrides": {name: [ranges[name]] for name in sources},
        },
    )
    return len(products), len(product_inputs) - len(products)


def _measure_ranges(
    model: Any, names: Collection[str], batches: Iterable[Tensor]
) -> tuple[dict[str, dict[str, np.float32]], dict[str, float]]:
    """The ranges of tensors of an ONNX model over equal batches, also in units of their root mean square."""
    import onnx
    import onnxruntime
    from onnx.helper import make_node, make_tensor_value_info

    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    del measured.graph.output[:]
    for name in names:
        operations = {"low": "ReduceMin", "high": "ReduceMax", "square": "ReduceMean"}
        measured.graph.node.append(make_node("Mul", [name, name], [f"{name} squared"]))
        for key, operation in operations.items():
            source, result = f"{name} squared" if key == "square" else name, f"{name} {key}"
            measured.graph.node.append(make_node(operation, [source], [result], keepdims=0))
            measured.graph.output.append(make_tensor_value_info(result, onnx.TensorProto.FLOAT, ()))
    session = onnxruntime.InferenceSession(measured.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = [session.run(None, {INPUT: clips.numpy()}) for clips in batches]
    values = np.array(rows, np.float64).reshape(len(rows), len(names), 3)
    low, high, squares = values[..., 0].min(axis=0), values[..., 1].max(axis=0), values[..., 2].mean(axis=0)
    ratios = (high - low) / np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny))  # 0 of inputs all 0
    ends = zip(low.astype(np.float32), high.astype(np.float32), strict=True)
    ranges = [{"rmin": first, "rmax": last} for first, last in ends]
    return dict(zip(names, ranges, strict=True)), dict(zip(names, ratios.tolist(), strict=True))


def find_upstream_nodes(model: Any, output: str) -> Iterator[Any]:
    """Yield the nodes of an ONNX model that an output depends on; none if it has no such output."""
    producers = {name: node for node in model.graph.node for name in node.output}
    names = [output]
    while names:
        node = producers.get(names.pop())
        if node is not None:
            for name in node.output:
                producers.pop(name, None)
            names += node.input
            yield node


def _is_run_list(data: DataSettings, source: Path) -> bool:
    """Whether a list is beside, or below, the training list of a run whose lists are not in `data.root`."""
    if data.train is None or source.suffix.lower() not in LIST_SUFFIXES:
        return False
    lists = Path(data.root, data.train).parent.resolve()
    return lists != Path(data.root).resolve() and lists in source.resolve().parents


def read_int8_clips(
    opened: LoadedModel, source: Path, report: Report, *, most_held_out: int = MOST_COMPARED
) -> Int8Clips:
    """Read the middle of videos that are evenly spread over a source.

    Args:
        source: a list or a folder. Paths in a list of the run are relative to the run's `data.root`.
        report: receives which videos are unreadable.
    """
    if not source.exists():
        raise DataError(f"--calibrate {source}: no such list or folder")
    recipe = recover_recipe(opened, notify=lambda text: report(notice(text)))
    data, clip = recipe.data, clip_format(recipe, opened.model.stage)
    samples = find_samples([source], root=Path(data.root) if _is_run_list(data, source) else None)
    num_calibration = min(len(samples), MOST_CALIBRATION)
    calibration = [index * len(samples) // num_calibration for index in range(num_calibration)]
    held_out = choose_evenly(sorted(set(range(len(samples))) - set(calibration)), most_held_out)
    clips = Int8Clips([], [], [])
    report(heading(f"reading {plural(num_calibration + len(held_out), 'clip')} of {source}"))
    for num_done, index in enumerate([*calibration, *held_out], start=1):
        sample = samples[index]
        try:
            pixels = clip.read(sample)[None]
            if num_done <= num_calibration:
                clips.calibration.append(pixels)
                clips.samples.append(sample)
            else:
                clips.held_out.append(pixels)
        except VideoError as error:
            report(notice(f"skipped {error}"))
        report({"event": "video", "done": num_done, "videos": num_calibration + len(held_out)})
    if len(clips.calibration) < LEAST_CLIPS:
        problem = f"calibration needs {LEAST_CLIPS} readable videos, not {len(clips.calibration)}"
        raise DataError(f"{source}: {problem}")
    if all(torch.equal(pixels, clips.calibration[0]) for pixels in clips.calibration):
        raise DataError(f"{source}: all calibration clips are equal; name typical videos of all classes")
    return clips
