"""Derives our model from the shapes of a foreign checkpoint and the settings stored with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from everest.checkpoints import vjepa2
from everest.checkpoints.foreign import MULTI_LABEL_PROBLEM, Foreign
from everest.checkpoints.translation import Translation
from everest.config.heads import MULTI_LABEL, Task
from everest.config.settings import ModelSettings
from everest.config.sizes import BACKBONES, MLP_RATIO, backbone_of, backbone_settings
from everest.config.stage_settings import PixelTargetSettings
from everest.config.values import LARGEST_COUNT, MOST_BLOCKS, Positions
from everest.errors import CheckpointError, UserError, shown
from everest.methods.grid import TokenGrid, check_num_tokens
from everest.methods.strategies import AllTokens, RandomSpaceTime, RedundancyRobust, Strategy, Tube
from everest.models.norms import Norms
from everest.models.positions import SPATIAL, TEMPORAL, ComputedPositions, position_table
from everest.models.spec import ModelSpec

Stage = Literal["pretrain", "classifier", "encoder"]

EMBEDDING = "encoder.patch_embed.proj.weight"  # (D, 3, t, p, q)
FIRST_MLP = "encoder.blocks.0.mlp.fc1.weight"  # (F, D)
RELEASED_CLIP = (16, 224)  # frames and pixels of all released programs
TRANSFORMERS_EPS, TORCH_EPS = 1e-12, 1e-5  # LayerNorm epsilons of transformers: default; always in the last
COMPUTED: tuple[ComputedPositions, ...] = ("separable", "flat")  # a stored table is compared in this order
TABLE_TOLERANCE = 1e-3  # stored tables may be in half precision; learned ones differ by more


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Settings from the user that a file may not contain; None: as in the file, or as released."""

    family: str | None = None  # of everest.checkpoints.families.ALIASES
    frames: int | None = None
    size: int | tuple[int, int] | None = None  # (height, width) of one that is not square
    heads: int | None = None
    decoder_heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class ForeignFacts:
    """The facts about a foreign checkpoint before its sizes are known."""

    foreign: Foreign
    hints: Hints
    family: str
    translation: Translation
    shapes: Mapping[str, tuple[int, ...]]  # by our names
    positions: Positions  # of the family, where the file stores no table
    kind: Literal["pretrain", "encoder"]  # of our weights, if the checkpoint has no classifier

    @property
    def stage(self) -> Stage:
        if "head.weight" in self.shapes:
            return "classifier"
        return "pretrain" if self.depth("decoder") else "encoder"

    @property
    def released_clip(self) -> tuple[int, int]:
        """The frames of a clip and the side of a frame, unless the file or the user states them."""
        return vjepa2.CLIP if self.family == "vjepa2" else RELEASED_CLIP

    @property
    def norms(self) -> Norms:
        """transformers has other epsilons, and no norm after VideoMAE's encoder where tokens are averaged."""
        if self.family not in ("transformers", "vjepa2"):
            return Norms()
        default = TRANSFORMERS_EPS if self.family == "transformers" else Norms().eps
        eps = self.foreign.config.get("layer_norm_eps", default)
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps <= 1:
            raise self.error(f"layer_norm_eps is {shown(eps)}, not a small number; fix its config.json")
        if self.family == "vjepa2":
            return Norms(eps=float(eps), last_eps=float(eps))
        after_encoder = self.stage == "classifier" or "encoder.norm.weight" in self.shapes
        return Norms(after_encoder=after_encoder, eps=float(eps), last_eps=TORCH_EPS)

    @property
    def pooling(self) -> Literal["mean", "first"]:
        """The norm of a classifier comes after the average (fc_norm), or before the first token is taken.

        ST-MAE has one norm, which comes after the average.
        """
        if self.family == "st-mae":
            return "mean"
        before = self.translation.take.get("norm.weight", ("fc_norm.weight",))
        return "mean" if before[0].endswith("fc_norm.weight") else "first"

    def rows(self, positions: str) -> int | None:
        """The number of slices or places that learned positions are for; None: the file has none.

        Raises:
            CheckpointError: they have another shape than (1, rows, D).
        """
        shape = self.shapes.get(f"encoder.{positions}")
        if shape is not None and len(shape) != 3:
            name = self.translation.take[f"encoder.{positions}"][0]
            raise self.error(f"{name} is {list(shape)}, not learned positions [1, N, D]")
        return None if shape is None else shape[1]

    def depth(self, stack: str) -> int:
        """The number of blocks of the encoder or decoder."""
        matches = (re.match(rf"{stack}\.blocks\.(\d+)\.", name) for name in self.shapes)
        numbers = [match[1] for match in matches if match]
        too_deep = next((n for n in numbers if len(n) > len(str(MOST_BLOCKS)) or int(n) >= MOST_BLOCKS), None)
        if too_deep is not None:
            raise self.error(f"its {stack} has a block {shown(too_deep)}, at most {MOST_BLOCKS} are possible")
        return max((int(number) + 1 for number in numbers), default=0)

    def number(self, config: str, argument: str | None, default: int | None) -> int | None:
        """Return a value of transformers' config.json or of a saved command line."""
        value = self.foreign.config.get(config) or (argument and self.foreign.args.get(argument)) or default
        if value is not None and (type(value) is not int or not 1 <= value <= LARGEST_COUNT):
            raise self.error(f"{config} is {shown(value)}, not a positive integer; fix its config.json")
        return value

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.foreign.path}: {text}")


def model_spec(facts: ForeignFacts) -> ModelSpec:
    """Return the model that the parameters of the checkpoint fit.

    Raises:
        CheckpointError: an architecture that computes something else than our model, whatever its names are;
            sizes that are unknown or invalid; or positions that are not computed.
    """
    embedding = facts.shapes.get(EMBEDDING)
    if embedding is None:
        raise facts.error("its embedding of tubelets is missing, or is that of another model")
    if len(embedding) != 5 or embedding[1] != 3:
        raise facts.error(f"its embedding is {list(embedding)}, not one of RGB tubelets, [D, 3, t, p, q]")
    for name, shape in facts.shapes.items():
        if not shape or 0 in shape:
            raise facts.error(f"{shown(name)} has a shape that no layer has; download it again")
        wide = name.endswith("mlp.fc1.weight") and len(shape) == 2 and shape[0] != MLP_RATIO * shape[1]
        if wide and name.startswith("decoder."):
            raise facts.error(f"{name} has {shape[0]} rows; our decoder has {MLP_RATIO} times {shape[1]}")
    if facts.family == "vjepa2":
        hints = facts.hints
        given = {"--heads": hints.heads, "--frames": hints.frames, "--size": hints.size}
        problem = vjepa2.config_problem(facts.foreign.config, given)
        if problem is not None:
            raise facts.error(problem)
    activation = facts.foreign.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise facts.error(f"its activation is {shown(activation)}; our blocks have gelu")
    t, p, q = embedding[2:]
    slices = facts.rows(TEMPORAL)
    name = "frames_per_clip" if facts.family == "vjepa2" else "num_frames"
    stored_frames = facts.number(name, "num_frames", None) if slices is None else slices * t
    frames = facts.hints.frames or stored_frames or facts.released_clip[0]
    size = _frame_size(facts, (p, q))
    try:
        grid = TokenGrid.of_clip(frames=frames, size=size, tubelet=(t, p, q))
        check_num_tokens(grid)
    except UserError as error:
        raise facts.error(f"{error}; set --frames and --size of its training") from error
    for positions, rows, what in ((TEMPORAL, grid.t, "slices"), (SPATIAL, grid.per_slice, "places")):
        stored = facts.rows(positions)
        if stored not in (None, rows):
            raise facts.error(
                f"its learned positions are for {stored} {what}, a clip of {frames} x {size[0]} x {size[1]} "
                f"has {rows}; set --frames and --size of its training"
            )
    settings = _settings(facts, (t, p, q), grid)
    classifier = facts.stage == "classifier"
    outputs = facts.shapes["head.weight"][0] if classifier else None
    spec = ModelSpec(
        kind="classifier" if classifier else facts.kind,
        frames=frames,
        size=size,
        model=settings,
        selection=_selection(facts),
        target=_target(facts) if facts.kind == "pretrain" and not classifier else None,
        norms=facts.norms,
        num_classes=outputs,
        task="single-label" if outputs is None else _task(facts, outputs),
    )
    problem = next(spec.problems(), None)
    if problem is not None:
        raise facts.error(f"no model of everest: {problem}")
    return spec


def _task(facts: ForeignFacts, outputs: int) -> Task:
    """Return the task of transformers' `problem_type`; without one, a single output is a number, as there."""
    problem = facts.foreign.config.get("problem_type")
    if problem == MULTI_LABEL_PROBLEM:
        return MULTI_LABEL
    return "regression" if problem == "regression" or (problem is None and outputs == 1) else "single-label"


def _frame_size(facts: ForeignFacts, patch: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the frames: of the user, of the file, or as released.

    Raises:
        CheckpointError: the file has learned positions of a frame that is not square, and no size is given.
    """
    size, places = facts.hints.size, facts.rows(SPATIAL)
    if size is None and places is not None:
        side = isqrt(places)
        if side**2 != places:
            raise facts.error(
                f"its learned positions are for {places} places, which form no square; "
                "set --size HEIGHTxWIDTH of its training"
            )
        return side * patch[0], side * patch[1]
    if size is None:
        name = "crop_size" if facts.family == "vjepa2" else "image_size"
        size = facts.foreign.config.get(name)
        if not isinstance(size, list):
            size = facts.number(name, "input_size", None) or facts.released_clip[1]
        elif len(size) != 2 or not all(type(side) is int for side in size):
            raise facts.error(f"{name} is {shown(size)}, not a size in pixels; fix its config.json")
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _target(facts: ForeignFacts) -> PixelTargetSettings:
    """Return the target of the saved settings, else the released one."""
    if facts.family == "st-mae":
        normalize = facts.foreign.args.get("norm_pix_loss", True)
        return PixelTargetSettings(normalize="token" if normalize else False, frames="half")
    normalize = facts.foreign.config.get("norm_pix_loss", facts.foreign.args.get("normlize_target", True))
    return PixelTargetSettings(normalize=bool(normalize))


def _settings(facts: ForeignFacts, tubelet: tuple[int, int, int], grid: TokenGrid) -> ModelSettings:
    """Return the sizes, and our position table that equals the stored one; else the family's."""
    positions, name = facts.positions, facts.translation.table
    if name is not None and not facts.foreign.tensors[name].is_meta:
        stored, width = facts.foreign.tensors[name], facts.shapes[EMBEDDING][0]
        if not stored.shape or stored.shape[-1] != width:
            raise facts.error(f"{name} is not for a width of {width}; download it again")
        table = stored.float().reshape(-1, stored.shape[-1])  # (N, D)
        if len(table) != grid.num_tokens:
            raise facts.error(
                f"{name} is for {len(table)} tokens, a clip of {grid.t} x {grid.h} x {grid.w} has "
                f"{grid.num_tokens}; set --frames and --size of its training"
            )
        tables = {kind: position_table(kind, grid, table.shape[1]) for kind in COMPUTED}
        equal: list[Positions] = [
            kind for kind in COMPUTED if (tables[kind] - table).abs().max() < TABLE_TOLERANCE
        ]
        if not equal:
            raise facts.error(
                f"its positions ({name}) are learned; everest computes positions, so the weights do not fit"
            )
        positions = equal[0]
    width, depth = facts.shapes[EMBEDDING][0], facts.depth("encoder")
    of_this_width = any(size.width == width for size in BACKBONES.values())
    default = BACKBONES[backbone_of(width)]
    heads = facts.hints.heads or facts.number(
        "num_attention_heads", None, default.heads if of_this_width else None
    )
    values = {"width": width, "depth": depth, "heads": _checked_heads(facts, heads, width, "--heads")}
    decoder_depth = facts.depth("decoder")
    if decoder_depth:
        decoder_width = facts.shapes.get("decoder.norm.weight", (default.decoder_width,))[0]
        released = {size.decoder_width: size.decoder_heads for size in BACKBONES.values()}
        saved_heads = facts.number("decoder_num_attention_heads", None, released.get(decoder_width))
        heads = facts.hints.decoder_heads or saved_heads
        values["decoder_width"] = decoder_width
        values["decoder_heads"] = _checked_heads(facts, heads, decoder_width, "--decoder-heads")
    mlp = facts.shapes.get(FIRST_MLP, (None,))[0]
    return ModelSettings(
        **backbone_settings(**values, mlp=mlp),
        tubelet=tubelet,
        positions=positions,
        class_token="encoder.class_token" in facts.shapes,
        pooling=facts.pooling,
        decoder_depth=decoder_depth or ModelSettings().decoder_depth,
    )


def _checked_heads(facts: ForeignFacts, heads: int | None, width: int, option: str) -> int:
    """Return `heads`. No shape shows their number, so the user gives it for a width without a release."""
    if not heads:
        raise facts.error(
            f"no released model is {width} wide, so its attention heads are unknown; set {option} N"
        )
    if width % heads:
        raise facts.error(f"{heads} heads do not divide a width of {width}; set {option} N")
    return heads


def _selection(facts: ForeignFacts) -> Strategy:
    """Return the selection of the saved command line, else the released one.

    `mcm_ratio` is the share of tokens removed.
    """
    args, left = facts.foreign.args, {}
    for name in ("mcm_ratio", "mask_ratio"):
        share = args.get(name)
        if isinstance(share, float) and 0 < share < 1:
            left[name] = round(1 - share, 6)
    kept, visible = left.get("mcm_ratio"), left.get("mask_ratio") or 0.1
    if facts.kind == "encoder":
        return AllTokens()
    if facts.stage == "classifier":
        return (
            RedundancyRobust(keep_ratio=kept or 0.6, visible_ratio=None) if args.get("mcm") else AllTokens()
        )
    if facts.family == "everest":
        return RedundancyRobust(keep_ratio=kept or 0.3, visible_ratio=visible)
    if facts.family == "st-mae":
        return RandomSpaceTime(visible_ratio=visible)
    return Tube(mask_ratio=round(1 - visible, 6))
