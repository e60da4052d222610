"""Classify a file, a camera or a stream by an exported model, without everest: numpy, onnxruntime and PyAV.

everest export runs/line --to onnx --output line.onnx
python docs/examples/classify.py line.onnx video.mp4        # a file
python docs/examples/classify.py line.onnx /dev/video0 2    # each 2 seconds of a camera, a stream or a file

Prints a JSON line for each clip. What a clip is follows from the metadata of the model: its frames and their
rate or sampling, its size, its mean and std. Without SECONDS, windows are as long as the training clips; a
file of less than two such windows is one. Uses one CPU thread, or OMP_NUM_THREADS. Ctrl-C ends the program.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnxruntime

MOST = 5  # classes of a line


def windows(
    source: str, seconds: float | None, usual: float | None
) -> Iterator[tuple[float, float, list[av.VideoFrame]]]:
    """Yield start, end and frames of each window; after a gap of the source, a new one begins.

    `seconds` are its length; None: `usual`, or all of a file that is shorter than two of them.
    """
    kind = "v4l2" if source.startswith("/dev/") else None  # a camera
    frames: list[av.VideoFrame] = []
    with av.open(source, format=kind) as container:
        if not container.streams.video:
            sys.exit(f"{source}: no video in it")
        length = container.duration / av.time_base if container.duration else math.inf  # of a camera
        if seconds is None and usual is None and length == math.inf:
            sys.exit(f"{source}: never ends; give SECONDS, the length of a window, such as 2")
        if seconds is None:
            seconds = usual if usual is not None and length >= 2 * usual else math.inf
        for frame in intact_frames(container, source):
            if frames and frame.time >= frames[0].time + seconds:
                yield frames[0].time, frame.time, frames
                frames = []
            frames.append(frame)
    if frames:  # the last window may be shorter
        yield frames[0].time, frames[-1].time, frames


def intact_frames(container: Any, source: str) -> Iterator[av.VideoFrame]:
    """Yield the frames of a video; after damage none up to the next keyframe, as they may refer to it."""
    awaits_key = False
    for packet in container.demux(video=0):
        if awaits_key and not packet.is_keyframe:
            continue
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            frames = []
            awaits_key = True
        else:
            awaits_key = packet.is_corrupt or any(frame.is_corrupt for frame in frames)
        if awaits_key:
            place = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.1f} s"
            print(f"{source}: damaged{place}; left out up to the next keyframe", file=sys.stderr)
        yield from (frame for frame in frames if not frame.is_corrupt)


def clip_of(video: list[av.VideoFrame], clip: dict, channels: int) -> np.ndarray:
    """The middle of a window, (T, H, W, C) uint8, as the metadata `clip` of the model states it."""
    if clip["fps"] and len(video) > 1:  # of the frames, those that are shown at that rate
        times = np.array([frame.time - video[0].time for frame in video])
        ticks = np.arange(round((times[-1] + np.diff(times).mean()) * clip["fps"])) / clip["fps"]
        video = [video[number] for number in np.abs(times - ticks[:, None]).argmin(axis=1)]
    if clip["sampling"] == "dense":
        steps = np.arange(0, len(video), clip["stride"])
        first = max(len(steps) - clip["frames"], 0) // 2
        numbers = steps[np.minimum(first + np.arange(clip["frames"]), len(steps) - 1)]
    else:  # the middle of each of T equal parts
        numbers = ((np.arange(clip["frames"]) + 0.5) * len(video) / clip["frames"]).astype(int)
    kind = "rgb24" if channels == 3 else "gray"
    turns = round(video[0].rotation / 90) % 4  # counter-clockwise, as the camera wants frames to be shown
    # The decoder's library shrinks large frames to twice the model's size, far faster than numpy does.
    sides = (clip["height"], clip["width"])[:: -1 if turns % 2 else 1]  # of frames as stored
    scale = min(1, 2 * max(sides[0] / video[0].height, sides[1] / video[0].width))
    size = {"width": round(scale * video[0].width), "height": round(scale * video[0].height)}
    small = [video[number].reformat(**size, format=kind, interpolation="AREA") for number in numbers]
    images = [np.rot90(frame.to_ndarray(), turns) for frame in small]
    return np.stack([crop(image.reshape(*image.shape[:2], -1), clip) for image in images])


def crop(image: np.ndarray, clip: dict) -> np.ndarray:
    """Resize an image (H', W', C) bilinearly to cover the model's height x width, and cut out the center."""
    scale = max(clip["height"] / image.shape[0], clip["width"] / image.shape[1])
    for axis, size in enumerate((clip["height"], clip["width"])):
        length = image.shape[axis]
        resized = max(int(length * scale + 1e-6), size)
        start = round((resized - size) / 2)
        place = (np.arange(start, start + size) + 0.5) * length / resized - 0.5  # in the frame as decoded
        place = place.clip(0, length - 1)
        low = place.astype(int)
        part = (place - low).reshape(-1, *[1] * (2 - axis))
        image = image.take(low, axis) * (1 - part) + image.take(np.minimum(low + 1, length - 1), axis) * part
    return np.rint(image).astype(np.uint8)


def main(model: str, source: str, seconds: float | None = None) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no other class in common
        sys.exit(f"{model}: not an ONNX file ({type(error).__name__})")
    about = session.get_modelmeta().custom_metadata_map
    if "clip" not in about:
        sys.exit(f"{model}: not a file of `everest export`")
    clip, mean, std, heads, classes = (
        json.loads(about[key]) for key in ("clip", "mean", "std", "heads", "classes")
    )
    if not heads or len(heads) > 1 or heads[0]["task"] == "regression":
        sys.exit(f"{model}: this example shows models with one head of classes")
    for start, end, video in windows(source, seconds, clip.get("seconds")):
        began = time.perf_counter()
        frames = (clip_of(video, clip, len(mean))[None] / 255 - mean) / std  # (1, T, H, W, C)
        frames = frames.transpose(0, 4, 1, 2, 3).astype(np.float32)
        logits = session.run(None, {"frames": frames})[0][0]
        if heads[0]["task"] == "multi-label":
            shares = 1 / (1 + np.exp(-logits))
        else:
            shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        found = {
            str(classes[index] if classes else index): round(float(shares[index]), 6)
            for index in np.argsort(-shares)[:MOST]
        }
        spent = round(1000 * (time.perf_counter() - began), 1)
        line = {"start": round(start, 3), "end": round(end, 3), "classes": found, "ms": spent}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or not all(
        text.strip("0.") and text.replace(".", "", 1).isdigit() for text in sys.argv[3:]
    ):
        sys.exit("usage: classify.py MODEL.onnx SOURCE [SECONDS]")
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"{sys.argv[1]}: no such file")
    try:
        main(*sys.argv[1:3], *map(float, sys.argv[3:]))
    except (OSError, av.FFmpegError) as error:
        sys.exit(f"{sys.argv[2]}: {error}")
    except KeyboardInterrupt:
        pass
