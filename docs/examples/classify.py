"""Classify a video with an exported model and without everest: numpy, onnxruntime and PyAV.

everest export runs/finetune --to onnx --output model.onnx
python docs/examples/classify.py model.onnx video.mp4
"""

import json
import sys

import av
import numpy as np
import onnxruntime


def read_clip(path: str, clip: dict, channels: int) -> np.ndarray:
    """The middle of a video, (T, H, W, C) uint8, as the metadata `clip` of the model states it."""
    with av.open(path) as container:
        video = list(container.decode(video=0))
    if clip["fps"]:  # of the frames, those that are shown at that rate
        times = np.array([frame.time - video[0].time for frame in video])
        ticks = np.arange(round((times[-1] + np.diff(times).mean()) * clip["fps"])) / clip["fps"]
        video = [video[number] for number in np.abs(times - ticks[:, None]).argmin(axis=1)]
    if clip["sampling"] == "dense":
        steps = np.arange(0, len(video), clip["stride"])
        first = max(len(steps) - clip["frames"], 0) // 2
        numbers = steps[np.minimum(first + np.arange(clip["frames"]), len(steps) - 1)]
    else:  # the middle of each of T equal parts
        numbers = ((np.arange(clip["frames"]) + 0.5) * len(video) / clip["frames"]).astype(int)
    images = [
        np.rot90(video[number].to_ndarray(format="rgb24" if channels == 3 else "gray"), frame_turns(video[0]))
        for number in numbers
    ]
    return crop(np.stack(images).reshape(*np.shape(images)[:3], channels), clip["height"], clip["width"])


def frame_turns(frame: av.VideoFrame) -> int:
    """The quarter turns, counter-clockwise, with which the camera wants a frame to be shown."""
    return round(frame.rotation / 90) % 4


def crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize frames (T, H', W', C) bilinearly to cover height x width, and cut out their center."""
    scale = max(height / frames.shape[1], width / frames.shape[2])
    for axis, size in ((1, height), (2, width)):
        length = frames.shape[axis]
        resized = max(int(length * scale + 1e-6), size)
        start = round((resized - size) / 2)
        place = (np.arange(start, start + size) + 0.5) * length / resized - 0.5  # in the frame as decoded
        place = place.clip(0, length - 1)
        low = place.astype(int)
        part = (place - low).reshape(-1, *[1] * (3 - axis))
        frames = (
            frames.take(low, axis) * (1 - part) + frames.take(np.minimum(low + 1, length - 1), axis) * part
        )
    return np.rint(frames).astype(np.uint8)


def main(model: str, path: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    clip, mean, std, heads, classes = (
        json.loads(about[key]) for key in ("clip", "mean", "std", "heads", "classes")
    )
    if len(heads) > 1 or heads[0]["task"] == "regression":
        sys.exit(f"{model}: this example shows models with one head of classes")
    frames = (read_clip(path, clip, len(mean))[None] / 255 - mean) / std  # (1, T, H, W, C)
    frames = frames.transpose(0, 4, 1, 2, 3).astype(np.float32)
    logits = session.run(None, {"frames": frames})[0][0]
    if heads[0]["task"] == "multi-label":
        probabilities = 1 / (1 + np.exp(-logits))
    else:
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for index in np.argsort(-probabilities)[:5]:
        print(f"{classes[index] if classes else index}\t{probabilities[index]:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
