"""How fast do files become crops beside one GPU? JPEG on the GPU and on CPUs, H.264 on CPUs; four minutes.

    python benchmarks/gpu_feed.py VIDEO [--seconds 8] [--limit 230]

VIDEO is any real clip; its frames are encoded at 320 x 240 as JPEG and as H.264. Rows are written at once, to
gpu_feed.jsonl in the folder OUT. A clip has 16 frames.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from gpu_clips import Choice, Crops, Frames
from gpu_rows import Row, Rows, timed
from measuring import LOW, SHORT, Kind, machine
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from everest.video.reader import read_frames, video_info

QUALITY: Final = 90
FRAMES: Final = 16  # of a clip
STRIDE: Final = 4
CLIPS: Final = 256  # of a step
SIDE: Final = 224
BATCHES: Final = (256, 1024, 4096)  # frames
PROCESSES: Final = (1, 15)


def prepare(video: Path, folder: Path) -> dict[str, Path]:
    """Write the frames of a clip as H.264 and as JPEG files."""
    scene = read_frames(video, range(min(video_info(video).num_frames, 300)))  # (F, H, W, 3)
    files = {"h264": folder / "clip.mp4", "jpeg": folder / "jpeg"}
    Kind(LOW, "libx264", SHORT).write(files["h264"], scene)
    small = F.interpolate(scene.permute(0, 3, 1, 2), LOW, mode="bilinear", antialias=True)
    torch.save([encode_jpeg(frame.contiguous(), quality=QUALITY) for frame in small], files["jpeg"])
    return files


@cache
def _jpegs(file: Path) -> list[Tensor]:
    return torch.load(file)


def read_jpegs(file: Path, rng: np.random.Generator) -> None:
    """Decode the frames of a clip with libjpeg-turbo."""
    frames = _jpegs(file)
    start = int(rng.integers(len(frames) - FRAMES * STRIDE))
    torch.stack([decode_jpeg(frames[start + STRIDE * number]) for number in range(FRAMES)])


def read_h264(file: Path, rng: np.random.Generator) -> None:
    start = int(rng.integers(video_info(file).num_frames - FRAMES * STRIDE))
    read_frames(file, [start + STRIDE * number for number in range(FRAMES)])


def _set_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def work(read: Callable[[Path, np.random.Generator], None], file: Path, seconds: float, seed: int) -> float:
    """Clips per second of one process, from the moment when all processes are ready."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    read(file, rng)
    _barrier.wait(timeout=120)
    began, clips = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        read(file, rng)
        clips += 1
    return clips / (time.perf_counter() - began)


def in_processes(
    read: Callable[[Path, np.random.Generator], None], file: Path, processes: int, seconds: float
) -> Iterator[Row]:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(processes)
    with ProcessPoolExecutor(
        processes, mp_context=spawn, initializer=_set_barrier, initargs=(barrier,)
    ) as executor:
        rates = list(executor.map(partial(work, read, file, seconds), range(processes)))
    yield {"processes": processes, "clips_per_second": sum(rates), "of_one": sum(rates) / processes}


def on_gpu(file: Path, batch: int, seconds: float) -> Iterator[Row]:
    """JPEG by nvJPEG, from bytes in memory."""
    frames = _jpegs(file)
    chosen = [frames[number % len(frames)] for number in range(batch)]
    times = timed(lambda: decode_jpeg(chosen, mode=ImageReadMode.RGB, device="cuda"), seconds=seconds)
    decoded = decode_jpeg(frames[:8], mode=ImageReadMode.RGB, device="cuda")
    assert isinstance(decoded, list)
    differences = [
        (gpu.cpu().int() - decode_jpeg(frame).int()).abs()
        for gpu, frame in zip(decoded, frames[:8], strict=True)
    ]
    yield {
        **{"batch": batch, **times, "clips_per_second": 1e3 * batch / FRAMES / times["ms"]},
        **{"largest_difference": max(int(each.max()) for each in differences)},
        **{"mean_difference": sum(float(each.float().mean()) for each in differences) / len(differences)},
    }


def _decode_until(file: Path, ready: str, ending: str) -> float:
    """Decode batches on the GPU until a file appears; frames per second."""
    chosen = [_jpegs(file)[number % len(_jpegs(file))] for number in range(BATCHES[1])]
    decode_jpeg(chosen, mode=ImageReadMode.RGB, device="cuda")
    torch.cuda.synchronize()
    Path(ready).touch()
    began, frames = time.perf_counter(), 0
    while not Path(ending).exists():
        decode_jpeg(chosen, mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        frames += len(chosen)
    return frames / (time.perf_counter() - began)


def beside_work(file: Path, folder: Path, seconds: float) -> Iterator[Row]:
    """How much slower products of matrices are while another process decodes."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    alone = timed(lambda: a @ b, seconds=seconds, most=10_000)
    ready, ending = folder / "ready", folder / "ending"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        rate = executor.submit(_decode_until, file, str(ready), str(ending))
        while not ready.exists() and not rate.done():
            time.sleep(0.05)
        beside = timed(lambda: a @ b, seconds=seconds, most=10_000)
        ending.touch()
        frames = rate.result()
    yield {"alone_ms": alone["ms"], "beside_ms": beside["ms"], "clips_per_second": frames / FRAMES}


def crops_of_a_step(seconds: float) -> Iterator[Row]:
    """Crop and resize 256 clips on the device, and copy their regions to it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, width = LOW
    pixels = torch.randint(0, 256, (CLIPS * FRAMES * height * width * 3,), dtype=torch.uint8, device=device)
    sizes = np.tile([FRAMES, height, width], (CLIPS, 1))
    first = np.arange(CLIPS) * FRAMES * height * width * 3
    for compiled in (False, True):
        crops = Crops(Frames(pixels, first, sizes, {}), (SIDE, SIDE), compiled=compiled)
        boxes = np.tile([20, 40, 200, 200], (CLIPS, 1))
        frames = np.tile(np.arange(FRAMES), (CLIPS, 1))
        choice = Choice(np.arange(CLIPS), frames, boxes, np.zeros(CLIPS, dtype=bool))
        yield {
            "part": "crop and resize",
            "compiled": compiled,
            **timed(partial(crops, choice), seconds=seconds),
        }
    region = torch.empty(CLIPS, FRAMES, 200, 200, 3, dtype=torch.uint8).pin_memory()
    times = timed(lambda: region.to(device, non_blocking=True), seconds=seconds)
    yield {"part": "copy of regions", "bytes": region.numel(), **times}
    views = torch.empty(CLIPS, 3, FRAMES, SIDE, SIDE, dtype=torch.uint8).pin_memory()
    times = timed(lambda: views.to(device, non_blocking=True), seconds=seconds)
    yield {"part": "copy of resized views", "bytes": views.numel(), **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--limit", type=float, default=230.0, help="seconds after which no item begins")
    parser.add_argument("--processes", type=int, action="append", help=f"of the CPU; none: {PROCESSES}")
    options = parser.parse_args()
    rows = Rows(Path(os.environ.get("OUT", ".")) / "gpu_feed.jsonl", limit=options.limit)
    rows.run("machine", lambda: iter([machine()]))
    with tempfile.TemporaryDirectory() as name:
        folder, seconds = Path(name), options.seconds
        files = prepare(options.video, folder)
        sizes = {"jpeg": sum(map(len, _jpegs(files["jpeg"]))), "h264": files["h264"].stat().st_size}
        rows.put("files", {"frames": len(_jpegs(files["jpeg"])), **sizes, "quality": QUALITY})
        if torch.cuda.is_available():
            for batch in BATCHES:
                rows.run(f"nvjpeg {batch}", partial(on_gpu, files["jpeg"], batch, seconds / 2))
            rows.run("nvjpeg beside work", partial(beside_work, files["jpeg"], folder, seconds / 2))
            rows.run("device", partial(crops_of_a_step, seconds / 4))
        readers = {"jpeg": read_jpegs, "h264": read_h264}
        for kind, read in readers.items():
            for processes in options.processes or PROCESSES:
                item = f"{kind} {processes}"
                rows.run(item, partial(in_processes, read, files[kind], processes, seconds), needs=30)


if __name__ == "__main__":
    main()
