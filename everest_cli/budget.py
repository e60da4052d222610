"""`everest budget`: time and bouts of each class, estimated from windows that a person has checked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from everest.system.files import write_table
from everest.system.text import plural
from everest_cli import options as o
from everest_cli.bout_files import check_outputs
from everest_cli.budget_text import list_notes, print_budget, print_plan
from everest_cli.options import option, refuse
from everest_cli.output import print_json, say
from everest_cli.timeline import RuleOptions
from everest_workflows.recordings.groups import group_recordings

if TYPE_CHECKING:
    from everest_workflows.recordings.budget_files import CheckedList, SavedFootage


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
    from everest_workflows.recordings.budget_files import (
        PAGE_SUFFIX,
        CheckedList,
        SavedFootage,
        read_checked_list,
    )
    from everest_workflows.recordings.timelines import Timelines

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
    bout_filter = whose.read(checked, option="--checked")
    timelines = Timelines.load(timeline)
    by_rules = rules.over(timelines.rules)
    words = ["everest", "budget", "--timeline", str(timeline), *by_rules.options(timelines.rules).split()]
    footage = SavedFootage.of(timelines, by_rules, timeline)
    say(*timelines.notices)
    listed = CheckedList() if checked is None else read_checked_list(checked, footage, bout_filter)
    say(*listed.notices)
    other = f"--group {group}: the windows were sampled with --group {listed.group}; leave it out"
    refuse({other: draw and group and listed.group and group != listed.group})
    group = group or listed.group
    command = _BudgetCommand(
        footage=footage, listed=listed, group=group, window=window, whose=whose, seed=seed, words=words
    )
    if plan:
        command.plan(as_json=as_json)
        return
    page = None if output is None else output.with_suffix(PAGE_SUFFIX)
    check_outputs({"--output": [output, page], "--plot": [plot]}, [timeline, checked], overwrite=overwrite)
    if draw is not None and output is not None:
        command.draw(draw, output)
        return
    assert checked is not None, "refused above"
    document, notes = command.estimate(checked)
    _write_estimates(document, notes, output, plot)
    (print_json if as_json else print_budget)(document)
    say(*notes, *([] if page is None else [f"page: {page}"]))


@dataclass(frozen=True, kw_only=True)
class _BudgetCommand:
    """Footage, what a person checked of it, and the options."""

    footage: SavedFootage
    listed: CheckedList
    group: str | None
    window: float | None
    whose: o.WhoseOptions
    seed: int
    words: Sequence[str]

    def group_recordings(self, group: str | None) -> dict[str, list[str]]:
        """The recordings of each group."""
        return {} if group is None else group_recordings(group, self.footage.extents)

    def command_with(self, checked: Path, window: float, group: str | None) -> str:
        """The command with a list of checked windows, and the options that have a value.

        Args:
            window: length in seconds, which a list does not show if all its windows end with a recording.
        """
        given = [f"--observer={name}" for name in self.whose.observer or ()]
        chosen = {"subject": self.whose.subject, "window": f"{window:.12g}", "group": group}
        chosen["seed"] = str(self.seed) if self.seed else None  # the methods name it
        given += [f"--{name}={value}" for name, value in chosen.items() if value is not None]
        return shlex.join([*self.words, "--checked", str(checked), *given])

    def plan(self, *, as_json: bool) -> None:
        """Print the half-widths for numbers of windows, and the command that samples them."""
        from everest_workflows.recordings.checked_windows import window_length
        from everest_workflows.recordings.window_plan import CLICK_SECONDS, plan_windows, read_fold_tests

        footage, groups = self.footage, self.group_recordings(self.group)
        seconds = window_length(footage.extents, {}, self.window)
        tests = read_fold_tests(footage.model, footage.head, footage.classes)
        (print_json if as_json else print_plan)(plan_windows(footage.extents, groups, tests, seconds))
        of_groups = [] if self.group is None else ["--group", self.group]
        draw_command = shlex.join([*self.words, *of_groups, "--window", f"{seconds:g}"])
        say(f"minutes: to watch each window once, and {CLICK_SECONDS:g} s to click")
        say(f"next: {draw_command} --draw N --output checked.csv")

    def draw(self, number: int, output: Path) -> None:
        """Write a list and a page of windows to check, `number` of each group."""
        from everest_workflows.recordings.budget_files import write_windows_to_check
        from everest_workflows.recordings.checked_windows import sample_windows, window_length

        extents, checked, groups = self.footage.extents, self.listed.bouts, self.group_recordings(self.group)
        length = window_length(extents, checked, self.window)
        windows = sample_windows(extents, checked, length, number, seed=self.seed, strata=[*groups.values()])
        people = {"subject": self.whose.subject or "", "observer": next(iter(self.whose.observer or ()), "")}
        page = write_windows_to_check(output, windows, self.footage, checked, group=self.group, people=people)
        typer.echo(output)
        typer.echo(page)
        for name, videos in groups.items():
            if (num_sampled := sum(window.video in videos for window in windows)) < number:
                say(f"{name}: only {plural(num_sampled, 'window')} left")
        say(f"open {page}, click what happens in each window, and save the list as {output}")
        say(f"next: {self.command_with(output, length, self.group)}")

    def estimate(self, checked: Path) -> tuple[dict[str, Any], list[str]]:
        """The document of --json, with rows for all recordings and each group, and notes on it."""
        from everest_workflows.recordings.budget_report import describe_methods
        from everest_workflows.recordings.time_budget import compute_time_budget

        footage, bouts = self.footage, self.listed.bouts
        strata = [*self.group_recordings(self.listed.group).values()]
        document = compute_time_budget(
            *(footage.extents, footage.predicted, bouts),
            window=self.window,
            classes=footage.classes,
            strata=strata,
            groups=self.group_recordings(self.group),
        )
        document["methods"] = describe_methods(document, footage, bouts, strata, self.seed)
        command = self.command_with(checked, document["window"], self.listed.group)
        return document, [*list_notes(document, command, len(strata))]


def _write_estimates(
    document: Mapping[str, Any], notes: Sequence[str], output: Path | None, plot: Path | None
) -> None:
    """Write the table of --output and the page beside it, and the figure of --plot."""
    if plot is None and output is None:
        return
    from everest.evaluation.page import write_summary_page
    from everest_workflows.recordings.budget_files import PAGE_SUFFIX
    from everest_workflows.recordings.budget_report import list_table_rows, summarize_budget
    from everest_workflows.recordings.timeline_figure import draw_budget

    if plot is not None:
        draw_budget(plot, document)
    if output is not None:
        write_table(output, list_table_rows(document["rows"]))
        with TemporaryDirectory() as folder:
            draw_budget(figure := Path(folder) / "shares.png", document)
            summary = summarize_budget(document, notes, str(figure))
            write_summary_page(output.with_suffix(PAGE_SUFFIX), summary)
