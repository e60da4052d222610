"""What a foreign checkpoint is: family, stage, sizes, and how far our model of these sizes takes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from everest.checkpoints.families import ALIASES, FAMILIES, Translation
from everest.checkpoints.foreign import Foreign
from everest.checkpoints.sizes import ForeignFacts, Hints, Stage, check_architecture, model_spec
from everest.errors import CheckpointError, unknown_name
from everest.models.embedding import Positions
from everest.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A checkpoint that was recognised."""

    family: str
    title: str
    stage: Stage
    spec: ModelSpec
    translation: Translation
    classes: tuple[str, ...] | None
    zero: frozenset[str]  # ours: biases that the file's model does without, which is the same as zeros
    missing: tuple[str, ...]  # ours: what the file does not have, or has in another shape
    unexpected: tuple[str, ...]  # theirs: what has no place in our model
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A checkpoint that was recognised and of which nothing can be used."""

    family: str
    title: str
    reason: str


def identify(foreign: Foreign, hints: Hints) -> Identity | Refused:
    """Recognise a checkpoint by its names and shapes; no weight is read but a stored position table.

    Raises:
        CheckpointError: a checkpoint of no known family, a hint that contradicts it, or a model of another
            kind (channels, MLP, activation, learned positions, unknown heads).
        RecipeError: a hint that names no family.
    """
    name = _family(foreign)
    family = FAMILIES[name]
    if family.refusal is not None:
        return Refused(family=name, title=family.title, reason=family.refusal)
    translation = family.translate(foreign.tensors.keys())
    shapes = {ours: _stacked(foreign.tensors, theirs) for ours, theirs in translation.take.items()}
    alias, positions = _alias(name, hints, foreign)
    known = ForeignFacts(
        foreign=foreign,
        hints=hints,
        family=alias,
        translation=translation,
        shapes=shapes,
        positions=positions,
    )
    check_architecture(known)
    spec = model_spec(known)
    own = _parameters(spec)
    zero = _absent_biases(shapes, own)
    fits = {key for key, shape in shapes.items() if own.get(key) == shape}
    left = {part for key in shapes.keys() - fits for part in translation.take[key]}
    return Identity(
        family=alias,
        title=family.title,
        stage=known.stage,
        spec=spec,
        translation=translation,
        classes=_class_names(foreign, spec),
        zero=zero,
        missing=tuple(sorted(own.keys() - fits - zero)),
        unexpected=tuple(sorted({*translation.unexpected, *left})),
        notes=(*foreign.notes, *_notes(known)),
    )


def _family(foreign: Foreign) -> str:
    names = foreign.tensors.keys()
    for name, family in FAMILIES.items():
        if family.recognise(names):
            return name
    some = ", ".join(sorted(names)[:3])
    raise CheckpointError(
        f"{foreign.path}: no checkpoint of a family that everest knows ({', '.join(FAMILIES)}): "
        f"{len(names)} tensors, such as {some}"
    )


def _alias(name: str, hints: Hints, foreign: Foreign) -> tuple[str, Positions]:
    """The family by its own name where several have the same keys, and its position table."""
    positions = FAMILIES[name].positions
    asked = hints.family
    if asked is not None and asked not in ALIASES and asked not in FAMILIES:
        raise unknown_name("--family", asked, {*ALIASES, *FAMILIES})
    if name != "videomae":
        if asked not in (None, name):
            raise CheckpointError(f"{foreign.path}: its keys are those of {name}, not of {asked}")
        return name, positions
    if asked is not None and asked not in ALIASES:
        raise CheckpointError(f"{foreign.path}: its keys are not those of {asked}, but of {name}")
    if asked is not None:
        return asked, ALIASES[asked]
    args = foreign.args
    everest = args.get("mask_type") == "motion-centric" or bool(args.get("mcm"))
    return ("everest" if everest else name), positions


def _stacked(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> tuple[int, ...]:
    """The shape of the named tensors one above the other."""
    first, *others = (tuple(tensors[name].shape) for name in names)
    if not others:
        return first
    return (first[0] + sum(shape[0] for shape in others), *first[1:])


def _parameters(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in spec.build().state_dict().items()}


def _absent_biases(shapes: Mapping[str, tuple[int, ...]], own: Collection[str]) -> frozenset[str]:
    """Query and value biases of stacks that have not one of them (transformers: qv_bias false)."""

    def absent() -> Iterator[str]:
        for stack in ("encoder.", "decoder."):
            if any(name.startswith(stack) for name in shapes):
                biases = [n for n in own if n.startswith(stack) and n.endswith((".q_bias", ".v_bias"))]
                if not any(name in shapes for name in biases):
                    yield from biases

    return frozenset(absent())


def _class_names(foreign: Foreign, spec: ModelSpec) -> tuple[str, ...] | None:
    """transformers' names of the classes, unless they are its placeholders."""
    names = foreign.config.get("id2label")
    if spec.num_classes is None or not isinstance(names, dict):
        return None
    ordered = [str(names[key]) for key in sorted(names, key=int)]
    if all(name == f"LABEL_{i}" for i, name in enumerate(ordered)):
        return None
    if len(ordered) != spec.num_classes:
        raise CheckpointError(
            f"{foreign.path}: its config.json names {len(ordered)} classes, its head has {spec.num_classes}; "
            "one of the two is of another checkpoint"
        )
    return tuple(ordered)


def _notes(known: ForeignFacts) -> Iterator[str]:
    if known.family == "transformers" and not known.foreign.config:
        yield "no config.json beside it: frames, size and heads are taken as released"
    if known.family == "videomae" and known.hints.family is None and known.stage != "pretrain":
        yield (
            "a fine-tuned MVD looks the same but has other positions, which no file shows: if this is one, "
            "say --family mvd"
        )
