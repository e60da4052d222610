"""An ONNX graph whose matrix products with weights are computed in integers, by onnxruntime's quantizer.

B clips of a batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from everest.checkpoints.describe import describe, recipe_of
from everest.checkpoints.graph import INPUT, KEPT
from everest.checkpoints.load import LoadedModel
from everest.errors import DataError
from everest.lists.sample import Sample
from everest.video.reader import VideoError

LEAST_CLIPS: Final = 2  # so that outputs vary
MOST_CLIPS: Final = 100  # our choice


def calibration_clips(
    opened: LoadedModel, samples: Sequence[Sample], *, source: object, notify: Callable[[str], None]
) -> list[Tensor]:
    """Read the middle (1, C, T, H, W) uint8 of at most `MOST_CLIPS` videos, evenly spread over the samples.

    Args:
        source: the list or folder of the samples, for messages.
        notify: receives which videos are unreadable.
    Raises:
        DataError: fewer than `LEAST_CLIPS` videos are readable.
    """
    module, count = opened.transformer, min(len(samples), MOST_CLIPS)
    describe(module, recipe_of(opened, notify=notify), file=opened.file)
    clips = []
    for number in range(count):
        try:
            clips.append(module.clip.read(samples[number * len(samples) // count])[None])
        except VideoError as error:
            notify(f"skipped {error}")
    if len(clips) < LEAST_CLIPS:
        raise DataError(
            f"{source}: {LEAST_CLIPS} readable videos are needed for calibration, not {len(clips)}"
        )
    return clips


class _Calibration:
    """Clips in the form in which onnxruntime reads them."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def quantize(file: Path, batches: Sequence[Tensor]) -> None:
    """Quantize a float32 graph in its file, statically: the scales of activations come from clips.

    Only the products of encoded tokens with weights change. The nodes of importance, selection and
    embedding stay as they are, so the file keeps the tokens of the float32 graph. The head stays float32, and
    so do the products of attention, which take longer in integers: both factors change with every clip.

    Weights have 8 bits and a scale for each output channel. Processors without VNNI cut sums of two products
    at 16 bits, which may cost accuracy there.

    Args:
        batches: clips as the graph takes them.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(file)
    add_pre_process_metadata(model)  # torch has inferred all shapes; without it there is a warning
    stored = {tensor.name for tensor in model.graph.initializer}
    selecting = {node.name for node in nodes_behind(model, KEPT)}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in stored]
    reader: Any = _Calibration(batches)
    quantize_static(
        model,
        file,
        reader,
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=[node.name for node in products if node.name not in selecting],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )


def nodes_behind(model: Any, output: str) -> Iterator[Any]:
    """Yield the nodes of an ONNX model that an output depends on; none if it has no such output."""
    makers = {name: node for node in model.graph.node for name in node.output}
    names, seen = [output], set()
    while names:
        node = makers.get(names.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            names += node.input
            yield node
