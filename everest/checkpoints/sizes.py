"""From the shapes of a checkpoint, and what it says beside them, to the model that takes its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from everest.checkpoints.families import Translation
from everest.checkpoints.foreign import Foreign
from everest.config.settings import ModelSettings, PixelTargetSettings
from everest.config.sizes import BACKBONES
from everest.errors import CheckpointError, UserError
from everest.methods.grid import TokenGrid
from everest.methods.strategies import AllTokens, RedundancyRobust, Strategy, Tube
from everest.models.embedding import Positions, position_table
from everest.models.spec import ModelSpec, Norms

Stage = Literal["pretrain", "classifier", "encoder"]

EMBEDDING = "encoder.patch_embed.proj.weight"  # (D, 3, t, p, q)
RELEASED_FRAMES, RELEASED_SIZE = 16, 224  # defaults of all released programs
TRANSFORMERS_EPS, TORCH_EPS = 1e-12, 1e-5  # of its layers by default; of its last norm always
MLP_RATIO = 4  # of every size in everest.backbones
TABLE_TOLERANCE = 1e-3  # stored tables may be of half precision; learned ones are farther off


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a user knows and the file may not tell; None: as the file says, or as released."""

    family: str | None = None  # of everest.checkpoints.families.ALIASES
    frames: int | None = None
    size: int | None = None
    heads: int | None = None
    decoder_heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class ForeignFacts:
    """All that is known of a checkpoint before its sizes."""

    foreign: Foreign
    hints: Hints
    family: str
    translation: Translation
    shapes: Mapping[str, tuple[int, ...]]  # by our names
    positions: Positions  # of the family, where the file stores no table

    @property
    def stage(self) -> Stage:
        if "head.weight" in self.shapes:
            return "classifier"
        return "pretrain" if self.depth("decoder") else "encoder"

    @property
    def norms(self) -> Norms:
        """transformers adds other numbers, and leaves out the encoder's norm where tokens are averaged."""
        if self.family != "transformers":
            return Norms()
        eps = float(self.foreign.config.get("layer_norm_eps", TRANSFORMERS_EPS))
        after_encoder = self.stage == "classifier" or "encoder.norm.weight" in self.shapes
        return Norms(after_encoder=after_encoder, eps=eps, last_eps=TORCH_EPS)

    @property
    def pooling(self) -> Literal["mean", "first"]:
        """The norm of a classifier has two places: after the average (fc_norm) or before the first token."""
        before = self.translation.take.get("norm.weight", ("fc_norm.weight",))
        return "mean" if before[0].endswith("fc_norm.weight") else "first"

    def depth(self, stack: str) -> int:
        """Blocks of the encoder or decoder."""
        found = (re.match(rf"{stack}\.blocks\.(\d+)\.", name) for name in self.shapes)
        return max((int(block[1]) + 1 for block in found if block), default=0)

    def number(self, config: str, argument: str | None, default: int | None) -> int | None:
        """What transformers' config.json or a saved command line says."""
        value = self.foreign.config.get(config) or (argument and self.foreign.args.get(argument)) or default
        if value is not None and (not isinstance(value, int) or value < 1):
            raise self.error(f"it says that {config} is {value}, not a whole number; mend its config.json")
        return value

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.foreign.path}: {text}")


def check_architecture(known: ForeignFacts) -> None:
    """Raise CheckpointError for a model that computes something else than ours, whatever its names."""
    embedding = known.shapes.get(EMBEDDING)
    if embedding is None:
        raise known.error("its embedding of tubelets is missing, or is that of another model")
    if len(embedding) != 5 or embedding[1] != 3:
        raise known.error(f"its embedding is {list(embedding)}, not one of RGB tubelets, [D, 3, t, p, q]")
    for name, shape in known.shapes.items():
        if name.endswith("mlp.fc1.weight") and len(shape) == 2 and shape[0] != MLP_RATIO * shape[1]:
            raise known.error(f"{name} has {shape[0]} rows; our blocks have {MLP_RATIO} times {shape[1]}")
    activation = known.foreign.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise known.error(f"its activation is {activation}; our blocks have gelu")


def model_spec(known: ForeignFacts) -> ModelSpec:
    """The model whose parameters the checkpoint has.

    Raises:
        CheckpointError: sizes that cannot be told or meant, or positions that are not computed.
    """
    t, p, q = known.shapes[EMBEDDING][2:]
    frames = known.hints.frames or known.number("num_frames", "num_frames", None) or RELEASED_FRAMES
    size = _frame_size(known)
    try:
        grid = TokenGrid.of_clip(frames=frames, size=size, tubelet=(t, p, q))
    except UserError as error:
        raise known.error(f"{error}; say --frames and --size of its training") from error
    settings = _settings(known, (t, p, q), _positions(known, grid))
    classifier = known.stage == "classifier"
    return ModelSpec(
        kind="classifier" if classifier else "pretrain",
        frames=frames,
        size=size,
        model=settings,
        selection=_selection(known),
        target=None if classifier else PixelTargetSettings(normalize=_normalised(known.foreign)),
        norms=known.norms,
        num_classes=known.shapes["head.weight"][0] if classifier else None,
    )


def _frame_size(known: ForeignFacts) -> tuple[int, int]:
    """(height, width) in pixels."""
    told = known.foreign.config.get("image_size")
    if known.hints.size is None and isinstance(told, list) and len(told) == 2:
        return (int(told[0]), int(told[1]))
    side = known.hints.size or known.number("image_size", "input_size", None) or RELEASED_SIZE
    return (side, side)


def _settings(known: ForeignFacts, tubelet: tuple[int, int, int], positions: Positions) -> ModelSettings:
    width, depth = known.shapes[EMBEDDING][0], known.depth("encoder")
    alike = [name for name, size in BACKBONES.items() if size.width == width]
    backbone = (alike or ["vit-b"])[0]
    usual = BACKBONES[backbone]
    heads = known.hints.heads or known.number("num_attention_heads", None, usual.heads if alike else None)
    given = {"width": width, "depth": depth, "heads": _whole(known, heads, width, "--heads")}
    decoder_depth = known.depth("decoder")
    if decoder_depth:
        decoder_width = known.shapes.get("decoder.norm.weight", (usual.decoder_width,))[0]
        released = {size.decoder_width: size.decoder_heads for size in BACKBONES.values()}
        told = known.number("decoder_num_attention_heads", None, released.get(decoder_width))
        heads = known.hints.decoder_heads or told
        given["decoder_width"] = decoder_width
        given["decoder_heads"] = _whole(known, heads, decoder_width, "--decoder-heads")
    return ModelSettings(
        backbone=backbone,
        tubelet=tubelet,
        positions=positions,
        pooling=known.pooling,
        decoder_depth=decoder_depth or ModelSettings().decoder_depth,
        **{name: value for name, value in given.items() if value != getattr(usual, name)},
    )


def _whole(known: ForeignFacts, heads: int | None, width: int, option: str) -> int:
    """Heads leave no trace in the shapes, so those of a width that was never released must be said."""
    if not heads:
        raise known.error(
            f"no released model is {width} wide, so its attention heads are unknown; say {option} N"
        )
    if width % heads:
        raise known.error(f"{heads} heads do not divide a width of {width}; say {option} N")
    return heads


def _selection(known: ForeignFacts) -> Strategy:
    """As the saved command line says, else as released. `mcm_ratio` is the share of tokens removed."""
    args = known.foreign.args
    kept = _complement(args.get("mcm_ratio"))
    if known.stage == "classifier":
        return (
            RedundancyRobust(keep_ratio=kept or 0.6, visible_ratio=None) if args.get("mcm") else AllTokens()
        )
    seen = _complement(args.get("mask_ratio")) or 0.1
    if known.family == "everest":
        return RedundancyRobust(keep_ratio=kept or 0.3, visible_ratio=seen)
    return Tube(mask_ratio=round(1 - seen, 6))


def _complement(share: Any) -> float | None:
    return round(1 - share, 6) if isinstance(share, float) and 0 < share < 1 else None


def _normalised(foreign: Foreign) -> bool:
    return bool(foreign.config.get("norm_pix_loss", foreign.args.get("normlize_target", True)))


def _positions(known: ForeignFacts, grid: TokenGrid) -> Positions:
    """Which of our tables a stored one is; without one, that of the family."""
    name = known.translation.table
    if name is None or known.foreign.tensors[name].is_meta:
        return known.positions
    stored = known.foreign.tensors[name]
    table = stored.float().reshape(-1, stored.shape[-1])  # (N, D)
    if len(table) != grid.num_tokens:
        raise known.error(
            f"{name} is for {len(table)} tokens, a clip of {grid.t} x {grid.h} x {grid.w} has "
            f"{grid.num_tokens}; say --frames and --size of its training"
        )
    choices: tuple[Positions, ...] = ("separable", "flat")
    for choice in choices:
        if (position_table(choice, grid, table.shape[1]) - table).abs().max() < TABLE_TOLERANCE:
            return choice
    raise known.error(
        f"its positions ({name}) are learned; ours are computed, so its weights do not go with them"
    )
