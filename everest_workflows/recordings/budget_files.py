"""The files of a time budget: the saved timeline, and the list and the page of windows to check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from everest.config.heads import Head
from everest.errors import DataError, join_first
from everest.figures.pages import make_card, write_page
from everest.lists.sample import Sample
from everest.system.files import write_table
from everest.system.storage import parse_location
from everest_workflows.annotations.bout import BACKGROUND, TO_CHECK, Bout, Bouts
from everest_workflows.annotations.codings import BoutFilter, read_video_annotations
from everest_workflows.annotations.formats import TABLE_COLUMNS, is_header
from everest_workflows.annotations.records import read_table
from everest_workflows.recordings.bouts import BoutRules
from everest_workflows.recordings.checked_windows import Extents, FootageWindow
from everest_workflows.recordings.scores import check_one_head, refuse_unknown_classes
from everest_workflows.recordings.timelines import Timelines

LEAD_IN: Final = 0.5  # seconds that a page shows before a window, heuristic
GROUP_COLUMN: Final = "group of draw"  # column of the list that holds the --group of --draw
PAGE_SUFFIX: Final = ".html"  # of the page beside a list or a table


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedFootage:
    """The recordings of a saved timeline that have windows, and the model."""

    timeline: Path
    paths: Mapping[str, str]  # of the files
    extents: Extents
    predicted: Mapping[str, list[Bout]]  # bouts by recording
    classes: Sequence[str]
    head: Head
    model: str  # as the command that saved the timeline named it
    smooth: float  # seconds over which the probabilities are averaged

    @classmethod
    def of(cls, timelines: Timelines, rules: BoutRules, timeline: Path) -> SavedFootage:
        """The footage of timelines, which were saved in a file, with the bouts of some rules."""
        check_one_head(timelines.classes.heads, option="--timeline")
        if not timelines.extents:
            raise DataError(f"{timeline}: has no windows; name a timeline of readable videos")
        predicted = {
            recording.video: [bout.to_bout(video=recording.video) for bout in bouts if bout.has_class]
            for recording, by_head in zip(timelines.videos, timelines.bouts(rules), strict=True)
            for bouts in by_head.values()
            if len(recording.starts)
        }
        (head,) = timelines.classes.heads
        return cls(
            timeline=timeline,
            paths={each.video: each.path for each in timelines.videos if each.video in predicted},
            extents=timelines.extents,
            predicted=predicted,
            classes=timelines.classes.names_of_head(head),
            head=head,
            model=timelines.model,
            smooth=rules.smooth,
        )

    def find_files(self) -> dict[str, str]:
        """The files of the recordings; a relative path may begin in a folder above the saved timeline."""
        found = {}
        for name, path in self.paths.items():
            location = parse_location(path)
            places = [location, *(folder / path for folder in self.timeline.absolute().parents)]
            found[name] = next((str(place) for place in places if place.exists()), None)
        if missing := [self.paths[name] for name, path in found.items() if path is None]:
            fix = "restore them, or run budget in the folder in which timeline ran"
            raise DataError(f"{self.timeline}: its recordings are not found: {join_first(missing)}; {fix}")
        return found


class CheckedList(NamedTuple):
    """What a list of checked windows says."""

    bouts: Bouts = MappingProxyType({})  # of each recording, with the marks of the windows
    group: str | None = None  # the --group of the draw; None: all recordings together
    notices: Sequence[str] = ()


def read_checked_list(file: Path, footage: SavedFootage, bout_filter: BoutFilter) -> CheckedList:
    """Read the list of --draw to which a person added bouts, or annotations of another program."""
    labels = read_video_annotations([file], footage.extents, bout_filter=bout_filter, keep_windows=True)
    if labels.unmatched:
        names = f"{join_first(labels.unmatched)}; use the names that --draw wrote"
        raise DataError(f"{file}: names videos that are not in the timeline: {names}")
    refuse_unknown_classes(labels.bouts, footage.classes, source=file)
    notices = [*labels.notices]
    if labels.uncorrected_text:
        notices.append(f"warning: {file} has {labels.uncorrected_text}, which count as what a person saw")
    group = None
    with suppress(ValueError):  # the file is of another kind
        _, header, rows = read_table(file, is_header)
        found = (dict(zip(header, cells, strict=False)).get(GROUP_COLUMN) for _, cells in rows)
        group = next(filter(None, found), None)
    return CheckedList({video: labels.bouts.get(video, []) for video in footage.extents}, group, notices)


def write_windows_to_check(
    output: Path,
    windows: Sequence[FootageWindow],
    footage: SavedFootage,
    checked: Bouts,
    *,
    group: str | None,
    people: dict[str, str],
) -> Path:
    """Write a list of the checked rows and of windows to check, and return the page on which to check them.

    Args:
        group: the --group of the draw, which the list keeps, because the estimates need it.
        people: `subject` and `observer` of the new rows.
    """
    paths = footage.find_files()
    known = [
        {"video": bout.video, "start": repr(bout.start), "end": repr(bout.end), "label": bout.label}
        | {name: getattr(bout, name) for name in people}
        for bouts in checked.values()
        for bout in bouts
    ]
    sampled = [
        {"video": window.video, "start": f"{window.start:.3f}", "end": f"{window.end:.3f}", "label": TO_CHECK}
        | people
        for window in windows
    ]
    used = [name for name in people if any(row[name] for row in known)]
    columns = [*TABLE_COLUMNS, *used, *([GROUP_COLUMN] if group else [])]
    rows = [[(row | {GROUP_COLUMN: group}).get(name, "") for name in columns] for row in [*known, *sampled]]
    cards = []
    for each, row in zip(windows, rows[len(known) :], strict=True):
        lead = round(min(LEAD_IN, each.start - footage.extents[each.video][0]), 3)
        card = make_card(Sample(path=paths[each.video], start=each.start - lead, end=each.end))
        cards.append(card | {"row": row, "lead": lead, "times": f"{each.start:.2f} s to {each.end:.2f} s"})
    page = output.with_suffix(PAGE_SUFFIX)
    write_page(
        page,
        "everest_workflows.recordings",
        "windows_page.html",
        list_file=output.name,
        rows=[columns, *rows[: len(known)]],
        cards=cards,
        classes=[name for name in footage.classes if name != BACKGROUND],
    )
    write_table(output, [columns, *rows])
    return page
