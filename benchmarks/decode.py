"""Decoding alone: 16 frames at stride 4 by each back-end, relative to decord, and the frames each gets wrong.

    python benchmarks/decode.py [--rounds 15] [--folder FILES]

A frame is wrong when another frame of a decode
of all frames in a row is nearer to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import plain_input
import torch

from everest.video.reader import read_frames, video_info

Decode = Callable[[Path, list[int]], np.ndarray]
REQUESTED = 64  # frames, in windows at random positions
ROUNDING = 0.5  # levels: decord converts to RGB in another way


def pyav(path: Path, ids: list[int]) -> np.ndarray:
    """PyAV as it is used here."""
    return read_frames(path, ids).numpy()


def backends() -> dict[str, Decode]:
    """By name, decord first."""
    return {"decord": plain_input.decode, "pyav": pyav}


def wrong(decode: Decode, path: Path) -> int | str:
    """Number of wrong frames among the requested ones; "fails" if the decoder returns nothing."""
    thumbs = _thumbs(read_frames(path, range(video_info(path).frames)).numpy())  # (F, h, w)
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


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """Speed and wrong frames of all back-ends on one file."""
    wrong_frames = {name: wrong(decode, path) for name, decode in backends().items()}
    able = {name: decode for name, decode in backends().items() if wrong_frames[name] != "fails"}

    def clip(decode: Decode) -> Callable[[int], object]:
        def work(number: int) -> None:
            start = int(np.random.default_rng(number).integers(0, measuring.FRAMES - 64))
            decode(path, list(range(start, start + 64, 4)))

        return work

    times = measuring.alternate({name: clip(decode) for name, decode in able.items()}, rounds=rounds)
    speed = {name: measuring.ratio(times["decord"], found) for name, found in times.items()}
    per_second = round(1 / times["decord"].median, 1)
    return {"speed": speed, "wrong": wrong_frames, "decord_clips_per_second": per_second}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/everest-benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, lines = [], []
    for kind, path in measuring.files(options.folder, further=measuring.DECODE_ONLY).items():
        result = measure(path, options.rounds)
        rows.append({"kind": kind, **result})
        cells = [_cell(result, name) for name in backends()]
        lines.append([f"{kind} ({result['decord_clips_per_second']:.0f}/s)", *cells])
        print(lines[-1], flush=True)
    speedups = [row["speed"]["pyav"]["ratio"] for row in rows]
    note = (
        f"PyAV as everest uses it, relative to decord: minimum {min(speedups):.1f}x (goal 1.0), median "
        f"{np.median(speedups):.1f}x (goal 1.3). "
        f"Wrong frames: out of {REQUESTED} requested frames, in clips of 16."
    )
    head = ["file (clips/s of decord)", *backends()]
    measuring.publish("decode", rows, f"{measuring.markdown(head, lines)}\n\n{note}")


def _cell(result: dict[str, Any], name: str) -> str:
    wrong_ones = result["wrong"][name]
    if wrong_ones == "fails":
        return "fails"
    speed = f"{result['speed'][name]['ratio']:.2f}"
    return f"{speed}, **{wrong_ones} wrong**" if wrong_ones else speed


if __name__ == "__main__":
    main()
