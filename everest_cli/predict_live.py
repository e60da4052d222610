"""`everest predict --live`: windows of a camera, a network stream or a pipe as JSON lines."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from everest_cli.option_groups import ModelOptions
from everest_cli.output import Display, say
from everest_cli.timeline_options import TimelineOptions

RETRY: Final = 30.0  # seconds; our choice


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """A live source in place of videos."""

    live: Annotated[
        str | None,
        typer.Option(
            "--live",
            metavar="SOURCE",
            help="A camera (/dev/video0), stream (rtsp://…) or pipe (-): print a JSON line per window.",
        ),
    ] = None
    retry: Annotated[
        float | None,
        typer.Option(
            "--retry", min=0, metavar="SECONDS", help="Connect again for so long before --live ends [30]."
        ),
    ] = None


def print_live(
    options: LiveOptions,
    model: ModelOptions,
    timeline: TimelineOptions,
    *,
    top: int | None,
    calibrated: bool,
) -> None:
    """Print the windows of a live source until it ends or a signal stops the command."""
    from everest.errors import RecipeError
    from everest.inference.live import predict_live
    from everest.system.json_text import json_text
    from everest.system.signals import Stopped, catch_stop_signals

    others = timeline.given - {"--window", "--step", "--timeline"}
    if others:
        raise RecipeError(f"{', '.join(sorted(others))}: not with --live, which prints windows; leave it out")
    assert options.live is not None
    opened = model.open(views=1, calibrated=calibrated)
    signals: list[int] = []
    before = catch_stop_signals(lambda number, _: signals.append(number))
    try:
        with Display(quiet=model.quiet) as display:
            summary = predict_live(
                opened,
                options.live,
                window=timeline.window,
                step=timeline.step,
                top=top,
                retry=RETRY if options.retry is None else options.retry,
                emit=lambda row: typer.echo(json_text(row)),
                report=display.report,
                is_stopped=lambda: bool(signals),
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    latency = summary["latency"]
    times = "" if latency["p50"] is None else f", latency {latency['p50']:.3f} s (p95 {latency['p95']:.3f} s)"
    text = f"{options.live}: {summary['windows']} windows{times}, {summary['dropped']} frames dropped"
    if signals:
        raise Stopped(signals[0], f"stopped by a signal; {text}")
    say(text)
