"""A training item, everest against a plain pipeline: open, decode, crop, resize; 1 and 4 views per decode.

    python benchmarks/input_pipeline.py [--rounds 20] [--folder FILES]
    python benchmarks/input_pipeline.py --encoded  # codecs of `prepare encode`, and `data.resize`
    python benchmarks/input_pipeline.py --decode   # decoding alone: speed and wrong frames

The plain pipeline does what the released loaders of this family do, in our own code: decord decodes a clip
for every item, each frame is cropped and resized as a PIL image, and the worker divides by 255 and
normalizes.

A frame is wrong when another frame of a decode of all frames in a row is nearer to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import decord
import measuring
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everest.data.crops import Box, largest_region, multi_scale_crop
from everest.data.frames import pretrain_window
from everest.data.views import PretrainViews
from everest.lists.sample import Sample
from everest.system.processes import READER_KEPT_BYTES, keep_freed_memory
from everest.video.metadata import clear_video_cache
from everest.video.reader import read_frames, video_info

T, STRIDE, SIZE = 16, 4, 224
GOALS = {"H.264 320x240, GOP 12": (3.0, 9.0)}
GOAL_ELSEWHERE = (2.2, 6.0)  # one view, four views a decode
# Every intact real video of EVEREST_SHARED with a short side of 240 pixels and 64 frames, or more.
ENCODED = """av1_640x360.mkv gray_pixfmt_made.mp4 h264_in_avi_1080p.avi h264_mpegts_noaudio_388x300.ts
mae_demo_853x480.avi mpeg4_bframes.avi portrait_354x492_2997.mp4 vfr_made.mp4 vp8_audio.webm
yuv444p_audio.mp4"""
OURS = PretrainViews(
    frames=T, stride=STRIDE, size=(SIZE, SIZE), flip=True, sampling="dense", views_per_decode=1
)
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
Decode = Callable[[Path, list[int]], np.ndarray]
REQUESTED = 64  # frames, in windows at random positions
ROUNDING = 0.5  # levels: decord converts to RGB in another way


def decode(path: Path, ids: list[int]) -> np.ndarray:
    """(F, H, W, 3) by decord, the file opened again."""
    return decord.VideoReader(str(path), num_threads=1).get_batch(ids).asnumpy()


def training_item(path: Path, ids: list[int], size: int, rng: np.random.Generator) -> Tensor:
    """(3, T, size, size) float32, multi-scale cropped and perhaps flipped."""
    images = [Image.fromarray(frame) for frame in decode(path, ids)]
    box = multi_scale_crop((images[0].height, images[0].width), (size, size), rng)
    images = [_cut(image, box).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    if rng.random() < 0.5:
        images = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    return _normalized(images)


def _cut(image: Image.Image, box: Box) -> Image.Image:
    return image.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def _normalized(images: list[Image.Image]) -> Tensor:
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (T, H, W, 3)
    clip = stacked.permute(3, 0, 1, 2).contiguous().float() / 255
    return (clip - MEAN) / STD


BACKENDS: dict[str, Decode] = {"decord": decode, "pyav": lambda path, ids: read_frames(path, ids).numpy()}


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """Both pipelines on the same windows of one file."""
    sample = Sample(path=str(path))

    def rng(number: int) -> np.random.Generator:
        return np.random.default_rng(number)

    def plainly(number: int) -> None:
        draws = rng(number)
        ids = pretrain_window(measuring.FRAMES, T, STRIDE, draws)
        training_item(path, ids.tolist(), SIZE, draws)

    def first_time(number: int) -> None:
        clear_video_cache()
        OURS(sample, rng(number), "auto")

    four = replace(OURS, views_per_decode=4)
    times = measuring.alternate(
        {
            "plain": plainly,
            "ours": lambda number: OURS(sample, rng(number), "auto"),
            "four": lambda number: four(sample, rng(number), "auto"),
            "first": first_time,
        },
        rounds=rounds,
    )
    result = {name: measuring.ratio(times["plain"], times[name]) for name in ("ours", "four", "first")}
    result["four"] = {name: round(4 * value, 2) for name, value in result["four"].items()}  # a view
    return {
        **result,
        "clips_per_second": {
            "plain": round(1 / times["plain"].median, 1),
            "ours": round(1 / times["ours"].median, 1),
            "four": round(4 / times["four"].median, 1),
        },
    }


def measure_encoded(folder: Path, rounds: int) -> None:
    """CPU time of a clip of real videos as `prepare encode` writes them."""
    rows: list[dict[str, Any]] = []
    for name in ENCODED.split():
        source = measuring.SHARED / "videos" / "odd" / name
        items: dict[str, Callable[[int], object]] = {}
        for codec in ("h264", "mjpeg"):
            output = folder / f"encoded_{codec}" / source.stem
            listed = output.with_suffix(".csv")
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text(f"path\n{source}\n")
            if not output.exists():
                options = ("--codec", codec, "--short-side", 240, "--data", "/", "--output", output)
                measuring.everest("prepare", "encode", listed, *options)
            (path,) = (file for file in output.rglob("*") if file.suffix in (".mp4", ".mov"))
            for resized, region in (("cpu", None), ("device", largest_region(OURS.size))):
                views = replace(OURS, region_size=region)

                def item(number: int, views: PretrainViews = views, path: Path = path) -> object:
                    return views(Sample(path=str(path)), np.random.default_rng(number), "auto")

                items[f"{codec}, {resized}"] = item
        times = measuring.alternate(items, rounds=rounds)
        base = times["h264, cpu"]
        for key, taken in times.items():
            fraction = measuring.ratio(taken, base)
            rows.append({"video": name, "read": key, "ms": round(1000 * taken.median, 2), "share": fraction})
            print(rows[-1], flush=True)
    keys = dict.fromkeys(row["read"] for row in rows)
    lines = []
    for key in keys:
        of_key = [row for row in rows if row["read"] == key]
        fractions = sorted(row["share"]["ratio"] for row in of_key)
        milliseconds = " / ".join(f"{row['ms']:.1f}" for row in of_key)
        fraction = f"{median(fractions):.2f} ({fractions[0]:.2f}-{fractions[-1]:.2f})"
        lines.append([*key.split(", "), fraction, milliseconds])
    head = ["codec", "`data.resize`", "CPU time, fraction of the first line (of each video)", "ms, by video"]
    measuring.publish("encoded_input", rows, measuring.markdown(head, lines))


def measure_items(folder: Path, rounds: int) -> None:
    """Training items of all kinds of files, relative to the plain pipeline."""
    rows, lines = [], []
    for kind, path in measuring.files(folder).items():
        result = measure(path, rounds)
        one, four = GOALS.get(kind, GOAL_ELSEWHERE)
        met = result["ours"]["ratio"] >= one, result["four"]["ratio"] >= four
        rows.append({"kind": kind, **result, "goal": {"ours": one, "four": four}, "met": met})
        speed = result["clips_per_second"]
        lines.append(
            [
                kind,
                f"{measuring.shown(result['ours'])}, goal {one:g}: {'met' if met[0] else 'missed'}",
                f"{measuring.shown(result['four'])}, goal {four:g}: {'met' if met[1] else 'missed'}",
                f"{result['first']['ratio']:.1f}x",
                f"{speed['plain']:.0f} / {speed['ours']:.0f} / {speed['four']:.0f}",
            ]
        )
        print(lines[-1], flush=True)
    values = 3 * T * SIZE * SIZE
    views = ["one view per decode", "speedup per view, four views per decode", "speedup, first read"]
    head = ["file", f"speedup, {views[0]}", *views[1:], "clips/s per core: plain / one view / four views"]
    note = (
        f"Bytes copied per clip: {4 * values / 1e6:.2f} MB of floats in the plain pipeline, "
        f"{values / 1e6:.2f} MB in everest."
    )
    measuring.publish("input_pipeline", rows, f"{measuring.markdown(head, lines)}\n\n{note}")


def wrong(decode: Decode, path: Path) -> int | str:
    """Number of wrong frames among the requested ones; "fails" if the decoder returns nothing."""
    thumbs = _thumbs(read_frames(path, range(video_info(path).num_frames)).numpy())  # (F, h, w)
    rng, count = np.random.default_rng(1), 0
    for _ in range(REQUESTED // 16):
        start = int(rng.integers(0, len(thumbs) - 61))
        ids = list(range(start, start + 61, 4))
        try:
            shown = _thumbs(decode(path, ids))
        except Exception:  # whatever a library raises
            return "fails"
        for number, thumb in zip(ids, shown, strict=True):
            distances = np.abs(thumbs - thumb).mean(axis=(1, 2))
            count += bool(distances[number] > distances.min() + ROUNDING)
    return count


def _thumbs(frames: np.ndarray) -> np.ndarray:
    """Every fourth pixel of the green channel, as numbers that can be subtracted."""
    return frames[:, ::4, ::4, 1].astype(np.float32)


def measure_decoding(path: Path, rounds: int) -> dict[str, Any]:
    """Speed and wrong frames of all back-ends on one file."""
    wrong_frames = {name: wrong(decode, path) for name, decode in BACKENDS.items()}
    able = {name: decode for name, decode in BACKENDS.items() if wrong_frames[name] != "fails"}

    def clip(decode: Decode) -> Callable[[int], object]:
        def work(number: int) -> None:
            start = int(np.random.default_rng(number).integers(0, measuring.FRAMES - 64))
            decode(path, list(range(start, start + 64, 4)))

        return work

    times = measuring.alternate({name: clip(decode) for name, decode in able.items()}, rounds=rounds)
    speed = {name: measuring.ratio(times["decord"], found) for name, found in times.items()}
    per_second = round(1 / times["decord"].median, 1)
    return {"speed": speed, "wrong": wrong_frames, "decord_clips_per_second": per_second}


def measure_decoders(folder: Path, rounds: int) -> None:
    """Decoding alone, relative to decord."""
    rows, lines = [], []
    for kind, path in measuring.files(folder, further=measuring.DECODE_ONLY).items():
        result = measure_decoding(path, rounds)
        rows.append({"kind": kind, **result})
        cells = [_cell(result, name) for name in BACKENDS]
        lines.append([f"{kind} ({result['decord_clips_per_second']:.0f}/s)", *cells])
        print(lines[-1], flush=True)
    speedups = [row["speed"]["pyav"]["ratio"] for row in rows]
    note = (
        f"PyAV as everest uses it, relative to decord: minimum {min(speedups):.1f}x (goal 1.0), median "
        f"{np.median(speedups):.1f}x (goal 1.3). "
        f"Wrong frames: out of {REQUESTED} requested frames, in clips of 16."
    )
    head = ["file (clips/s of decord)", *BACKENDS]
    measuring.publish("decode", rows, f"{measuring.markdown(head, lines)}\n\n{note}")


def _cell(result: dict[str, Any], name: str) -> str:
    wrong_ones = result["wrong"][name]
    if wrong_ones == "fails":
        return "fails"
    speed = f"{result['speed'][name]['ratio']:.2f}"
    return f"{speed}, **{wrong_ones} wrong**" if wrong_ones else speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--encoded", action="store_true")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/everest-benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.decode:
        measure_decoders(options.folder, options.rounds)
        return
    keep_freed_memory(READER_KEPT_BYTES)  # as in a worker; the plain pipeline benefits as well
    measure_part = measure_encoded if options.encoded else measure_items
    measure_part(options.folder, options.rounds)


if __name__ == "__main__":
    main()
