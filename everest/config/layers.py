"""From files and `--set` to one set of values: later layers win, and a value remembers where it was written.

The layers, from below: the defaults of everest.config.settings, the bases of a recipe, the recipe, `--set`.
The `by_backbone` values of a layer lie directly on it, so whatever a later layer says wins over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

from everest.config.sizes import BACKBONES
from everest.config.values import with_hyphens
from everest.config.yaml import read_yaml
from everest.errors import RecipeError, did_you_mean
from everest.methods.strategies import STRATEGIES

KeyPath = tuple[str, ...]

SET = "--set"  # the place that messages name for an override
STAGES = ("pretrain", "finetune")  # the sections that may hold `by_backbone` and `selection`
BY_BACKBONE = "by_backbone"
HEADS = ("data", "heads")  # a mapping that is one value: a later one takes its place


@dataclass(frozen=True)
class Origin:
    """Where a value was written: the file (or `--set`) and the key in it."""

    label: str
    key: KeyPath
    layer: int = -1  # its number, from below

    def __str__(self) -> str:
        return f"{self.label}: {'.'.join(self.key)}"


@dataclass(frozen=True)
class Layer:
    """What one file or one `--set` says, `by_backbone` apart: {stage: {backbone: values}}."""

    label: str
    values: dict[str, Any]
    by_backbone: dict[str, dict[str, dict[str, Any]]]
    changes_a_head: bool = False  # an override of one head leaves the others

    @property
    def gives_heads(self) -> bool:
        data = self.values.get("data")
        return isinstance(data, dict) and "heads" in data and not self.changes_a_head


@dataclass(frozen=True)
class Merged:
    """The values that hold for one backbone."""

    values: dict[str, Any]
    origins: dict[KeyPath, Origin]  # of what a layer states; the defaults have none
    label: str  # the recipe that was asked for

    def origin(self, key: KeyPath) -> Origin:
        """Where `key`, or the value that it is a part of, was written."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                found = self.origins[key[:length]]
                return Origin(found.label, found.key + key[length:], found.layer)
        return Origin(self.label, key)

    def given_in(self, label: str) -> set[KeyPath]:
        """The keys that were written there; of a mapping those of its values."""
        return {key for key in _keys(self.values) if self.origin(key).label == label}


def _keys(values: dict[str, Any], path: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, (*path, key))
        else:
            yield (*path, key)


@dataclass(frozen=True)
class LayerStack:
    """The defaults, and all layers on them in their order."""

    label: str
    defaults: dict[str, Any]
    layers: Sequence[Layer]

    def merged(self, backbone: str | None) -> Merged:
        """The values with what depends on `backbone`."""
        merged = Merged(deepcopy(self.defaults), {}, self.label)
        for number, layer in enumerate(self.layers):
            if layer.gives_heads:
                merged.values["data"]["heads"] = None
            _lay(merged, layer.label, number, layer.values)
            for stage, choices in layer.by_backbone.items():
                if backbone in choices:
                    written = (stage, BY_BACKBONE, backbone)
                    _lay(merged, layer.label, number, choices[backbone], (stage,), written)
        return merged

    def chosen_backbone(self) -> str | None:
        """What the layers choose, valid or not; None where no name can be found."""
        model = self.merged(None).values["model"]
        name = with_hyphens(model.get("backbone")) if isinstance(model, dict) else None
        return name if isinstance(name, str) else None

    def backbones(self) -> list[str]:
        """The backbones that some `by_backbone` names."""
        choices = (names for layer in self.layers for names in layer.by_backbone.values())
        return sorted({name for names in choices for name in names})


def _lay(
    merged: Merged,
    label: str,
    number: int,
    values: dict[str, Any],
    path: KeyPath = (),
    written: KeyPath = (),
) -> None:
    """Lay `values` of layer `number` on what is at `path`; `written` is the path in their file."""
    target = merged.values
    for part in path:
        target = target[part]
    for key, value in values.items():
        below = target.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            _lay(merged, label, number, value, (*path, key), (*written, key))
        elif value is None and not path and isinstance(below, dict):
            continue  # a section with nothing but comments in it
        else:
            target[key] = deepcopy(value)
            merged.origins[(*path, key)] = Origin(label, (*written, key), number)


def make_layer(
    label: str, values: dict[str, Any], problems: list[str], *, changes_a_head: bool = False
) -> Layer:
    """Take `by_backbone` out of the stages; what cannot be meant goes to `problems`."""
    by_backbone: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in STAGES:
        section = values.get(stage)
        if not isinstance(section, dict) or BY_BACKBONE not in section:
            continue
        choices, where = section.pop(BY_BACKBONE), Origin(label, (stage, BY_BACKBONE))
        if not isinstance(choices, dict) or not all(isinstance(choice, dict) for choice in choices.values()):
            problems.append(f"{where}: must be a mapping such as {{vit-s: {{base_lr: 1.5e-4}}}}")
            continue
        for name in choices:
            if with_hyphens(name) not in BACKBONES:
                problems.append(f"{where}: unknown backbone '{name}'{did_you_mean(name, BACKBONES)}")
        by_backbone[stage] = {with_hyphens(name): choice for name, choice in choices.items()}
    return Layer(label, values, by_backbone, changes_a_head)


def read_overrides(overrides: Sequence[str], problems: list[str]) -> list[Layer]:
    """A layer for each `section.key=value`; the value is read as YAML."""
    layers = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            problems.append(f"{SET}: '{override}' must be section.key=value")
            continue
        try:
            value = read_yaml(text, SET)
        except RecipeError:
            problems.append(f"{Origin(SET, path)}: '{text}' is not YAML")
            continue
        for part in reversed(path):
            value = {part: value}
        changes_a_head = path[:2] == HEADS and path != HEADS
        layers.append(make_layer(SET, value, problems, changes_a_head=changes_a_head))
    return layers


def drop_foreign_keys(merged: Merged) -> list[str]:
    """Take out of each selection what only other strategies have, and name what is worth a notice.

    A recipe that changes the strategy of its base leaves the base's keys behind in silence. Named are keys
    beside the strategy that does not have them, and all where `--set` gives the strategy or the key.
    """
    notices = []
    known = {field.name for strategy in STRATEGIES.values() for field in fields(strategy)}
    for stage in STAGES:
        section = merged.values[stage]
        selection = section.get("selection") if isinstance(section, dict) else None
        if not isinstance(selection, dict):
            continue
        name = with_hyphens(selection.get("strategy"))
        if not isinstance(name, str) or name not in STRATEGIES:
            continue
        # Older recipes call tube dropout `tube`, which no other strategy of fine-tuning is called.
        strategy = "tube-dropout" if (stage, name) == ("finetune", "tube") else name
        selection["strategy"] = strategy
        own = {field.name for field in fields(STRATEGIES[strategy])}
        own -= _of_another_share(merged, stage, name)
        chosen_in = merged.origin((stage, "selection", "strategy")).label
        for key in known.intersection(selection).difference(own):
            del selection[key]
            origin = merged.origins.get((stage, "selection", key))
            if origin and (SET in (origin.label, chosen_in) or origin.label == chosen_in):
                notices.append(f"{stage}.selection.{key} has no effect with {name}")
    return sorted(notices)


def _of_another_share(merged: Merged, stage: str, strategy: str) -> set[str]:
    """`keep_ratio` where it was written below the choice of learned-importance: there it is another share."""
    written = merged.origins.get((stage, "selection", "keep_ratio"))
    chosen = merged.origin((stage, "selection", "strategy"))
    below = written is None or written.layer < chosen.layer
    return {"keep_ratio"} if strategy == "learned-importance" and below else set()
