"""Merges recipe files and `--set`, and remembers where each value was written.

The layers, from the bottom: the defaults of everest.config.settings, the bases of a recipe, the recipe,
`--set`. The `by_backbone` values of a layer are a layer directly above it. A later layer wins. A layer that
chooses a variant of a section (SECTION_VARIANTS) replaces what files below it wrote for another variant,
apart from settings that both variants inherit from a common base class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field
from inspect import get_annotations
from typing import Any, Final, NamedTuple

from everest.config.model_settings import BACKBONES
from everest.config.recipe_files import RecipeFile, with_bases
from everest.config.settings import Recipe
from everest.config.stage_settings import (
    SECTION_VARIANTS,
    SELECTION_KEY,
    STAGES,
    VIEWS_KEY,
    KeyPath,
    ViewsSettings,
)
from everest.config.tokenizer_settings import TokenizerSettings
from everest.config.values import with_hyphens
from everest.config.yaml import read_yaml
from everest.errors import RecipeError, did_you_mean, shorten
from everest.methods.external import is_import_path

SET_OPTION: Final = "--set"  # the origin of an override
BY_BACKBONE: Final = "by_backbone"
BACKBONE_KEY: Final = ("model", "backbone")
HEADS_KEY: Final = ("data", "heads")  # a mapping that is one value: a later mapping replaces it
# Keys of `pretrain.views` that are short for a selection: their names there.
SAMPLING_KEYS: Final = {"view_ratio": "keep_ratio", "uniform": "uniform"}
TRAINED_SECTIONS: Final = (*STAGES, "tokenizer")
# By the key of a choice: the keys of its section that its value makes ineffective. Inherited values are
# dropped; values from the layer of the choice or a later layer are errors.
KEYS_WITHOUT_EFFECT: Final[dict[KeyPath, Callable[[Any], Collection[str]]]] = {
    ("data", "task"): lambda task: ("classes", "num_classes") if task == "regression" else (),
    HEADS_KEY: lambda heads: ("task", "num_classes") if heads else (),
    **{(stage, "steps"): lambda steps: ("warmup_epochs",) if steps else () for stage in TRAINED_SECTIONS},
    **{(stage, "epochs"): lambda epochs: ("warmup_steps",) if epochs else () for stage in TRAINED_SECTIONS},
}


class WrittenValue(NamedTuple):
    """A value that is not a mapping, and where it was written."""

    value: Any
    label: str = ""  # the file, or `--set`
    key: KeyPath = ()  # its key in the file
    layer: int = -1  # counted from the bottom; -1: a default

    def is_inherited_by(self, other: WrittenValue) -> bool:
        """Whether this value comes from a file below the layer of the other one."""
        return self.layer < other.layer and self.label != SET_OPTION


def _leaves(value: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """The values that are not mappings, by their keys at any depth; an empty mapping is a value."""
    if not isinstance(value, dict) or not value or path[:2] == HEADS_KEY:
        return {path: value}
    inner = [_leaves(each, (*path, key)) for key, each in value.items()]
    return {key: each for leaves in inner for key, each in leaves.items()}


def _defaults(settings: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """The values of settings, as YAML has them."""
    return _leaves(json.loads(json.dumps(asdict(settings))), path)


_RECIPE_DEFAULTS: Final = _defaults(Recipe(name=""))
DEFAULTS_BY_KEY: Final = {  # with sections that the default recipe lacks
    **_defaults(TokenizerSettings(), ("tokenizer",)),
    **_defaults(ViewsSettings(), VIEWS_KEY),
    **_RECIPE_DEFAULTS,
}
# Keys of a section that are not fields of its class.
KEYS_WITHOUT_FIELD: Final[dict[KeyPath, tuple[str, ...]]] = {
    (): ("base",),
    VIEWS_KEY: tuple(SAMPLING_KEYS),
    **{(stage,): (BY_BACKBONE,) for stage in STAGES},
}
# Keys whose values are names, in which underscores stand for hyphens.
HYPHENATED_KEYS: Final = {("data", "task"), *((*key, each.tag) for key, each in SECTION_VARIANTS.items())}


@dataclass
class MergedRecipe:
    """The merged values of all layers, for the backbone that they choose."""

    label: str  # the requested recipe
    written: dict[KeyPath, WrittenValue]  # no key is inside another one
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

    def at(self, key: KeyPath) -> WrittenValue:
        """What is written as `key`, or its default."""
        return self.written.get(key, WrittenValue(DEFAULTS_BY_KEY.get(key)))

    def inside(self, section: KeyPath) -> dict[KeyPath, WrittenValue]:
        """What is written in a section, at any depth, or in place of it."""
        return {key: each for key, each in self.written.items() if key[: len(section)] == section}

    def location(self, key: KeyPath) -> str:
        """Where `key`, the value that contains it, or the last value in it was written."""
        for length in range(len(key), 0, -1):
            outer = self.at(key[:length])
            if outer.label:
                return _location(outer.label, (*outer.key, *key[length:]))
        inside = self.inside(key).items()
        inner, last = max(inside, key=lambda each: each[1].layer, default=(key, WrittenValue(None)))
        if last.label not in (SET_OPTION, self.label):
            return _location(self.label, key)
        return _location(last.label, last.key[: len(last.key) - len(inner) + len(key)])

    def write(self, key: KeyPath, written: WrittenValue) -> None:
        """Set `key`, replacing its earlier value and any value that contains it or lies inside it."""
        if key[:2] == HEADS_KEY != key:  # a head; the others stay
            heads = self.at(HEADS_KEY).value
            value = (heads if isinstance(heads, dict) else {}) | {key[2]: written.value}
            key, written = HEADS_KEY, written._replace(value=value, key=HEADS_KEY)
        elif key in HYPHENATED_KEYS and not is_import_path(written.value):
            written = written._replace(value=with_hyphens(written.value))
        below = self.inside(key)
        is_section = below and key not in below
        if is_section and (written.value == {} or (written.value is None and len(key) == 1)):
            return  # it contains only comments
        for each in [*below, *(key[:length] for length in range(1, len(key)))]:
            self.written.pop(each, None)
        self.written[key] = written


def merge(file: RecipeFile, overrides: Sequence[str]) -> MergedRecipe:
    """Merge the defaults, a recipe with its bases, and `section.key=value` texts."""
    merged = MergedRecipe(file.label, {key: WrittenValue(value) for key, value in _RECIPE_DEFAULTS.items()})
    layers: list[tuple[str, dict[KeyPath, Any]]] = [("", {("name",): file.name})]
    layers += [(source.label, _leaves(values)) for source, values in with_bases(file) if values]
    layers += read_overrides(overrides, merged.problems)
    backbones = [values[BACKBONE_KEY] for _, values in layers if BACKBONE_KEY in values]
    backbone = with_hyphens(backbones[-1]) if backbones else _RECIPE_DEFAULTS[BACKBONE_KEY]
    variants: dict[int, dict[KeyPath, Any]] = {}  # by layer and section: what values are written for
    for number, (label, values) in enumerate(layers, start=-1):
        for key, written in _make_layer(number, label, values, backbone, merged.problems).items():
            merged.write(key, written)
        of_sections = SECTION_VARIANTS.items()
        variants[number] = {section: merged.at((*section, each.tag)).value for section, each in of_sections}
    _choose_variants(merged, variants)
    _drop_without_effect(merged)
    return merged


def _make_layer(
    number: int, label: str, values: dict[KeyPath, Any], backbone: str, problems: list[str]
) -> dict[KeyPath, WrittenValue]:
    """A layer, with short forms written out and `by_backbone` replaced by its values for `backbone`."""
    sampling = {
        name: values.pop((*VIEWS_KEY, key))
        for key, name in SAMPLING_KEYS.items()
        if (*VIEWS_KEY, key) in values
    }
    if sampling and not values.get(SELECTION_KEY):
        values.pop(SELECTION_KEY, None)
        for name, value in {"strategy": "sampled", "visible_ratio": None, **sampling}.items():
            values.setdefault((*SELECTION_KEY, name), value)
    layer = {key: WrittenValue(value, label, key, number) for key, value in values.items()}
    for key in [key for key in layer if key[0] in STAGES and key[1:2] == (BY_BACKBONE,)]:
        written, name = layer.pop(key), with_hyphens("".join(key[2:3]))
        if name == backbone:  # its values win in their layer
            layer[key[0], *key[3:]] = written._replace(key=(*key[:2], name, *key[3:]))
        elif name not in BACKBONES and written.value not in (None, {}):
            text = f"unknown backbone '{shorten(name)}'{did_you_mean(name, BACKBONES)}"
            problems.append(f"{_location(label, key[:2])}: {text}")
    return layer


def read_overrides(overrides: Sequence[str], problems: list[str]) -> Iterator[tuple[str, dict[KeyPath, Any]]]:
    """Yield a layer for each `section.key=value`; the value is read as YAML."""
    for override in overrides:
        text, equals, yaml = override.partition("=")
        key = tuple(text.strip().split("."))
        if not equals or not all(key):
            problems.append(f"{SET_OPTION}: '{shorten(override)}' must be section.key=value")
            continue
        if key[0] == "base":
            problems.append(f"{SET_OPTION}: base: belongs in a recipe file; choose another --recipe")
            continue
        try:
            value = read_yaml(yaml, SET_OPTION)
        except RecipeError as error:
            reason = str(error).partition(": ")[2]
            problems.append(f"{_location(SET_OPTION, key)}: '{shorten(yaml)}' is not YAML ({reason})")
            continue
        while key[:2] == HEADS_KEY and len(key) > 3:
            *outer, name = key
            key, value = tuple(outer), {name: value}
        yield SET_OPTION, _leaves(value, key)


def _choose_variants(merged: MergedRecipe, variants: Mapping[int, Mapping[KeyPath, Any]]) -> None:
    """Keep what the chosen variant of each section has, and fill in the defaults of inner sections.

    If a recipe chooses the strategy `random`, and its base wrote a `mask_ratio` for `tube`, the key is
    dropped unless both variants inherit it from a common base. Keys that the chosen variant lacks, and that
    the recipe itself writes, are left for validation to refuse, unless they set nothing.
    """
    for section, (tag, classes) in SECTION_VARIANTS.items():
        inside = merged.inside(section)
        if section in inside:  # a value in place of the section
            continue
        tag_key = (*section, tag)
        if inside and not merged.inside(tag_key):  # none is chosen: the default
            merged.written[tag_key] = WrittenValue(next(iter(classes)))
        chosen = merged.at(tag_key)
        declared = _declaring_classes(section, chosen.value)
        for key in inside.keys() - {tag_key}:
            written, name = merged.written[key], key[len(section)]
            # A file may list the keys of all variants with their defaults.
            sets_nothing = written.value in (None, {}) or _is_default(key, written)
            is_unknown = declared and name not in declared
            written_for = _declaring_classes(section, variants[written.layer][section])
            is_of_other = written.is_inherited_by(chosen) and written_for.get(name) != declared.get(name)
            if is_of_other or (is_unknown and sets_nothing):
                del merged.written[key]
        for name, cls in declared.items():
            if (*section, name) in SECTION_VARIANTS:
                _fill_in(merged, (*section, name), cls.__dataclass_fields__[name].default_factory)


def _declaring_classes(section: KeyPath, variant: Any) -> dict[str, Any]:
    """By setting of a variant: the class that declares it, its own or a base; none if it is not shipped."""
    cls = SECTION_VARIANTS[section].classes.get(variant) if isinstance(variant, str) else None
    classes = () if cls is None else reversed(cls.__mro__)
    return {name: each for each in classes for name in get_annotations(each)}


def _fill_in(merged: MergedRecipe, section: KeyPath, factory: Any) -> None:
    """Write the defaults of a section where nothing is written, unless another variant is chosen."""
    defaults = {} if factory is MISSING else _defaults(factory(), section)
    tag = (*section, SECTION_VARIANTS[section].tag)
    chosen = merged.written.get(tag, WrittenValue(defaults.get(tag)))
    if section not in merged.written and chosen.value == defaults.get(tag):
        for key, value in defaults.items():
            if not merged.inside(key):
                merged.written[key] = WrittenValue(value)


def _drop_without_effect(merged: MergedRecipe) -> None:
    """Drop inherited values without effect; values written with the choice, or later, are problems."""
    for stage in TRAINED_SECTIONS:  # of steps and epochs, the later layer wins
        steps, epochs = merged.at((stage, "steps")), merged.at((stage, "epochs"))
        if None not in (steps.value, epochs.value) and steps.layer != epochs.layer:
            earlier = "epochs" if epochs.layer < steps.layer else "steps"
            merged.written[stage, earlier] = WrittenValue(None)
    for tag, without_effect in KEYS_WITHOUT_EFFECT.items():
        chosen = merged.at(tag)
        named = "" if isinstance(chosen.value, dict) else f"={shorten(chosen.value)}"
        for key in [(*tag[:-1], name) for name in without_effect(chosen.value)]:
            written = merged.at(key)
            sets_nothing = written.value is None or _is_default(key, written)
            if not (sets_nothing or written.is_inherited_by(chosen)):
                text = f"has no effect with {'.'.join(tag)}{named}; leave it out"
                merged.problems.append(f"{merged.location(key)}: {text}")
            merged.written.pop(key, None)


def _is_default(key: KeyPath, written: WrittenValue) -> bool:
    """Whether a file only repeats the default of a key."""
    return written.label != SET_OPTION and written.value == DEFAULTS_BY_KEY.get(key)


def _location(label: str, key: KeyPath) -> str:
    """The file and the key; only the key of an override, which `--set` or another option may have given."""
    return f"{'' if label == SET_OPTION else f'{label}: '}{shorten('.'.join(key))}"
