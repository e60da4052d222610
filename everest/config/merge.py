"""Merges recipe files and `--set`; every value remembers where it was written.

The layers, from the bottom: the defaults of everest.config.settings, the bases of a recipe, the recipe,
`--set`. The `by_backbone` values of a layer are a layer directly above it. A later layer wins. A layer that
chooses a variant of a section replaces the section, apart from `--set` and settings that the variant shares
with that for which they were written. everest.config.stage_settings has the variants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field
from typing import Any, Final, NamedTuple

from everest.config.model import BACKBONES
from everest.config.recipe_files import RecipeFile, with_bases
from everest.config.settings import Recipe
from everest.config.stage_settings import (
    HEADS,
    SHORT,
    STAGES,
    TRAINED,
    VARIANTS,
    VIEWS,
    WITHOUT_EFFECT,
    KeyPath,
)
from everest.config.tokenizer import TokenizerSettings
from everest.config.values import with_hyphens
from everest.config.yaml import read_yaml
from everest.errors import RecipeError, did_you_mean, shown
from everest.methods.external import is_import_path

SET: Final = "--set"  # the origin of an override
BY_BACKBONE: Final = "by_backbone"
BACKBONE: Final = ("model", "backbone")


class Written(NamedTuple):
    """A value that is no mapping, and where it was written."""

    value: Any
    label: str = ""  # the file, or `--set`
    key: KeyPath = ()  # its key in the file
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


def _fields(section: KeyPath, variant: Any) -> Mapping[str, Field[Any]]:
    """The fields of a variant, the same objects in variants that share them; none if it is not shipped."""
    cls = VARIANTS[section].classes.get(variant) if isinstance(variant, str) else None
    return {} if cls is None else cls.__dataclass_fields__  # type: ignore[attr-defined]


_DEFAULTS: Final = _defaults(Recipe(name=""))
_VIEWS: Final = [*VARIANTS[VIEWS].classes.values()][::-1]  # the default loss comes last
USUAL: Final = {  # by key, also of sections that the default recipe does not have
    **_defaults(TokenizerSettings(), ("tokenizer",)),
    **{key: each for cls in _VIEWS for key, each in _defaults(cls(), VIEWS).items()},
    **_DEFAULTS,
}
# Keys of a section that no class has.
FURTHER: Final[dict[KeyPath, tuple[str, ...]]] = {
    (): ("base",),
    **{section: names for section, (names, *_) in SHORT.items()},
    **{(stage,): (BY_BACKBONE,) for stage in STAGES},
}
# Choices by a name, which may have underscores in place of hyphens.
NAMED: Final = {(*section, variants.tag) for section, variants in VARIANTS.items()} | {("data", "task")}


@dataclass
class Merged:
    """The values of all layers, for the backbone that they choose."""

    label: str  # the requested recipe
    written: dict[KeyPath, Written]  # no key is inside another one
    problems: list[str] = field(default_factory=list)
    # By section, of the defaults and then of each layer.
    variants: list[dict[KeyPath, Any]] = field(default_factory=list)

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
        for each in [*below, *(key[:length] for length in range(1, len(key)))]:
            self.written.pop(each, None)
        self.written[key] = written

    def note_variants(self) -> None:
        """Note the variants after a layer, for which it has written its values."""
        self.variants.append(
            {section: self.at((*section, each.tag)).value for section, each in VARIANTS.items()}
        )

    def choose(self) -> None:
        """Drop what lower layers wrote for other variants, and what sets nothing."""
        for section, variants in VARIANTS.items():
            tag, inside = (*section, variants.tag), self.inside(section)
            if inside.keys() - {section} and not self.inside(tag):
                self.written[tag] = Written(next(iter(variants.classes)))
            chosen = self.at(tag)
            fields = _fields(section, chosen.value)
            for key, written in inside.items() if section not in inside else ():
                name = key[len(section)]
                of_layer = _fields(section, self.variants[written.layer + 1][section])
                is_of_other = written.is_below(chosen) and of_layer.get(name) is not fields.get(name)
                # A file may list the keys of all variants.
                sets_nothing = _is_default(key, written) or written.value in (None, {})
                if key != tag and (is_of_other or (fields and name not in fields and sets_nothing)):
                    del self.written[key]
            for inner in VARIANTS:
                if inner[:-1] == section and inner[-1] in fields and section not in inside:
                    self._fill(inner, fields[inner[-1]].default_factory)

    def _fill(self, section: KeyPath, factory: Any) -> None:
        """Write the default of a section where nothing is written, unless that chooses another variant."""
        defaults = {} if factory is MISSING else _defaults(factory(), section)
        tag = (*section, VARIANTS[section].tag)
        chosen = self.written.get(tag, Written(defaults.get(tag)))
        if section not in self.written and chosen.value == defaults.get(tag):
            for key, value in defaults.items():
                if not self.inside(key):
                    self.written[key] = Written(value)

    def drop_without_effect(self) -> None:
        """Drop inherited values without effect; those written beside the choice, or later, are errors."""
        for stage in TRAINED:  # of steps and epochs those of the later layer stay
            steps, epochs = self.at((stage, "steps")), self.at((stage, "epochs"))
            if None not in (steps.value, epochs.value) and steps.layer != epochs.layer:
                earlier = "epochs" if epochs.layer < steps.layer else "steps"
                self.written[stage, earlier] = Written(None)
        for tag, without_effect in WITHOUT_EFFECT.items():
            chosen = self.at(tag)
            named = "" if isinstance(chosen.value, dict) else f"={shown(chosen.value)}"
            for key in [(*tag[:-1], name) for name in without_effect(chosen.value)]:
                written = self.at(key)
                if not (written.is_below(chosen) or written.value is None or _is_default(key, written)):
                    text = f"has no effect with {'.'.join(tag)}{named}; leave it out"
                    self.problems.append(f"{self.place(key)}: {text}")
                self.written.pop(key, None)


def _is_default(key: KeyPath, written: Written) -> bool:
    """Whether a file writes what a key has anyway."""
    return written.label != SET and written.value == USUAL.get(key)


def merge(file: RecipeFile, overrides: Sequence[str]) -> Merged:
    """Merge the defaults, a recipe with its bases, and `section.key=value` texts."""
    defaults = {key: Written(value) for key, value in _DEFAULTS.items()}
    merged = Merged(file.label, defaults | {("name",): Written(file.name)})
    merged.note_variants()
    layers = [(source.label, _leaves(values)) for source, values in with_bases(file) if values]
    layers += read_overrides(overrides, merged.problems)
    backbones = [layer[BACKBONE] for _, layer in layers if BACKBONE in layer]
    backbone = with_hyphens(backbones[-1]) if backbones else _DEFAULTS[BACKBONE]
    for number, (label, layer) in enumerate(layers):
        of_backbone = {}  # values by their key, each with its key in the file
        for key in [key for key in layer if key[0] in STAGES and key[1:2] == (BY_BACKBONE,)]:
            value, name = layer.pop(key), with_hyphens("".join(key[2:3]))
            if name == backbone:
                of_backbone[key[0], *key[3:]] = value, (*key[:2], name, *key[3:])
            elif name not in BACKBONES and value not in (None, {}):
                text = f"unknown backbone '{shown(name)}'{did_you_mean(name, BACKBONES)}"
                merged.problems.append(f"{_place(label, key[:2])}: {text}")
        for section, (names, other, implied) in SHORT.items():
            given = {name: layer.pop((*section, name)) for name in names if (*section, name) in layer}
            if given and not layer.get(other):
                layer.pop(other, None)
                for name, value in {**implied, **given}.items():
                    layer.setdefault((*other, name), value)
        for key, (value, place) in [*((key, (layer[key], key)) for key in layer), *of_backbone.items()]:
            if key[:2] == HEADS != key:  # a head; the others stay
                heads = merged.at(HEADS).value
                value = (heads if isinstance(heads, dict) else {}) | {key[2]: value}
                key = place = HEADS
            elif key in NAMED and not is_import_path(value):
                value = with_hyphens(value)
            merged.write(key, Written(value, label, place, number))
        merged.note_variants()
    merged.choose()
    merged.drop_without_effect()
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
