"""Merges files and `--set` into one set of values. Later layers win, and each value records its origin.

The layers, from the bottom: the defaults of everest.config.settings, the bases of a recipe, the recipe,
`--set`. The `by_backbone` values of a layer are directly above it, so a value of any later layer wins over
them. Of settings that exclude each other one is left: what a layer below the choice has for another one is
dropped, what the layer of the choice, a later one or `--set` has is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, NamedTuple

from everest.config.sizes import BACKBONES
from everest.config.stage_settings import (
    STAGES,
    VARIANTS,
    ContrastSettings,
    FinetuneSettings,
    SigregSettings,
    Variants,
    ViewPretrainSettings,
)
from everest.config.tokenizer import TokenizerSettings
from everest.config.values import with_hyphens
from everest.config.yaml import MOST_LEVELS, read_yaml
from everest.errors import RecipeError, did_you_mean, shown
from everest.methods.external import is_import_path

KeyPath = tuple[str, ...]

SET: Final = "--set"  # messages use it as the origin of an override
BY_BACKBONE: Final = "by_backbone"
VIEW_DRAW: Final = ("keep_ratio", "uniform")  # of `pretrain.views`: short for the same keys of the selection
HEADS: Final = ("data", "heads")  # a mapping that is one value: a later mapping replaces it
OBJECTIVE: Final = ("pretrain", "objective")
SELECTION: Final = ("pretrain", "selection")
# Shares that mean something else in other strategies, and are not inherited from them.
OWN_SHARES: Final = (("learned-importance", "keep_ratio"),)


class Origin(NamedTuple):
    """Where a value was written: the file (or `--set`), and the key in it."""

    label: str
    key: KeyPath = ()
    layer: int = -1  # its number, counted from the bottom; -1: the defaults

    def __str__(self) -> str:
        return f"{self.label}: {shown('.'.join(self.key))}"

    def is_below(self, other: Origin) -> bool:
        """Whether this value is inherited where the other one is written; `--set` inherits nothing."""
        return self.layer < other.layer and self.label != SET


class Layer(NamedTuple):
    """The values of one file or one `--set`."""

    label: str
    values: dict[str, Any]
    changes_a_head: bool = False  # and leaves the other heads as they are


class Switch(NamedTuple):
    """Keys of a section that count only with some values of another of its keys."""

    section: KeyPath
    key: str
    turns_on: Callable[[Any], bool]
    keys: tuple[str, ...]


SWITCHES: Final = (
    Switch(("data",), "task", lambda task: with_hyphens(task) != "regression", ("classes", "num_classes")),
    Switch(("data",), "heads", lambda heads: not heads, ("task", "num_classes")),
    Switch(("pretrain", "probe"), "every", bool, ("list", "metric")),
    *(Switch((stage, "lora"), "rank", bool, ("alpha", "dropout", "layers")) for stage in STAGES),
    Switch(("tokenizer", "loss"), "gan", bool, ("r1", "discriminator_lr")),
    Switch(("tokenizer", "loss"), "perceptual", bool, ("perceptual_weights",)),
)


@dataclass
class Merged:
    """The values of all layers, for the backbone that they choose."""

    label: str  # the requested recipe
    values: dict[str, Any]
    origins: dict[KeyPath, Origin] = field(default_factory=dict)  # of the values that a layer sets
    problems: list[str] = field(default_factory=list)
    idle: dict[KeyPath, str] = field(default_factory=dict)  # what is wrong with keys that have no effect
    usual: dict[KeyPath, Any] = field(default_factory=dict)  # the defaults of all variants

    def at(self, key: KeyPath) -> Any:
        """The value of `key`; None if it is in no mapping."""
        value: Any = self.values
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def origin(self, key: KeyPath) -> Origin:
        """Where `key`, or the value that contains it, was written."""
        for length in range(len(key), 0, -1):
            if outer := self.origins.get(key[:length]):
                return outer._replace(key=outer.key + key[length:])
        return Origin(self.label, key)

    def put(self, values: dict[str, Any], origin: Origin, path: KeyPath = ()) -> None:
        """Merge the values that are written at `origin` into the section `path`."""
        section = self.at(path)
        for key, value in values.items():
            place, below, written = (*path, key), section.get(key), origin._replace(key=(*origin.key, key))
            if isinstance(value, dict) and isinstance(below, dict):
                self.put(value, written, place)
            elif value is None and not path and isinstance(below, dict):
                continue  # a section that contains only comments
            elif place == OBJECTIVE and value == below:
                continue  # it was chosen in an earlier layer
            else:
                section[key] = value
                for inside in [each for each in self.origins if each[: len(place)] == place]:
                    del self.origins[inside]
                self.origins[place] = written


def merge(label: str, defaults: dict[str, Any], layers: Sequence[Layer]) -> Merged:
    """Merge the layers, the lowest first, into all `defaults`, which change."""
    merged = Merged(label, defaults, usual=dict(_leaves(defaults)) | _USUAL)
    models = [layer.values.get("model") for layer in layers]
    named = [model["backbone"] for model in models if isinstance(model, dict) and "backbone" in model]
    backbone = with_hyphens(named[-1] if named else merged.at(("model", "backbone")))
    for number, layer in enumerate(layers):
        values, origin, below = layer.values, Origin(layer.label, layer=number), merged.at(HEADS[:1])
        chosen = {stage: _of_backbone(backbone, values.get(stage), stage, origin, merged) for stage in STAGES}
        _write_draw(values.get("pretrain"))
        if isinstance(values.get("data"), dict) and "heads" in values["data"] and isinstance(below, dict):
            below["heads"] = below.get("heads") if layer.changes_a_head else None
        merged.put(values, origin)
        for stage, section in chosen.items():
            if section:
                merged.put(section, origin._replace(key=(stage, BY_BACKBONE, backbone)), (stage,))
    for stage in (*STAGES, "tokenizer"):
        _choose_budget(merged, stage)
    for path, variants in VARIANTS.items():
        if path == SELECTION:
            _draw_views(merged)
        _choose_variant(merged, path, variants)
    for section, key, turns_on, keys in SWITCHES:
        values = merged.at(section)
        if isinstance(values, dict) and not turns_on(values.get(key)):
            _drop(merged, (*section, key), keys)
    return merged


def _of_backbone(
    backbone: object, section: object, stage: str, origin: Origin, merged: Merged
) -> dict[str, Any]:
    """Take `by_backbone` out of a section: the values of a backbone. Of the others the keys are checked."""
    if not isinstance(section, dict) or BY_BACKBONE not in section:
        return {}
    choices, origin = section.pop(BY_BACKBONE), origin._replace(key=(stage, BY_BACKBONE))
    if not isinstance(choices, dict) or not all(isinstance(choice, dict) for choice in choices.values()):
        merged.problems.append(f"{origin}: must be a mapping such as {{vit-s: {{base_lr: 1.5e-4}}}}")
        return {}
    choices = {with_hyphens(name): choice for name, choice in choices.items()}
    for name, choice in choices.items():
        if name not in BACKBONES:
            text = f"unknown backbone '{shown(name)}'{did_you_mean(name, BACKBONES)}"
            merged.problems.append(f"{origin}: {text}")
        for key in choice.keys() - _STAGE_KEYS[stage] if name != backbone else ():
            written = origin._replace(key=(*origin.key, name, key))
            merged.problems.append(f"{written}: unknown key{did_you_mean(key, _STAGE_KEYS[stage])}")
    return choices.get(backbone, {}) if isinstance(backbone, str) else {}


def _write_draw(pretrain: object) -> None:
    """Write the draw in `views` as the selection that it is short for."""
    views = pretrain.get("views") if isinstance(pretrain, dict) else None
    drawn = {key: views.pop(key) for key in VIEW_DRAW if key in views} if isinstance(views, dict) else {}
    if isinstance(pretrain, dict) and drawn and isinstance(pretrain.get("selection") or {}, dict):
        short = {"strategy": "drawn", "visible_ratio": None, **drawn}
        pretrain["selection"] = short | (pretrain.get("selection") or {})


def _choose_budget(merged: Merged, stage: str) -> None:
    """Drop the epochs below a layer with steps, the steps below a layer with epochs, and their warm-up."""
    section = merged.at((stage,))
    if not isinstance(section, dict):
        return
    steps, epochs = (merged.origin((stage, unit)) for unit in ("steps", "epochs"))
    chosen, other = "epochs", "steps"
    if section.get("steps") is not None:
        if section.get("epochs") is None or epochs.layer < steps.layer:
            chosen, other = "steps", "epochs"
        elif epochs.layer == steps.layer:
            text = "a stage has epochs or steps, not both; remove one of them"
            merged.problems.append(f"{steps}: {text}")
        section[other] = None
    _drop(merged, (stage, chosen), (f"warmup_{other}",))


def _draw_views(merged: Merged) -> None:
    """Draw the tokens of views, unless the objective's layer or a later one names another strategy.

    Another selection below the objective is for predicting pixels. Values of `--set` stay, in any order.
    """
    selection = merged.at(SELECTION)
    if merged.at(OBJECTIVE) != "views" or not isinstance(selection, dict):
        return
    since, strategy = merged.origin(OBJECTIVE), merged.origin((*SELECTION, "strategy"))
    draws = with_hyphens(selection.get("strategy")) == "drawn"
    if not draws and not strategy.is_below(since):
        return
    first = min(since, strategy, key=lambda origin: origin.layer) if draws else since
    own = {key for key in selection if not merged.origin((*SELECTION, key)).is_below(first)}
    for key in selection.keys() - own:
        merged.origins.pop((*SELECTION, key), None)
    usual = asdict(ViewPretrainSettings().selection)
    merged.values["pretrain"]["selection"] = usual | {key: selection[key] for key in own}


def _choose_variant(merged: Merged, path: KeyPath, variants: Variants) -> None:
    """Drop the keys of a section that only other variants have, or that the chosen one cannot take."""
    section, tag = merged.at(path), (*path, variants.tag)
    if not isinstance(section, dict):
        return
    name = with_hyphens(section.setdefault(variants.tag, next(iter(variants.classes))))
    inherited = {key for key in section if merged.origin((*path, key)).is_below(merged.origin(tag))}
    if is_import_path(name):
        for key in inherited:
            del section[key]
    elif isinstance(name, str) and name in variants.classes:
        section[variants.tag] = name
        own = {each.name: str(each.type) for each in fields(variants.classes[name])}
        others = {each.name for cls in variants.classes.values() for each in fields(cls)}
        _drop(merged, tag, sorted(others - own.keys()), others=True)
        for key in inherited & own.keys() & section.keys():
            is_null = section[key] is None and "None" not in own[key]
            if is_null or (name, key) in OWN_SHARES:
                del section[key]


def _drop(merged: Merged, tag: KeyPath, keys: Iterable[str], *, others: bool = False) -> None:
    """Drop `keys` of the section of `tag`, whose value they do not go with.

    Args:
        others: of other variants, which the chosen one does not have. Otherwise written keys stay, so that
            their values are checked.
    """
    *path, _ = tag
    section, chosen = merged.at(tuple(path)), merged.at(tag) or merged.usual.get(tag)
    value_of_tag = "" if isinstance(chosen, dict) else f"={shown(chosen)}"
    for key in keys:
        written = []
        for place, value in _leaves(section.get(key), (*path, key)):
            origin = merged.origin(place)
            if value is None or origin.layer < 0 or origin.is_below(merged.origin(tag)):
                continue
            if origin.label == SET or value != merged.usual.get(place):
                written.append(place)
        text = f"has no effect with {'.'.join(tag)}{value_of_tag}; leave it out"
        merged.idle |= dict.fromkeys(written, text)
        if others or not written:
            section.pop(key, None)


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """The keys and values that are no mappings, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


_STAGE_KEYS: Final = {
    "pretrain": {each.name for cls in VARIANTS["pretrain",].classes.values() for each in fields(cls)},
    "finetune": {each.name for each in fields(FinetuneSettings)},
}
_USUAL: Final = dict(  # of settings that the default recipe does not have
    _leaves(
        {
            "pretrain": {"views": asdict(SigregSettings()) | asdict(ContrastSettings())},
            "tokenizer": asdict(TokenizerSettings()),
        }
    )
)


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
        layers.append(Layer(SET, value, changes_a_head=path[:2] == HEADS and path != HEADS))
    return layers
