"""Classify a file, a camera or a stream by an exported model, without everest: numpy, onnxruntime and PyAV.

everest export runs/line --to onnx --output line.onnx   # writes this program beside line.onnx
python classify.py line.onnx video.mp4      # a file
python classify.py line.onnx 0 2            # each 2 seconds of the first camera; also a stream or a file

Prints the time and the most probable class of each window; with --json the five most probable. The metadata
of the model states the preprocessing. The last line has the milliseconds of a window, in CPU time: other
programs hardly change it. Uses one CPU thread, or OMP_NUM_THREADS. Ctrl-C ends the program.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

try:
    import av
    import numpy as np
    import onnxruntime
except ImportError as error:
    sys.exit(f"{error.name}: not installed; run `pip install numpy 'onnxruntime>=1.17' av`")

MOST = 5  # classes of a line of --json
OLDEST = "1.17"  # oldest onnxruntime that reads the files of `everest export`
STALL_SECONDS = 20.0  # without data from a stream, after which this program ends
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}  # by sys.platform


def windows(
    source: str, seconds: float | None, usual: float | None
) -> Iterator[tuple[float, float, list[av.VideoFrame]]]:
    """Yield start, end and frames of each window; after a gap of the source, a new one begins.

    Times count from the first frame. `seconds` are the length of a window; None: `usual`, or all of a file
    that is shorter than two of them.
    """
    kind = "v4l2" if source.startswith("/dev/video") else None  # a camera
    if source.isdigit():
        if sys.platform not in CAMERAS:
            sys.exit(f"camera {source}: give a stream; cameras have numbers on Linux and macOS only")
        name, kind = CAMERAS[sys.platform]
        source = name.format(source)
    frames: list[av.VideoFrame] = []
    timeout = STALL_SECONDS if "://" in source else None
    with av.open(source, format=kind, timeout=timeout) as container:
        if not container.streams.video:
            sys.exit(f"{source}: no video in it")
        length = container.duration / av.time_base if container.duration else math.inf  # of a camera
        if seconds is None and usual is None and length == math.inf:
            sys.exit(f"{source}: never ends; give SECONDS, the length of a window, such as 2")
        if seconds is None:
            seconds = usual if usual is not None and length >= 2 * usual else math.inf
        first = None
        for frame in intact_frames(container, source):
            first = frame.time if first is None else first
            if frames and frame.time >= frames[0].time + seconds:
                yield frames[0].time - first, frame.time - first, frames
                frames = []
            frames.append(frame)
    if frames:  # the last window may be shorter
        yield frames[0].time - first, frames[-1].time - first, frames


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
            start = packet.stream.start_time or 0
            place = (
                "" if packet.pts is None else f" at {float((packet.pts - start) * packet.time_base):.1f} s"
            )
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


def open_model(file: str) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """The network of a file of `everest export`, and its metadata."""
    if not Path(file).is_file():
        sys.exit(f"{file}: no such file")
    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # 4,2 has a number for each level
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 1
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no other class in common
        # "[ONNXRuntimeError] : 1 : FAIL : Load model from FILE failed:/x.cc:1 f(A&, B&) Unsupported …"
        reason = str(error).strip().partition("\n")[0].rpartition(" failed:")[2]
        reason = reason.partition(") ")[2] if reason.startswith("/") else reason
        needed = f"files of `everest export` need onnxruntime {OLDEST} or newer"
        sys.exit(f"{file}: onnxruntime {onnxruntime.__version__} cannot read it: {reason} ({needed})")
    texts = session.get_modelmeta().custom_metadata_map
    if "clip" not in texts:
        sys.exit(f"{file}: not a file of `everest export`")
    about = {key: json.loads(texts[key]) for key in ("clip", "mean", "std", "heads", "classes")}
    heads = about["heads"]
    if not heads or len(heads) > 1 or heads[0]["task"] == "regression":
        sys.exit(f"{file}: this program shows models with one head of classes")
    return session, about


def probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    if task == "multi-label":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def classify(model: str, source: str, seconds: float | None, as_json: bool) -> None:
    """Print a line for each window of a source, and at the end the milliseconds of a window."""
    session, about = open_model(model)
    clip, mean, std, classes = (about[key] for key in ("clip", "mean", "std", "classes"))
    read_ms, network_ms = [], []
    began = time.process_time()
    try:
        for start, end, video in windows(source, seconds, clip.get("seconds")):
            frames = (clip_of(video, clip, len(mean))[None] / 255 - mean) / std  # (1, T, H, W, C)
            frames = frames.transpose(0, 4, 1, 2, 3).astype(np.float32)
            read = time.process_time()
            logits = session.run(None, {"frames": frames})[0][0]
            ended = time.process_time()
            read_ms.append(1000 * (read - began))
            network_ms.append(1000 * (ended - read))
            shares = probabilities(logits, about["heads"][0]["task"])
            found = {
                str(classes[index] if classes else index): round(float(shares[index]), 6)
                for index in np.argsort(-shares)[:MOST]
            }
            if as_json:
                times = {"read_ms": round(read_ms[-1], 1), "network_ms": round(network_ms[-1], 1)}
                line = {"start": round(start, 3), "end": round(end, 3), "classes": found, **times}
                print(json.dumps(line), flush=True)
            else:
                name, share = next(iter(found.items()))
                print(f"{start:8.1f} to {end:.1f} s  {name}  {100 * share:.1f} %", flush=True)
            began = time.process_time()
    finally:
        if network_ms:
            times = (
                f"{median(read_ms):.3g} ms to decode and resize, {median(network_ms):.3g} ms in the network"
            )
            print(f"windows: {len(network_ms)}; median CPU time: {times}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Example: python classify.py line.onnx 0 2 classifies each 2 seconds of the first camera.",
    )
    parser.add_argument("model", metavar="MODEL.onnx", help="file of `everest export --to onnx`")
    parser.add_argument("source", metavar="SOURCE", help="video, camera (0, /dev/video0) or URL of a stream")
    usual = "length of a window [as the training clips]"
    parser.add_argument("seconds", metavar="SECONDS", nargs="?", type=float, help=usual)
    parser.add_argument("--json", action="store_true", help="print a JSON line for each window")
    options = parser.parse_args()
    if options.seconds is not None and not 0 < options.seconds < math.inf:
        parser.error("SECONDS must be above 0")
    try:
        classify(options.model, options.source, options.seconds, options.json)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # such as of `| head`; Python would complain again when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except av.error.ExitError:  # the timeout of av.open
        sys.exit(f"{options.source}: no data for {STALL_SECONDS:g} s; check the address and its sender")
    except (OSError, av.FFmpegError) as error:
        sys.exit(f"{options.source}: {error}")


if __name__ == "__main__":
    main()
