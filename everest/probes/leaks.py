"""Warnings of videos, groups and files that both lists of a probe have: its accuracies are too high."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everest.lists.sample import Sample
from everest.system.events import Report, notice


def report_shared(train: Sequence[Sample], test: Sequence[Sample], report: Report) -> None:
    """Warn of test videos that are training videos, or of the same groups or files."""
    videos, sources = {sample.video_id for sample in train}, {sample.source for sample in train}
    shared = [sample.path for sample in test if sample.video_id in videos]
    if shared:
        of = f"{len(shared)} of {len(test)} test videos are training videos, too, such as {shared[0]}"
        report(notice(f"warning: {of}: the accuracies are too high"))
    same = [sample.source for sample in test if sample.source in sources and sample.video_id not in videos]
    if same:
        of = f"{len(same)} of {len(test)} test videos are of groups or files of training videos"
        fix = "`everest prepare split --group` keeps them apart"
        report(notice(f"warning: {of}, such as {same[0]}: the accuracies may be too high; {fix}"))


def report_missing_groups(lists: Mapping[str, Sequence[Sample]], report: Report) -> None:
    """Name the lists without groups, by their keys in a recipe."""
    without = [name for name, samples in lists.items() if all(sample.group is None for sample in samples)]
    if without:
        text = f"{' and '.join(without)}: without a column group, each file counts as a group of its own"
        report(notice(f"{text}: near videos may show the same person or place"))
