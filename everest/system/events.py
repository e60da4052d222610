"""How loops speak: events as plain dicts, which a command shows as it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]


# {"event": "step", ...}: a row of metrics.jsonl with "steps" and "epochs"
# {"event": "video", "done", "videos"}: of a test
# {"event": "window", "done", "windows"}: of a timeline
# {"event": "validation", "step", "val_top1", ...}
# {"event": "notice", "text"}: a line


def notice(text: str) -> dict[str, Any]:
    """An event that is a line of text."""
    return {"event": "notice", "text": text}


def silent(event: dict[str, Any]) -> None:
    """Shows nothing."""
