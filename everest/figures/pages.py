"""HTML pages with embedded images and clips.

H height, W width.
"""

from __future__ import annotations

import base64
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from everest.data.crops import resize
from everest.data.footage import read_footage
from everest.lists.sample import Sample
from everest.system.files import write_text
from everest.video.reader import TimedFrame, VideoError, frames_in_order, video_info
from everest.video.writer import H264, write_timed_frames

CLIP_FPS: Final = 12.0  # heuristic: largest frame rate of a clip on a page


def encode_uri(kind: str, content: bytes) -> str:
    """Encode the content of a file of the MIME type `kind` as a data URI, to embed it in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_page(path: Path, package: str, template: str, **values: Any) -> None:
    """Write a page from a template in a package, such as `everest.evaluation`; all values are escaped."""
    loader = PackageLoader(package, "")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    write_text(path, templates.get_template(template).render(**values))


def make_card(sample: Sample) -> dict[str, Any]:
    """A video or segment: its file, its times, and a short MP4 as data URI or why it is unreadable."""
    times = "" if sample.start is None else f"{sample.start:.2f} s"
    times += "" if sample.end is None else f" to {sample.end:.2f} s"
    card = {"file": Path(sample.path).name, "path": sample.path, "times": times, "uri": None, "problem": None}
    try:
        info, footage = video_info(sample.video), read_footage(sample, None)
        rate = info.fps or CLIP_FPS
        stride = max(round(rate / CLIP_FPS), -(-footage.num_frames // 360), 1)  # at most 360 frames
        numbers = footage.file_ids(np.arange(footage.num_frames)[::stride])
        scale = min(240 / max(info.height, info.width), 1.0)
        size = max(round(info.height * scale / 2) * 2, 2), max(round(info.width * scale / 2) * 2, 2)  # even
        fps = Fraction(rate).limit_denominator(1001) / stride
        small = (
            resize(frame[None], size, antialias=True)[:, 0].movedim(0, -1).contiguous().numpy()  # (H, W, 3)
            for frame in frames_in_order(sample.video, numbers)
        )
        timed = (TimedFrame(pixels, number, 1 / fps) for number, pixels in enumerate(small))
        with TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            write_timed_frames(clip, timed, fps, codec=H264(crf=26, gop=12), comment="")
            return card | {"uri": encode_uri("video/mp4", clip.read_bytes())}
    except VideoError as error:
        return card | {"problem": error.reason}
