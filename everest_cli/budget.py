"""`everest budget`"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from everest.errors import DataError, UserError, first_names
from everest.system.files import check_new_file, refuse_inputs, write_table
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.options import option, refuse
from everest_cli.output import Display, print_json, say
from everest_cli.timeline import RuleOptions

if TYPE_CHECKING:
    from everest.annotations.bout import Bout, Bouts
    from everest.annotations.labels import WhoseBouts
    from everest.inference.timelines import Timelines
    from everest.metrics.budget import FootageWindow

WINDOW_SECONDS: Final = 10.0  # heuristic
PAGE_SUFFIX: Final = ".html"  # of the drawn windows, beside their list


def budget(
    *,
    rules: RuleOptions,
    timeline: Path = option("--timeline T", "File of `everest timeline --save`.", ...),
    checked: Path | None = option("--checked F", "The list of --draw, with your bouts added."),
    whose: o.WhoseOptions,
    draw: int | None = option("--draw N", "Write N random windows to --output.", min=2),
    window: float | None = option("--window SECONDS", "Length of windows [10, or as in --checked].", min=0.1),
    seed: int = option("--seed N", "Random seed of --draw.", 0, min=0),
    group: str | None = option(
        "--group G", "Also each group of recordings; a pattern, as in `everest train`."
    ),
    output: Path | None = option("--output -o F", "CSV to write: windows of --draw, else the estimates."),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Estimate time and bouts of each class in all footage, with 95 % intervals.

    --draw also writes a page beside --output, with the windows as playing clips. With --checked, it draws
    windows that are not in F, and --output begins with the rows of F.

    Example: everest budget --timeline timeline.safetensors --checked checked.csv
    """
    from everest.annotations.bout import CHECKED, DRAWN
    from everest.inference.scores import check_one_head, report_unknown
    from everest.inference.timelines import Timelines
    from everest.metrics.budget import draw_windows, time_budget, window_length

    refuse(
        {
            "give --draw N and --output LIST to draw windows, or --checked F": not draw and not checked,
            "--draw N: needs --output, the list to write": draw is not None and output is None,
            "--group needs --checked, and no --draw": group and (checked is None or draw is not None),
        }
    )
    whose_bouts = whose.read(checked, option="--checked")
    timelines = Timelines.load(timeline)
    check_one_head(timelines.classes.heads, option="--timeline")
    extents, predicted = _footage(timelines, rules, source=timeline)
    classes = timelines.classes.of_head(timelines.classes.heads[0])
    labeled = {} if checked is None else _read_checked(checked, extents, whose_bouts)
    if output is not None:
        for file in (output,) if draw is None else (output, output.with_suffix(PAGE_SUFFIX)):
            refuse_inputs(file, [timeline, checked])
            check_new_file(file, overwrite=overwrite)
    if draw is not None and output is not None:
        length = round(window or WINDOW_SECONDS, 3)
        if any(bout.label in (CHECKED, DRAWN) for bouts in labeled.values() for bout in bouts):
            length = window_length(extents, labeled, window)
        windows = draw_windows(extents, labeled, length, draw, seed=seed)
        _write_windows(output, windows, labeled, classes)
        return
    report_unknown(labeled, timelines.classes, Display().report)
    document = time_budget(extents, predicted, labeled, window=window, classes=classes)
    if document["unused"]:
        say(f"{counted(document['unused'], 'bout')} in no checked window: not counted")
    if group is not None:
        estimate = partial(time_budget, window=document["window"], classes=classes)
        document["groups"] = _by_group(group, (extents, predicted, labeled), estimate)
    if output is not None:
        write_table(output, _table(document))
    (print_json if as_json else _print_budget)(document)


def _footage(
    timelines: Timelines, rules: RuleOptions, *, source: Path
) -> tuple[dict[str, tuple[float, float]], dict[str, list[Bout]]]:
    """The start and end of each recording with windows, in seconds, and its predicted bouts."""
    extents, predicted = {}, {}
    for recording, by_head in zip(timelines.videos, timelines.bouts(rules.rules()), strict=True):
        if len(recording.starts):
            (bouts,) = by_head.values()
            name = recording.video
            begin, end = recording.extent
            extents[name] = round(begin, 3), round(end, 3)  # lists have milliseconds
            predicted[name] = [bout.as_bout(video=name) for bout in bouts if bout.has_class]
    if not extents:
        raise DataError(f"{source}: has no windows; name a timeline of readable videos")
    return extents, predicted


def _by_group(
    group: str, parts: Sequence[Mapping[str, Any]], estimate: Callable[..., dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The estimates of each group of recordings, by a value of --group; `parts` are by recording."""
    from everest.lists.sample import Sample
    from everest.prepare.split import with_groups

    groups: dict[str, list[str]] = {}
    for sample in with_groups([Sample(path=video) for video in parts[0]], group, root=Path()):
        groups.setdefault(sample.source, []).append(sample.path)
    documents = {}
    for name, videos in sorted(groups.items()):
        try:
            documents[name] = estimate(*({video: part[video] for video in videos} for part in parts))
        except UserError as error:
            say(f"{name}: {error}")
    return documents


def _table(document: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """The rows of a CSV with all estimates; `group` is empty for all recordings together."""
    yield "group", "class", "amount", "model", "checked", "estimate", "low", "high"
    for name, part in {"": document, **document.get("groups", {})}.items():
        for entry in part["classes"]:
            for what in ("seconds", "bouts"):
                row = entry[what]
                values = *(row[key] for key in ("naive", "checked", "estimate")), *row["interval"]
                yield name, entry["name"], what, *map(str, values)


def _read_checked(file: Path, extents: Mapping[str, tuple[float, float]], whose: WhoseBouts) -> Bouts:
    """The checked bouts of each recording."""
    from everest.annotations.labels import read_labels

    labels = read_labels([file], extents, whose=whose, keep_windows=True)
    if labels.unmatched:
        names = f"{first_names(labels.unmatched)}; use the names that --draw wrote"
        raise DataError(f"{file}: names videos that are not in the timeline: {names}")
    say(*labels.notices)
    return {video: labels.bouts.get(video, []) for video in extents}


def _print_budget(document: Mapping[str, Any]) -> None:
    """A line for the seconds and for the bouts of each class, of all recordings and of each group."""
    for name, part in (None, document), *document.get("groups", {}).items():
        title = "" if name is None else f"\n{name}\n"
        typer.echo(
            f"{title}{part['checked']} of {part['windows']} windows of {part['window']:g} s are checked\n"
            f"  {'class':<24}{'':<9}{'model':>10}{'checked':>10}{'estimate':>10}  95 % interval"
        )
        for entry in part["classes"]:
            for what in ("seconds", "bouts"):
                row = entry[what]
                low, high = row["interval"]
                values = "".join(f"{row[key]:>10.1f}" for key in ("naive", "checked", "estimate"))
                typer.echo(f"  {entry['name']:<24}{what:<9}{values}  {low:.1f} to {high:.1f}")


def _write_windows(
    output: Path, windows: Sequence[FootageWindow], checked: Bouts, classes: Sequence[str]
) -> None:
    """Write a list of the checked rows and of newly drawn windows, and a page of the drawn windows."""
    from everest.annotations.bout import DRAWN
    from everest.annotations.formats import TABLE_COLUMNS
    from everest.figures.pages import clip_card, write_page
    from everest.lists.sample import Sample

    page = output.with_suffix(PAGE_SUFFIX)
    rows = [(each.video, f"{each.start:.3f}", f"{each.end:.3f}", DRAWN) for each in windows]
    bouts = [bout for video_bouts in checked.values() for bout in video_bouts]
    people = [name for name in ("subject", "observer") if any(getattr(bout, name) for bout in bouts)]
    known = [
        (bout.video, repr(bout.start), repr(bout.end), bout.label, *(getattr(bout, name) for name in people))
        for bout in bouts
    ]
    cards = [
        clip_card(Sample(path=each.video, start=each.start, end=each.end))
        | {"start": each.start, "line": ",".join(row)}
        for each, row in zip(windows, rows, strict=True)
    ]
    write_page(page, "figures", "windows_page.html", list_file=output.name, classes=classes, cards=cards)
    unknown = [""] * len(people)
    write_table(output, [(*TABLE_COLUMNS, *people), *known, *((*row, *unknown) for row in rows)])
    typer.echo(output)
    typer.echo(page)
