"""What the labels of all lists together tell: gaps, and names that may be one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from everest.prepare.layouts.folders import same_but_for_case
from everest.prepare.sources import LabelRules, Source

SHOWN: Final = 10  # numbers that a line names


def used_labels(sources: Sequence[Source]) -> list[set[int]]:
    """The labels of every head that any sample has."""
    labels = [row.sample.labels for source in sources if source.labelled for row in source.rows]
    heads = max(map(len, labels), default=0)
    return [{label[head] for label in labels if len(label) > head} for head in range(heads)]


def label_problems(sources: Sequence[Source], rules: LabelRules) -> list[str]:
    """Rows that are wrong, names that differ in case only, and numbers left out below the highest."""
    rows = [f"{row.place}: {row.problem}" for source in sources for row in source.rows if row.problem]
    lines = [f"{place}: {problem}" for source in sources for place, problem in source.unreadable.items()]
    pairs = [
        f"the classes '{one}' and '{other}' differ in case only; are they one?"
        for one, other in same_but_for_case(rules.names)
    ]
    gaps = []
    if not _known_counts(rules):
        for used in used_labels(sources):
            unused = sorted(set(range(max(used, default=0))) - used)
            if unused:
                gaps.append(f"no sample has label {_first(unused)}, and labels go up to {max(used)}")
    return [*lines, *rows, *pairs, *gaps]


def unused_classes(sources: Sequence[Source], rules: LabelRules) -> list[str]:
    """Classes that are known and have no sample, which long-tailed data sets have."""
    heads = list(rules.heads or [""])
    unused = []
    for head, used, count in zip(heads, used_labels(sources), _known_counts(rules), strict=False):
        names = [
            rules.names[label] if rules.names else str(label) for label in range(count) if label not in used
        ]
        unused += [f"{head} {name}" for name in names] if head else names
    return unused


def _known_counts(rules: LabelRules) -> list[int]:
    """The number of classes of each head; nothing where it is not known."""
    if rules.heads:
        return list(rules.heads.values())
    count = len(rules.names) or rules.num_classes
    return [count] if count else []


def _first(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN])) + (", …" if len(numbers) > SHOWN else "")
