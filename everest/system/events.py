"""Events that loops report: plain dicts, which each command shows in its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Notify = Callable[[str], None]  # receives a line for the user, in functions that report no events
Emit = Callable[[dict[str, Any]], None]
# {"event": "step", ...}: a row of metrics.jsonl with "steps" and "epochs"
# {"event": "video", "done", "videos"} or {"event": "window", "done", "windows"}: progress
# {"event": "validation", ...}: a row of metrics.jsonl with "epoch", "epochs", "steps", "train_loss",
#   "chance", "majority", "metric", "best", "best_step"
# {"event": "notice", "text"}: a line of text that is shown even if progress is hidden
# {"event": "warning", "text"}: a line about a problem, which is shown after "warning: "
# {"event": "heading", "text"}: a line about work that is planned or begins


def notice(text: str) -> dict[str, Any]:
    """The event of a line of text."""
    return {"event": "notice", "text": text}


def warning(text: str) -> dict[str, Any]:
    """The event of a line about a problem."""
    return {"event": "warning", "text": text}


def heading(text: str) -> dict[str, Any]:
    """The event of a line about work that is planned or begins; `--quiet` hides it."""
    return {"event": "heading", "text": text}


def ignore_event(event: dict[str, Any]) -> None:
    """An `Emit` that shows nothing."""
