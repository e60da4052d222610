"""Check the labels of all lists of a data set together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from everest.config.heads import MULTI_LABEL
from everest.errors import first_names
from everest.lists.checked import CheckedList, CheckedSample
from everest.lists.class_folders import alike_names
from everest.lists.label_facts import are_equal, count_classes, number_facts
from everest.lists.labels import Label, LabelRules, columns_of, indices
from everest.video.folders import SPLITS

SHOWN: Final = 10  # labels that a line lists
RARE: Final = 5  # our choice: a class with fewer training videos is hardly learned, and named


def check_labels(
    sources: Sequence[CheckedList], rules: LabelRules, *, training: CheckedList | None = None
) -> tuple[list[str], list[str]]:
    """Check the labels of all lists together.

    Args:
        training: the list that models are trained on, if there is one.
    Returns:
        Problems: wrong rows, names that look alike, unused labels below the highest one, columns without a
            label, and labels that a model cannot learn from the training list.
        The known classes without a sample, which long-tailed data sets have.
    """
    problems = [f"{where}: {problem}" for source in sources for where, problem in source.unreadable.items()]
    for source in sources:
        problems += _row_problems(source, rules, trains=source is training)
    unused_classes = []
    for head in _heads(sources):
        used: dict[int, str] = {}  # each label with the first row that has it
        for row, label in _labels(sources, head):
            for index in indices(label):
                used.setdefault(index, row.where)
        if not head and rules.names:
            row_of = {rules.names[label]: f" ({where})" for label, where in used.items()}
            for *pair, difference in alike_names(rules.names):
                one, other = (f"'{name}'{row_of.get(name, '')}" for name in pair)
                text = f"the classes {one} and {other} differ in {difference} only; are they one?"
                problems.append(text)
        count = _num_classes(rules, head)
        if count is None:
            problems += _gaps(used)
        else:
            unused = [label for label in range(count) if label not in used]
            unused_classes += [_class_name(rules, head, label) for label in unused]
        if training is not None:
            problems += _unlearnable(sources, training, rules, head)
    return problems, unused_classes


def training_source(sources: Sequence[CheckedList]) -> CheckedList | None:
    """Return the list called train, else the first labeled one; None if its name is of another list."""
    named = []  # with `train`, `val` or `test` for a list of such a name, as mice_train.csv
    for source in sources:
        last = re.split(r"[_-]", source.path.name.split(".")[0].lower())[-1]
        if source.labeled:
            named.append((source, SPLITS.get(last)))
    train = next((source for source, split in named if split == "train"), None)
    return train or next((source for source, split in named[:1] if split is None), None)


def class_counts(sources: Sequence[CheckedList], rules: LabelRules) -> list[dict[str, Any]]:
    """Return for each class its videos, in total and in each list that has any."""
    found = []
    for head in _heads(sources):
        by_list = {
            str(source.path): count_classes(label for _, label in _labels([source], head))
            for source in sources
        }
        for index in sorted(set().union(*by_list.values())):
            lists = {path: counts[index] for path, counts in by_list.items() if counts[index]}
            found.append(
                {"class": _class_name(rules, head, index), "videos": sum(lists.values()), "lists": lists}
            )
    return found


def rare_classes(training: CheckedList | None, rules: LabelRules) -> list[dict[str, Any]]:
    """Return the classes with a few videos in the training list, below `RARE`, the rarest first."""
    counts = [] if training is None else class_counts([training], rules)
    rare = [{"class": row["class"], "videos": row["videos"]} for row in counts if row["videos"] < RARE]
    return sorted(rare, key=lambda row: row["videos"])


def number_counts(sources: Sequence[CheckedList]) -> dict[str, dict[str, float]]:
    """Return the distribution of the numbers of each head of numbers; the name of an only head is `label`."""
    found = {head: number_facts(label for _, label in _labels(sources, head)) for head in _heads(sources)}
    return {head or "label": facts for head, facts in found.items() if facts is not None}


def _row_problems(source: CheckedList, rules: LabelRules, *, trains: bool) -> Iterator[str]:
    for column in source.missing_columns:
        yield f"{source.path}: the list has no column {column}"
    tasks = {"label": rules.task}  # of the columns, as far as they are known
    tasks |= {name: head.task for head in rules.heads for name in columns_of([head.name])}
    for column in source.empty_columns:
        if trains or tasks.get(column) != MULTI_LABEL:  # else no video shows a class
            yield f"{source.path}: the column {column} is empty in all rows"
    merged = source.two_kinds.rows if source.two_kinds else frozenset()
    problems = {row.where: row.problem for row in source.rows if row.problem is not None}
    if source.two_kinds and merged & problems.keys():
        yield source.two_kinds.problem
    yield from (f"{where}: {problem}" for where, problem in problems.items() if where not in merged)


def _heads(sources: Sequence[CheckedList]) -> list[str]:
    """The names of all heads; an only head has none."""
    names = [[head.name for head in source.heads] or [""] for source in sources if source.labeled]
    return list(dict.fromkeys(name for listed in names for name in listed))


def _labels(sources: Sequence[CheckedList], head: str) -> Iterator[tuple[CheckedSample, Label]]:
    """Yields the rows with a label of a head."""
    for source in sources:
        names = [own.name for own in source.heads] or [""]
        if source.labeled and head in names:
            position = names.index(head)
            yield from ((row, row.sample.labels[position]) for row in source.rows if row.sample.labels)


def _num_classes(rules: LabelRules, head: str) -> int | None:
    """The number of classes of a head, 0 for numbers; None if it is not known."""
    for own in rules.heads:
        if own.name == head:
            return 0 if own.task == "regression" else own.outputs
    return (len(rules.names) or rules.num_classes) if not head else None


def _class_name(rules: LabelRules, head: str, label: int) -> str:
    if head:
        return f"{head} {label}"
    return rules.names[label] if rules.names else str(label)


def _gaps(used: dict[int, str]) -> Iterator[str]:
    highest = max(used, default=0)
    if len(used) < highest + 1 and used:
        gaps = (label for label in range(highest) if label not in used)
        listed = first_names(list(islice(gaps, SHOWN + 1)), SHOWN)  # a wrong label may be very high
        yield f"{used[highest]}: no sample has label {listed}, and labels go up to {highest}"


def _unlearnable(
    sources: Sequence[CheckedList], training: CheckedList, rules: LabelRules, head: str
) -> Iterator[str]:
    """Yields equal numbers, classes that only other lists have, and classes that all training videos have."""
    labels = [label for _, label in _labels([training], head)]
    if len(labels) > 1 and are_equal(labels):
        (column,) = columns_of([head]) if head else ("label",)
        text = f"all numbers of the column {column} are {labels[0]:g}, so a model cannot learn them"
        yield f"{training.path}: {text}"
    trained = count_classes(labels)
    if not trained:  # numbers, or an unreadable column
        return
    elsewhere: dict[int, str] = {}
    for row, label in _labels([source for source in sources if source is not training], head):
        for index in indices(label):
            elsewhere.setdefault(index, row.where)
    for index in sorted(elsewhere.keys() - trained.keys()):
        name = _class_name(rules, head, index)
        yield f"{elsewhere[index]}: class '{name}' has no video in {training.path}, the training list"
    for index, count in sorted(trained.items()):
        if len(labels) > 1 and count == len(labels) and isinstance(labels[0], tuple):
            name = _class_name(rules, head, index)
            yield f"{training.path}: all {count} videos have the class '{name}', so a model cannot learn it"
