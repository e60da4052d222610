"""Re-encodes videos so that training reads them faster: small frames, close keyframes.

H height, W width. The frames are upright, and the same that everest.video.reader counts. Their times are the
source's, shifted to start at 0, so that a segment in frames or seconds means the same in both files. Finished
files are kept: a file records how it was made, and appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, astuple, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from everest.errors import RecipeError
from everest.lists.columns import COLUMNS
from everest.lists.inputs import VideoTable
from everest.lists.sample import choose_evenly
from everest.prepare.check import describe_damage
from everest.system.events import Emit, notice
from everest.system.files import atomic_file, check_new_folder, refuse_inputs, write_table, write_text
from everest.system.locks import sole_writer
from everest.system.run_folder import BAD_COLUMNS, BAD_VIDEOS_FILE
from everest.system.storage import parse_location
from everest.system.text import time_text
from everest.video.decoding import LostPackets, decode_frames
from everest.video.file_processes import Failure, map_in_processes
from everest.video.folders import video_name
from everest.video.images import video_files
from everest.video.reader import resized_frames, video_info
from everest.video.source import Video, video_version
from everest.video.stream import DEFAULT_RATE, VideoError, as_video_error
from everest.video.writer import Codec, read_comment, write_timed_frames

SETTINGS_PREFIX: Final = ".encode-"  # prefix of hidden files; their names hold the settings
FPS_OF_IMAGES: Final = DEFAULT_RATE
MAX_DENOMINATOR: Final = 1001  # largest denominator of a rate: 30000/1001 is the most uneven in use
MEASURED_VIDEOS: Final = 32  # heuristic: videos that show what to expect of a longer list
MAKER: Final = "everest prepare encode"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """How videos are encoded."""

    short_side: int  # pixels; smaller videos keep their size
    codec: Codec


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file that was encoded."""

    path: Path
    is_new: bool  # False: an earlier call encoded it
    source_bytes: int
    bytes: int


def encode_videos(
    originals: Sequence[VideoTable],
    output: Path,
    settings: EncodeSettings,
    *,
    workers: int,
    timeout: float,
    overwrite: bool,
    emit: Emit,
) -> dict[str, Any]:
    """Encode all videos of lists and folders, each in at most `timeout` seconds.

    Returns:
        The document of `everest prepare encode --json`.
    """
    values = map(str, (settings.short_side, *astuple(settings.codec)))
    settings_file = output / (SETTINGS_PREFIX + "-".join(values))
    targets = _plan_targets(originals, output, settings_file, overwrite=overwrite)
    with sole_writer(settings_file):
        write_text(settings_file, "")
        encode = partial(encode_video, targets=targets, settings=settings, overwrite=overwrite)
        first = choose_evenly(list(targets), MEASURED_VIDEOS)  # of all folders and classes
        order = dict.fromkeys([*first, *targets])
        files: dict[str, EncodedFile] = {}
        reasons: dict[str, str] = {}
        start = time.monotonic()
        for video, result in map_in_processes(encode, list(order), workers=workers, timeout=timeout):
            if isinstance(result, Failure):
                reasons[video] = result.reason
                emit(notice(f"{video}: {result.reason}"))
            else:
                files[video] = result
            num_done = len(files) + len(reasons)
            new = [file for file in files.values() if file.is_new]
            if num_done == len(first) < len(targets) and new:
                seconds = (time.monotonic() - start) / len(new) * (len(targets) - num_done)
                free = shutil.disk_usage(output).free
                text = expectation_text(new, num_videos=len(targets), seconds=seconds, free=free)
                emit(notice(text))
            emit({"event": "video", "done": num_done, "videos": len(targets)})
        failed = sorted(reasons.items())
        lists = _write_lists(originals, output, files, failed)
    return {
        "videos": len(targets),
        "encoded": sum(file.is_new for file in files.values()),
        "failed": [{"path": path, "reason": reason} for path, reason in failed],
        "bytes": {
            "before": sum(file.source_bytes for file in files.values()),
            "after": sum(file.bytes for file in files.values()),
        },
        "lists": [str(path) for path in lists],
    }


def expectation_text(files: Collection[EncodedFile], *, num_videos: int, seconds: float, free: int) -> str:
    """A sentence about the size of all videos, and the time that they take, by the first files.

    Args:
        seconds: expected for the other videos.
        free: free bytes of the disk.
    """
    before = sum(file.source_bytes for file in files)
    after = sum(file.bytes for file in files)
    terabytes = after / len(files) * num_videos / 1e12
    return (
        f"the first {len(files)} videos became {after / before:.2g} times as large; expect "
        f"{terabytes:,.2f} TB for all {num_videos:,} ({free / 1e12:,.2f} TB are free), "
        f"and {time_text(seconds)} more"
    )


def _plan_targets(
    originals: Sequence[VideoTable], output: Path, settings_file: Path, *, overwrite: bool
) -> dict[str, Path]:
    """The target of each video: the same path below `output` as below its root, with the suffix .mp4.

    Raises:
        RecipeError: two targets or lists would be the same file, or `output` would replace a source, other
            files, or videos with other settings.
    """
    targets: dict[str, Path] = {}
    sources: dict[Path, str] = {}
    for original in originals:
        folder = original.location.resolve()
        if isinstance(folder, Path) and folder.is_dir() and output.resolve().is_relative_to(folder):
            raise RecipeError(
                f"--output {output}: is inside {folder}, which is read; choose a folder next to it"
            )
        videos = {path: original.locate(path) for path in original.rows_by_path()}
        refuse_inputs(output, [original.location, *videos.values()], fix="choose a folder of its own")
        for path, video in videos.items():
            # The path without its protocol, its root and steps upward.
            parts = PurePosixPath(path.split("://", 1)[-1]).parts
            *folders, name = [part for part in parts if part not in ("/", "..")] or [video.name]
            target = output.joinpath(*folders, f"{video_name(parse_location(name))}.mp4")
            targets[str(video)] = target
            first = sources.setdefault(target, str(video))
            if first != str(video):
                fix = "give --data, a folder above both, or rename one"
                raise RecipeError(f"{first} and {video} would both become {target}; {fix}")
    names = [f"{original.location.stem}.csv" for original in originals if original.is_list]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two of the new lists would be called {name}; encode them into two folders")
    check_new_folder(output, overwrite=overwrite, is_output=lambda name: name.startswith(SETTINGS_PREFIX))
    others = [file for file in output.glob(f"{SETTINGS_PREFIX}*") if file != settings_file]
    if others and not overwrite:
        fix = "choose another folder, or use --overwrite"
        raise RecipeError(f"--output {output}: was encoded with other settings; {fix}")
    for file in others:
        file.unlink()
    return targets


def _write_lists(
    originals: Sequence[VideoTable],
    output: Path,
    files: Mapping[str, EncodedFile],
    failed: Sequence[tuple[str, str]],
) -> list[Path]:
    """Write each list with the new paths and without failed videos, and bad_videos.csv if any failed."""
    if failed:
        write_table(output / BAD_VIDEOS_FILE, [BAD_COLUMNS, *failed])
    else:
        (output / BAD_VIDEOS_FILE).unlink(missing_ok=True)
    written = []
    for original in (each for each in originals if each.is_list):
        used = {name for row in original.rows for name in row}
        columns = [name for name in dict.fromkeys([*COLUMNS, *sorted(used)]) if name in used]
        rows = [columns]
        for row in original.rows:
            file = files.get(str(original.locate(row["path"])))
            if file is not None:
                changed = row | {"path": file.path.relative_to(output).as_posix()}
                rows.append([changed.get(name, "") for name in columns])
        written.append(output / f"{original.location.stem}.csv")
        write_table(written[-1], rows, quote_all=True)
    return written


def encode_video(
    source: str, targets: Mapping[str, Path], settings: EncodeSettings, *, overwrite: bool
) -> EncodedFile | Failure:
    """Encode a video, unless the target was made from it with the same settings; Failure with the reason."""
    video = parse_location(source)
    target = targets[source]
    try:
        with as_video_error(video):
            versions = [video_version(file) for file in video_files(video)]
            source_hash = hashlib.sha256(str(video.resolve()).encode()).hexdigest()[:16]
        if isinstance(video, Path) and target.exists() and target.samefile(video):
            raise VideoError(video, "would be written over itself; choose another --output")
        size = sum(number for number, _ in versions)
        version = max((text for _, text in versions), default="")
        source_facts = {"source_bytes": size, "version": version, "source": source_hash}
        origin = {"by": MAKER, **asdict(settings), **source_facts}  # stored in the file
        is_new = overwrite or not target.exists()
        if not is_new:
            saved: dict[str, Any] = {}  # the origin in the file; other comments may not be JSON objects
            with suppress(ValueError, TypeError):
                saved = {**json.loads(read_comment(target))}
            changed = {name for name, value in origin.items() if saved.get(name) != value}
            is_other_video = {"source"} < changed <= source_facts.keys()
            if is_other_video or "by" in changed:
                fix = "choose another --output, or use --overwrite"
                raise VideoError(video, f"{target} is of another video, or not by this command; {fix}")
            is_new = not changed <= {"source"}
        if is_new:
            with atomic_file(target) as part:
                _write(video, part, settings, origin)
    except VideoError as error:
        return Failure(error.reason)
    return EncodedFile(target, is_new, size, target.stat().st_size)


def choose_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(H, W) with a shorter side of at most `short_side`; both are even, as yuv420p needs, and at least 2."""
    shorter = min(height, width)
    target = min(short_side, shorter)
    return (max(height * target // shorter // 2 * 2, 2), max(width * target // shorter // 2 * 2, 2))


def _write(video: Video, part: Path, settings: EncodeSettings, origin: dict[str, Any]) -> None:
    """Encode all frames, and decode the result to check that no frame is missing."""
    info = video_info(video)
    rate = Fraction(info.fps or FPS_OF_IMAGES).limit_denominator(MAX_DENOMINATOR)
    size = choose_size(info.height, info.width, settings.short_side)
    lost: list[LostPackets] = []
    with closing(resized_frames(video, size, rate, lost=lost)) as frames:
        written = write_timed_frames(part, frames, rate, codec=settings.codec, comment=json.dumps(origin))
    reason = describe_damage(video, frames=written, lost=lost)
    if reason:
        raise VideoError(video, reason)
    with closing(decode_frames(part)) as frames:
        decoded = sum(1 for _ in frames)
    if decoded != info.num_frames:
        raise VideoError(video, f"has {info.num_frames} frames, of the encoded ones {decoded} can be decoded")
