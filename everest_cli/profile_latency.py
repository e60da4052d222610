"""`everest profile --latency`: the time from a video file to a trained model's output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from torch import Tensor

    from everest.data.views import EvalViews


def print_latency(checkpoint: str, data: Path | None, *, cpu: bool, as_json: bool) -> None:
    """Measure a checkpoint or an ONNX file, and print the document or a table.

    Args:
        data: a video, folder or list; None: a video is rendered.
    """
    from everest.lists.inputs import named_samples
    from everest.profiling.latency import measure_latency, render_video

    answer, views, about = _opened(checkpoint, cpu=cpu)
    with TemporaryDirectory() as folder:
        path = data
        if path is None:
            path = Path(folder) / "rendered.mp4"
            render_video(path)
        latency = measure_latency(answer, views, named_samples([path], root=None))
    if as_json:
        print_json({**about, "data": None if data is None else str(data), "latency": latency})
        return
    for name, value in latency.items():
        typer.echo(f"{name:<14}{value:10.1f}" if name.endswith("_ms") else f"{name:<14}{value:8}")
    typer.echo(
        f"{about['checkpoint']} ({about['precision']}) on {about['device']}; one clip of "
        f"{'a rendered video of 320 x 240 pixels' if data is None else data}"
    )


def _opened(checkpoint: str, *, cpu: bool) -> tuple[Callable[[Tensor], object], EvalViews, dict[str, Any]]:
    """Open a model: its outputs, its views with one clip and crop, and facts for the document."""
    from everest.checkpoints.graph import open_exported
    from everest.checkpoints.load import ONNX_SUFFIX, find_weights
    from everest.inference.model import OpenedModel

    file = find_weights(checkpoint)
    if file.suffix == ONNX_SUFFIX:
        exported = open_exported(file)
        about = {"checkpoint": str(file), "precision": exported.precision, "device": "cpu"}
        return lambda clips: exported.answers(exported(clips)), exported.clip.views(), about
    model = OpenedModel.open(file, clips=1, crops=1, cpu=cpu, notify=say)
    precision = {"no": "fp32"}.get(model.accelerator.mixed_precision, model.accelerator.mixed_precision)
    about = {"checkpoint": str(file), "precision": precision, "device": str(model.module.device)}
    is_classifier = model.module.classes != ()
    return model.answers if is_classifier else model.encode, model.views, about
