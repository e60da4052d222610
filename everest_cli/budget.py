"""`everest budget`: time and bouts of each class, estimated from windows that a person has checked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import typer

from everest.errors import DataError, first_names
from everest.system.files import write_table
from everest.system.text import plural
from everest_cli import options as o
from everest_cli.bout_files import check_outputs
from everest_cli.budget_text import PAGE_SUFFIX, list_notes, print_budget, print_plan
from everest_cli.options import option, refuse
from everest_cli.output import print_json, say
from everest_cli.timeline import RuleOptions, group_recordings

if TYPE_CHECKING:
    from everest.config.heads import Head
    from everest_workflows.annotations.bout import Bout, Bouts
    from everest_workflows.annotations.codings import BoutFilter
    from everest_workflows.recordings.footage import Extents, FootageWindow

LEAD_IN: Final = 0.5  # seconds that a page shows before a window, heuristic
GROUP_COLUMN: Final = "group of draw"  # column of the list that holds the --group of --draw


class Recordings(NamedTuple):
    """The recordings of a saved timeline that have windows, and the model."""

    paths: Mapping[str, str]  # of the files
    extents: Extents
    predicted: Mapping[str, list[Bout]]  # bouts by recording
    classes: Sequence[str]
    head: Head
    model: str  # as the command that saved the timeline named it
    smooth: float  # seconds over which the probabilities are averaged
    command: Sequence[str]  # estimates the budget, once a list of checked windows is added

    def command_with(self, checked: Path, whose: o.WhoseOptions, window: float, group: str | None) -> str:
        """Return the command with a list of checked windows, and the options that have a value.

        Args:
            window: length in seconds, which a list does not show if all its windows end with a recording.
        """
        given = [f"--observer={name}" for name in whose.observer or ()]
        options = {"subject": whose.subject, "window": f"{window:.12g}", "group": group}
        given += [f"--{name}={value}" for name, value in options.items() if value is not None]
        return shlex.join([*self.command, "--checked", str(checked), *given])


def budget(
    *,
    rules: RuleOptions,
    timeline: Path = option("--timeline T", "File of `everest timeline --save`.", ...),
    checked: Path | None = option("--checked F", "The list of --draw, with your bouts added."),
    whose: o.WhoseOptions,
    plan: bool = option(
        "--plan", "Plan how many windows to check, from the folds of `everest train`.", False
    ),
    draw: int | None = option("--draw N", "Write N random windows to --output.", min=1),
    window: float | None = option(
        "--window SECONDS", "Length of windows [2, less in short footage, or as in --checked].", min=0.1
    ),
    seed: int = option("--seed N", "Random seed of --draw.", 0, min=0),
    group: str | None = option(
        "--group G", "Also each group of recordings, or --draw N in each; a pattern, as in `everest train`."
    ),
    output: Path | None = option(
        "--output -o F", "CSV to write: windows of --draw, else the estimates; and a page beside it."
    ),
    plot: Path | None = option("--plot F", "Draw each class's fraction of time to F (.png, .pdf, .svg)."),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Estimate time and bouts of each class in all footage, with 95 % intervals.

    --draw writes a page beside --output with the windows as playing clips. With --checked, it draws
    windows that are not in F, and --output begins with the rows of F.

    Example: everest budget --timeline timeline.safetensors --checked checked.csv
    """
    from everest_workflows.recordings.footage import sample_windows, window_length

    refuse(
        {
            "give --plan, --draw N and --output LIST, or --checked F": not (plan or draw or checked),
            "--plan: leave out --draw, --checked, --output and --plot": plan
            and (draw or checked or output or plot),
            "--draw N: needs --output, the list to write": draw is not None and output is None,
            "--draw 1: an interval needs at least 2 windows": draw == 1 and not checked,
            "--plot needs --checked, and no --draw": plot and (draw or not checked),
        }
    )
    whose_bouts = whose.read(checked, option="--checked")
    footage = _read_footage(timeline, rules)
    labeled, sampled_by = {}, None
    if checked is not None:
        labeled, sampled_by = _read_checked(checked, footage, whose_bouts)
    other = f"--group {group}: the windows were sampled with --group {sampled_by}; leave it out"
    refuse({other: draw and group and sampled_by and group != sampled_by})
    group = group or sampled_by
    groups = {} if group is None else group_recordings(group, footage.extents)
    if plan:
        _show_plan(footage, groups, group, window, as_json=as_json)
        return
    page = None if output is None else output.with_suffix(PAGE_SUFFIX)
    check_outputs({"--output": [output, page], "--plot": [plot]}, [timeline, checked], overwrite=overwrite)
    if draw is not None and output is not None:
        length = window_length(footage.extents, labeled, window)
        paths = _find_recordings(footage.paths, timeline)
        windows = sample_windows(footage.extents, labeled, length, draw, seed=seed, strata=[*groups.values()])
        _write_windows(output, windows, footage, paths, labeled, group, whose)
        for name, videos in groups.items():
            if (num_sampled := sum(each.video in videos for each in windows)) < draw:
                say(f"{name}: only {plural(num_sampled, 'window')} left")
        say(f"open {page}, click what happens in each window, and save the list as {output}")
        say(f"next: {footage.command_with(output, whose, length, group)}")
        return
    assert checked is not None, "refused above"
    strata = [] if sampled_by is None else [*group_recordings(sampled_by, footage.extents).values()]
    document = _estimate(footage, labeled, window, groups, strata, seed)
    command = footage.command_with(checked, whose, document["window"], sampled_by)
    notes = list(list_notes(document, command, len(strata)))
    _write_estimates(document, notes, output, plot)
    (print_json if as_json else print_budget)(document)
    say(*notes, *([] if page is None else [f"page: {page}"]))


def _show_plan(
    footage: Recordings,
    groups: Mapping[str, Sequence[str]],
    group: str | None,
    window: float | None,
    *,
    as_json: bool,
) -> None:
    """Print the half-widths for numbers of windows, and the command that samples them."""
    from everest_workflows.recordings.footage import window_length
    from everest_workflows.recordings.window_plan import CLICK_SECONDS

    seconds = window_length(footage.extents, {}, window)
    (print_json if as_json else print_plan)(_plan(footage, groups, seconds))
    of_groups = [] if group is None else ["--group", group]
    draw_command = shlex.join([*footage.command, *of_groups, "--window", f"{seconds:g}"])
    say(f"minutes: to watch each window once, and {CLICK_SECONDS:g} s to click")
    say(f"next: {draw_command} --draw N --output checked.csv")


def _write_estimates(
    document: Mapping[str, Any], notes: Sequence[str], output: Path | None, plot: Path | None
) -> None:
    """Write the table of --output and the page beside it, and the figure of --plot."""
    if plot is None and output is None:
        return
    from everest_workflows.recordings.timeline_figure import draw_budget

    if plot is not None:
        draw_budget(plot, document)
    if output is not None:
        from everest.evaluation.page import write_summary_page
        from everest_workflows.recordings.budget_page import summarize_budget

        write_table(output, _make_table(document["rows"]))
        with TemporaryDirectory() as folder:
            draw_budget(figure := Path(folder) / "shares.png", document)
            summary = summarize_budget(document, notes, str(figure))
            write_summary_page(output.with_suffix(PAGE_SUFFIX), summary)


def _read_footage(timeline: Path, rules: RuleOptions) -> Recordings:
    """Read a saved timeline; its bouts follow from the saved rules and the options."""
    from everest_workflows.recordings.scores import check_one_head
    from everest_workflows.recordings.timelines import Timelines

    timelines = Timelines.load(timeline)
    check_one_head(timelines.classes.heads, option="--timeline")
    if not timelines.extents:
        raise DataError(f"{timeline}: has no windows; name a timeline of readable videos")
    say(*timelines.notices)
    by_rules = rules.over(timelines.rules)
    predicted = {
        recording.video: [bout.to_bout(video=recording.video) for bout in bouts if bout.has_class]
        for recording, by_head in zip(timelines.videos, timelines.bouts(by_rules), strict=True)
        for bouts in by_head.values()
        if len(recording.starts)
    }
    command = "everest", "budget", "--timeline", str(timeline), *by_rules.options(timelines.rules).split()
    (head,) = timelines.classes.heads
    classes = timelines.classes.names_of_head(head)
    paths = {each.video: each.path for each in timelines.videos if each.video in predicted}
    model = classes, head, timelines.model
    return Recordings(paths, timelines.extents, predicted, *model, by_rules.smooth, command)


def _find_recordings(paths: Mapping[str, str], timeline: Path) -> dict[str, str]:
    """The files of recordings; a relative path may begin in a folder above the saved timeline."""
    from everest.system.storage import parse_location

    found = {}
    for name, path in paths.items():
        location = parse_location(path)
        places = [location, *(folder / path for folder in timeline.absolute().parents)]
        found[name] = next((str(index) for index in places if index.exists()), None)
    if missing := [paths[name] for name, path in found.items() if path is None]:
        fix = "restore them, or run budget in the folder in which timeline ran"
        raise DataError(f"{timeline}: its recordings are not found: {first_names(missing)}; {fix}")
    return found


def _read_checked(file: Path, footage: Recordings, whose: BoutFilter) -> tuple[Bouts, str | None]:
    """Read the checked bouts of each recording, and the --group of the draw; None: all recordings."""
    from everest_workflows.annotations.codings import read_video_annotations
    from everest_workflows.annotations.formats import is_header
    from everest_workflows.annotations.records import read_table
    from everest_workflows.recordings.scores import refuse_unknown_classes

    labels = read_video_annotations([file], footage.extents, people=whose, keep_windows=True)
    if labels.unmatched:
        names = f"{first_names(labels.unmatched)}; use the names that --draw wrote"
        raise DataError(f"{file}: names videos that are not in the timeline: {names}")
    refuse_unknown_classes(labels.bouts, footage.classes, source=file)
    say(*labels.notices)
    if labels.uncorrected_text:
        say(f"warning: {file} has {labels.uncorrected_text}, which count as what a person saw")
    sampled_by = None
    with suppress(ValueError):  # the file is of another kind
        _, header, rows = read_table(file, is_header)
        found = (dict(zip(header, cells, strict=False)).get(GROUP_COLUMN) for _, cells in rows)
        sampled_by = next(filter(None, found), None)
    return {video: labels.bouts.get(video, []) for video in footage.extents}, sampled_by


def _plan(footage: Recordings, groups: Mapping[str, Sequence[str]], seconds: float) -> list[dict[str, Any]]:
    """Return the document of --plan --json, for windows of some seconds."""
    from everest_workflows.recordings.window_plan import plan_windows, read_fold_tests

    tests = read_fold_tests(footage.model, footage.head, footage.classes)
    return plan_windows(footage.extents, groups, tests, seconds)


def _estimate(
    footage: Recordings,
    labeled: Bouts,
    window: float | None,
    groups: Mapping[str, Sequence[str]],
    strata: Sequence[Sequence[str]],
    seed: int,
) -> dict[str, Any]:
    """Return the document of --json: rows for all recordings and each group, and the methods."""
    from everest import __version__
    from everest_workflows.recordings.footage import find_checked_windows, sample_windows
    from everest_workflows.recordings.time_budget import compute_time_budget
    from everest_workflows.recordings.window_plan import read_training_methods

    amounts: list[Any] = [footage.extents, footage.predicted, labeled]
    options: dict[str, Any] = {"window": window, "classes": footage.classes}
    document = compute_time_budget(*amounts, **options, strata=strata, groups=groups)
    _, sampled, length = find_checked_windows(footage.extents, labeled, window)
    numbers = [sum(each.video in videos for each in sampled) for videos in strata or [footage.extents]]
    redrawn = sample_windows(footage.extents, {}, length, max(numbers), seed=seed, strata=strata)
    seeded = f" (NumPy, seed {seed})" if set(redrawn) == set(sampled) else ""
    number = " to ".join(map(str, sorted({min(numbers), max(numbers)})))
    stratified = f", {number} in each of {len(strata)} groups of recordings" if strata else ""
    averaged = f", with probabilities averaged over {footage.smooth:g} s" if footage.smooth else ""
    pooled = " Error rates of groups were pooled over the groups (random effects)." if groups else ""
    document["methods"] = (  # text for a publication
        f"{read_training_methods(footage.model)}A model of everest {__version__} predicted all "
        f"{document['footage']:.1f} s of footage{averaged}. A person watched {document['checked']} of "
        f"{document['windows']} windows of {length:g} s{stratified}, sampled at random{seeded}. "
        "The seconds and bouts of each class were estimated by prediction-powered inference with power "
        "tuning (Angelopoulos et al. 2023, arXiv 2311.01453), with 95 % score intervals (Wilson 1927); "
        f"classes whose interval the model does not make narrower, without it.{pooled} The intervals cover "
        "the sampling of windows in these recordings (for bouts, also the share that begins exactly with a "
        "window), not other animals or recordings."
    )
    return document


def _make_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """Yield the rows of a CSV, one for each group and class; `group` is empty for all recordings together."""
    plain = "group", "class", "seconds", "percent", "minutes_per_hour", "bouts", "mean_bout", "se"
    yield (
        *(*plain, "low", "high", "model", "watched_only", "watched_only_low", "watched_only_high"),
        *("bouts_low", "bouts_high", "checked_percent", "borrowed", "saved_windows"),
    )
    for row in rows:
        alone = row["watched_only"]
        values = *(row[name] for name in plain), *row["interval"], row["model"], alone["seconds"]
        ends = *alone["interval"], *row["bouts_interval"], row["checked_percent"], row["borrowed"]
        yield ["" if value is None else str(value) for value in (*values, *ends, row["saved_windows"])]


def _write_windows(
    output: Path,
    windows: Sequence[FootageWindow],
    footage: Recordings,
    paths: Mapping[str, str],
    checked: Bouts,
    group: str | None,
    whose: o.WhoseOptions,
) -> None:
    """Write a list of the checked rows and the newly sampled windows, and a page for checking the windows.

    The list keeps the --group, which the estimates need.
    """
    from everest.figures.pages import make_card, write_page
    from everest.lists.sample import Sample
    from everest_workflows.annotations.bout import BACKGROUND, TO_CHECK
    from everest_workflows.annotations.formats import TABLE_COLUMNS

    chosen = {"subject": whose.subject or "", "observer": next(iter(whose.observer or ()), "")}
    known = [
        {"video": bout.video, "start": repr(bout.start), "end": repr(bout.end), "label": bout.label}
        | {name: getattr(bout, name) for name in chosen}
        | {GROUP_COLUMN: group or ""}
        for bouts in checked.values()
        for bout in bouts
    ]
    sampled = [
        {"video": each.video, "start": f"{each.start:.3f}", "end": f"{each.end:.3f}", "label": TO_CHECK}
        | {**chosen, GROUP_COLUMN: group or ""}
        for each in windows
    ]
    people = [name for name in chosen if any(row[name] for row in known)]
    columns = [*TABLE_COLUMNS, *people, *([GROUP_COLUMN] if group else [])]
    table = [columns, *([row.get(name, "") for name in columns] for row in [*known, *sampled])]
    cards = []
    for each, row in zip(windows, table[1 + len(known) :], strict=True):
        lead = round(min(LEAD_IN, each.start - footage.extents[each.video][0]), 3)
        card = make_card(Sample(path=paths[each.video], start=each.start - lead, end=each.end))
        cards.append(card | {"row": row, "lead": lead, "times": f"{each.start:.2f} s to {each.end:.2f} s"})
    page = output.with_suffix(PAGE_SUFFIX)
    values = {"list_file": output.name, "rows": table[: 1 + len(known)], "cards": cards}
    values["classes"] = [name for name in footage.classes if name != BACKGROUND]
    write_page(page, "everest_workflows.recordings", "windows_page.html", **values)
    write_table(output, table)
    typer.echo(output)
    typer.echo(page)
