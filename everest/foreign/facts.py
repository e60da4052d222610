"""The facts about a foreign checkpoint, from its shapes and stored settings, and our model for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final, Literal

from everest.config.heads import MULTI_LABEL
from everest.config.model import BACKBONES, MLP_RATIO, backbone_of, backbone_settings
from everest.config.settings import ModelSettings
from everest.config.stage_settings import PixelTargetSettings
from everest.config.values import LARGEST_COUNT, MOST_BLOCKS, Positions
from everest.errors import CheckpointError, UserError, shown
from everest.foreign.files import MULTI_LABEL_PROBLEM, Foreign
from everest.foreign.preprocessor import preprocessor_pixels
from everest.foreign.translation import Family, Translation
from everest.methods.grid import TokenGrid
from everest.methods.strategies import AllTokens, RandomSpaceTime, RedundancyRobust, Tube
from everest.models.positions import BASE, SPATIAL, TEMPORAL, ComputedPositions, position_table
from everest.models.spec import ModelSpec
from everest.models.vit import Norms

Stage = Literal["pretrain", "classifier", "encoder"]

V_JEPA_CONFIG: Final = {"model_type": "vjepa2", "rope_theta": BASE, "use_rope": True}  # if there are any
TORCH_EPS: Final = 1e-5  # of the last norm in transformers' VideoMAE
COMPUTED: Final[tuple[ComputedPositions, ...]] = ("separable", "flat")  # a table is compared in this order
TABLE_TOLERANCE: Final = 1e-3  # stored tables may be in half precision; learned ones differ by more
EMBEDDING: Final = "encoder.patch_embed.proj.weight"  # (D, 3, t, p, q)
CLASS_TOKEN: Final = "encoder.class_token"
FIRST_MLP: Final = "encoder.blocks.0.mlp.fc1.weight"  # (F, D)
FIX_CLIP: Final = "set --frames and --size of its training"


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Settings from the user that a file may not contain; None: as in the file, or as released."""

    family: str | None = None  # of everest.foreign.translation.ALIASES
    frames: int | None = None
    size: int | tuple[int, int] | None = None  # (height, width) of one that is not square
    heads: int | None = None
    decoder_heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class ForeignFacts:
    """The facts about a foreign checkpoint before its sizes are known."""

    foreign: Foreign
    hints: Hints
    names: Family  # of its parameters
    program: str  # of FAMILIES or, among those with the same names, of ALIASES
    positions: Positions  # of the program, where the file stores no table
    translation: Translation
    shapes: Mapping[str, tuple[int, ...]]  # by our names

    @property
    def stage(self) -> Stage:
        if "head.weight" in self.shapes:
            return "classifier"
        return "pretrain" if self.depth("decoder") else "encoder"

    def depth(self, stack: str) -> int:
        """The number of blocks of the encoder or decoder."""
        matches = (re.match(rf"{stack}\.blocks\.(\d+)\.", name) for name in self.shapes)
        numbers = [match[1] for match in matches if match]
        for number in numbers:
            if len(number) > len(str(MOST_BLOCKS)) or int(number) >= MOST_BLOCKS:
                text = f"its {stack} has a block {shown(number)}, at most {MOST_BLOCKS} are possible"
                raise self.error(text)
        return max((int(number) + 1 for number in numbers), default=0)

    def number(self, config: str, argument: str | None = None) -> int | None:
        """A value of transformers' config.json or of a saved command line; None: neither has it."""
        value, name, fix = self.foreign.config.get(config), config, "fix its config.json"
        if not value and argument is not None:
            value, name = self.foreign.args.get(argument), f"{argument} of its saved command line"
            fix = FIX_CLIP
        if not value:
            return None
        if type(value) is not int or not 1 <= value <= LARGEST_COUNT:
            raise self.error(f"{name} is {shown(repr(value))}, not a positive integer; {fix}")
        return value

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.foreign.path}: {text}")


def model_spec(facts: ForeignFacts) -> ModelSpec:
    """Return the model that the parameters of the checkpoint fit."""
    embedding = facts.shapes.get(EMBEDDING)
    if embedding is None:
        raise facts.error("its embedding of tubelets is missing, or is that of another model")
    if len(embedding) != 5 or embedding[1] != 3:
        raise facts.error(f"its embedding is {list(embedding)}, not one of RGB tubelets, [D, 3, t, p, q]")
    tubelet = (embedding[2], embedding[3], embedding[4])
    _check_architecture(facts)
    frames, size, grid = _clip(facts, tubelet)
    try:  # without a preprocessor ImageNet's, as in all released programs
        pixels = preprocessor_pixels(facts.foreign.preprocessor)
    except ValueError as error:
        raise facts.error(f"the preprocessor next to it: {error}; fix its JSON file") from error
    spec = ModelSpec(
        frames=frames,
        size=size,
        model=_settings(facts, tubelet, grid),
        norms=_norms(facts),
        pixels=pixels,
        **_stage_settings(facts),
    )
    for problem in spec.problems():
        raise facts.error(f"not a valid everest model: {problem}")
    return spec


def _check_architecture(facts: ForeignFacts) -> None:
    """Raise CheckpointError for damaged shapes, or if none of our models computes the same."""
    for name, shape in facts.shapes.items():
        if not shape or 0 in shape:
            raise facts.error(f"{shown(name)} has a shape that no layer has; download it again")
        wide = name.endswith("mlp.fc1.weight") and len(shape) == 2 and shape[0] != MLP_RATIO * shape[1]
        if wide and name.startswith("decoder."):
            raise facts.error(f"{name} has {shape[0]} rows; our decoder has {MLP_RATIO} times {shape[1]}")
    config, hints = facts.foreign.config, facts.hints
    if facts.program == "vjepa2":
        options = {"--heads": hints.heads, "--frames": hints.frames, "--size": hints.size}
        missing = [option for option, value in options.items() if value is None]
        if not config and missing:  # no shape shows them
            needed = " and ".join(missing)
            raise facts.error(f"no config.json next to it, which has its clip and heads; set {needed}")
        for name, value in config.items():
            expected = V_JEPA_CONFIG.get(name)
            if (name in V_JEPA_CONFIG or "rope" in name) and value not in (None, expected):
                needed = "none is possible" if expected is None else f"only {expected} is possible"
                raise facts.error(f"{name} is {shown(value)} in its config.json; {needed}")
    if facts.program == "st-mae" and facts.stage == "classifier" and CLASS_TOKEN not in facts.shapes:
        raise facts.error("it classifies without a class token, by a mean that leaves out the first token")
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise facts.error(f"its activation is {shown(activation)}; our blocks have gelu")


def _clip(facts: ForeignFacts, tubelet: tuple[int, int, int]) -> tuple[int, tuple[int, int], TokenGrid]:
    """Return the frames, (height, width) and tokens of a clip: of the user, of the file, or as released."""
    (frames_key, size_key), (released_frames, released_side) = facts.names.clip_keys, facts.names.clip
    learned = (facts.shapes.get(f"encoder.{name}", ()) for name in (TEMPORAL, SPATIAL))  # (1, N, D)
    slices, places = (shape[1] if len(shape) == 3 else None for shape in learned)
    frames = facts.hints.frames or (slices and slices * tubelet[0])
    frames = frames or facts.number(frames_key, "num_frames") or released_frames
    size, stored = facts.hints.size, facts.foreign.config.get(size_key)
    if size is None and places is not None:
        size = (isqrt(places) * tubelet[1], isqrt(places) * tubelet[2])
    elif size is None and isinstance(stored, list):
        if len(stored) != 2 or not all(type(side) is int for side in stored):
            raise facts.error(f"{size_key} is {shown(stored)}, not a size in pixels; fix its config.json")
        size = (stored[0], stored[1])
    elif size is None:
        size = facts.number(size_key, "input_size") or released_side
    height, width = (size, size) if isinstance(size, int) else size
    try:
        grid = TokenGrid.of_clip(frames=frames, size=(height, width), tubelet=tubelet)
    except UserError as error:
        raise facts.error(f"{error}; {FIX_CLIP}") from error
    if slices not in (None, grid.t) or places not in (None, grid.per_slice):
        raise facts.error(
            f"its learned positions are for {slices} slices of {places} places, a clip of "
            f"{frames} x {height} x {width} has {grid.t} of {grid.per_slice}; {FIX_CLIP}"
        )
    return frames, (height, width), grid


def _settings(facts: ForeignFacts, tubelet: tuple[int, int, int], grid: TokenGrid) -> ModelSettings:
    """Return the sizes, and our position table that equals the stored one; else the program's."""
    width, decoder_depth = facts.shapes[EMBEDDING][0], facts.depth("decoder")
    sizes = {"width": width, "depth": facts.depth("encoder"), "heads": _heads(facts, width)}
    if decoder_depth:
        default = (BACKBONES[backbone_of(width)].decoder_width,)
        width = facts.shapes.get("decoder.norm.weight", default)[0]
        sizes |= {"decoder_width": width, "decoder_heads": _heads(facts, width, "decoder_")}
    # The norm of a classifier comes after the average, or before the first token is taken; ST-MAE's one norm
    # comes after the average.
    norm = facts.translation.take.get("norm.weight", ("fc_norm.weight",))[0]
    return ModelSettings(
        **backbone_settings(**sizes, mlp=facts.shapes.get(FIRST_MLP, (None,))[0]),
        tubelet=tubelet,
        positions=_positions(facts, grid),
        class_token=CLASS_TOKEN in facts.shapes,
        pooling="mean" if facts.program == "st-mae" or norm.endswith("fc_norm.weight") else "first",
        decoder_depth=decoder_depth or ModelSettings().decoder_depth,
    )


def _heads(facts: ForeignFacts, width: int, stack: Literal["", "decoder_"] = "") -> int:
    """Return the attention heads of a stack, which no shape shows: the user's, the file's, or as released."""
    heads = getattr(facts.hints, f"{stack}heads") or facts.number(f"{stack}num_attention_heads")
    for size in BACKBONES.values():
        if getattr(size, f"{stack}width") == width:
            heads = heads or getattr(size, f"{stack}heads")
    option = "--heads N,M" if stack else "--heads N"
    if not heads:
        text = f"no released model is {width} wide, so its attention heads are unknown; set {option}"
        raise facts.error(text)
    if width % heads:
        raise facts.error(f"{heads} heads do not divide a width of {width}; set {option}")
    return heads


def _positions(facts: ForeignFacts, grid: TokenGrid) -> Positions:
    name, width = facts.translation.table, facts.shapes[EMBEDDING][0]
    if name is None or facts.foreign.tensors[name].is_meta:
        return facts.positions
    stored = facts.foreign.tensors[name]
    if not stored.shape or stored.shape[-1] != width:
        raise facts.error(f"{name} is not for a width of {width}; download it again")
    table = stored.float().reshape(-1, width)  # (N, D)
    if len(table) != grid.num_tokens:
        raise facts.error(
            f"{name} is for {len(table)} tokens, a clip of {grid.t} x {grid.h} x {grid.w} has "
            f"{grid.num_tokens}; {FIX_CLIP}"
        )
    for positions in COMPUTED:
        if (position_table(positions, grid, width) - table).abs().max() < TABLE_TOLERANCE:
            return positions
    raise facts.error(
        f"its positions ({name}) are learned; everest computes positions, so the weights do not fit"
    )


def _norms(facts: ForeignFacts) -> Norms:
    """transformers has other epsilons, and no norm after VideoMAE's encoder where tokens are averaged."""
    if facts.names.eps is None:
        return Norms()
    eps = facts.foreign.config.get("layer_norm_eps", facts.names.eps)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps <= 1:
        raise facts.error(f"layer_norm_eps is {shown(repr(eps))}, not a small number; fix its config.json")
    if facts.program == "vjepa2":
        return Norms(eps=float(eps), last_eps=float(eps))
    after_encoder = facts.stage == "classifier" or "encoder.norm.weight" in facts.shapes
    return Norms(after_encoder=after_encoder, eps=float(eps), last_eps=TORCH_EPS)


def _stage_settings(facts: ForeignFacts) -> dict[str, Any]:
    """Return the fields of a spec that depend on the stage: as in the saved settings, else as released."""
    args, config, left = facts.foreign.args, facts.foreign.config, {}
    for name in ("mcm_ratio", "mask_ratio"):  # shares of tokens removed
        share = args.get(name)
        if isinstance(share, float) and 0 < share < 1:
            left[name] = round(1 - share, 6)
    kept, visible = left.get("mcm_ratio"), left.get("mask_ratio") or 0.1
    if facts.stage == "classifier":
        outputs, problem = facts.shapes["head.weight"][0], config.get("problem_type")
        # Without a type, a single output is a number, as in transformers.
        default = "regression" if problem is None and outputs == 1 else "single-label"
        tasks = {MULTI_LABEL_PROBLEM: MULTI_LABEL, "regression": "regression"}
        everest = RedundancyRobust(keep_ratio=kept or 0.6, visible_ratio=None)
        return {
            "kind": "classifier",
            "num_classes": outputs,
            "task": tasks.get(str(problem), default),
            "selection": everest if args.get("mcm") and facts.names.kind == "pretrain" else AllTokens(),
        }
    if facts.names.kind == "encoder":
        return {"kind": "encoder", "selection": AllTokens()}
    normalize = bool(config.get("norm_pix_loss", args.get("normlize_target", True)))
    target, selection = PixelTargetSettings(normalize=normalize), Tube(mask_ratio=round(1 - visible, 6))
    if facts.program == "everest":
        selection = RedundancyRobust(keep_ratio=kept or 0.3, visible_ratio=visible)
    elif facts.program == "st-mae":
        normalize = "token" if args.get("norm_pix_loss", True) else False
        target = PixelTargetSettings(normalize=normalize, frames="half")
        selection = RandomSpaceTime(visible_ratio=visible)
    return {"kind": "pretrain", "target": target, "selection": selection}
