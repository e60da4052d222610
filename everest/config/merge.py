"""Merges recipe files and `--set`; every value remembers where it was written.

The layers, from the bottom: the defaults of everest.config.settings, the bases of a recipe, the recipe,
`--set`. The `by_backbone` values of a layer are a layer directly above it. A later layer wins. When a layer
makes a different choice, settings that lower files wrote for the old choice are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, NamedTuple

from everest.config.model import BACKBONES
from everest.config.recipe_files import RecipeFile, with_bases
from everest.config.settings import Recipe
from everest.config.stage_settings import (
    STAGES,
    VARIANTS,
    ContrastSettings,
    SigregSettings,
    ViewPretrainSettings,
)
from everest.config.tokenizer import TokenizerSettings
from everest.config.values import with_hyphens
from everest.config.yaml import read_yaml
from everest.errors import RecipeError, did_you_mean, shown
from everest.methods.external import is_import_path

KeyPath = tuple[str, ...]

SET: Final = "--set"  # the origin of an override
BY_BACKBONE: Final = "by_backbone"
BACKBONE: Final = ("model", "backbone")
HEADS: Final = ("data", "heads")  # a mapping that is one value: a later mapping replaces it
TRAINED: Final = (*STAGES, "tokenizer")
OBJECTIVE: Final = ("pretrain", "objective")
SELECTION: Final = ("pretrain", "selection")
VIEWS: Final = ("pretrain", "views")
VIEW_DRAW: Final = ("keep_ratio", "uniform")  # of VIEWS: short for the same keys of the selection


class Written(NamedTuple):
    """A value that is no mapping, and where it was written."""

    value: Any
    label: str = ""  # the file, or `--set`
    key: KeyPath = ()  # in the file
    layer: int = -1  # counted from the bottom; -1: a default

    def is_below(self, other: Written) -> bool:
        """Whether this value is inherited where the other one is written; `--set` inherits nothing."""
        return self.layer < other.layer and self.label != SET


def _leaves(value: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """The keys of the values that are no mappings, at any depth; an empty mapping is a value."""
    if not isinstance(value, dict) or not value or path[:2] == HEADS:
        return {path: value}
    inner = [_leaves(each, (*path, key)) for key, each in value.items()]
    return {key: each for leaves in inner for key, each in leaves.items()}


def _defaults(settings: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """The values of settings, as YAML has them."""
    return _leaves(json.loads(json.dumps(asdict(settings))), path)


_DEFAULTS: Final = _defaults(Recipe(name=""))
USUAL: Final = {  # by key, also of sections that the default recipe does not have
    **_defaults(TokenizerSettings(), ("tokenizer",)),
    **_defaults(SigregSettings(), VIEWS),
    **_defaults(ContrastSettings(), VIEWS),
    **_DEFAULTS,
}
_DRAW: Final = _defaults(ViewPretrainSettings().selection, SELECTION)


# Keys of a section that no class has.
FURTHER: Final[dict[KeyPath, tuple[str, ...]]] = {
    (): ("base",),
    VIEWS: VIEW_DRAW,
    **{(stage,): (BY_BACKBONE,) for stage in STAGES},
}
# By the key of a choice: keys of its section that have no effect with a value of it. Inherited ones are
# dropped; those that the layer of the choice or a later one writes are errors.
IDLE: Final[dict[KeyPath, Callable[[Any], Collection[str]]]] = {
    ("data", "task"): lambda task: ("classes", "num_classes") if task == "regression" else (),
    HEADS: lambda heads: ("task", "num_classes") if heads else (),
    **{(stage, "steps"): lambda steps: ("warmup_epochs",) if steps else () for stage in TRAINED},
    **{(stage, "epochs"): lambda epochs: ("warmup_steps",) if epochs else () for stage in TRAINED},
}
# Choices by a name, which may have underscores in place of hyphens.
NAMED: Final = {(*section, variants.tag) for section, variants in VARIANTS.items()} | {("data", "task")}


@dataclass
class Merged:
    """The values of all layers, for the backbone that they choose."""

    label: str  # the requested recipe
    written: dict[KeyPath, Written]  # no key is inside another one
    problems: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        """The sections of a recipe."""
        sections: dict[str, Any] = {}
        for (*outer, key), written in self.written.items():
            section = sections
            for name in outer:
                section = section.setdefault(name, {})
            section[key] = written.value
        return sections

    def at(self, key: KeyPath) -> Written:
        """What is written as `key`, or its default."""
        return self.written.get(key, Written(USUAL.get(key)))

    def inside(self, section: KeyPath) -> dict[KeyPath, Written]:
        """What is written in a section, at any depth, or in place of it."""
        return {key: each for key, each in self.written.items() if key[: len(section)] == section}

    def place(self, key: KeyPath) -> str:
        """Where `key`, the value that contains it, or the last value in it was written."""
        for length in range(len(key), 0, -1):
            outer = self.at(key[:length])
            if outer.label:
                return _place(outer.label, (*outer.key, *key[length:]))
        inside = self.inside(key).items()
        inner, last = max(inside, key=lambda each: each[1].layer, default=(key, Written(None)))
        if last.label not in (SET, self.label):
            return _place(self.label, key)
        return _place(last.label, last.key[: len(last.key) - len(inner) + len(key)])

    def write(self, key: KeyPath, written: Written) -> None:
        """Set `key`, replacing its earlier value and any value that contains it or lies inside it."""
        below = self.inside(key)
        is_section = below and key not in below
        if is_section and (written.value == {} or (written.value is None and len(key) == 1)):
            return  # it contains only comments
        if key == OBJECTIVE and written.value == self.at(key).value:
            return  # it was chosen in an earlier layer
        for each in [*below, *(key[:length] for length in range(1, len(key)))]:
            self.written.pop(each, None)
        self.written[key] = written

    def choose(self) -> None:
        """Drop what lower files wrote for other choices; what is left is an error, here or in validation."""
        self._draw_views()
        for section, variants in VARIANTS.items():
            tag = (*section, variants.tag)
            inside = self.inside(section)
            if inside.keys() - {section} and not self.inside(tag):
                self.written[tag] = Written(next(iter(variants.classes)))
            chosen = self.at(tag)
            cls = variants.classes.get(chosen.value) if isinstance(chosen.value, str) else None
            types = {} if cls is None else {each.name: str(each.type) for each in fields(cls)}
            for key, written in inside.items():
                if key == section:
                    continue
                name, *inner = key[len(section) :]
                is_unfit = cls is not None and name not in types
                is_null = written.value is None and not inner and "None" not in types.get(name, "None")
                # A share that means something else in other strategies is not inherited from them.
                is_own = (chosen.value, name) == ("learned-importance", "keep_ratio")
                is_replaced = is_null or is_own or is_import_path(chosen.value)
                # A file may list the keys of all variants.
                sets_nothing = _is_default(key, written) or written.value in (None, {})
                if (is_unfit and sets_nothing) or ((is_unfit or is_replaced) and written.is_below(chosen)):
                    del self.written[key]
        for stage in TRAINED:  # of steps and epochs those of the later layer stay
            steps, epochs = self.at((stage, "steps")), self.at((stage, "epochs"))
            if None not in (steps.value, epochs.value) and steps.layer != epochs.layer:
                earlier = "epochs" if epochs.layer < steps.layer else "steps"
                self.written[stage, earlier] = Written(None)
        for tag, idle in IDLE.items():
            chosen = self.at(tag)
            named = "" if isinstance(chosen.value, dict) else f"={shown(chosen.value)}"
            for key in [(*tag[:-1], name) for name in idle(chosen.value)]:
                written = self.at(key)
                if not (written.is_below(chosen) or written.value is None or _is_default(key, written)):
                    text = f"has no effect with {'.'.join(tag)}{named}; leave it out"
                    self.problems.append(f"{self.place(key)}: {text}")
                self.written.pop(key, None)

    def _draw_views(self) -> None:
        """Draw the tokens of views, unless the objective's layer or a later one names another strategy.

        Another selection below the objective is for predicting pixels. Values of `--set` stay, in any order.
        """
        objective, strategy = self.at(OBJECTIVE), self.at((*SELECTION, "strategy"))
        draws, is_inherited = strategy.value == "drawn", strategy.is_below(objective)
        if objective.value != "views" or SELECTION in self.written or not (draws or is_inherited):
            return
        since = min(objective, strategy, key=lambda each: each.layer) if draws else objective
        for key, written in self.inside(SELECTION).items():
            if written.is_below(since):
                del self.written[key]
        for key, value in _DRAW.items():
            if not self.inside(key):
                self.written[key] = Written(value)


def _is_default(key: KeyPath, written: Written) -> bool:
    """Whether a file writes what a key has anyway."""
    return written.label != SET and written.value == USUAL.get(key)


def merge(file: RecipeFile, overrides: Sequence[str]) -> Merged:
    """Merge the defaults, a recipe with its bases, and `section.key=value` texts."""
    defaults = {key: Written(value) for key, value in _DEFAULTS.items()}
    merged = Merged(file.label, defaults | {("name",): Written(file.name)})
    layers = [(source.label, _leaves(values)) for source, values in with_bases(file) if values]
    layers += read_overrides(overrides, merged.problems)
    backbones = [layer[BACKBONE] for _, layer in layers if BACKBONE in layer]
    backbone = with_hyphens(backbones[-1]) if backbones else _DEFAULTS[BACKBONE]
    for number, (label, layer) in enumerate(layers):
        of_backbone = {}  # by the key and where it stands in the file
        for key in [key for key in layer if key[0] in STAGES and key[1:2] == (BY_BACKBONE,)]:
            value, name = layer.pop(key), with_hyphens("".join(key[2:3]))
            if name == backbone:
                of_backbone[key[0], *key[3:]] = value, (*key[:2], name, *key[3:])
            elif name not in BACKBONES and value not in (None, {}):
                text = f"unknown backbone '{shown(name)}'{did_you_mean(name, BACKBONES)}"
                merged.problems.append(f"{_place(label, key[:2])}: {text}")
        drawn = {name: layer.pop((*VIEWS, name)) for name in VIEW_DRAW if (*VIEWS, name) in layer}
        if drawn and not layer.get(SELECTION):  # the draw in `views` is short for a selection
            layer.pop(SELECTION, None)
            for name, value in {"strategy": "drawn", "visible_ratio": None, **drawn}.items():
                layer.setdefault((*SELECTION, name), value)
        for key, (value, place) in [*((key, (layer[key], key)) for key in layer), *of_backbone.items()]:
            if key[:2] == HEADS != key:  # a head; the others stay
                heads = merged.at(HEADS).value
                value = (heads if isinstance(heads, dict) else {}) | {key[2]: value}
                key = place = HEADS
            elif key in NAMED and not is_import_path(value):
                value = with_hyphens(value)
            merged.write(key, Written(value, label, place, number))
    merged.choose()
    return merged


def read_overrides(overrides: Sequence[str], problems: list[str]) -> Iterator[tuple[str, dict[KeyPath, Any]]]:
    """A layer for each `section.key=value`; the value is read as YAML."""
    for override in overrides:
        text, equals, yaml = override.partition("=")
        key = tuple(text.strip().split("."))
        if not equals or not all(key):
            problems.append(f"{SET}: '{shown(override)}' must be section.key=value")
            continue
        if key[0] == "base":
            problems.append(f"{SET}: base: belongs in a recipe file; choose another --recipe")
            continue
        try:
            value = read_yaml(yaml, SET)
        except RecipeError as error:
            reason = str(error).partition(": ")[2]
            problems.append(f"{_place(SET, key)}: '{shown(yaml)}' is not YAML ({reason})")
            continue
        while key[:2] == HEADS and len(key) > 3:
            *outer, name = key
            key, value = tuple(outer), {name: value}
        yield SET, _leaves(value, key)


def _place(label: str, key: KeyPath) -> str:
    """The file and the key; only the key of an override, which `--set` or another option may have given."""
    return f"{'' if label == SET else f'{label}: '}{shown('.'.join(key))}"
