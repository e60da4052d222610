"""Checks a data set before a run: decodes every video, and reports damage, lengths, classes, duplicates.

Differences in how the classes were recorded are reported as well: a model may learn the camera. A folder of
parts keeps the result of each file, so that a check that was killed can be resumed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Final

from everest.data.footage import FrameTimes, frame_span
from everest.errors import DataError, join_first
from everest.lists.labels import count_classes
from everest.lists.reading import SampleList
from everest.lists.sample import Sample, choose_evenly
from everest.system.events import Emit, notice
from everest.system.parts import FIX, MAX_UNIT, open_parts
from everest.system.storage import Location, parse_location
from everest.system.text import damage_errors
from everest.video.decoding import LostPackets, Survey, decode_frames
from everest.video.file_processes import Failure, map_in_processes
from everest.video.images import image_folder, image_frames
from everest.video.metadata import clear_video_cache, keep_metadata_in_cache
from everest.video.reader import frames_in_order, video_damage_text, video_info
from everest.video.source import Video, open_bytes, video_version
from everest.video.stream import VideoError, as_video_error

CHECKED_FOLDER: Final = "checked_videos"
RARE_BELOW: Final = 5  # heuristic: a class with fewer training videos is reported, as it is hardly learned
MAX_MEDIAN_RATIO: Final = 1.25  # heuristic: ratio of the medians of two classes that were recorded alike
MIN_APART_RATIO: Final = 1.02  # heuristic: this ratio if all values lie apart; 29.97 and 30 are one rate
MAX_HEADERS: Final = 240  # heuristic: videos of all classes whose headers are compared, which takes seconds
MIN_COMPARED: Final = 5  # heuristic: least number of videos of a class that is compared with others
_digest = partial(hashlib.blake2b, digest_size=16)


@dataclass(frozen=True, kw_only=True)
class CheckedFile:
    """The result of decoding a video. Its fields are the keys of the results in `checked_videos`."""

    path: str
    size: int = 0  # bytes; size and `version` identify the version of the file
    version: str = ""  # see everest.video.source.video_version
    frames: int = 0
    height: int = 0  # height of a frame as shown
    width: int = 0
    fps: float | None = None  # None: a folder of images, or no video
    seconds: float | None = None  # until the last frame ends; None: a folder of images, or no video
    content: str | None = None  # hash of the file's bytes
    reason: str | None = None  # why the video cannot be used
    lasting: bool = True  # whether decoding the same file again would give the same result


def check_video(path: str) -> CheckedFile:
    """Decode a video, or all images of a folder, and report what is wrong with it."""
    video = parse_location(path)
    try:
        size, version = video_version(video)
        folder = image_folder(video)
    except OSError as error:
        return CheckedFile(path=path, reason=error.strerror or str(error), lasting=False)
    # The images of a folder can change while its size and time stay. A storage may state no version.
    result = CheckedFile(path=path, size=size, version=version, lasting=folder is None and bool(version))
    try:
        info = video_info(video)  # the error names a file that is not a video
        result = replace(result, height=info.height, width=info.width, fps=info.fps)
        if folder is not None:
            return replace(result, frames=info.num_frames, content=_decode_images(folder))
        with as_video_error(video), open_bytes(video) as file:
            content = hashlib.file_digest(file, _digest).hexdigest()
        lost: list[LostPackets] = []
        with closing(decode_frames(video, survey=Survey(lost=lost))) as frames:
            count = sum(1 for _ in frames)
        return replace(
            result,
            frames=count,
            seconds=round(FrameTimes.of(video).end, 6),
            content=content,
            reason=describe_damage(video, frames=count, lost=lost),
        )
    except VideoError as error:
        is_lasting = result.lasting and type(error.__cause__) is not PermissionError
        return replace(result, reason=error.reason, lasting=is_lasting)
    finally:
        clear_video_cache()


def _decode_images(folder: Location) -> str:
    """Decode all images of a folder to find damage; returns the hash of their bytes."""
    digest = _digest()
    with as_video_error(folder):
        images = image_frames(folder)
        for image, _ in zip(images, frames_in_order(folder, range(len(images))), strict=True):
            digest.update(image.read_bytes())
    return digest.hexdigest()


def describe_damage(video: Video, *, frames: int, lost: Sequence[LostPackets]) -> str | None:
    """Describe the damage of a file of which all `frames` frames were decoded; None without damage."""
    damage = video_damage_text(video)
    expected = video_info(video).num_frames
    if damage is None and frames < expected:
        return f"damaged: {frames} of {expected} frames can be decoded"
    if damage is None and lost:
        return f"damaged after {lost[0].frames_before} frames"
    return damage


def min_median_max(values: Sequence[float]) -> dict[str, float] | None:
    """Minimum, median and maximum; None without values."""
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def check_lists(
    lists: Mapping[str, SampleList],
    *,
    unlabeled_lists: Sequence[str] = (),
    checked: Path,
    workers: int,
    timeout: float,
    emit: Emit,
    restart: bool = False,
) -> dict[str, Any]:
    """Decode all videos and compare the results with the lists.

    Args:
        lists: the lists by name; models are trained on the first.
        unlabeled_lists: see `find_duplicates`.
        checked: folder that keeps the results; files that it has are not decoded again.
        restart: discard the results in that folder.
        workers: processes that decode.
        timeout: limit of seconds per video.
    Returns:
        The document of `everest prepare check --json`, the same after an interruption. `leaks` counts the
        duplicates in several lists: a model would be evaluated on training videos.
    """
    keep_metadata_in_cache()  # segments are looked up in the metadata that the workers read
    samples = [sample for data in lists.values() for sample in data.samples]
    for sample in samples:
        if sample.member is not None:
            raise DataError(f"{sample.path}: in a shard; name the list that the shards were made from")
    paths = list(dict.fromkeys(sample.path for sample in samples))
    files = _check_files(paths, checked, workers=workers, timeout=timeout, emit=emit, restart=restart)
    bad = {path: result.reason for path, result in files.items() if result.reason is not None}
    for sample in samples:
        if files[sample.path].reason is None and sample.is_segment:
            try:
                frame_span(sample)
            except VideoError as error:
                bad[sample.video_id] = error.reason
    good = [result for result in files.values() if result.reason is None]
    duplicates = find_duplicates(lists, files, unlabeled_lists=unlabeled_lists)
    training = next(iter(lists))
    classes = _class_counts(lists)
    counts = [{"class": row["class"], "videos": row["lists"].get(training, 0)} for row in classes]
    rare = [row for row in counts if row["videos"] < RARE_BELOW]
    return {
        "checked": len(files),
        "ok": len(good),
        "bad": [{"path": path, "reason": reason} for path, reason in bad.items()],
        "frames": min_median_max([result.frames for result in good]),
        "seconds": min_median_max([result.seconds for result in good if result.seconds is not None]),
        "duplicates": duplicates,
        "leaks": sum(duplicate["leak"] for duplicate in duplicates),
        "task": lists[training].task,
        "classes": classes,
        "rare_classes": sorted(rare, key=lambda row: row["videos"]),
        "class_differences": class_differences(lists[training].by_class, files),
    }


def _check_files(
    paths: Sequence[str], folder: Path, *, workers: int, timeout: float, emit: Emit, restart: bool
) -> dict[str, CheckedFile]:
    """The result for each file, from the folder or by decoding it, in the order of `paths`."""
    results: dict[str, CheckedFile] = {}
    with open_parts(folder, {"results": "files"}, restart=restart) as parts:
        joined = parts.joined()
        earlier = joined.results if joined else []
        with damage_errors(folder, fix=FIX):
            checked = {row["path"]: CheckedFile(**row) for unit in earlier for row in unit}
        for file in (checked[path] for path in paths if path in checked):
            with suppress(OSError):
                version = video_version(parse_location(file.path))
                if file.lasting and version == (file.size, file.version):
                    results[file.path] = file
        if results:
            emit(notice(f"{len(results)} of {len(paths)} videos were checked before ({folder})"))
        remaining = [path for path in paths if path not in results]
        found = map_in_processes(check_video, remaining, workers=workers, timeout=timeout)
        for number, (path, result) in enumerate(found, 1):
            if isinstance(result, Failure):
                result = CheckedFile(path=path, reason=result.reason, lasting=False)
            if result.reason is not None:
                emit(notice(f"{path}: {result.reason}"))
            results[path] = result
            is_last = number % MAX_UNIT == 0 or number == len(remaining)
            parts.add(len(earlier) + (number - 1) // MAX_UNIT, [asdict(result)], {}, is_last=is_last)
            emit({"event": "video", "done": len(results), "videos": len(paths)})
    return {path: results[path] for path in paths}


def _class_counts(lists: Mapping[str, SampleList]) -> list[dict[str, Any]]:
    """Count the videos of each class in each list, including known classes without a video."""
    first = next(iter(lists.values()))
    rows = []
    for head_index, head in enumerate([head.name for head in first.heads] or [""]):
        counts = {
            name: count_classes(sample.labels[head_index] for sample in data.samples if sample.labels)
            for name, data in lists.items()
        }
        class_ids = range(len(first.class_names or ()))
        for index in sorted(set(class_ids).union(*counts.values())):
            title = first.class_names[index] if first.class_names else str(index)
            by_list = {name: count[index] for name, count in counts.items() if count[index]}
            rows.append(
                {"class": f"{head} {title}".strip(), "videos": sum(by_list.values()), "lists": by_list}
            )
    return rows


def class_differences(
    by_class: Mapping[str, Sequence[Sample]], files: Mapping[str, CheckedFile]
) -> list[dict[str, Any]]:
    """Find properties in which the videos of the classes differ, so that a model may learn the camera.

    A frame rate or length differs if the medians of two classes differ by more than MAX_MEDIAN_RATIO, or if
    all values of a class are above or below all other values. A frame size differs if the sizes of most
    videos differ between classes. Classes with fewer than MIN_COMPARED good videos are left out.

    Returns:
        For each property that differs, its name `of`, its `unit`, and by class its minimum, median and
        maximum (frames/s, seconds), or the most frequent size (width x height).
    """
    rates: dict[str, list[float]] = {}
    lengths: dict[str, list[float]] = {}
    sizes: dict[str, str] = {}
    for name, samples in by_class.items():
        good = [(sample, file) for sample in samples if (file := files[sample.path]).reason is None]
        if len(good) < MIN_COMPARED:
            continue
        rates[name] = sorted(file.fps for _, file in good if file.fps is not None)
        lengths[name] = sorted(seconds for sample, file in good if (seconds := _length(sample, file)) > 0)
        (size, count), *_ = Counter(f"{file.width}x{file.height}" for _, file in good).most_common(1)
        if count > len(good) / 2:
            sizes[name] = size
    differences: list[dict[str, Any]] = []
    for measure, unit, values in (("frame rate", "frames/s", rates), ("length", "s", lengths)):
        ranges = {name: min_median_max(numbers) for name, numbers in values.items() if numbers}
        if _are_different([numbers for numbers in values.values() if numbers]):
            differences.append({"of": measure, "unit": unit, "classes": ranges})
    if len(set(sizes.values())) > 1:
        differences.append({"of": "frame size", "unit": "pixels", "classes": sizes})
    return differences


def difference_text(difference: Mapping[str, Any]) -> str:
    """A difference in words: the classes with the lowest and highest median, or the classes of each size."""
    classes, unit = difference["classes"], difference["unit"]
    if difference["of"] == "frame size":
        by_size: dict[str, list[str]] = {}
        for name, size in classes.items():
            by_size.setdefault(size, []).append(f"'{name}'")
        texts = [f"{size} in {join_first(names)}" for size, names in by_size.items()]
        values = f"mostly {join_first(texts)}"
    else:
        texts = []
        ordered = sorted(classes, key=lambda name: classes[name]["median"])
        for name in (ordered[0], ordered[-1]):
            least, middle, most = (classes[name][key] for key in ("min", "median", "max"))
            span = "" if least == most else f" ({least:.4g} to {most:.4g})"
            texts.append(f"{middle:.4g} {unit} in '{name}'{span}")
        values = f"median {', '.join(texts)}"
    learned = "a model may learn this difference instead of the behavior"
    return f"classes differ in {difference['of']}: {values}; {learned}"


def differences_by_headers(by_class: Mapping[str, Sequence[Sample]]) -> list[dict[str, Any]]:
    """The differences in frame rate and size, by the headers of some videos of each class."""
    most = max(MIN_COMPARED, MAX_HEADERS // max(len(by_class), 1))
    some = {name: choose_evenly(samples, most) for name, samples in by_class.items()}
    files = {}
    for sample in (sample for samples in some.values() for sample in samples):
        files[sample.path] = CheckedFile(path=sample.path, reason="unreadable")
        with suppress(VideoError):
            info = video_info(sample.video)
            sizes = {"height": info.height, "width": info.width, "fps": info.fps}
            files[sample.path] = CheckedFile(path=sample.path, **sizes)
    return class_differences(some, files)


def _length(sample: Sample, file: CheckedFile) -> float:
    """The length of a video or segment; 0 if the segment is outside its video, or the video has no times."""
    if file.seconds is None or file.fps is None:
        return 0.0
    start = sample.start or (sample.start_frame or 0) / file.fps
    end = sample.end or (sample.end_frame or inf) / file.fps
    return min(end, file.seconds) - start


def _are_different(values: Sequence[Sequence[float]]) -> bool:
    """Whether the rising values of one class lie apart from all others, or two medians are far apart."""
    if len(values) < 2:
        return False
    medians = [median(numbers) for numbers in values]
    *_, second_highest, highest = sorted(values, key=lambda numbers: numbers[-1])
    lowest, second_lowest, *_ = sorted(values, key=lambda numbers: numbers[0])
    is_above = highest[0] > second_highest[-1]
    is_below = lowest[-1] < second_lowest[0]
    max_ratio = MIN_APART_RATIO if is_above or is_below else MAX_MEDIAN_RATIO
    return max(medians) > max_ratio * min(medians)


def find_duplicates(
    lists: Mapping[str, SampleList], files: Mapping[str, CheckedFile], *, unlabeled_lists: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Find samples with the same segment of one file, or of files with the same bytes.

    The `unlabeled_lists` (for pre-training) may share videos with the other lists, not with each other.
    """
    copies: dict[Hashable, list[tuple[str, Sample]]] = {}
    for name, data in lists.items():
        for sample in data.samples:
            content = files[sample.path].content or sample.path
            copies.setdefault((content, sample.segment, name in unlabeled_lists), []).append((name, sample))
    return [
        {
            "videos": list(dict.fromkeys(sample.video_id for _, sample in group)),
            "lists": list(dict.fromkeys(name for name, _ in group)),
            "leak": len({name for name, _ in group}) > 1,
            "labels_differ": len({sample.labels for _, sample in group if sample.labels}) > 1,
        }
        for group in copies.values()
        if len(group) > 1
    ]
