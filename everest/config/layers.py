"""Merges files and `--set` into one set of values. Later layers win, and each value records its origin.

The layers, from the bottom: the defaults in everest.config.settings, the bases of a recipe, the recipe,
`--set`. The `by_backbone` values of a layer are directly above it, so a value of any later layer wins over
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

from everest.config.sizes import BACKBONES
from everest.config.values import with_hyphens
from everest.config.yaml import MOST_LEVELS, read_yaml
from everest.errors import RecipeError, did_you_mean, shown
from everest.methods.external import is_import_path
from everest.methods.strategies import STRATEGIES

KeyPath = tuple[str, ...]

SET = "--set"  # messages use it as the origin of an override
STAGES = ("pretrain", "finetune")  # the sections that may have `by_backbone` and `selection`
BY_BACKBONE = "by_backbone"
VIEW_DRAW = ("keep_ratio", "uniform")  # of `pretrain.views`
# Of learning between views, if no strategy is named; our choice.
VIEW_SELECTION = {"strategy": "drawn", "keep_ratio": 0.25, "visible_ratio": None, "uniform": 0.5}
HEADS = ("data", "heads")  # a mapping that is one value: a later mapping replaces it


@dataclass(frozen=True)
class Origin:
    """Where a value was written: the file (or `--set`) and the key in it."""

    label: str
    key: KeyPath
    layer: int = -1  # number of the layer, counted from the bottom

    def __str__(self) -> str:
        return f"{self.label}: {shown('.'.join(self.key))}"


@dataclass(frozen=True)
class Layer:
    """The values of one file or one `--set`; `by_backbone` is apart: {stage: {backbone: values}}."""

    label: str
    values: dict[str, Any]
    by_backbone: dict[str, dict[str, dict[str, Any]]]
    replaces_heads: bool


@dataclass(frozen=True)
class Merged:
    """The values that apply to one backbone."""

    values: dict[str, Any]
    origins: dict[KeyPath, Origin]  # of the values that a layer sets; the defaults have none
    label: str  # the requested recipe
    notices: list[str] = field(default_factory=list)

    def at(self, key: KeyPath) -> Any:
        """The value of `key`; None if it is in no mapping."""
        value: Any = self.values
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def origin(self, key: KeyPath) -> Origin:
        """Where `key`, or the value that contains it, was written."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                outer = self.origins[key[:length]]
                return Origin(outer.label, outer.key + key[length:], outer.layer)
        return Origin(self.label, key)


def inner_keys(values: dict[str, Any], path: KeyPath = ()) -> Iterator[KeyPath]:
    """The keys of values that are no mappings, at any depth."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from inner_keys(value, (*path, key))
        else:
            yield (*path, key)


@dataclass(frozen=True)
class LayerStack:
    """The defaults, and all layers above them in their order."""

    label: str
    defaults: dict[str, Any]
    layers: Sequence[Layer]

    def merged(self, backbone: str | None) -> Merged:
        """All values, including those that depend on `backbone`."""
        merged = Merged(deepcopy(self.defaults), {}, self.label)
        since: dict[str, int] = {}  # the layer from which on views are compared, and tokens drawn
        for number, layer in enumerate(self.layers):
            if layer.replaces_heads:
                merged.values["data"]["heads"] = None
            _apply(merged, layer.label, number, layer.values)
            for stage, choices in layer.by_backbone.items():
                if backbone in choices:
                    written = (stage, BY_BACKBONE, backbone)
                    _apply(merged, layer.label, number, choices[backbone], (stage,), written)
            for value, key in (("views", "objective"), ("drawn", "selection.strategy")):
                if merged.at(("pretrain", *key.split("."))) == value:
                    since.setdefault(value, number)
                else:
                    since.pop(value, None)
        _draw_views(merged, since)
        return merged


def _apply(
    merged: Merged, label: str, number: int, values: dict[str, Any], path: KeyPath = (), written: KeyPath = ()
) -> None:
    """Merge `values` of layer `number` into the values at `path`; `written` is the path in their file."""
    target = merged.values
    for part in path:
        target = target[part]
    for key, value in values.items():
        below = target.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            _apply(merged, label, number, value, (*path, key), (*written, key))
        elif value is None and not path and isinstance(below, dict):
            continue  # a section that contains only comments
        else:
            target[key] = deepcopy(value)
            for inside in [each for each in merged.origins if each[: len(path) + 1] == (*path, key)]:
                del merged.origins[inside]
            merged.origins[(*path, key)] = Origin(label, (*written, key), number)


def _draw_views(merged: Merged, since: dict[str, int]) -> None:
    """Draw the tokens of views, unless the objective's layer or a later one names another strategy.

    Another selection below the objective is for predicting pixels. Values of `--set` stay, in any order.

    Args:
        since: the lowest layer from which on `views` is the objective, and that of `drawn` as the strategy.
    """
    path = ("pretrain", "selection")
    selection = merged.at(path)
    if "views" not in since or not isinstance(selection, dict):
        return
    first = min(since.values())
    origins = {key: merged.origin((*path, key)) for key in selection}
    own = {key for key, origin in origins.items() if origin.layer >= first or origin.label == SET}
    strategy = origins["strategy"]
    if "strategy" in own and selection["strategy"] != "drawn":
        return
    if "strategy" not in own and strategy.layer >= 0:
        share, uniform = VIEW_SELECTION["keep_ratio"], VIEW_SELECTION["uniform"]
        merged.notices.append(
            f"{strategy.label}: its pretrain.selection is for predicting pixels; views draw tokens "
            f"(keep_ratio {share}, uniform {uniform}, unless pretrain.views names others)"
        )
    for key in origins:
        if key not in own:
            merged.origins.pop((*path, key), None)
    for key in VIEW_SELECTION.keys() - own:
        merged.origins[*path, key] = merged.origin(("pretrain", "objective"))
    merged.values["pretrain"]["selection"] = VIEW_SELECTION | {key: selection[key] for key in own}


def make_layer(
    label: str, values: dict[str, Any], problems: list[str], *, changes_a_head: bool = False
) -> Layer:
    """Separate `by_backbone` from the stages, and append invalid ones to `problems`.

    Values that override one head (`changes_a_head`) leave the other heads as they are.
    """
    by_backbone: dict[str, dict[str, dict[str, Any]]] = {}
    _replace_other_names(values.get("pretrain"))
    for stage in STAGES:
        section = values.get(stage)
        if not isinstance(section, dict) or BY_BACKBONE not in section:
            continue
        choices, origin = section.pop(BY_BACKBONE), Origin(label, (stage, BY_BACKBONE))
        if not isinstance(choices, dict) or not all(isinstance(choice, dict) for choice in choices.values()):
            problems.append(f"{origin}: must be a mapping such as {{vit-s: {{base_lr: 1.5e-4}}}}")
            continue
        for name in choices:
            if with_hyphens(name) not in BACKBONES:
                problems.append(f"{origin}: unknown backbone '{shown(name)}'{did_you_mean(name, BACKBONES)}")
        by_backbone[stage] = {with_hyphens(name): choice for name, choice in choices.items()}
    data = values.get("data")
    replaces_heads = isinstance(data, dict) and "heads" in data and not changes_a_head
    return Layer(label, values, by_backbone, replaces_heads)


def _replace_other_names(pretrain: object) -> None:
    """Write the draw in `views` as the selection that it is short for."""
    if not isinstance(pretrain, dict):
        return
    views = pretrain.get("views")
    drawn = {key: views.pop(key) for key in VIEW_DRAW if key in views} if isinstance(views, dict) else {}
    selection = pretrain.get("selection") or {}
    if drawn and isinstance(selection, dict):
        pretrain["selection"] = {"strategy": "drawn", "visible_ratio": None, **drawn, **selection}


def read_overrides(overrides: Sequence[str], problems: list[str]) -> list[Layer]:
    """A layer for each `section.key=value`; the value is read as YAML."""
    layers = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path) or len(path) > MOST_LEVELS:
            problems.append(f"{SET}: '{shown(override)}' must be section.key=value")
            continue
        try:
            value = read_yaml(text, SET)
        except RecipeError as error:
            reason = str(error).partition(": ")[2]
            problems.append(f"{Origin(SET, path)}: '{shown(text)}' is not YAML ({reason})")
            continue
        for part in reversed(path):
            value = {part: value}
        changes_a_head = path[:2] == HEADS and path != HEADS
        layers.append(make_layer(SET, value, problems, changes_a_head=changes_a_head))
    return layers


def drop_foreign_keys(merged: Merged) -> list[str]:
    """Remove the keys from each selection that its strategy does not have.

    A recipe that changes the strategy of its base leaves the base's keys behind, which is no mistake.

    Returns:
        The notices of `merged`, and one for each stage about the removed keys that were written in the layer
        of the strategy, or if `--set` gives the strategy or the key.
    """
    notices = list(merged.notices)
    known = {each.name for strategy in STRATEGIES.values() for each in fields(strategy)}
    _drop_inherited_keys(merged, ("pretrain", "target"), "kind")
    for stage in STAGES:
        _drop_inherited_keys(merged, (stage, "selection"), "strategy")
        selection = merged.at((stage, "selection"))
        if not isinstance(selection, dict):
            continue
        name = with_hyphens(selection.get("strategy"))
        if not isinstance(name, str) or name not in STRATEGIES:
            continue
        selection["strategy"] = name
        own = {each.name for each in fields(STRATEGIES[name])}
        chosen = merged.origin((stage, "selection", "strategy"))
        if name == "learned-importance":
            # A keep_ratio from a layer below the strategy is the share of another strategy.
            written = merged.origins.get((stage, "selection", "keep_ratio"))
            if written is None or written.layer < chosen.layer:
                own.remove("keep_ratio")
        if name == "random" and selection.get("visible_ratio", 0) is None:
            own.remove("visible_ratio")  # null is of strategies that keep a part of the tokens
        idle = []
        for key in sorted(known.intersection(selection).difference(own)):
            del selection[key]
            origin = merged.origins.get((stage, "selection", key))
            if origin and (SET in (origin.label, chosen.label) or origin.label == chosen.label):
                idle.append(key)
        if len(idle) == 1:
            notices.append(f"{stage}.selection.{idle[0]} has no effect with {name}")
        elif idle:
            notices.append(f"{stage}.selection: {', '.join(idle)} have no effect with {name}")
    return notices


def _drop_inherited_keys(merged: Merged, path: KeyPath, name: str) -> None:
    """Remove the keys of layers below the one in which `name` names a class of another package.

    They belong to the class that a base or a default names. Keys of `--set` stay, in any order.
    """
    section = merged.at(path)
    if not isinstance(section, dict) or not is_import_path(section.get(name)):
        return
    chosen = merged.origin((*path, name))
    for key in section.keys() - {name}:
        written = merged.origins.get((*path, key))
        if written is None or (written.layer < chosen.layer and written.label != SET):
            del section[key]
