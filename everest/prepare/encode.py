"""Encode many videos again for training, in several processes.

Finished files are kept: a file records how it was made, and appears under its name only when it is complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from everest.errors import RecipeError
from everest.lists.inputs import SourceList
from everest.lists.text import COLUMNS
from everest.prepare.encoding import EncodedFile, EncodeSettings, encode_video
from everest.system.events import Report, notice
from everest.system.files import check_new_folder, refuse_inputs, write_table, write_text
from everest.system.locks import sole_writer
from everest.system.run_folder import BAD_VIDEOS
from everest.video.file_processes import Failure, map_apart
from everest.video.stream import VideoError

MARK: Final = ".encode-"  # prefix of hidden files whose names hold the settings


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSummary:
    """The result of encoding."""

    files: dict[str, EncodedFile]  # by source
    failed: list[tuple[str, str]]  # source and reason
    lists: list[Path]  # the new lists

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
    workers: int,
    timeout: float,
    overwrite: bool,
    report: Report,
) -> EncodeSummary:
    """Encode all videos of lists and folders.

    Args:
        timeout: seconds for a video.
    """
    targets = name_targets(originals, output)
    mark = output / (MARK + "-".join(map(str, (settings.short_side, *astuple(settings.codec)))))
    _check_output(originals, output, mark, overwrite=overwrite)
    files: dict[str, EncodedFile] = {}
    failed: list[tuple[str, str]] = []
    with sole_writer(mark):
        write_text(mark, "")
        encode = _Encode(targets, settings, overwrite)
        results = map_apart(encode, list(targets), workers=workers, limit=timeout)
        for done, (source, result) in enumerate(results, start=1):
            report({"event": "video", "done": done, "videos": len(targets)})
            if isinstance(result, EncodedFile):
                files[source] = result
            else:
                failed.append((source, result.reason))
                report(notice(f"{source}: {result.reason}"))
        failed.sort()
        lists = _write_lists(originals, output, files, failed)
    return EncodeSummary(files=files, failed=failed, lists=lists)


def _check_output(originals: Sequence[SourceList], output: Path, mark: Path, *, overwrite: bool) -> None:
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
        if file == mark:
            continue
        if not overwrite:
            raise RecipeError(
                f"--output {output}: was encoded with other settings; choose another folder, or use "
                "--overwrite"
            )
        file.unlink()


def name_targets(originals: Sequence[SourceList], output: Path) -> dict[str, Path]:
    """The target of each video: the same path below `output` as below its root, with the suffix .mp4."""
    targets: dict[str, Path] = {}
    source_of: dict[Path, str] = {}
    for original in originals:
        for path in original.paths():
            # A path that stays inside a folder: no root, no protocol, no steps upward.
            source, steps = str(original.video(path)), PurePosixPath(path.split("://", 1)[-1]).parts
            inside = [step for step in steps if step not in ("/", "..")] or [PurePosixPath(source).name]
            target = targets[source] = output / PurePosixPath(*inside).with_suffix(".mp4")
            first = source_of.setdefault(target, source)
            if first != source:
                raise RecipeError(
                    f"{first} and {source} would both become {target}; give --data, a folder above both, or "
                    "rename one"
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
