"""Encode many videos again for training, in several processes and on several machines if needed.

Finished files are kept: a file records how it was made, and appears under its name only when it is complete.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any, Final

from everest.data.dataset import VideoClips
from everest.data.loader import batches, make_loader
from everest.data.views import PretrainViews
from everest.errors import RecipeError
from everest.lists.header import COLUMNS
from everest.lists.inputs import SourceList
from everest.lists.sample import Sample
from everest.prepare.encode_settings import EncodeSettings, JobShare
from everest.prepare.encoding import EncodedFile, encode_video
from everest.system.events import Report, notice
from everest.system.files import check_new_folder, refuse_inputs, write_table, write_text
from everest.system.locks import sole_writer
from everest.system.run_folder import BAD_VIDEOS
from everest.video.file_processes import Failure, map_apart
from everest.video.stream import VideoError

MARK: Final = ".encode-"  # prefix of hidden files whose names hold the settings and the job share
VIDEOS: Final = 16  # to measure, spread over the list
ROUNDS: Final = 3  # after one in which the files are opened for the first time
TRIED: Final = 8  # our choice: videos after which the gain is measured for the first time
LEAST_GAIN: Final = 1.1  # our choice: of clips per second, below which encoding is not worth it
VIEWS: Final = PretrainViews(  # the clips of most recipes
    frames=16, stride=4, size=(224, 224), flip=True, sampling="dense", views_per_decode=1
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSummary:
    """The result of encoding."""

    files: dict[str, EncodedFile]  # by source
    failed: list[tuple[str, str]]  # source and reason
    lists: list[Path]  # the new lists; a part of the videos has none

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        files = self.files.values()
        return {
            "videos": len(self.files) + len(self.failed),
            "encoded": sum(file.is_new for file in files),
            "failed": [{"path": path, "reason": reason} for path, reason in self.failed],
            "bytes": {
                "before": sum(file.source_bytes for file in files),
                "after": sum(file.bytes for file in files),
            },
            "lists": [str(path) for path in self.lists],
        }


def encode_videos(
    originals: Sequence[SourceList],
    output: Path,
    settings: EncodeSettings,
    *,
    part: JobShare,
    workers: int,
    timeout: float,
    overwrite: bool,
    report: Report,
) -> EncodeSummary:
    """Encode all videos of lists and folders, or a part of them.

    Args:
        timeout: seconds for a video.
    """
    targets = name_targets(originals, output)
    fast = "-fast" if settings.fast_decode else ""
    mark = f"{MARK}{settings.short_side}-{settings.gop}-{settings.crf}{fast}-part-"
    _check_output(originals, output, mark, overwrite=overwrite)
    chosen = dict(list(targets.items())[part.number - 1 :: part.of])
    files: dict[str, EncodedFile] = {}
    failed: list[tuple[str, str]] = []
    mark_file = output / f"{mark}{part.number}-of-{part.of}"
    with sole_writer(mark_file):
        write_text(mark_file, "")
        results = map_apart(
            _Encode(chosen, settings, overwrite), list(chosen), workers=workers, limit=timeout
        )
        for done, (source, result) in enumerate(results, start=1):
            report({"event": "video", "done": done, "videos": len(chosen)})
            if isinstance(result, EncodedFile):
                files[source] = result
                if len(files) == TRIED and len(chosen) >= 2 * TRIED:
                    gain = measure_gain([(source, str(file.path)) for source, file in files.items()])
                    text = poor_gain(gain, files.values())
                    if text is not None:
                        report(notice(f"first {len(files)} of {len(chosen)} videos: {text}"))
            else:
                failed.append((source, result.reason))
                report(notice(f"{source}: {result.reason}"))
        failed.sort()
        lists = _write_lists(originals, output, files, failed) if part.of == 1 else []
    return EncodeSummary(files=files, failed=failed, lists=lists)


def poor_gain(clips_per_second: Mapping[str, float], files: Collection[EncodedFile]) -> str | None:
    """Returns why training should read the originals; None if the encoded files are worth it.

    Args:
        clips_per_second: of `measure_gain`.
        files: that were encoded.
    """
    gain = clips_per_second["after"] / max(clips_per_second["before"], 1e-9)
    if gain >= LEAST_GAIN:
        return None
    growth = sum(file.bytes for file in files) / max(sum(file.source_bytes for file in files), 1)
    return (
        f"encoding is not worth it: the new files are read {gain:.2f} times as fast and are {growth:.1f} "
        "times as large; train on the originals"
    )


def _check_output(originals: Sequence[SourceList], output: Path, mark: str, *, overwrite: bool) -> None:
    """Raise RecipeError if `output` would replace a source, other files, or videos with other settings."""
    for original in originals:
        source = original.location.resolve()
        if isinstance(source, Path) and source.is_dir() and output.resolve().is_relative_to(source):
            raise RecipeError(
                f"--output {output}: is inside {source}, which is read; choose a folder next to it"
            )
        inputs = [original.location, *map(original.video, original.paths())]
        refuse_inputs(output, inputs, option="--output", fix="choose a folder of its own")
    names = [_list_name(original) for original in originals if original.is_list]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two of the new lists would be called {name}; encode them into two folders")
    check_new_folder(output, overwrite=overwrite, is_own=lambda name: name.startswith(MARK))
    for file in output.glob(f"{MARK}*"):
        if file.name.startswith(mark):
            continue
        if not overwrite:
            raise RecipeError(
                f"--output {output}: was encoded with other settings; choose another folder, or use "
                "--overwrite"
            )
        file.unlink()


def name_targets(originals: Sequence[SourceList], output: Path) -> dict[str, Path]:
    """The target of each video: the same path below `output` as below its root, with the suffix .mp4.

    Videos whose paths differ in the suffix only keep their suffix before .mp4.
    """
    sources_of: dict[PurePosixPath, list[str]] = {}
    for original in originals:
        for path in original.paths():
            # A path that stays inside a folder: no root, no protocol, no steps upward.
            steps = PurePosixPath(path.split("://", 1)[-1]).parts
            source = str(original.video(path))
            inside = [step for step in steps if step not in ("/", "..")] or [PurePosixPath(source).name]
            name = PurePosixPath(*inside).with_suffix("")  # of `.`, a folder of images, its own name
            sources = sources_of.setdefault(name, [])
            if source not in sources:
                sources.append(source)
    targets: dict[str, Path] = {}
    source_of: dict[Path, str] = {}
    for name, sources in sources_of.items():
        for source in sources:
            suffix = PurePosixPath(source).suffix if len(sources) > 1 else ""
            target = targets[source] = output / f"{name}{suffix}.mp4"
            first = source_of.setdefault(target, source)
            if first != source:
                raise RecipeError(
                    f"{first} and {source} would both become {target}; give --data, a folder above both"
                )
    return targets


@dataclass(frozen=True, slots=True)
class _Encode:
    """The work of each process."""

    targets: Mapping[str, Path]
    settings: EncodeSettings
    overwrite: bool

    def __call__(self, source: str) -> EncodedFile | Failure:
        try:
            return encode_video(source, self.targets[source], self.settings, overwrite=self.overwrite)
        except VideoError as error:
            return Failure(error.reason)


def _write_lists(
    originals: Sequence[SourceList],
    output: Path,
    files: Mapping[str, EncodedFile],
    failed: Sequence[tuple[str, str]],
) -> list[Path]:
    """Write each list with the new paths and without failed videos, and bad_videos.csv if any failed."""
    if failed:
        write_table(output / BAD_VIDEOS, [("path", "reason"), *failed])
    else:
        (output / BAD_VIDEOS).unlink(missing_ok=True)
    written = []
    for original in originals:
        if original.is_list:
            used = {name for row in original.rows for name in row}
            columns = [name for name in dict.fromkeys([*COLUMNS, *sorted(used)]) if name in used]
            rows = [columns]
            for row in original.rows:
                file = files.get(str(original.video(row["path"])))
                if file is not None:
                    changed = row | {"path": file.path.relative_to(output).as_posix()}
                    rows.append([changed.get(name, "") for name in columns])
            written.append(output / _list_name(original))
            write_table(written[-1], rows, quoted=True)
    return written


def _list_name(original: SourceList) -> str:
    """The name of the new list."""
    return f"{original.location.stem}.csv"


def measure_gain(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Measure clips per second of CPU time in one process, read as pre-training reads them.

    Args:
        pairs: paths or URLs of videos before and after.
    Returns:
        `{"before", "after"}`.
    """
    chosen = pairs[:: max(len(pairs) // VIDEOS, 1)][:VIDEOS]
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(1 + ROUNDS):
        for name, paths in zip(seconds, zip(*chosen, strict=True), strict=True):
            samples = [Sample(path=path) for path in paths]
            clips = VideoClips(
                samples, make_views=VIEWS, seed=0, num_noise=0, decoder="auto", replace_bad=False
            )
            order = [[(0, index)] for index in range(len(paths))]
            start = time.process_time()
            for _clip in batches(make_loader(clips, order, workers=0, timeout=0)):
                pass
            seconds[name].append(time.process_time() - start)
    return {name: round(len(chosen) / median(times[1:]), 1) for name, times in seconds.items()}
