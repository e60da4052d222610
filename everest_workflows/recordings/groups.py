"""The groups of recordings, such as animals, in a time budget."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from everest.errors import RecipeError, UserError

if TYPE_CHECKING:
    from everest_workflows.recordings.timelines import Timelines

SUBJECT: Final = "subject"  # value of --group: keep recordings of a subject together


def group_recordings(group: str, videos: Iterable[str]) -> dict[str, list[str]]:
    """Return the recordings of each group, for a value of --group."""
    from everest.lists.groups import COLUMN_PREFIX, set_groups
    from everest.lists.sample import Sample

    if group == SUBJECT or group.startswith(COLUMN_PREFIX):
        raise RecipeError(
            f"--group {group}: recordings have only names here; give a pattern, as '^([^\\W_]+)'"
        )
    groups: dict[str, list[str]] = {}
    for sample in set_groups([Sample(path=video) for video in videos], group, root=Path()):
        groups.setdefault(sample.group_or_path, []).append(sample.path)
    return dict(sorted(groups.items()))


def suggest_budget(timelines: Timelines, saved: Path, group: str | None) -> Iterator[str]:
    """Yield the command that plans or draws windows to check, in each group by the --group of training.

    Nothing for a model of numbers or of several heads.
    """
    from everest_workflows.recordings.checked_windows import choose_first_sample
    from everest_workflows.recordings.window_plan import find_group_pattern, has_fold_tests

    heads = timelines.classes.heads
    if len(heads) != 1 or heads[0].task == "regression":
        return
    number, seconds = choose_first_sample(timelines.extents)
    if group == SUBJECT:
        group = find_group_pattern(timelines.model) or group
    options, num_groups = ["--timeline", str(saved)], 1
    try:
        num_groups = len(group_recordings(group, timelines.extents)) if group else 1
    except UserError:  # the names of these recordings do not state their groups
        yield f"add --group PATTERN: training had --group {group}, which these names do not show"
    if group and num_groups > 1:
        options += ["--group", group]
    draw = ["--output", str(saved.with_name("checked.csv")), "--draw", str(max(number // num_groups, 2))]
    options += ["--plan"] if has_fold_tests(timelines.model) else [*draw, "--window", f"{seconds:g}"]
    yield f"next: everest budget {shlex.join(options)}"
