"""The class of each window of a camera, a stream or a file: python docs/examples/live.py MODEL SOURCE SECONDS

MODEL is a run folder or a file of weights, with one head of classes. SOURCE is a camera (/dev/video0), a
stream (rtsp://…, udp://…) or a file. SECONDS is the length of a window. Ctrl-C ends the program.
"""

import json
import sys
from collections.abc import Iterator

import av
import numpy as np
import torch

import everest


def windows(source: str, seconds: float) -> Iterator[tuple[float, float, list[av.VideoFrame]]]:
    """Yield start, end and frames of each window; after a gap of the source, a new one begins."""
    kind = "v4l2" if source.startswith("/dev/") else None  # a camera
    frames: list[av.VideoFrame] = []
    with av.open(source, format=kind) as container:
        for frame in container.decode(video=0):
            if frames and frame.time >= frames[0].time + seconds:
                yield frames[0].time, frame.time, frames
                frames = []
            frames.append(frame)
    if frames:  # the last window may be shorter
        yield frames[0].time, frames[-1].time, frames


def as_seen(frame: av.VideoFrame, size: tuple[int, int], channels: int) -> torch.Tensor:
    """Resize a frame to cover the model's (height, width), and cut out its center: (C, H, W) uint8."""
    height, width = size
    scale = max(height / frame.height, width / frame.width)
    rows, columns = max(round(scale * frame.height), height), max(round(scale * frame.width), width)
    kind = "rgb24" if channels == 3 else "gray"
    pixels = torch.from_numpy(frame.reformat(columns, rows, kind).to_ndarray()).reshape(
        rows, columns, channels
    )
    top, left = (rows - height) // 2, (columns - width) // 2
    return pixels[top : top + height, left : left + width].movedim(-1, 0)


def main(weights: str, source: str, seconds: float) -> None:
    model = everest.load_model(weights).eval()
    clip = model.clip
    for start, end, frames in windows(source, seconds):
        middles = (np.arange(clip.frames) + 0.5) * len(frames) / clip.frames  # of equal parts of the window
        images = [as_seen(frames[int(middle)], clip.size, clip.channels) for middle in middles]
        with torch.inference_mode():
            probabilities = model.outputs(model(torch.stack(images, dim=1)[None].to(model.device)))[0]
        probability, best = probabilities.max(dim=0)
        found = {"label": model.classes[best], "probability": round(probability.item(), 4)}
        print(json.dumps({"start": round(start, 3), "end": round(end, 3), **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
