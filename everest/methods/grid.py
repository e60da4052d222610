"""Tokens of a clip: their grid, random numbers and selection, and conversion between pixels and tokens.

B batch, C color channels, T frames, H W pixels, N tokens = t*h*w of the grid, K chosen tokens, S candidate
time indices (those that a clip is sampled from), t p q a tubelet's frames, rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Real
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.camera import NUM_RANDOM
from everest.system.private_apis import compile_as_constant

MAX_TOKENS: Final = 2**20  # heuristic: 80 times the tokens of a clip of 128 frames of 224 x 224 pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGrid:
    """The tokens of a clip: `h` x `w` at each of `t` time indices. Id: (time * h + row) * w + column."""

    t: int
    h: int
    w: int

    @classmethod
    def of_clip(cls, *, frames: int, size: tuple[int, int], tubelet: tuple[int, int, int]) -> TokenGrid:
        """The grid of a clip of `frames` frames of `size` (height, width) pixels."""
        if not (
            isinstance(tubelet, tuple | list)
            and [isinstance(side, int) and side > 0 for side in tubelet] == [True] * 3
        ):
            raise RecipeError(f"tubelet {tubelet}: must be three whole numbers from 1: frames, height, width")
        for what, length, step in zip(("frames", "height", "width"), (frames, *size), tubelet, strict=True):
            if length < step or length % step:
                raise RecipeError(f"a clip's {what} ({length}) must be a multiple of the tubelet's ({step})")
        return cls(t=frames // tubelet[0], h=size[0] // tubelet[1], w=size[1] // tubelet[2])

    @property
    def num_positions(self) -> int:
        return self.h * self.w

    @property
    def num_tokens(self) -> int:
        return self.t * self.num_positions


def check_num_tokens(grid: TokenGrid) -> None:
    """Raise RecipeError if the positions of a clip's tokens would take too much memory."""
    if grid.num_tokens > MAX_TOKENS:
        raise RecipeError(
            f"a clip has {grid.num_tokens} tokens, {MAX_TOKENS} are possible: take fewer frames, a smaller "
            "size or a larger tubelet"
        )


def num_candidates(time_indices: int, alpha: float) -> int:
    """How many candidates `time_indices` are sampled from: alpha times as many, rounded down."""
    return int(time_indices * Fraction(str(alpha)))


class ClipNoise(NamedTuple):
    """The uniform random numbers in [0, 1) of clips, by what they choose."""

    tokens: Tensor  # (B, N): which tokens are visible and which are predicted
    time_indices: Tensor  # (B, S): which candidate time indices make the clip; (B, 0) without frame selection
    camera: Tensor  # (B, NUM_RANDOM): the simulated motion of the camera; (B, 0) without this task


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseLayout:
    """How many random numbers a clip has for each purpose: the loader draws them, the model splits them."""

    candidates: TokenGrid  # what a clip is sampled from; without frame selection, the clip's
    time_indices: int
    camera: int

    @classmethod
    def of(cls, grid: TokenGrid, *, alpha: float = 1.0, camera: float = 0.0) -> Self:
        """The layout for clips of `grid`.

        Args:
            alpha: frame selection draws the time indices of a clip from alpha times as many.
            camera: the weight of the camera task in the loss; 0: without it.
        """
        t = num_candidates(grid.t, alpha)
        time_indices = t if t > grid.t else 0
        return cls(
            candidates=replace(grid, t=t), time_indices=time_indices, camera=NUM_RANDOM if camera else 0
        )

    @property
    def total(self) -> int:
        """The random numbers of a clip."""
        return self.candidates.num_tokens + self.time_indices + self.camera

    def split(self, noise: Tensor) -> ClipNoise:
        """Split the numbers (B, total) of clips; ValueError if a clip has more or fewer."""
        parts = [self.candidates.num_tokens, self.time_indices, self.camera]
        if noise.size(-1) != self.total:
            tokens, time_indices, camera = parts
            raise ValueError(
                f"noise: {noise.size(-1)} numbers a clip, not {self.total} ({tokens} for tokens, "
                f"{time_indices} for time indices, {camera} for the camera)"
            )
        return ClipNoise(*noise.split(parts, dim=-1))


@dataclass(frozen=True, slots=True, eq=False)
class TokenSelection:
    """The tokens that the encoder sees and those that the decoder predicts: ids, ascending in each row."""

    visible: Tensor  # (B, K) int64
    predicted: Tensor  # (B, M) int64; (B, 0) if nothing is predicted

    def loss_mask(self) -> Tensor:
        """Which of the predicted tokens count in the loss: those that are not visible, (B, M) bool."""
        if self.visible.size(1) == 0:
            return torch.ones_like(self.predicted, dtype=torch.bool)
        # Contiguous: searchsorted copies other tensors itself, with a warning.
        index = torch.searchsorted(self.visible.contiguous(), self.predicted.contiguous())
        return self.visible.gather(1, index.clamp_(max=self.visible.size(1) - 1)) != self.predicted

    def check(self, grid: TokenGrid, batch: int, *, predicts: bool = True) -> None:
        """Check a selection that a caller made for a forward pass over `batch` clips of `grid`.

        The check waits for the device, so it is not used for selections that a strategy makes.

        Args:
            predicts: whether the model predicts tokens; otherwise only the visible tokens are checked.
        Raises:
            ValueError: names the invalid part.
        """
        checked = {"selection.visible": self.visible}
        if predicts:
            checked["selection.predicted"] = self.predicted
        for name, ids in checked.items():
            if ids.dim() != 2 or ids.size(0) != batch or not ids.size(1) or ids.dtype != torch.int64:
                raise ValueError(
                    f"{name}: expected int64 ids of shape ({batch}, K) for {batch} clips, K at least 1, got "
                    f"{ids.dtype} {tuple(ids.shape)}"
                )
            if ids.is_meta:  # shapes only
                continue
            if ids.min() < 0 or ids.max() >= grid.num_tokens:
                raise ValueError(
                    f"{name}: ids from {ids.min()} to {ids.max()}; a clip has the tokens 0 to "
                    f"{grid.num_tokens - 1}"
                )
            if (ids.diff(dim=1) <= 0).any():
                raise ValueError(f"{name}: ids must ascend in each row, without duplicates; sort them")
        if predicts and not self.visible.is_meta and not self.loss_mask().any():
            raise ValueError(
                "selection.predicted: all predicted tokens are visible, so none counts in the loss"
            )


def check_inputs(
    grid: TokenGrid,
    batch: int,
    *,
    noise: Tensor | None = None,
    importance: Tensor | None = None,
    values: Tensor | None = None,
) -> None:
    """Check the shapes of tensors that a caller gives for a forward pass over `batch` clips of `grid`.

    Args:
        noise: (B, at least N).
        importance: (B, N).
        values: (B, N, P).
    Raises:
        ValueError: names the tensor with another shape.
    """
    b, n = batch, grid.num_tokens
    if noise is not None and (noise.dim() != 2 or noise.size(0) != b or noise.size(1) < n):
        raise ValueError(f"noise: expected shape ({b}, at least {n}), got {tuple(noise.shape)}")
    if importance is not None and importance.shape != (b, n):
        raise ValueError(f"importance: expected shape ({b}, {n}), got {tuple(importance.shape)}")
    if values is not None and (values.dim() != 3 or values.shape[:2] != (b, n)):
        raise ValueError(f"values: expected shape ({b}, {n}, P), got {tuple(values.shape)}")


def is_keep_ratio(value: object) -> bool:
    """Whether a value is a number above 0 and at most 1."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) <= 1


@compile_as_constant  # torch.compile cannot trace fractions
def num_kept(num_tokens: int, ratio: float) -> int:
    """The number of tokens in a fraction `ratio` of `num_tokens`, rounded down, computed on exact decimals.

    470 of 1568 at 0.3, 156 at 0.1, 940 at 0.6 (golden/token_counts.json). In floating point
    `int((1 - 0.9) * 10)` is 0; the decimal that the user wrote gives 1.
    """
    return int(num_tokens * Fraction(str(ratio)))


def _tubelets(frames: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
    """A view of `frames` (B, C, T, H, W) cut into tubelets: (B, time indices, rows, columns, C, t, p, q)."""
    b, c, num_frames, height, width = frames.shape
    t, p, q = tubelet
    x = frames.reshape(b, c, num_frames // t, t, height // p, p, width // q, q)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7)


def patchify(frames: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
    """All tubelets of the clips in token order, each ordered as a Conv3d weight: channel, frame, row, column.

    Args:
        frames: (B, C, T, H, W), any dtype.
    Returns:
        (B, N, C, t, p, q), a copy.
    """
    return _tubelets(frames, tubelet).flatten(1, 3)


def gather_patches(frames: Tensor, ids: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
    """`patchify(frames)` only at `ids` (B, K), without copying other pixels: (B, K, C, t, p, q)."""
    x = _tubelets(frames, tubelet)
    rows, columns = x.size(2), x.size(3)
    batch = torch.arange(x.size(0), device=ids.device).unsqueeze(1)  # (B, 1)
    return x[batch, ids // (rows * columns), ids // columns % rows, ids % columns]


def unpatchify(patches: Tensor, grid: TokenGrid) -> Tensor:
    """The inverse of `patchify`: (B, N, C, t, p, q) to (B, C, T, H, W)."""
    b, _, c, t, p, q = patches.shape
    x = patches.view(b, grid.t, grid.h, grid.w, c, t, p, q)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, C, time indices, t, rows, p, columns, q)
    return x.reshape(b, c, grid.t * t, grid.h * p, grid.w * q)


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """The tokens `ids` (B, K) of `x` (B, N, D): (B, K, D)."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.size(-1)))
