"""Shared by the benchmarks: CPU time of contenders in turns, the input files, the output of results.

One thread; CPU seconds, because wall time on a shared machine is not reliable. Contenders take turns
A B B A on the same clips, the first round is left out, and the median of the ratios of the rounds counts.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import av
import torch
import torch.nn.functional as F
from torch import Tensor

from everest.video.reader import read_frames
from everest_workflows.sweep.statistics import PairedDifference

HERE = Path(__file__).resolve().parent
PAGE = HERE / "performance.md"
SHARED = Path(os.environ.get("EVEREST_SHARED", HERE.parents[1] / "shared"))
REAL = SHARED / "videos" / "odd" / "mae_demo_853x480.avi"  # 300 frames of a real scene, MPEG-4
FRAMES = 300
LINE: Final = 400  # characters: a record of results, such as a seed of a variant, has a line


@dataclass(frozen=True)
class Kind:
    """How a file is encoded from the real scene."""

    size: tuple[int, int]  # height, width
    codec: str
    options: Mapping[str, str]
    b_frames: int | None = None
    uneven: bool = False  # frames at uneven times

    def write(self, path: Path, scene: Tensor) -> None:
        frames = F.interpolate(scene.permute(0, 3, 1, 2), self.size, mode="bilinear", antialias=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(self.codec, rate=30, options=dict(self.options))
            stream.height, stream.width = self.size
            stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
            if self.codec == "mpeg4":
                stream.bit_rate = 1_000_000
            if self.b_frames is not None:
                stream.codec_context.max_b_frames = self.b_frames
            for number, picture in enumerate(frames.permute(0, 2, 3, 1).contiguous().numpy()):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = number + number * number // 60 if self.uneven else number
                frame.time_base = Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


LOW, HIGH = (240, 320), (480, 640)
SHORT, LONG = {"g": "12", "crf": "17"}, {"g": "250", "crf": "17"}
OPEN = {"crf": "17", "x264-params": "keyint=12:min-keyint=12:bframes=3:b-adapt=0:open-gop=1:scenecut=0"}
KINDS = {
    "H.264 320x240, GOP 12": ("h264_240_12.mp4", Kind(LOW, "libx264", SHORT)),
    "H.264 320x240, GOP 250": ("h264_240_250.mp4", Kind(LOW, "libx264", LONG)),
    "H.264 640x480, GOP 12": ("h264_480_12.mp4", Kind(HIGH, "libx264", SHORT)),
    "H.264 640x480, GOP 250": ("h264_480_250.mp4", Kind(HIGH, "libx264", LONG)),
    "H.264 320x240, open GOP": ("h264_open.mp4", Kind(LOW, "libx264", OPEN)),
    "H.264 320x240, variable rate": ("h264_vfr.mp4", Kind(LOW, "libx264", SHORT, uneven=True)),
    "MPEG-4 AVI 320x240": ("mpeg4.avi", Kind(LOW, "mpeg4", {"g": "12"})),
    "MPEG-4 AVI 320x240, B-frames": ("mpeg4_b.avi", Kind(LOW, "mpeg4", {"g": "12"}, b_frames=2)),
}
DECODE_ONLY = {
    "MPEG-4 MP4 320x240": ("mpeg4.mp4", Kind(LOW, "mpeg4", {"g": "12"})),
    "VP9 320x240": (
        "vp9.webm",
        Kind(LOW, "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    ),
}
REAL_KIND = "MPEG-4 AVI 853x480, real clip"


def files(folder: Path, *, further: Mapping[str, tuple[str, Kind]] | None = None) -> dict[str, Path]:
    """The files of all kinds, and of `further` ones, made in `folder` where they are not there yet."""
    kinds = KINDS | dict(further or {})
    if not REAL.is_file():
        raise SystemExit(f"no {REAL}; EVEREST_SHARED names the folder with real clips")
    folder.mkdir(parents=True, exist_ok=True)
    missing = {name: kind for name, kind in kinds.values() if not (folder / name).is_file()}
    scene = read_frames(REAL, range(FRAMES)) if missing else torch.empty(0)
    for name, kind in missing.items():
        kind.write(folder / name, scene)
    return {name: folder / file for name, (file, _) in kinds.items()} | {REAL_KIND: REAL}


@dataclass(frozen=True)
class Times:
    """CPU seconds of one contender, a number for each round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)


def alternate(contenders: Mapping[str, Callable[[int], object]], *, rounds: int) -> dict[str, Times]:
    """Let each contender do the work of every round, in turns; the first round only warms up."""

    def timed(work: Callable[[int], object], number: int) -> float:
        began = time.process_time()
        work(number)
        return time.process_time() - began

    return in_turns({name: partial(timed, work) for name, work in contenders.items()}, rounds=rounds)


def in_turns(contenders: Mapping[str, Callable[[int], float]], *, rounds: int) -> dict[str, Times]:
    """The same for contenders that return their own seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        order = list(contenders) if number % 2 else list(contenders)[::-1]
        for name in order:
            seconds[name].append(contenders[name](number))
    return {name: Times(values[1:]) for name, values in seconds.items()}


def ratio(slow: Times, fast: Times) -> dict[str, float]:
    """How many times faster: median and quartiles of the rounds."""
    each = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    low, _, high = quantiles(each, n=4)
    return {"ratio": round(median(each), 2), "low": round(low, 2), "high": round(high, 2)}


def with_earlier(name: str, rows: list[dict[str, Any]], *, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows and the rows of earlier runs, replacing earlier ones with the same `key` and machine."""
    path = HERE / "results" / f"{name}.json"
    earlier = json.loads(path.read_text())["rows"] if path.is_file() else []
    here = [{"machine": machine(), **row} for row in rows]
    by_key = {(row["machine"]["cpu"], *(row[part] for part in key)): row for row in [*earlier, *here]}
    return list(by_key.values())


def by_machine(rows: list[dict[str, Any]], table: Callable[[list[dict[str, Any]]], str]) -> str:
    """A table for each processor, below its name."""
    cpus = dict.fromkeys(row["machine"]["cpu"] for row in rows)
    return "\n\n".join(
        f"{cpu}:\n\n{table([row for row in rows if row['machine']['cpu'] == cpu])}" for cpu in cpus
    )


def publish(name: str, rows: list[dict[str, Any]], table: str, *, page: Path = PAGE) -> None:
    """Print a table, and write it between its marks in a page of the docs, and results/NAME.json."""
    print(table, flush=True)
    extra = {} if all("machine" in row for row in rows) else {"machine": machine()}
    document = {"benchmark": name, **extra, "rows": rows}
    (HERE / "results").mkdir(exist_ok=True)
    write_results(HERE / "results" / f"{name}.json", document)
    begin, end = f"<!-- benchmarks/{name}.py -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"{page} has no place for the table: {begin.strip()} and {end}")
    page.write_text(f"{before}{begin}\n{table.strip()}\n\n{end}{after}")


def write_results(path: Path, document: object) -> None:
    """Write JSON with one line for each record."""
    path.write_text(_in_lines(document) + "\n")


def _in_lines(value: object, indent: str = "") -> str:
    text = json.dumps(value)
    if len(indent) + len(text) <= LINE or not isinstance(value, dict | list):
        return text
    inner, is_list = f"{indent} ", isinstance(value, list)
    names = [""] * len(value) if is_list else [f"{json.dumps(str(name))}: " for name in value]
    values = value if is_list else value.values()
    lines = [f"{inner}{name}{_in_lines(each, inner)}" for name, each in zip(names, values, strict=True)]
    begin, end = "[]" if is_list else "{}"
    return begin + "\n" + ",\n".join(lines) + f"\n{indent}{end}"


def machine() -> dict[str, Any]:
    """Where and with what the rows were measured."""
    versions = {"torch": torch.__version__, "av": av.__version__, "commit": _commit()}
    return {"cpu": _cpu(), "cores": os.cpu_count(), **versions, **_gpu()}


def everest(*words: object, show: bool = False) -> str:
    """The output of a command, which must succeed; `show`: it goes to the terminal instead."""
    command = [sys.executable, "-m", "everest_cli", *map(str, words)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    stdout = None if show else subprocess.PIPE
    return subprocess.run(command, check=True, stdout=stdout, text=True, env=environment).stdout or ""


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def difference_text(difference: PairedDifference | None) -> str:
    """A difference with its interval, bold if zero is outside; empty if there is none."""
    if difference is None or difference.interval is None:
        return ""
    low, high = difference.interval
    text = f"{difference.mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return text if low <= 0 <= high else f"**{text}**"


def read_units(folder: Path) -> dict[str, Any]:
    """The results of a folder by key and unit, from its files `UNIT KEY.json`."""
    results: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        unit, key = path.stem.split(" ", 1)
        results.setdefault(key, {})[unit] = json.loads(path.read_text())
    return results


def shown(speedup: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"**{speedup['ratio']:.1f}x** ({speedup['low']:.1f}-{speedup['high']:.1f})"


def _gpu() -> dict[str, Any]:
    """The first GPU and its software."""
    if not torch.cuda.is_available():
        return {}
    gpu = torch.cuda.get_device_properties(0)
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"gpu": gpu.name, "gpu_bytes": gpu.total_memory, **versions}


def _commit() -> str:
    """Of the code, with a + where it has changed since."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
