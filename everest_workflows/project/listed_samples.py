"""The labeled samples of a project: what is said of them, and what may make their test too easy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from everest.config.settings import DataSettings
from everest.errors import join_first
from everest.lists.classes import Classes
from everest.lists.labels import Label, class_indices
from everest.lists.reading import SampleList
from everest.lists.sample import ListSize, Sample
from everest.prepare.check import difference_text, differences_by_headers
from everest.system.text import plural
from everest_workflows.annotations.bout import BACKGROUND, UNSCORED
from everest_workflows.annotations.records import left_out_text
from everest_workflows.project.lists import check_copies
from everest_workflows.project.request import ProjectLists
from everest_workflows.project.summary import MAX_CLASSES, MAX_NAMES

DIFFERENCE_FIXES: Final = {  # see `everest.prepare.check.class_differences`
    "frame rate": "record all classes alike, or --set data.fps=N with the lowest rate",
    "frame size": "record all classes alike, or shrink all to the smallest by everest prepare encode",
}


@dataclass(frozen=True, kw_only=True)
class ListedSamples:
    """The labeled samples of a project."""

    lists: ProjectLists
    sources: Mapping[str, SampleList]  # by the keys of the lists
    classes: Classes

    @property
    def all(self) -> tuple[Sample, ...]:
        return tuple(chain.from_iterable(source.samples for source in self.sources.values()))

    def count(self, key: str) -> int:
        """The number of samples of a list; of folds, each sample is validated and tested once."""
        source = self.sources.get("train" if self.lists.folds else key)
        return 0 if source is None else len(source.samples)


def list_warnings(samples: ListedSamples) -> Iterator[str]:
    """What may make the test too easy."""
    parts = {
        sample.path: name if samples.lists.are_given else sample.group_or_path
        for name, source in samples.sources.items()
        for sample in source.samples
    }
    yield from check_copies(parts)
    yield from check_groups(samples.all)
    for row in differences_by_headers(replace(samples.sources["train"], samples=samples.all).by_class):
        yield f"{difference_text(row)}; {DIFFERENCE_FIXES[row['of']]}"


def describe_size(samples: Sequence[Sample]) -> str:
    """The number of samples of a list, with the names of a few groups."""
    groups = sorted({sample.group for sample in samples if sample.group is not None})
    names = f" ({', '.join(groups)})" if 0 < len(groups) <= MAX_NAMES else ""
    return f"{ListSize.of(samples)}{names}"


def describe_lists(samples: ListedSamples, data: DataSettings) -> Iterator[str]:
    """How the samples are divided, and what of the annotations counts."""
    lists = samples.lists
    if lists.are_given:
        names = ", ".join(getattr(data, key) for key in samples.sources)
        yield f"divided by the lists in {data.root}: {names}"
    if lists.folds:
        yield f"{len(lists.folds)} folds: each group is tested once, by a model that has not seen it"
    if lists.left_out:
        yield f"left out of the annotations: {left_out_text(lists.left_out)}"
    if lists.subjects:
        names = join_first(lists.subjects, MAX_NAMES)
        yield f"bouts of {len(lists.subjects)} subjects ({names}) are taken together; see --subject"


def check_groups(samples: Sequence[Sample]) -> Iterator[str]:
    """Warns if each group of several samples has one class: a model may learn its light or camera."""
    labels: dict[str, list[Label]] = defaultdict(list)
    for sample in samples:
        if class_indices(sample.labels[0]):  # not of numbers, nor of a window without a bout
            labels[sample.group_or_path].append(sample.labels[0])
    several = [listed for listed in labels.values() if len(listed) > 1]
    if several and all(len(set(listed)) == 1 for listed in several):
        problem = "every group has clips of one class only, so a model may learn the light, camera or place"
        yield f"{problem} of groups, and the test cannot tell; film several classes in each group"


def describe_samples(
    samples: Sequence[Sample], classes: Classes, *, windows: bool
) -> tuple[dict[str, int], list[str]]:
    """The number of samples of each class, and lines about classes, groups and time without a bout.

    `windows`: whether the samples are from annotated recordings.
    """
    groups = sorted({sample.group for sample in samples if sample.group is not None})
    lines = [f"{plural(len(groups), 'group')}: {join_first(groups, MAX_NAMES)}"] if groups else []
    if classes.heads[0].task == "regression":
        return {}, lines
    counts = dict.fromkeys(classes.names_of_head(classes.heads[0]), 0)
    sources_of: dict[str, set[str]] = defaultdict(set)  # of each class
    behaviors: dict[str, set[str]] = defaultdict(set)  # of each recording
    without = 0
    for sample in samples:
        names = {classes.name(index) for index in class_indices(sample.labels[0])}
        for name in names:
            counts[name] += 1
            sources_of[name].add(sample.group_or_path)
        behaviors[sample.group_or_path] |= names - {BACKGROUND}
        without += not names - {BACKGROUND}
    groups_of = {
        name: f" ({plural(len(sources), 'group')})" for name, sources in sources_of.items() if groups
    }
    sizes = [f"{name} {number}{groups_of.get(name, '')}" for name, number in counts.items()]
    lines = [f"{plural(len(sizes), 'class')}: {join_first(sizes, MAX_CLASSES)}", *lines]
    if windows and without:
        fate = f"class '{BACKGROUND}'" if BACKGROUND in counts else "no class"
        fix = f"label time that nobody watched '{UNSCORED}'"
        lines.append(f"{without} of {plural(len(samples), 'window')} have no bout ({fate}); {fix}")
    if rare := [name for name, sources in sources_of.items() if len(sources) == 1]:
        unit = "group" if groups else "recording" if windows else "video"
        problem = f"{join_first(rare, MAX_NAMES)} can be learned or tested, not both"
        lines.append(f"warning: {problem}: all from one {unit}; add {unit}s with it, or merge classes")
    single = sorted(recording for recording, names in behaviors.items() if len(names) == 1)
    if windows and single:
        problem = f"only one behavior is annotated in {join_first(single, MAX_NAMES)}"
        lines.append(f"warning: {problem}; time with any other counts as time without behavior")
    return counts, lines
