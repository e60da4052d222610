"""Windows of long files: time to index a file of ten hours, windows with an action, activity against motion.

    python benchmarks/footage.py [--hours 10] [--folder FILES]

The file is joined from 40 scenes: a real clip of two people after 30 to 120 s of its first frame, with noise
as of a camera. Times are CPU seconds of one thread. Rank correlations are over windows of 2 s of 24 such
scenes whose still parts are as long as their actions.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from everest.footage.activity import why_none, window_activity
from everest.footage.measures import WindowSettings
from everest.footage.windows import write_windows
from everest.lists.sample import Sample
from everest.lists.text import read_rows
from everest.system.events import silent
from everest.video.file import clear_video_cache, inspect_video
from everest.video.packet_sizes import packet_sizes
from everest.video.reader import frames_in_order, probe

CLIPS = measuring.SHARED / "videos" / "actions" / "interaction"
Bout = tuple[float, float, str]  # start and end in seconds, class
FPS, NOISE = 10, 6
WINDOW, COUNT = 10, 200
RATE = "80k"  # of a constant bitrate
CONSTANT_RATE = ("-b:v", RATE, "-minrate", RATE, "-maxrate", RATE, "-bufsize", RATE)
FAST264 = ("-c:v", "libx264", "-preset", "veryfast")
HEVC, VP9 = ("-c:v", "libx265", "-preset", "veryfast"), ("-c:v", "libvpx-vp9", "-cpu-used", "6")
ENCODERS: dict[str, tuple[str, ...]] = {
    "H.264, crf": (*FAST264, "-crf", "28"),
    "H.264, average bitrate": (*FAST264, "-b:v", RATE),
    "H.264, constant bitrate": (*FAST264, *CONSTANT_RATE, "-nal-hrd", "cbr"),
    "HEVC, crf": (*HEVC, "-crf", "30", "-x265-params", "log-level=none:pools=none"),
    "HEVC, constant bitrate": (
        *HEVC,
        *("-b:v", RATE, "-x265-params"),
        "log-level=none:pools=none:strict-cbr=1:vbv-maxrate=80:vbv-bufsize=80",
    ),
    "VP9, crf": (*VP9, "-crf", "38", "-b:v", "0"),
    "VP9, constant bitrate": (*VP9, "-deadline", "realtime", *CONSTANT_RATE),
    "AV1, crf": ("-c:v", "libsvtav1", "-preset", "10", "-crf", "40", "-svtav1-params", "lp=1"),
    "AV1, constant bitrate": ("-c:v", "libaom-av1", "-cpu-used", "8", *CONSTANT_RATE),
    "MPEG-4, constant quantizer": ("-c:v", "mpeg4", "-q:v", "8"),
    "MPEG-4, constant bitrate": ("-c:v", "mpeg4", *CONSTANT_RATE),
}


def ffmpeg(*arguments: object) -> None:
    words = ["ffmpeg", "-v", "error", "-y", "-threads", "1", *map(str, arguments)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def write_scene(clip: Path, still: float, path: Path, *encoder: str) -> float:
    """Write the clip after `still` seconds of its first frame; returns when the scene ends, in seconds."""
    filters = (
        f"scale=160:120,fps={FPS},tpad=start_mode=clone:start_duration={still},noise=alls={NOISE}:allf=t"
    )
    ffmpeg("-i", clip, "-vf", filters, "-an", *encoder, "-threads", 1, path)
    return probe(path).frames / FPS


def join(scenes: list[Path], path: Path) -> None:
    """Join scenes without encoding them again."""
    table = path.with_suffix(".txt")
    table.write_text("".join(f"file '{scene}'\n" for scene in scenes))
    ffmpeg("-f", "concat", "-safe", 0, "-i", table, "-c", "copy", path)


def write_recording(path: Path, clips: list[Path], hours: float) -> list[Bout]:
    """Write the long file; returns its actions."""
    draws, scenes, actions = random.Random(0), [], []
    for number, clip in enumerate(clips):
        scene, still = path.with_name(f"scene{number}.mp4"), draws.randint(30, 120)
        length = write_scene(clip, still, scene, *ENCODERS["H.264, crf"])
        scenes.append((scene, still, length, clip.parent.name))
    at, order = 0.0, []
    while at < hours * 3600:
        scene, still, length, name = draws.choice(scenes)
        order.append(scene)
        actions.append((at + still, at + length, name))
        at += length
    join(order, path)
    return actions


def cpu(work: Any) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return round(time.process_time() - started, 2), result


def with_action(table: Path, actions: list[Bout]) -> float:
    """The share of the windows of a list that show at least one second of an action."""
    found = 0
    rows = read_rows(table)
    for row in rows:
        start, end = float(row.values["start"]), float(row.values["end"])
        found += any(min(end, last) - max(start, first) >= 1 for first, last, _ in actions)
    return round(found / len(rows), 3)


def long_file(folder: Path, clips: list[Path], hours: float) -> dict[str, Any]:
    path = folder / "recording.mp4"
    actions = write_recording(path, clips, hours)
    clear_video_cache()
    index_seconds, facts = cpu(lambda: inspect_video(path))
    row: dict[str, Any] = {
        "hours": round(facts.info.frames / FPS / 3600, 2),
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "frames": facts.info.frames,
        "actions": len(actions),
        "action_share": round(sum(end - start for start, end, _ in actions) / (facts.info.frames / FPS), 3),
        "index_cpu_seconds": index_seconds,
    }
    for by in ("activity", "uniform"):
        table = folder / f"{by}.csv"
        settings = WindowSettings(seconds=WINDOW, step=1, count=COUNT, by=by)
        seconds, _ = cpu(
            lambda table=table, settings=settings: write_windows(
                [Sample(path=str(path))], table, settings, overwrite=True, report=silent
            )
        )
        row[by] = {"cpu_seconds": seconds, "with_action": with_action(table, actions)}
    return row


def motion(path: Path, starts: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    """(N,) mean absolute difference of successive frames in each window, in gray levels."""
    frames = frames_in_order(path, range(probe(path).frames), channels=1)
    gray = np.stack([frame.numpy()[..., 0] for frame in frames]).astype(np.int16)
    change = np.abs(np.diff(gray, axis=0)).mean(axis=(1, 2))  # of frame n + 1
    spans = [(round(start * FPS), round((start + seconds) * FPS)) for start in starts]
    return np.array([change[max(first - 1, 0) : last - 1].mean() for first, last in spans])


def correlations(folder: Path, clips: list[Path]) -> list[dict[str, Any]]:
    source = folder / "source.mp4"
    scenes = [folder / f"even{number}.mp4" for number in range(len(clips))]
    for clip, scene in zip(clips, scenes, strict=True):
        write_scene(clip, 3, scene, *FAST264, "-qp", "0")
    join(scenes, source)
    starts = np.arange(0, probe(source).frames / FPS - 2, 2.0)
    moved = motion(source, starts, 2)
    rows = []
    for name, encoder in ENCODERS.items():
        path = folder / "encoded.mkv"
        ffmpeg("-i", source, "-an", *encoder, "-g", 250, "-threads", 1, path)
        packets = packet_sizes(path)
        scores = window_activity(packets, starts, 2)
        rows.append(
            {
                "encoder": name,
                "kilobits": round(float(packets.sizes.sum()) * 8 / packets.end / 1000, 1),
                "spearman": round(float(spearmanr(scores, moved).statistic), 3),
                "found_constant": why_none(packets) is not None,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, help="for the files [a temporary one]")
    options = parser.parse_args()
    clips = random.Random(1).sample(sorted(CLIPS.rglob("*.mp4")), 40)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        long = long_file(folder, clips, options.hours)
        print(long, flush=True)
        rows = correlations(folder, clips[:24])
    for row in rows:
        print(row)
    document = {"benchmark": "footage", "machine": measuring.machine(), "long_file": long, "encoders": rows}
    (measuring.HERE / "results" / "footage.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
