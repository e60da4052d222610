"""A training item, everest against the plain pipeline: open, decode, crop, resize; 1 and 4 views per decode.

python benchmarks/input_pipeline.py [--rounds 20] [--folder FILES]
python benchmarks/input_pipeline.py --encoded   # codecs of `prepare encode`, and `data.resize`, on real clips
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import measuring
import numpy as np
import plain_input
import torch

from everest.data.crops import largest_region
from everest.data.frames import pretrain_window
from everest.data.views import PretrainViews
from everest.lists.sample import Sample
from everest.system.processes import READER_KEPT_BYTES, keep_freed_memory
from everest.video.facts import clear_video_cache

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


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """Both pipelines on the same windows of one file."""
    sample = Sample(path=str(path))

    def rng(number: int) -> np.random.Generator:
        return np.random.default_rng(number)

    def plainly(number: int) -> None:
        draws = rng(number)
        ids = pretrain_window(measuring.FRAMES, T, STRIDE, draws)
        plain_input.training_item(path, ids.tolist(), SIZE, draws)

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
                views = replace(OURS, region=region)

                def item(number: int, views: PretrainViews = views, path: Path = path) -> object:
                    return views(Sample(path=str(path)), np.random.default_rng(number), "auto")

                items[f"{codec}, {resized}"] = item
        times = measuring.alternate(items, rounds=rounds)
        base = times["h264, cpu"]
        for key, taken in times.items():
            share = measuring.ratio(taken, base)
            rows.append({"video": name, "read": key, "ms": round(1000 * taken.median, 2), "share": share})
            print(rows[-1], flush=True)
    keys = dict.fromkeys(row["read"] for row in rows)
    lines = []
    for key in keys:
        of_key = [row for row in rows if row["read"] == key]
        shares = sorted(row["share"]["ratio"] for row in of_key)
        milliseconds = " / ".join(f"{row['ms']:.1f}" for row in of_key)
        share = f"{median(shares):.2f} ({shares[0]:.2f}-{shares[-1]:.2f})"
        lines.append([*key.split(", "), share, milliseconds])
    head = ["codec", "`data.resize`", "CPU time, share of the first line (of each video)", "ms, by video"]
    measuring.publish("encoded_input", rows, measuring.markdown(head, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--encoded", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/everest-benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory(READER_KEPT_BYTES)  # as in a worker; the plain pipeline benefits as well
    if options.encoded:
        measure_encoded(options.folder, options.rounds)
        return
    rows, lines = [], []
    for kind, path in measuring.files(options.folder).items():
        result = measure(path, options.rounds)
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


if __name__ == "__main__":
    main()
