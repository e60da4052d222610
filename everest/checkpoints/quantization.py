"""Quantizes graphs to int8: reads calibration clips and converts matrix products to integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from everest.system.events import Emit, heading, notice
from everest.system.text import plural
from everest.video.reader import VideoError

MIN_CLIPS: Final = 2  # minimum number of calibration clips, so that outputs vary
MAX_CALIBRATION: Final = 32  # heuristic: scales from 100 clips were not better (ViT-Ti, four robots)
MAX_COMPARED: Final = 100  # heuristic: maximum number of further clips, which do not calibrate
# Heuristic: maximum range of a product's input, in units of its root mean square (RMS); one of 256 steps is
# then a quarter of the RMS. One of 48 products exceeds it in ViT-Ti (173; next 33) and DINOv2 ViT-S (82; 47).
MAX_INPUT_RANGE: Final = 64.0


class Int8Clips(NamedTuple):
    """Typical clips (1, C, T, H, W) uint8, on which a file in int8 is compared with the model."""

    calibration: list[Tensor]  # the scales of activations come from these
    held_out: list[Tensor]  # compared only, not used for calibration


def read_int8_clips(loaded: LoadedModel, source: Path, emit: Emit) -> Int8Clips:
    """Read the middle clip of videos that are evenly spread over a source.

    Args:
        source: a list or a folder of videos. Paths in a list of the run are relative to its `data.root`.
        emit: receives the names of unreadable videos.
    """
    if not source.exists():
        raise DataError(f"--calibrate {source}: no such list or folder")
    recipe = recover_recipe(loaded, notify=lambda text: emit(notice(text)))
    data, clip = recipe.data, clip_format(recipe, loaded.model.stage)
    samples = find_samples([source], root=Path(data.root) if _is_run_list(data, source) else None)
    num_calibration = min(len(samples), MAX_CALIBRATION)
    calibration = [index * len(samples) // num_calibration for index in range(num_calibration)]
    held_out = choose_evenly(sorted(set(range(len(samples))) - set(calibration)), MAX_COMPARED)
    clips = Int8Clips([], [])
    total = len(calibration) + len(held_out)
    emit(heading(f"reading {plural(total, 'clip')} of {source}"))
    for num_done, index in enumerate([*calibration, *held_out], start=1):
        try:
            part = clips.calibration if num_done <= num_calibration else clips.held_out
            part.append(clip.read(samples[index])[None])
        except VideoError as error:
            emit(notice(f"skipped {error}"))
        emit({"event": "video", "done": num_done, "videos": total})
    if len(clips.calibration) < MIN_CLIPS:
        problem = f"calibration needs {MIN_CLIPS} readable videos, not {len(clips.calibration)}"
        raise DataError(f"{source}: {problem}")
    if all(torch.equal(pixels, clips.calibration[0]) for pixels in clips.calibration):
        raise DataError(f"{source}: all calibration clips are equal; name typical videos of all classes")
    return clips


def _is_run_list(data: DataSettings, source: Path) -> bool:
    """Whether `source` is beside or below the training list of a run whose lists are outside `data.root`."""
    if data.train is None or source.suffix.lower() not in LIST_SUFFIXES:
        return False
    lists = Path(data.root, data.train).parent.resolve()
    return lists != Path(data.root).resolve() and lists in source.resolve().parents


def quantize(file: Path, clips: Sequence[Tensor]) -> tuple[int, int]:
    """Quantize a float32 graph in its file; the scales of activations come from normalized clips.

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
    ranges = _measure_ranges(model, list(dict.fromkeys(product_inputs.values())), clips)
    products = [name for name, source in product_inputs.items() if ranges[source].in_rms <= MAX_INPUT_RANGE]
    if not products:  # as of a linear model; with an empty list, onnxruntime would quantize all nodes
        return 0, len(product_inputs)
    used = {name: ranges[name] for name in map(product_inputs.__getitem__, products)}
    one_clip = iter([{INPUT: clips[0].numpy()}])  # onnxruntime needs one; the ranges cover all clips
    reader: Any = SimpleNamespace(get_next=partial(next, one_clip, None))
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
            "TensorQuantOverrides": {n: [{"rmin": r.low, "rmax": r.high}] for n, r in used.items()},
        },
    )
    return len(products), len(product_inputs) - len(products)


class Range(NamedTuple):
    """The range of a tensor over all clips."""

    low: np.float32
    high: np.float32
    in_rms: float  # high - low in units of the root mean square (RMS)


def _measure_ranges(model: Any, names: list[str], clips: Sequence[Tensor]) -> dict[str, Range]:
    """Measure the ranges of tensors of an ONNX model."""
    import onnx
    import onnxruntime

    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    measured.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    content, providers = measured.SerializeToString(), ["CPUExecutionProvider"]
    session: Any = onnxruntime.InferenceSession(content, providers=providers)
    rows = []  # for each clip, of each tensor: lowest, highest, mean square
    for clip in clips:
        tensors = session.run(names, {INPUT: clip.numpy()}) if names else []
        rows.append([(x.min(), x.max(), np.square(x).mean()) for x in tensors])
    values = np.array(rows, np.float64).reshape(len(rows), len(names), 3)
    low, high, squares = values[..., 0].min(axis=0), values[..., 1].max(axis=0), values[..., 2].mean(axis=0)
    in_rms = (high - low) / np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny))  # 0 if all values are 0
    ends = (low.astype(np.float32), high.astype(np.float32))
    return {name: Range(*row) for name, *row in zip(names, *ends, in_rms.tolist(), strict=True)}


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
