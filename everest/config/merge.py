"""Merges recipe files and `--set` into one mapping whose values remember where they were written.

The layers, from the bottom: the defaults, the bases of a recipe, the recipe, each `--set`. The `by_backbone`
values of a layer are a layer directly above it. A later layer wins. Of a section with variants, what files
below the choice of a variant wrote for another one is dropped; all other keys that do not exist are errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from everest.config.model import BACKBONES
from everest.config.recipe_files import RecipeFile, with_bases
from everest.config.settings import Recipe
from everest.config.stage_settings import (
    STAGES,
    ContrastSettings,
    PixelPretrainSettings,
    SigregSettings,
    ViewPretrainSettings,
)
from everest.config.tokenizer import TokenizerSettings
from everest.config.values import with_hyphens
from everest.config.yaml import read_yaml
from everest.errors import RecipeError, did_you_mean, shown
from everest.methods.external import import_named, is_import_path, named_class
from everest.methods.learned import LearnedImportance
from everest.methods.selector import Selector
from everest.methods.targets import Target

KeyPath = tuple[str, ...]

SET: Final = "--set"  # the label of an override
BY_BACKBONE: Final = "by_backbone"
BACKBONE: Final = ("model", "backbone")
HEADS: Final = ("data", "heads")  # a mapping that is one value: a later mapping replaces it
TRAINED: Final = (*STAGES, "tokenizer")
OBJECTIVE: Final = ("pretrain", "objective")
SELECTION: Final = ("pretrain", "selection")
VIEWS: Final = ("pretrain", "views")
VIEW_DRAW: Final[dict[KeyPath, KeyPath]] = {
    (*VIEWS, name): (*SELECTION, name) for name in ("keep_ratio", "uniform")
}  # short for
# Sections with variants that exclude each other, and the key that names the variant.
TAGS: Final[dict[KeyPath, str]] = {
    ("pretrain",): "objective",
    ("pretrain", "target"): "kind",
    VIEWS: "loss",
    **{(stage, "selection"): "strategy" for stage in STAGES},
}
EXTERNAL: Final = {"strategy": Selector, "kind": Target}  # tags that may name a class of another package
# Keys of a section that no class has.
FURTHER: Final[dict[KeyPath, set[str]]] = {(): {"base"}, **{(stage,): {BY_BACKBONE} for stage in STAGES}}
# By the key of a choice: keys of its section that have no effect with a value of it. Inherited ones are
# dropped; those that the layer of the choice or a later one writes are errors.
IDLE: Final[dict[KeyPath, Callable[[Any], Collection[str]]]] = {
    ("data", "task"): lambda task: ("classes", "num_classes") if task == "regression" else (),
    HEADS: lambda heads: ("task", "num_classes") if heads else (),
    **{(stage, "steps"): lambda steps: ("warmup_epochs",) if steps else () for stage in TRAINED},
    **{(stage, "epochs"): lambda epochs: ("warmup_steps",) if epochs else () for stage in TRAINED},
}


class Written(NamedTuple):
    """A value that is no mapping, and where it was written."""

    value: Any
    label: str = ""  # the file, or `--set`; empty: a default
    key: KeyPath = ()  # in the file
    layer: int = -1  # counted from the bottom; -1: a default

    def is_below(self, other: Written) -> bool:
        """Whether this value is inherited where the other one is written; `--set` inherits nothing."""
        return self.layer < other.layer and self.label != SET


def leaves(value: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """The keys of the values that are no mappings, at any depth; an empty mapping is a value."""
    if not isinstance(value, dict) or not value or path[:2] == HEADS:
        return {path: value}
    inner = [leaves(each, (*path, key)) for key, each in value.items()]
    return {key: each for below in inner for key, each in below.items()}


def _defaults(settings: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """The values of settings, as YAML has them."""
    return leaves(json.loads(json.dumps(asdict(settings))), path)


def _sections(cls: type, path: KeyPath = ()) -> Iterator[tuple[KeyPath, type]]:
    """The path and the class of each section, once for each variant."""
    yield path, cls
    for name, hint in get_type_hints(cls).items():
        for inner in (hint, *get_args(hint)):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _sections(inner, (*path, name))


SECTIONS: Final[dict[KeyPath, list[type]]] = {}  # an outer section before its inner ones
for _path, _cls in _sections(Recipe):
    SECTIONS.setdefault(_path, []).append(_cls)
DEFAULTS: Final = _defaults(Recipe(name=""))
USUAL: Final = {  # by key, also of sections that the default recipe does not have
    **_defaults(TokenizerSettings(), ("tokenizer",)),
    **_defaults(SigregSettings(), VIEWS),
    **_defaults(ContrastSettings(), VIEWS),
    **DEFAULTS,
}
SELECTED: Final = {  # the default selection of an objective
    cls.objective: _defaults(cls().selection, SELECTION)
    for cls in (PixelPretrainSettings, ViewPretrainSettings)
}


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
        """Where `key` or the value that contains it was written; else its place in the recipe."""
        for length in range(len(key), 0, -1):
            outer = self.at(key[:length])
            if outer.label:
                return _place(outer.label, (*outer.key, *key[length:]))
        is_set = any(each.label == SET for each in self.inside(key).values())
        return _place(SET if is_set else self.label, key)

    def write(self, key: KeyPath, written: Written) -> None:
        """Set `key`, replacing its earlier value and any value that contains it or lies inside it."""
        below = self.inside(key)
        is_section = below and key not in below
        if is_section and (written.value == {} or (written.value is None and len(key) == 1)):
            return  # it contains only comments
        for each in [*below, *(key[:length] for length in range(1, len(key)))]:
            self.written.pop(each, None)
        self.written[key] = written

    def choose_objective(self, objective: Any) -> None:
        """Before a layer with another objective: what lower files select stays if it is by its strategy."""
        selected, strategy = SELECTED.get(str(objective), {}), self.at((*SELECTION, "strategy"))
        if not selected or objective == self.at(OBJECTIVE).value:
            return
        is_usual = strategy.value == selected[*SELECTION, "strategy"]
        for key, written in self.inside(SELECTION).items():
            if written.label != SET and not (is_usual and written.layer >= strategy.layer):
                del self.written[key]
        for key, value in selected.items():
            if key not in self.written:
                self.write(key, Written(value))

    def drop_unfit(self, *, imports: bool) -> None:
        """Drop what lower files wrote for other variants; other keys that a section lacks are problems."""
        for section, classes in SECTIONS.items():
            inside = {key: each for key, each in self.inside(section).items() if key != section}
            cls, chosen, choice = classes[0], Written(None), ""
            if section in TAGS and inside:
                tag = (*section, TAGS[section])
                if not self.inside(tag):
                    self.written[tag] = Written(getattr(cls, tag[-1]))
                chosen, choice = self.written.get(tag, Written(None)), ".".join(tag)
                cls = self._variant(tag, chosen.value, imports=imports)
            if cls is None:
                continue  # validation says why
            types = {each.name: str(each.type) for each in fields(cls)}
            known = {each.name for variant in [*classes, cls] for each in fields(variant)}
            for key, written in inside.items():
                name, *inner = key[len(section) :]
                is_null = written.value is None and not inner and "None" not in types.get(name, "None")
                is_own = cls is LearnedImportance and name == "keep_ratio"  # of other tokens than elsewhere
                is_replaced = is_null or is_own or is_import_path(chosen.value)
                if name in types and not (is_replaced and written.is_below(chosen)):
                    continue
                del self.written[key]
                # A file may list the keys of all variants.
                sets_nothing = name in known and (_is_default(key, written) or written.value in (None, {}))
                if name not in types and not sets_nothing and not written.is_below(chosen):
                    text = f"has no effect with {choice}={shown(chosen.value)}; leave it out"
                    text = text if name in known else _unknown_key(section, name, known)
                    place = _place(written.label, written.key[: len(written.key) - len(inner)])
                    self.problems.append(f"{place}: {text}")

    def _variant(self, tag: KeyPath, name: Any, *, imports: bool) -> type | None:
        """The class that a section names, if it is valid."""
        if tag[-1] not in EXTERNAL or not is_import_path(name):
            return {getattr(cls, tag[-1]): cls for cls in SECTIONS[tag[:-1]]}.get(with_hyphens(str(name)))
        try:
            if imports:
                import_named(name)
            return named_class(name, EXTERNAL[tag[-1]])
        except ValueError:
            return None
        except RecipeError as error:
            raise RecipeError(f"{self.place(tag)}: {error}") from error

    def drop_idle(self) -> None:
        """Drop what lower files wrote, and another setting makes idle; the rest of it are problems."""
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


def merge(file: RecipeFile, overrides: Sequence[str], *, imports: bool) -> Merged:
    """Merge the defaults, a recipe with its bases, and `section.key=value` texts.

    Args:
        imports: import the modules of other packages that the recipe names (everest.methods.external).
    """
    defaults = {key: Written(value) for key, value in DEFAULTS.items()}
    merged = Merged(file.label, defaults | {("name",): Written(file.name)})
    layers = [(source.label, leaves(values)) for source, values in with_bases(file) if values]
    layers += read_overrides(overrides, merged.problems)
    last = {key: value for _, layer in layers for key, value in layer.items()}
    backbone = with_hyphens(last.get(BACKBONE, DEFAULTS[BACKBONE]))
    draw: dict[KeyPath, KeyPath] = {} if last.get(OBJECTIVE, "pixels") == "pixels" else VIEW_DRAW
    for number, (label, layer) in enumerate(layers):
        merged.choose_objective(layer.get(OBJECTIVE))
        of_backbone: dict[KeyPath, Written] = {}
        for key, value in layer.items():
            written = Written(value, label, key, number)
            if key[0] in STAGES and key[1:2] == (BY_BACKBONE,):
                name = with_hyphens("".join(key[2:3]))
                if name == backbone:
                    of_backbone[key[0], *key[3:]] = written
                elif name not in BACKBONES and value not in (None, {}):
                    text = f"unknown backbone '{shown(name)}'{did_you_mean(name, BACKBONES)}"
                    merged.problems.append(f"{_place(label, key[:2])}: {text}")
            elif key[:2] == HEADS != key:  # a head; the others stay
                for name in reversed(key[3:]):
                    value = {name: value}
                heads = merged.at(HEADS).value
                heads = {**(heads if isinstance(heads, dict) else {}), key[2]: value}
                merged.write(HEADS, Written(heads, label, HEADS, number))
            else:
                key = draw.get(key, key)
                merged.write(key, written._replace(key=key))
        for key, written in of_backbone.items():
            merged.write(key, written)
    merged.drop_unfit(imports=imports)
    merged.drop_idle()
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
        yield SET, leaves(value, key)


def _is_default(key: KeyPath, written: Written) -> bool:
    """Whether a file writes what a key has anyway."""
    return written.label != SET and written.value == USUAL.get(key)


def _place(label: str, key: KeyPath) -> str:
    """The file and the key; only the key of an override, which `--set` or another option may have given."""
    return f"{'' if label == SET else f'{label}: '}{shown('.'.join(key))}"


def _unknown_key(section: KeyPath, name: str, known: set[str]) -> str:
    """The message about a key that no variant of a section has; it may belong in a section inside."""
    known, inner = known | FURTHER.get(section, set()), dict[str, list[str]]()
    for path in SECTIONS:
        if path[:-1] == section != path:
            for each in dict.fromkeys(each.name for cls in SECTIONS[path] for each in fields(cls)):
                inner.setdefault(each, []).append(".".join((*path, each)))
    close = get_close_matches(name, sorted({*known, *inner}), n=1)
    if close and close[0] not in known:
        return f"unknown key; did you mean {' or '.join(map(repr, inner[close[0]]))}?"
    return f"unknown key{did_you_mean(name, known)}"
