"""Quantizes graphs to int8: reads calibration clips and converts matrix products to integers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from everest.checkpoints.describe import recover_recipe
from everest.checkpoints.graph import INPUT, KEPT_IDS
from everest.checkpoints.load import LoadedModel
from everest.config.settings import DataSettings
from everest.data.recipe_clips import clip_format
from everest.errors import DataError
from everest.lists.inputs import LIST_SUFFIXES, find_samples
from everest.lists.sample import choose_evenly
from everest.system.events import Report, heading, ignore_event, notice
from everest.system.text import plural
from everest.video.reader import VideoError

LEAST_CLIPS: Final = 2  # minimum number of calibration clips, so that outputs vary
MOST_CALIBRATION: Final = 32  # heuristic: scales from 100 clips were not better (ViT-Ti, four robots)
MOST_COMPARED: Final = 100  # heuristic: maximum number of further clips, which do not calibrate
# Heuristic: maximum range of a product's input, in units of its root mean square (RMS); one of 256 steps is
# then a quarter of the RMS. One of 48 products exceeds it in ViT-Ti (173; next 33) and DINOv2 ViT-S (82; 47).
MOST_INPUT_RANGE: Final = 64.0


class Int8Clips(NamedTuple):
    """Typical clips (1, C, T, H, W) uint8, on which a file in int8 is compared with the model."""

    calibration: list[Tensor]  # the scales of activations come from these
    held_out: list[Tensor]  # compared only, not used for calibration


def _is_run_list(data: DataSettings, source: Path) -> bool:
    """Whether `source` is beside or below the training list of a run whose lists are outside `data.root`."""
    if data.train is None or source.suffix.lower() not in LIST_SUFFIXES:
        return False
    lists = Path(data.root, data.train).parent.resolve()
    return lists != Path(data.root).resolve() and lists in source.resolve().parents


def read_int8_clips(opened: LoadedModel, source: Path, report: Report) -> Int8Clips:
    """Read the middle clip of videos that are evenly spread over a source.

    Args:
        source: a list or a folder of videos. Paths in a list of the run are relative to its `data.root`.
        report: receives the names of unreadable videos.
    """
    if not source.exists():
        raise DataError(f"--calibrate {source}: no such list or folder")
    recipe = recover_recipe(opened, notify=lambda text: report(notice(text)))
    data, clip = recipe.data, clip_format(recipe, opened.model.stage)
    samples = find_samples([source], root=Path(data.root) if _is_run_list(data, source) else None)
    num_calibration = min(len(samples), MOST_CALIBRATION)
    calibration = [index * len(samples) // num_calibration for index in range(num_calibration)]
    held_out = choose_evenly(sorted(set(range(len(samples))) - set(calibration)), MOST_COMPARED)
    clips = Int8Clips([], [])
    report(heading(f"reading {plural(num_calibration + len(held_out), 'clip')} of {source}"))
    for num_done, index in enumerate([*calibration, *held_out], start=1):
        sample = samples[index]
        try:
            pixels = clip.read(sample)[None]
            if num_done <= num_calibration:
                clips.calibration.append(pixels)
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


def report_clips(clips: Iterable[Tensor], num_clips: int, report: Report) -> Iterator[Tensor]:
    """Yield `num_clips` clips; report each clip when it is used."""
    for num_done, clip in enumerate(clips, start=1):
        yield clip
        report({"event": "video", "done": num_done, "videos": num_clips})


def quantize(file: Path, batches: Sequence[Tensor], *, report: Report = ignore_event) -> tuple[int, int]:
    """Quantize a float32 graph in its file; the scales of activations come from `batches`.

    Only products of encoded tokens with weights become integers. Importance, selection and embedding are
    unchanged, so the file keeps the same tokens as the float32 graph. The head stays float32, and so do the
    products of attention, which are slower in integers: both factors change with every clip.

    Returns:
        The number of products in integers, and the number that stay float32 because a few input values are
        so large that integers would round the other values away (Dettmers et al. 2022, LLM.int8()).
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(file)
    add_pre_process_metadata(model)  # avoids a warning; torch has already inferred all shapes
    initializers = {tensor.name for tensor in model.graph.initializer}
    selection_nodes = {node.name for node in find_upstream_nodes(model, KEPT_IDS)}
    product_inputs = {
        node.name: node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in initializers and node.name not in selection_nodes
    }
    if not product_inputs:  # a linear model
        return 0, 0
    clips = report_clips(batches, len(batches), report)
    ranges, ratios = _measure_ranges(model, set(product_inputs.values()), clips)
    products = [name for name, source in product_inputs.items() if ratios[source] <= MOST_INPUT_RANGE]
    if not products:  # with an empty list, onnxruntime would quantize all nodes
        return 0, len(product_inputs)
    sources = {product_inputs[name] for name in products}
    one_batch = iter([{INPUT: batches[0].numpy()}])  # onnxruntime needs a batch; the ranges cover all batches
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
    """Measure tensor ranges of an ONNX model over equal batches, also in units of the root mean square."""
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
    ratios = (high - low) / np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny))  # 0 if all inputs are 0
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
