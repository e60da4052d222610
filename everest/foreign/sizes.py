"""Derives our model from the facts about a foreign checkpoint."""

from __future__ import annotations

from math import isqrt

from everest.config.heads import MULTI_LABEL, Task
from everest.config.settings import ModelSettings
from everest.config.sizes import BACKBONES, MLP_RATIO, backbone_of, backbone_settings
from everest.config.stage_settings import PixelTargetSettings
from everest.config.values import Positions
from everest.errors import UserError, shown
from everest.foreign.facts import ForeignFacts
from everest.foreign.files import MULTI_LABEL_PROBLEM
from everest.methods.grid import TokenGrid, check_num_tokens
from everest.methods.strategies import AllTokens, RandomSpaceTime, RedundancyRobust, Strategy, Tube
from everest.models.positions import BASE, SPATIAL, TEMPORAL, ComputedPositions, position_table
from everest.models.spec import ModelSpec

EMBEDDING = "encoder.patch_embed.proj.weight"  # (D, 3, t, p, q)
FIRST_MLP = "encoder.blocks.0.mlp.fc1.weight"  # (F, D)
COMPUTED: tuple[ComputedPositions, ...] = ("separable", "flat")  # a stored table is compared in this order
V_JEPA_CONFIG = {"model_type": "vjepa2", "rope_theta": BASE, "use_rope": True}  # the only values, if any
TABLE_TOLERANCE = 1e-3  # stored tables may be in half precision; learned ones differ by more


def model_spec(facts: ForeignFacts) -> ModelSpec:
    """Return the model that the parameters of the checkpoint fit.

    Raises:
        CheckpointError: an architecture that computes something else than our model, whatever its names are;
            sizes that are unknown or invalid; or positions that are not computed.
    """
    t, p, q = _tubelet(facts)
    _check_architecture(facts)
    slices = facts.rows(TEMPORAL)
    name = "frames_per_clip" if facts.family == "vjepa2" else "num_frames"
    frames = facts.hints.frames or (None if slices is None else slices * t)
    frames = frames or facts.number(name, "num_frames", None) or facts.released_clip[0]
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
        pixels=facts.pixels,
        num_classes=outputs,
        task="single-label" if outputs is None else _task(facts, outputs),
    )
    problem = next(spec.problems(), None)
    if problem is not None:
        raise facts.error(f"no model of everest: {problem}")
    return spec


def _tubelet(facts: ForeignFacts) -> tuple[int, int, int]:
    """Return the sides of the embedded tubelets; raises CheckpointError if they are not of RGB."""
    embedding = facts.shapes.get(EMBEDDING)
    if embedding is None:
        raise facts.error("its embedding of tubelets is missing, or is that of another model")
    if len(embedding) != 5 or embedding[1] != 3:
        raise facts.error(f"its embedding is {list(embedding)}, not one of RGB tubelets, [D, 3, t, p, q]")
    return embedding[2], embedding[3], embedding[4]


def _check_architecture(facts: ForeignFacts) -> None:
    """Raise CheckpointError for damaged shapes, or if none of our models computes the same."""
    for name, shape in facts.shapes.items():
        if not shape or 0 in shape:
            raise facts.error(f"{shown(name)} has a shape that no layer has; download it again")
        wide = name.endswith("mlp.fc1.weight") and len(shape) == 2 and shape[0] != MLP_RATIO * shape[1]
        if wide and name.startswith("decoder."):
            raise facts.error(f"{name} has {shape[0]} rows; our decoder has {MLP_RATIO} times {shape[1]}")
    if facts.family == "vjepa2":
        hints = facts.hints
        given = {"--heads": hints.heads, "--frames": hints.frames, "--size": hints.size}
        missing = [option for option, value in given.items() if value is None]
        if not facts.foreign.config and missing:  # no shape shows them
            needed = " and ".join(missing)
            raise facts.error(f"no config.json next to it, which has its clip and heads; set {needed}")
        for name, value in facts.foreign.config.items():
            expected = V_JEPA_CONFIG.get(name)
            if (name in V_JEPA_CONFIG or "rope" in name) and value not in (None, expected):
                needed = "none is possible" if expected is None else f"only {expected} is possible"
                raise facts.error(f"{name} is {shown(value)} in its config.json; {needed}")
    activation = facts.foreign.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise facts.error(f"its activation is {shown(activation)}; our blocks have gelu")


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
