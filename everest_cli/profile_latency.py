"""`everest profile --latency`: the time from a video file to the answer of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from everest_cli.option_groups import is_on_cpu
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from torch import Tensor

    from everest.data.views import EvalViews

RENDERED = "a rendered video of 320 x 240 pixels"


def print_latency(checkpoint: str, data: Path | None, *, gpus: str, as_json: bool, quiet: bool) -> None:
    """Measure a checkpoint or an ONNX file, and print the document or a table.

    Args:
        data: a video, folder or list; None: a video is rendered.
    """
    from everest.lists.inputs import named_samples
    from everest.profiling.latency import WARMUP, measure_latency
    from everest.system.text import counted

    answer, views, about = _opened(checkpoint, cpu=is_on_cpu(gpus), quiet=quiet)
    with _videos(data) as paths:
        samples = named_samples(paths, root=None)
        if not quiet:
            say(f"{'no --data: ' if data is None else ''}measuring on {RENDERED if data is None else data}")
        latency = measure_latency(answer, views, samples)
    document = {**about, "data": None if data is None else str(data), "latency": asdict(latency)}
    if as_json:
        print_json(document)
        return
    parts = {
        "file to answer, median (p50)": latency.p50_ms,
        "file to answer, 95th percentile (p95)": latency.p95_ms,
        "median of decoding": latency.decode_ms,
        "median of resizing and cropping": latency.transform_ms,
        "median of the network": latency.network_ms,
    }
    for name, milliseconds in parts.items():
        typer.echo(f"{name + ':':<40}{milliseconds:8.1f} ms")
    typer.echo(
        f"{about['checkpoint']} ({about['precision']}) on {about['device']}, "
        f"{counted(latency.threads, 'thread')}; one clip of a video; {latency.measured} measurements on "
        f"{counted(latency.videos, 'video')} after {WARMUP} of warm-up"
    )


def _opened(
    checkpoint: str, *, cpu: bool, quiet: bool
) -> tuple[Callable[[Tensor], object], EvalViews, dict[str, Any]]:
    """Open a model: its answers, its views with one clip and crop, and facts for the document."""
    from everest.checkpoints.graph import open_exported
    from everest.checkpoints.load import ONNX_SUFFIX, find_weights
    from everest.inference.model import OpenedModel

    file = find_weights(checkpoint, quiet=quiet)
    if file.suffix == ONNX_SUFFIX:
        exported = open_exported(file)
        if not exported.knows_stride:
            say(f"{file}: does not state the stride of its clips; successive frames are read")
        about = {"checkpoint": str(file), "precision": exported.precision, "device": "cpu"}
        return lambda clips: exported.answers(exported(clips)), exported.clip.views(), about
    model = OpenedModel.open(file, clips=1, crops=1, cpu=cpu, notify=None if quiet else say)
    precision = {"no": "fp32"}.get(model.accelerator.mixed_precision, model.accelerator.mixed_precision)
    about = {"checkpoint": str(file), "precision": precision, "device": str(model.module.device)}
    is_classifier = model.module.classes != ()
    return model.answers if is_classifier else model.encode, model.views, about


@contextmanager
def _videos(data: Path | None) -> Iterator[list[Path]]:
    """The paths to measure on: `data`, or a rendered video that exists inside the context."""
    if data is not None:
        yield [data]
        return
    from everest.profiling.latency import render_video

    with TemporaryDirectory() as folder:
        path = Path(folder) / "rendered.mp4"
        render_video(path)
        yield [path]
