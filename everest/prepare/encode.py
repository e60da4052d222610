"""Many videos encoded again for training, by several processes, on several machines if need be.

What is done is kept: a file says by what it was made, and is in its place only when it is whole.

What encoding is worth: clips a second of the files before and after, read as pre-training reads them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any, Final

from everest.data.dataset import VideoClips
from everest.data.list_text import COLUMNS
from everest.data.loader import batches, make_loader
from everest.data.samples import Sample
from everest.data.views import PretrainViews
from everest.errors import RecipeError
from everest.prepare.encode_settings import EncodeSettings
from everest.prepare.encoding import EncodedFile, encode_video
from everest.prepare.processes import Failure, map_apart
from everest.prepare.sources import SourceList
from everest.system.events import Report, notice
from everest.system.files import write_table
from everest.system.locks import refuse_foreign, sole_writer
from everest.system.run_folder import BAD_VIDEOS
from everest.video.stream import VideoError

MARK: Final = ".encode-"  # hidden files whose names hold the settings


@dataclass(frozen=True, slots=True)
class JobShare:
    """Which of several parts of the videos: number from 1, and how many."""

    number: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: str) -> JobShare:
        """Understand `I/N`."""
        first, _, second = text.partition("/")
        if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            raise RecipeError(f"--shard {text}: give I/N with I from 1 to N, as 1/4 to 4/4 for four machines")
        return cls(int(first), int(second))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSummary:
    """What became of the videos."""

    files: dict[str, EncodedFile]  # by source, of those that are there
    failed: list[tuple[str, str]]  # source and reason
    lists: list[Path]  # written; of a part none

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
    Raises:
        RecipeError: `output` holds something else, or other settings.
        EnvironmentProblem: no room on the disk.
    """
    targets = name_targets(originals, output)
    _check_output(output, settings, originals, overwrite=overwrite)
    ours = dict(list(targets.items())[part.number - 1 :: part.of])
    files: dict[str, EncodedFile] = {}
    failed: list[tuple[str, str]] = []
    with sole_writer(output / f"{_mark(settings)}{part.number}-of-{part.of}"):
        work = _Encode(ours, settings, overwrite)
        results = map_apart(work, list(ours), workers=workers, limit=timeout)
        for done, (source, result) in enumerate(results, start=1):
            report({"event": "video", "done": done, "videos": len(ours)})
            if isinstance(result, EncodedFile):
                files[source] = result
            else:
                failed.append((source, result.reason))
                report(notice(f"{source}: {result.reason}"))
        lists = _write_lists(originals, output, files, failed) if part.of == 1 else []
    return EncodeSummary(files=files, failed=sorted(failed), lists=lists)


def name_targets(originals: Sequence[SourceList], output: Path) -> dict[str, Path]:
    """Where each video goes: below `output` as it lies below its root, as .mp4.

    Two that differ in the suffix only keep theirs before it.
    """
    named: dict[PurePosixPath, list[str]] = {}
    for original in originals:
        for path in original.paths():
            source = str(original.video(path))
            sources = named.setdefault(_below(path).with_suffix(""), [])
            if source not in sources:
                sources.append(source)
    found: dict[str, Path] = {}
    for name, sources in named.items():
        for source in sources:
            suffix = PurePosixPath(source).suffix if len(sources) > 1 else ""
            found[source] = output / f"{name}{suffix}.mp4"
    _refuse_clash(found)
    return found


def _below(path: str) -> PurePosixPath:
    """A path as one that stays inside a folder: no root, no protocol, no steps upward."""
    parts = PurePosixPath(path.split("://", 1)[-1]).parts
    return PurePosixPath(*(part for part in parts if part not in ("/", "..")))


def _refuse_clash(found: Mapping[str, Path]) -> None:
    first: dict[Path, str] = {}
    for source, target in found.items():
        if target in first:
            raise RecipeError(
                f"{first[target]} and {source} would both become {target}; give --data, a folder above both"
            )
        first[target] = source


def _mark(settings: EncodeSettings) -> str:
    fast = "-fast" if settings.fast_decode else ""
    return f"{MARK}{settings.short_side}-{settings.gop}-{settings.crf}{fast}-part-"


def _check_output(
    output: Path, settings: EncodeSettings, originals: Sequence[SourceList], *, overwrite: bool
) -> None:
    for original in originals:
        place = original.place.resolve()
        if isinstance(place, Path) and place.is_dir() and output.resolve().is_relative_to(place):
            raise RecipeError(f"--output {output}: lies in {place}, which is read; choose a folder beside it")
        if original.is_list and original.place.resolve() == (output / original.place.name).resolve():
            raise RecipeError(f"--output {output}: holds the list {original.place}, which is read")
    names = [original.place.name for original in originals if original.is_list]
    if len(set(names)) < len(names):
        raise RecipeError("two lists have the same name; encode them into two folders")
    if overwrite:
        for file in output.glob(f"{MARK}*"):
            if not file.name.startswith(_mark(settings)):
                file.unlink()
        return
    refuse_foreign(output, lambda name: name.startswith(MARK))
    if any(not file.name.startswith(_mark(settings)) for file in output.glob(f"{MARK}*")):
        raise RecipeError(
            f"--output {output}: was encoded with other settings; choose another folder, or use --overwrite"
        )


@dataclass(frozen=True, slots=True)
class _Encode:
    """What each process does with a video."""

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
    """Each list again, with the new paths and without what failed; and bad_videos.csv, if anything did."""
    if failed:
        write_table(output / BAD_VIDEOS, [("path", "reason"), *sorted(failed)])
    else:
        (output / BAD_VIDEOS).unlink(missing_ok=True)
    written = []
    for original in originals:
        if original.is_list:
            written.append(output / PurePosixPath(original.place.name).with_suffix(".csv").name)
            write_table(written[-1], _new_rows(original, output, files), quoted=True)
    return written


def _new_rows(
    original: SourceList, output: Path, files: Mapping[str, EncodedFile]
) -> Iterator[Sequence[str]]:
    used = {name for row in original.rows for name in row}
    columns = [name for name in dict.fromkeys([*COLUMNS, *sorted(used)]) if name in used]
    yield columns
    for row in original.rows:
        file = files.get(str(original.video(row["path"])))
        if file is not None:
            changed = row | {"path": file.path.relative_to(output).as_posix()}
            yield [changed.get(name, "") for name in columns]


VIDEOS: Final = 16  # of the set, evenly spread
ROUNDS: Final = 3  # after one in which the files are looked at
VIEWS: Final = PretrainViews(  # the clips of most recipes
    frames=16, stride=4, size=(224, 224), flip=True, sampling="dense", views_per_decode=1
)


def measure_gain(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Clips for each second of CPU, of one process.

    Args:
        pairs: paths or URLs of videos before and after.
    Returns:
        `{"before", "after"}`.
    """
    chosen = pairs[:: max(len(pairs) // VIDEOS, 1)][:VIDEOS]
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(1 + ROUNDS):
        for name, paths in zip(seconds, zip(*chosen, strict=True), strict=True):
            seconds[name].append(_seconds(paths))
    return {name: round(len(chosen) / median(times[1:]), 1) for name, times in seconds.items()}


def _seconds(paths: Sequence[str]) -> float:
    samples = [Sample(path=path) for path in paths]
    clips = VideoClips(samples, make_views=VIEWS, seed=0, num_noise=0, decoder="auto", replace_bad=False)
    began = time.process_time()
    for _ in batches(make_loader(clips, [[(0, index)] for index in range(len(paths))], workers=0, timeout=0)):
        pass
    return time.process_time() - began
