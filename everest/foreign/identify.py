"""Identifies a foreign checkpoint: its family, its stage, our model for it, and the tensors that fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from everest.config.values import Positions
from everest.errors import CheckpointError, shown, unknown_name
from everest.foreign.facts import ForeignFacts, Hints, Stage, model_spec
from everest.foreign.files import FRAME_SAMPLE_RATE, Foreign
from everest.foreign.preprocessor import preprocessor_notes
from everest.foreign.translation import ALIASES, FAMILIES, Translation, family_of
from everest.models.spec import ModelSpec

BIASES: Final = (".q_bias", ".k_bias", ".v_bias")  # of queries, keys that are turned, and values


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A recognized checkpoint."""

    family: str
    title: str
    stage: Stage
    spec: ModelSpec
    translation: Translation
    classes: tuple[str, ...] | None
    zero: frozenset[str]  # our biases that the file's model does without, which is the same as zeros
    missing: tuple[str, ...]  # our tensors that the file lacks, or has in another shape
    unexpected: tuple[str, ...]  # foreign tensors without a place in our model
    stride: int | None  # of the clips that it was trained on, if the file states it
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A recognized checkpoint of which nothing can be used."""

    family: str
    title: str
    reason: str


def identify(foreign: Foreign, hints: Hints) -> Identity | Refused:
    """Recognize a checkpoint by its names and shapes; of its weights only a position table is read.

    Raises:
        CheckpointError: a checkpoint of no known family, a hint that contradicts it, or a model of another
            kind (channels, MLP, activation, learned positions of single tokens, unknown heads).
        RecipeError: a hint that names no family.
    """
    names = foreign.tensors.keys()
    name = family_of(names)
    if name is None:
        examples = ", ".join(shown(name) for name in sorted(names)[:3])
        raise CheckpointError(
            f"{foreign.path}: no checkpoint of a family that everest knows ({', '.join(FAMILIES)}): "
            f"{len(names)} tensors, such as {examples}"
        )
    family = FAMILIES[name]
    reason = family.refusal(names)
    if reason is not None:
        return Refused(family=name, title=family.title, reason=reason)
    translation = family.translate(names)
    shapes = {our_name: _stacked(foreign.tensors, parts) for our_name, parts in translation.take.items()}
    alias, positions = _alias(name, hints, foreign)
    facts = ForeignFacts(
        foreign=foreign,
        hints=hints,
        family=alias,
        translation=translation,
        shapes=shapes,
        positions=positions,
        kind=family.kind,
    )
    spec = model_spec(facts)
    with torch.device("meta"):
        own = {key: tuple(tensor.shape) for key, tensor in spec.build().state_dict().items()}
    zero = set()  # biases of stacks that have none of them (transformers: qv_bias false)
    for stack in ("encoder.", "decoder."):
        biases = {key for key in own if key.startswith(stack) and key.endswith(BIASES)}
        if any(key.startswith(stack) for key in shapes) and biases.isdisjoint(shapes):
            zero |= biases
    fitting = {key for key, shape in shapes.items() if own.get(key) == shape}
    left = {part for key in shapes.keys() - fitting for part in translation.take[key]}
    return Identity(
        family=alias,
        title=family.title,
        stage=facts.stage,
        spec=spec,
        translation=translation,
        classes=_class_names(foreign, spec),
        zero=frozenset(zero),
        missing=tuple(sorted(own.keys() - fitting - zero)),
        unexpected=tuple(sorted({*translation.unexpected, *left})),
        stride=facts.number(FRAME_SAMPLE_RATE, None, None),
        notes=(*foreign.notes, *_notes(facts), *preprocessor_notes(foreign.preprocessor, spec.size)),
    )


def _alias(name: str, hints: Hints, foreign: Foreign) -> tuple[str, Positions]:
    """Return the program among those with the same names, and its position table."""
    hint = hints.family
    if hint is not None and hint not in ALIASES and hint not in FAMILIES:
        raise unknown_name("--family", hint, {*ALIASES, *FAMILIES})
    if name != "videomae":
        if hint not in (None, name):
            raise CheckpointError(f"{foreign.path}: its keys belong to {name}, not to {hint}")
        return name, FAMILIES[name].positions
    if hint is None:
        everest = foreign.args.get("mask_type") == "motion-centric" or bool(foreign.args.get("mcm"))
        hint = "everest" if everest else name
    if hint not in ALIASES:
        raise CheckpointError(f"{foreign.path}: its keys do not belong to {hint}, but to {name}")
    return hint, ALIASES[hint]


def _stacked(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the shape of the named tensors, stacked along the first dimension; () if they cannot be."""
    first, *rest = (tuple(tensors[name].shape) for name in names)
    if any(not shape or shape[1:] != first[1:] for shape in (first, *rest)):
        return ()
    return (first[0] + sum(shape[0] for shape in rest), *first[1:]) if rest else first


def _class_names(foreign: Foreign, spec: ModelSpec) -> tuple[str, ...] | None:
    """Return transformers' names of the classes, unless they are its placeholders."""
    names = foreign.config.get("id2label")
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if spec.num_classes is None or not isinstance(names, dict):
        return None
    if not all(key.isdecimal() and len(key) < 10 and isinstance(name, str) for key, name in names.items()):
        raise CheckpointError(f"{foreign.path}: its config.json has an id2label without numbers and names")
    ordered = tuple(names[key] for key in sorted(names, key=int))
    if ordered == tuple(f"LABEL_{number}" for number in range(len(ordered))):
        return None
    if len(ordered) != spec.num_classes:
        raise CheckpointError(
            f"{foreign.path}: its config.json names {len(ordered)} classes, its head has {spec.num_classes}; "
            "one of the two is of another checkpoint"
        )
    return ordered


def _notes(facts: ForeignFacts) -> Iterator[str]:
    if facts.family == "transformers" and not facts.foreign.config:
        yield "no config.json next to it: frames, size and heads are taken as released"
    if facts.family == "videomae" and facts.hints.family is None and facts.stage != "pretrain":
        yield (
            "a fine-tuned MVD looks the same but has other positions, which no file shows: if this is one, "
            "use --family mvd"
        )
