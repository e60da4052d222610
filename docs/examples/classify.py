"""Classify a file, a camera or a stream by an exported model, without everest: numpy, onnxruntime and PyAV.

everest export runs/line --to onnx --output line.onnx   # writes this program beside line.onnx
python classify.py line.onnx video.mp4      # a file
python classify.py line.onnx 0 2            # each 2 seconds of the first camera; also a stream or a file
python classify.py line.onnx rtsp://camera/1 2 --normal ok --threshold 0.9 --hold 3    # alarms

Prints the time and class of each window; with --json the five most probable. With --normal CLASS, a window is
a fault if 1 - P(CLASS) reaches the threshold (of several labels: if P of another class does), and --hold
faults in a row are an alarm, until a window without a fault. `everest train --normal` stores both in the
model. Of streams, cameras, pipes and growing files (--follow), times are wall-clock, and a lost source is
opened again. The metadata of the model states the preprocessing. The last line has the milliseconds of a
window, in CPU time: other programs hardly change it. Uses one CPU thread, or OMP_NUM_THREADS. Ctrl-C ends
the program.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from datetime import datetime, timedelta
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
JUMP_SECONDS = 1.0  # frames that a decoder gives late are not as late as this
RETRY_SECONDS = 1.0  # between attempts to open a lost source again
POLL_SECONDS = 0.02  # between looks at a pipe or a growing file
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}  # by sys.platform


class Stopped(Exception):
    """Ctrl-C while PyAV calls `Growing.read`: it would lose a KeyboardInterrupt."""


class Growing:
    """A pipe or a growing file, as PyAV reads it; says if nothing comes for `timeout` seconds.

    Ends where the writer closes the pipe, or where the file is replaced, removed or cut.
    """

    def __init__(self, path: str, timeout: float, once: bool) -> None:
        self.path, self.timeout, self.once = path, timeout, once
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # not every system has both
        self.file = os.open(path, os.O_RDONLY | flags)  # a pipe without a writer would block
        self.is_pipe = Path(path).is_fifo()
        self.position = 0

    def read(self, size: int) -> bytes:
        try:
            return self.wait_for(size)
        except KeyboardInterrupt:
            raise Stopped from None

    def wait_for(self, size: int) -> bytes:
        says_at = time.monotonic() + self.timeout
        while True:
            try:
                data = os.read(self.file, size)
            except BlockingIOError:  # of a pipe whose writer is there
                data = None
            if data or (data == b"" and self.has_ended()):
                self.position += len(data)
                return data
            if time.monotonic() > says_at:
                if self.once:
                    raise TimeoutError(f"no data for {self.timeout:g} s")
                say(f"{self.path}: no data for {self.timeout:g} s; waiting")
                says_at = math.inf
            time.sleep(POLL_SECONDS)

    def has_ended(self) -> bool:
        if self.is_pipe:  # before its first data, a pipe waits for a writer
            return self.position > 0
        try:
            there, own = Path(self.path).stat(), os.fstat(self.file)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino) or there.st_size < self.position

    def close(self) -> None:
        os.close(self.file)


def say(text: str) -> None:
    print(f"{datetime.now().astimezone().isoformat(' ', 'seconds')} {text}", file=sys.stderr, flush=True)


def windows(options: argparse.Namespace, usual: float | None) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Yield start, end and frames of each window; where the source's clock jumps back, a new one begins.

    Times count from the first frame; of a source without an end they are datetimes, and when it is lost,
    ConnectionError is raised unless options.once. Windows are as long as options.seconds; None: `usual`, or
    all of a file that is shorter than two of them.
    """
    source, seconds = options.source, options.seconds
    kind = "v4l2" if source.startswith("/dev/video") else None  # a camera
    if source.isdigit():
        if sys.platform not in CAMERAS:
            sys.exit(f"camera {source}: give a stream; cameras have numbers on Linux and macOS only")
        name, kind = CAMERAS[sys.platform]
        source = name.format(source)
    frames: list[av.VideoFrame] = []
    timeout = options.timeout if "://" in source else None
    follows = options.follow or Path(source).is_fifo()
    growing = closing(Growing(source, options.timeout, options.once)) if follows else nullcontext(source)
    with growing as file, av.open(file, format=kind, timeout=timeout) as container:
        if not container.streams.video:
            sys.exit(f"{source}: no video in it")
        length = container.duration / av.time_base if container.duration else math.inf  # of a camera
        is_live = follows or (length == math.inf and not Path(source).is_file())
        if seconds is None and usual is None and length == math.inf:
            sys.exit(f"{source}: never ends; give SECONDS, the length of a window, such as 2")
        if seconds is None:
            seconds = usual if usual is not None and length >= 2 * usual else math.inf
        zero = latest = None  # the clock of the source at 0 s, and at the last frame
        for frame in intact_frames(container, source):
            if latest is None:
                zero = frame.time
            elif latest - JUMP_SECONDS < frame.time < latest:
                continue
            elif frame.time < latest:  # such as of an encoder that was started again
                say(f"{source}: its clock jumped back from {latest - zero:.1f} s; a new window begins")
                zero, frames = frame.time - (latest - zero), []
            latest = frame.time
            if frames and frame.time >= frames[0].time + seconds:
                start, end = frames[0].time - zero, frame.time - zero
                if is_live:  # a camera's clock drifts
                    now = datetime.now().astimezone()
                    yield now - timedelta(seconds=end - start), now, frames
                else:
                    yield start, end, frames
                next_start = frames[0].time + (options.step or seconds)
                frames = [kept for kept in frames if kept.time >= next_start]
            frames.append(frame)
    if is_live and not options.once:
        raise ConnectionError("the stream ended")
    if frames and not is_live:  # the last window may be shorter
        yield frames[0].time - zero, frames[-1].time - zero, frames


def intact_frames(container: Any, source: str) -> Iterator[av.VideoFrame]:
    """Yield the frames of a video; after damage none up to the next keyframe, as they may refer to it."""
    awaits_key = False
    rate = container.streams.video[0].guessed_rate or 25
    number = 0
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
            where = (
                "" if packet.pts is None else f" at {float((packet.pts - start) * packet.time_base):.1f} s"
            )
            print(f"{source}: damaged{where}; left out up to the next keyframe", file=sys.stderr)
        for frame in frames:
            if frame.pts is None:  # bare streams have no times
                frame.pts = round(number / rate / frame.time_base)
            number += 1
            if not frame.is_corrupt:
                yield frame


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
        position = (np.arange(start, start + size) + 0.5) * length / resized - 0.5  # in the frame as decoded
        position = position.clip(0, length - 1)
        low = position.astype(int)
        part = (position - low).reshape(-1, *[1] * (2 - axis))
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
        needed = f"files of `everest export` need onnxruntime {OLDEST} or newer; copy a cut file again"
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


class Judge:
    """Decides which classes of a window are present, and whether it belongs to an alarm."""

    def __init__(self, about: dict[str, Any], options: argparse.Namespace) -> None:
        head = about["heads"][0]
        self.names = [str(name) for name in about["classes"] or range(head["outputs"])]
        self.is_multi_label = head["task"] == "multi-label"
        chosen = head.get("alarm", {})  # by everest train --normal
        self.normal, self.hold = options.normal or chosen.get("normal"), options.hold
        if self.normal not in (*self.names, chosen.get("normal"), None):
            sys.exit(f"--normal {self.normal}: not a class of the model ({', '.join(self.names)})")
        usual = head.get("thresholds", 0.5)
        if self.normal is not None:
            usual = chosen["threshold"] if self.normal == chosen.get("normal") else 0.5
        self.thresholds = usual if options.threshold is None else options.threshold
        self.shows_best = not self.is_multi_label and self.normal is None and options.threshold is None
        self.faults = 0  # windows in a row

    def present(self, fractions: np.ndarray) -> list[str]:
        """The classes of a window, the most probable first."""
        order = [self.names[index] for index in np.argsort(-fractions)]
        if self.shows_best:
            return order[:1]
        if self.is_multi_label or self.normal is None:
            reached = {
                name for name, yes in zip(self.names, fractions >= self.thresholds, strict=True) if yes
            }
            return [name for name in order if name in reached]
        if 1 - fractions[self.names.index(self.normal)] < self.thresholds:
            return [self.normal]
        return [name for name in order if name != self.normal][:1]

    def alarm(self, present: list[str]) -> bool | None:
        """Whether `hold` windows in a row had a fault; None: the normal state is unknown."""
        if self.normal is None and not self.is_multi_label:
            return None
        self.faults = self.faults + 1 if set(present) - {self.normal} else 0
        return self.faults >= self.hold

    @property
    def begins(self) -> bool:
        """Whether an alarm begins with the last window."""
        return self.faults == self.hold


def classify(
    session: onnxruntime.InferenceSession, about: dict, options: argparse.Namespace, costs: list
) -> None:
    """Print a line for each window of a source; add its milliseconds (reading, network) to `costs`."""
    clip, mean, std = (about[key] for key in ("clip", "mean", "std"))
    judge = Judge(about, options)
    began = time.process_time()
    for start, end, video in windows(options, clip.get("seconds")):
        frames = (clip_of(video, clip, len(mean))[None] / 255 - mean) / std  # (1, T, H, W, C)
        frames = frames.transpose(0, 4, 1, 2, 3).astype(np.float32)
        read = time.process_time()
        logits = session.run(None, {"frames": frames})[0][0]
        ended = time.process_time()
        costs.append((1000 * (read - began), 1000 * (ended - read)))
        fractions = probabilities(logits, about["heads"][0]["task"])
        found = {judge.names[index]: round(float(fractions[index]), 6) for index in np.argsort(-fractions)}
        present = judge.present(fractions)
        alarm = judge.alarm(present)
        if options.json:
            if isinstance(start, float):
                line: dict[str, Any] = {"start": round(start, 3), "end": round(end, 3)}
            else:
                line = {"start": start.isoformat(), "end": end.isoformat()}
            line |= {"classes": dict(list(found.items())[:MOST]), "present": present}
            line |= {} if alarm is None else {"alarm": alarm, "begins": judge.begins}
            line |= {"read_ms": round(costs[-1][0], 1), "network_ms": round(costs[-1][1], 1)}
            print(json.dumps(line), flush=True)
        else:
            if isinstance(start, float):
                times = f"{start:8.1f} to {end:.1f} s"
            else:
                times = f"{start.isoformat(' ', 'seconds')} to {end:%H:%M:%S}"
            texts = [f"{name}  {100 * found[name]:.1f} %" for name in present] or ["none"]
            texts += ["ALARM" if judge.begins else "ALARM goes on"] if alarm else []
            print("  ".join([times, *texts]), flush=True)
        began = time.process_time()


def watch(options: argparse.Namespace) -> None:
    """Classify a source, and open it again when it is lost; it ends this program if it does not come back.

    A source that has given no window yet is not opened again: its address may be wrong.
    """
    session, about = open_model(options.model)
    costs: list[tuple[float, float]] = []
    lost_at, had = math.inf, 0  # when it was lost, and the number of windows then
    try:
        while True:
            try:
                return classify(session, about, options, costs)
            except (OSError, av.FFmpegError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                stalled = isinstance(error, av.error.ExitError)  # the timeout of av.open
                problem = f"no data for {options.timeout:g} s" if stalled else str(error)
                if isinstance(error, av.error.InvalidDataError) and Path(options.source).is_fifo():
                    problem += "; a pipe needs a format without an index at its end, such as MPEG-TS"
                if len(costs) > had:
                    lost_at, had = time.monotonic(), len(costs)
                    say(f"{options.source}: {problem}; opening it again")
                if options.once or not had or time.monotonic() > lost_at + options.timeout:
                    fix = "; check the address and its sender" if stalled else ""
                    sys.exit(f"{options.source}: {problem}{fix}")
            time.sleep(RETRY_SECONDS)
    finally:
        if costs:
            read_ms, network_ms = (f"{median(column):.3g}" for column in zip(*costs, strict=True))
            times = f"{read_ms} ms to decode and resize, {network_ms} ms in the network"
            print(f"windows: {len(costs)}; median CPU time: {times}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Example: python classify.py line.onnx 0 2 classifies each 2 seconds of the first camera.",
    )
    parser.add_argument("model", metavar="MODEL.onnx", help="file of `everest export --to onnx`")
    source = "video, pipe, camera (0, /dev/video0) or URL of a stream"
    parser.add_argument("source", metavar="SOURCE", help=source)
    usual = "length of a window [as the training clips]"
    parser.add_argument("seconds", metavar="SECONDS", nargs="?", type=float, help=usual)
    parser.add_argument("--json", action="store_true", help="print a JSON line for each window")
    step = "seconds between the starts of windows, which then overlap [SECONDS]"
    parser.add_argument("--step", type=float, help=step)
    parser.add_argument("--normal", metavar="CLASS", help="class without a fault; others alarm [the model's]")
    threshold = "1 - P(CLASS) of a fault; without --normal, P of a class [the model's, else 0.5]"
    parser.add_argument("--threshold", metavar="P", type=float, help=threshold)
    parser.add_argument("--hold", metavar="N", type=int, default=1, help="faults in a row of an alarm [1]")
    parser.add_argument("--follow", action="store_true", help="SOURCE is a file that still grows")
    parser.add_argument("--once", action="store_true", help="end with the stream; do not open it again")
    timeout = "seconds without data after which a stream is lost [20]"
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=20.0, help=timeout)
    options = parser.parse_args()
    for name in ("seconds", "step", "timeout", "threshold", "hold"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"{name}: must be above 0")
    if options.step is not None and (options.seconds is None or options.step > options.seconds):
        parser.error("--step: must be at most SECONDS; give both")
    try:
        watch(options)
    except (KeyboardInterrupt, Stopped):
        pass
    except BrokenPipeError:  # such as of `| head`; Python would complain again when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
