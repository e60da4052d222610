"""Recognizes a foreign checkpoint by its names, shapes and settings, and derives our model for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BeforeValidator, Field, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic rejects typing.TypedDict on Python 3.11

from everest.config.heads import MULTI_LABEL, Head
from everest.config.model_settings import BACKBONES, MLP_RATIO, backbone_of, backbone_settings
from everest.config.settings import ModelSettings
from everest.config.values import MAX_BLOCKS, Count, Epsilon, Positions
from everest.converters.foreign_checkpoint import MULTI_LABEL_PROBLEM, ForeignCheckpoint, image_weights_error
from everest.converters.preprocessor import read_pixel_statistics
from everest.converters.translation import ALIASES, FAMILIES, Family, Translation, find_family
from everest.errors import CheckpointError, RecipeError, UserError, did_you_mean, shorten
from everest.methods.grid import TokenGrid
from everest.methods.strategies import AllTokens, RandomSpaceTime, RedundancyRobust, Tube
from everest.methods.targets import PixelTargets, Tubelet
from everest.models.classifier import ClassifierSpec, EncoderSpec
from everest.models.clip_spec import ModelSpec
from everest.models.mae import AutoencoderSpec
from everest.models.positions import ROTARY_BASE, SPATIAL, TEMPORAL, position_table
from everest.models.vit import Architecture, Norms
from everest.system.text import validate
from everest.system.weights_header import TransformerKind

V_JEPA_CONFIG: Final = {"model_type": "vjepa2", "rope_theta": ROTARY_BASE, "use_rope": True}  # if stated
LAST_NORM_EPS: Final = 1e-5  # eps of the last norm in transformers' VideoMAE
COMPUTED_POSITIONS: Final[tuple[Positions, ...]] = ("separable", "flat")  # order of comparison with a table
TABLE_TOLERANCE: Final = 1e-3  # tables may be stored in half precision; learned tables differ by more
EMBEDDING_WEIGHT: Final = "encoder.patch_embed.proj.weight"  # (D, 3, t, p, q)
CLASS_TOKEN: Final = "encoder.class_token"
FIRST_MLP_WEIGHT: Final = "encoder.blocks.0.mlp.fc1.weight"  # (F, D)
# A tensor that config.json promises, by the end of an architecture's name.
LAST_TENSORS: Final = {"ForVideoClassification": "classifier.weight", "ForPreTraining": "decoder.head.weight"}
CLIP_FIX: Final = "set --frames and --size of its training"


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Settings from the user that a file may lack; None: the value in the file, or of the released model."""

    family: str | None = None  # a name in everest.converters.translation.ALIASES
    frames: int | None = None
    size: int | tuple[int, int] | None = None  # side, or (height, width)
    heads: int | None = None
    decoder_heads: int | None = None


def _pair(value: object) -> object:
    """Return (height, width) of a size, which may be the side of a square."""
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


Size = Annotated[tuple[Count, Count], BeforeValidator(_pair)]
Label = Annotated[str, Field(pattern=r"^\d{1,9}$")]


@with_config(extra="allow", strict=True)
class StoredSettings(TypedDict, total=False):
    """The keys that are used of transformers' config.json or a saved command line; other keys are ignored."""

    num_frames: Count
    frames_per_clip: Count
    frame_sample_rate: Count  # FRAME_SAMPLE_RATE
    image_size: Size
    crop_size: Size
    input_size: Size
    num_attention_heads: Count
    decoder_num_attention_heads: Count
    layer_norm_eps: Epsilon
    id2label: Annotated[
        dict[Label, str],
        BeforeValidator(lambda x: {str(i): name for i, name in enumerate(x)} if isinstance(x, list) else x),
    ]


@dataclass(frozen=True, kw_only=True)
class ForeignMetadata:
    """The metadata of a foreign checkpoint before its sizes are known."""

    foreign: ForeignCheckpoint
    hints: Hints
    family: Family  # the family of its parameter names
    program: str  # a key of FAMILIES or, if programs share parameter names, of ALIASES
    positions: Positions  # the program's positions, if the file stores no table
    translation: Translation
    shapes: Mapping[str, tuple[int, ...]]  # shapes by our names; () if the parts cannot be stacked
    stored: dict[str, Any]  # config.json or saved command line, updated by the hints (`StoredSettings`)

    @property
    def kind(self) -> TransformerKind:
        """The kind of the converted model (everest.system.weights_header)."""
        if "head.weight" in self.shapes:
            return "classifier"
        return "pretrain" if self.depth("decoder") else "encoder"

    def depth(self, stack: str) -> int:
        """The number of blocks of the encoder or decoder."""
        matches = (re.match(rf"{stack}\.blocks\.(\d+)\.", name) for name in self.shapes)
        numbers = [match[1] for match in matches if match]
        for number in numbers:
            if len(number) > len(str(MAX_BLOCKS)) or int(number) >= MAX_BLOCKS:
                text = f"its {stack} has a block {shorten(number)}, at most {MAX_BLOCKS} are possible"
                raise self.error(text)
        return max((int(number) + 1 for number in numbers), default=0)

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.foreign.path}: {text}")


def recognize(foreign: ForeignCheckpoint, hints: Hints) -> ForeignMetadata:
    """Find the program of a checkpoint and our names for its tensors; check the settings stored with it."""
    names = foreign.tensors.keys()
    family_name = find_family(names)
    if family_name is None:
        examples = ", ".join(shorten(name) for name in sorted(names)[:3])
        raise CheckpointError(
            f"{foreign.path}: not a checkpoint of a known family ({', '.join(FAMILIES)}): "
            f"{len(names)} tensors, such as {examples}"
        )
    family = FAMILIES[family_name]
    programs: dict[str, Positions] = ALIASES if family_name == "videomae" else {family_name: family.positions}
    program = hints.family
    if program is None:
        is_everest = foreign.args.get("mask_type") == "motion-centric" or bool(foreign.args.get("mcm"))
        program = "everest" if is_everest and family_name == "videomae" else family_name
    if program not in programs:
        raise RecipeError(f"--family {shorten(program)}: has other keys{did_you_mean(program, programs)}")
    translation, shapes = family.translate(names), {}
    for our_name, parts in translation.sources.items():
        first, *rest = (tuple(foreign.tensors[part].shape) for part in parts)
        can_be_stacked = all(shape and shape[1:] == first[1:] for shape in (first, *rest))
        shapes[our_name] = (first[0] + sum(shape[0] for shape in rest), *first[1:]) if can_be_stacked else ()
    hinted = dict(zip(family.clip_keys, (hints.frames, hints.size), strict=True))
    hinted |= {"num_attention_heads": hints.heads, "decoder_num_attention_heads": hints.decoder_heads}
    settings = (*foreign.args.items(), *foreign.config.items(), *hinted.items())
    stored = {key: value for key, value in settings if value is not None}
    if "head.weight" not in shapes:  # the class names belong to another model
        stored.pop("id2label", None)
    try:
        stored = {**validate(TypeAdapter(StoredSettings), stored)}
    except ValueError as error:
        fix = "fix its config.json" if foreign.config else CLIP_FIX
        raise CheckpointError(f"{foreign.path}: {error}; {fix}") from error
    return ForeignMetadata(
        foreign=foreign,
        hints=hints,
        family=family,
        program=program,
        positions=programs[program],
        translation=translation,
        shapes=shapes,
        stored=stored,
    )


def derive_model_spec(metadata: ForeignMetadata) -> ModelSpec:
    """Return the spec of the model that computes the same as the checkpoint; CheckpointError if none does."""
    embedding = metadata.shapes.get(EMBEDDING_WEIGHT, ())
    if len(embedding) == 4 and metadata.family is FAMILIES["videomae"]:
        raise image_weights_error(metadata.foreign.path)
    if len(embedding) != 5 or embedding[1] != 3:
        shape = list(embedding) or "missing"
        raise metadata.error(
            f"its embedding is {shape}, not one of RGB tubelets, [D, 3, t, p, q]; take another"
        )
    for name, shape in metadata.shapes.items():
        if not shape or 0 in shape:
            raise metadata.error(f"{shorten(name)} has a shape that no layer has; download it again")
        wide = name.endswith("mlp.fc1.weight") and len(shape) == 2 and shape[0] != MLP_RATIO * shape[1]
        if wide and name.startswith("decoder."):
            raise metadata.error(f"{name} has {shape[0]} rows; our decoder has {MLP_RATIO} times {shape[1]}")
    activation = metadata.stored.get("hidden_act", "gelu")
    if activation != "gelu":
        raise metadata.error(f"hidden_act is {shorten(activation)}; our blocks have gelu")
    if metadata.program == "vjepa2":
        config, hints = metadata.foreign.config, metadata.hints
        options = {"--heads": hints.heads, "--frames": hints.frames, "--size": hints.size}
        missing = [option for option, value in options.items() if value is None]
        if not config and missing:  # shapes do not show these settings
            needed = " and ".join(missing)
            raise metadata.error(f"no config.json next to it, which has its clip and heads; set {needed}")
        for name, value in config.items():
            expected = V_JEPA_CONFIG.get(name)
            if (name in V_JEPA_CONFIG or "rope" in name) and value not in (None, expected):
                needed = "none is possible" if expected is None else f"only {expected} is possible"
                raise metadata.error(f"{name} is {shorten(value)} in its config.json; {needed}")
    if metadata.program == "st-mae" and metadata.kind == "classifier" and CLASS_TOKEN not in metadata.shapes:
        raise metadata.error("it classifies without a class token, by a mean that leaves out the first token")
    tubelet = (embedding[2], embedding[3], embedding[4])
    frames, size, grid = _derive_clip(metadata, tubelet)
    try:  # without a preprocessor: ImageNet's values, as in all official code
        pixels = read_pixel_statistics(metadata.foreign.preprocessor)
    except ValueError as error:
        raise metadata.error(f"the preprocessor next to it: {error}; fix its JSON file") from error
    norms, eps = Norms(), metadata.stored.get("layer_norm_eps", metadata.family.eps)
    if metadata.family.eps is not None:  # VideoMAE: with averaged tokens, no norm after the encoder
        after_encoder = metadata.kind == "classifier" or "encoder.norm.weight" in metadata.shapes
        last_eps = LAST_NORM_EPS if metadata.program == "transformers" else eps
        norms = Norms(after_encoder=after_encoder, eps=eps, last_eps=last_eps)
    model = _derive_settings(metadata, tubelet, grid)
    _refuse_part(metadata, model)
    spec = _derive_spec(
        metadata, Architecture(frames=frames, size=size, model=model, norms=norms, pixels=pixels)
    )
    if problem := next(spec.problems(), None):
        raise metadata.error(f"not a valid everest model: {': '.join(problem)}")
    return spec


def _refuse_part(metadata: ForeignMetadata, model: ModelSettings) -> None:
    """Raise CheckpointError if config.json states other sizes than the tensors have, or further tensors."""
    config, size = metadata.foreign.config, model.backbone_size
    found = {"num_hidden_layers": size.depth, "hidden_size": size.width, "intermediate_size": size.mlp}
    if metadata.kind == "pretrain":
        found |= {"decoder_num_hidden_layers": model.decoder_depth, "decoder_hidden_size": size.decoder_width}
    stated = {key: config[key] for key in found if config.get(key) is not None}
    problems = [
        f"{key} is {found[key]}, not {shorten(value)}" for key, value in stated.items() if value != found[key]
    ]
    architectures = str(config.get("architectures"))
    problems += [
        f"{name} is missing"
        for ending, name in LAST_TENSORS.items()
        if ending in architectures and name not in metadata.foreign.tensors
    ]
    if problems:
        raise metadata.error(
            f"not what its config.json states: {'; '.join(problems)}; it is a part of a checkpoint, or of "
            "another one: download all files of one"
        )


def _derive_clip(metadata: ForeignMetadata, tubelet: Tubelet) -> tuple[int, tuple[int, int], TokenGrid]:
    """Return frames, (height, width) and tokens of a clip: from the user, the file, or the released model."""
    (frames_key, size_key), (official_frames, official_side) = metadata.family.clip_keys, metadata.family.clip
    learned = (metadata.shapes.get(f"encoder.{name}", ()) for name in (TEMPORAL, SPATIAL))  # (1, N, D)
    num_times, num_spatial = (shape[1] if len(shape) == 3 else None for shape in learned)
    frames = metadata.hints.frames or (num_times and num_times * tubelet[0])
    frames = frames or metadata.stored.get(frames_key) or official_frames
    side = num_spatial and isqrt(num_spatial)
    size = metadata.hints.size or (side and (side * tubelet[1], side * tubelet[2]))
    height, width = cast(tuple[int, int], _pair(size or metadata.stored.get(size_key) or official_side))
    try:
        grid = TokenGrid.of_clip(frames=frames, size=(height, width), tubelet=tubelet)
    except UserError as error:
        raise metadata.error(f"{error}; {CLIP_FIX}") from error
    if num_times not in (None, grid.t) or num_spatial not in (None, grid.num_positions):
        raise metadata.error(
            f"its learned positions are for {num_times} x {num_spatial} tokens in time and space, a clip of "
            f"{frames} x {height} x {width} has {grid.t} x {grid.num_positions}; {CLIP_FIX}"
        )
    return frames, (height, width), grid


def _derive_settings(metadata: ForeignMetadata, tubelet: Tubelet, grid: TokenGrid) -> ModelSettings:
    """Return the sizes, and the positions whose table equals the stored table; else the program's."""
    width, decoder_depth = metadata.shapes[EMBEDDING_WEIGHT][0], metadata.depth("decoder")
    sizes = {"width": width, "depth": metadata.depth("encoder"), "heads": _derive_heads(metadata, width)}
    if decoder_depth:
        default = (BACKBONES[backbone_of(width)].decoder_width,)
        width = metadata.shapes.get("decoder.norm.weight", default)[0]
        sizes |= {"decoder_width": width, "decoder_heads": _derive_heads(metadata, width, "decoder_")}
    # The norm of a classifier comes after the average, or before the first token is taken; ST-MAE's single
    # norm comes after the average.
    norm = metadata.translation.sources.get("norm.weight", ("fc_norm.weight",))[0]
    return ModelSettings(
        **backbone_settings(**sizes, mlp=metadata.shapes.get(FIRST_MLP_WEIGHT, (None,))[0]),
        tubelet=tubelet,
        positions=_derive_positions(metadata, grid),
        class_token=CLASS_TOKEN in metadata.shapes,
        pooling="mean" if metadata.program == "st-mae" or norm.endswith("fc_norm.weight") else "first",
        decoder_depth=decoder_depth or ModelSettings().decoder_depth,
    )


def _derive_heads(metadata: ForeignMetadata, width: int, stack: Literal["", "decoder_"] = "") -> int:
    """Return the attention heads of a stack, which no shape shows: from user, file, or released model."""
    heads = metadata.stored.get(f"{stack}num_attention_heads")
    for size in BACKBONES.values():
        if getattr(size, f"{stack}width") == width:
            heads = heads or getattr(size, f"{stack}heads")
    if not heads or width % heads:
        problem = f"{heads} heads do not divide a width of {width}"
        if not heads:
            problem = f"no released model is {width} wide, so its attention heads are unknown"
        raise metadata.error(f"{problem}; set {'--heads N,M' if stack else '--heads N'}")
    return heads


def _derive_positions(metadata: ForeignMetadata, grid: TokenGrid) -> Positions:
    name, width = metadata.translation.table, metadata.shapes[EMBEDDING_WEIGHT][0]
    if name is None or metadata.foreign.tensors[name].is_meta:
        return metadata.positions
    stored = metadata.foreign.tensors[name]
    if stored.numel() == grid.num_tokens * width and stored.shape[-1] == width:
        table = stored.float().reshape(-1, width)  # (N, D)
        for positions in COMPUTED_POSITIONS:
            computed = position_table(positions, grid, width)  # narrower if the width does not divide evenly
            if computed.shape == table.shape and (computed - table).abs().max() < TABLE_TOLERANCE:
                return positions
    raise metadata.error(
        f"its positions ({name}, {list(stored.shape)}) are not those that everest computes for the "
        f"{grid.num_tokens} tokens of width {width} of {grid.t} x {grid.h} x {grid.w}; {CLIP_FIX}; learned "
        "positions do not fit"
    )


def _derive_spec(metadata: ForeignMetadata, architecture: Architecture) -> ModelSpec:
    """Return the spec of the checkpoint's stage, by its saved settings, else those of the released model."""
    stored, kept = metadata.stored, _fraction_left(metadata, "mcm_ratio")
    visible = _fraction_left(metadata, "mask_ratio") or 0.1
    if metadata.kind == "classifier":
        outputs, problem = metadata.shapes["head.weight"][0], stored.get("problem_type")
        head = Head(task=MULTI_LABEL if problem == MULTI_LABEL_PROBLEM else "single-label", outputs=outputs)
        # Without a problem type, a single output is a number, as in transformers.
        if problem == "regression" or (problem is None and outputs == 1):
            head = Head(task="regression", outputs=outputs)
        everest = RedundancyRobust(keep_ratio=kept or 0.6, visible_ratio=None)
        selection = everest if stored.get("mcm") and metadata.family.kind == "pretrain" else AllTokens()
        return ClassifierSpec(**vars(architecture), heads=(head,), selection=selection)
    if metadata.family.kind == "encoder":
        return EncoderSpec(**vars(architecture), selection=AllTokens())
    normalize = bool(stored.get("norm_pix_loss", stored.get("normlize_target", True)))
    target, selection = PixelTargets(normalize=normalize), Tube(mask_ratio=round(1 - visible, 6))
    if metadata.program == "everest":
        selection = RedundancyRobust(keep_ratio=kept or 0.3, visible_ratio=visible)
    elif metadata.program == "st-mae":
        normalize = "token" if stored.get("norm_pix_loss", True) else False
        target = PixelTargets(normalize=normalize, frames="half")
        selection = RandomSpaceTime(visible_ratio=visible)
    return AutoencoderSpec(**vars(architecture), target=target, selection=selection)


def _fraction_left(metadata: ForeignMetadata, name: str) -> float | None:
    """The fraction of tokens that is left by a stored ratio that is removed; None without one."""
    fraction = metadata.stored.get(name)
    return round(1 - fraction, 6) if isinstance(fraction, float) and 0 < fraction < 1 else None
