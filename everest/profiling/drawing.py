"""A figure of pre-training cost against the keep ratio and the clip length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from matplotlib.axes import Axes

from everest.config.settings import Recipe
from everest.errors import RecipeError
from everest.figures.curves import COLORS, LINES
from everest.figures.drawing import png_figure
from everest.methods.ranked import ByImportance
from everest.profiling.choices import ProfileOverrides
from everest.profiling.profile import METHODS, VALUE_BYTES, StageCost, precision_of, stage_cost

RATIOS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SLICES: Final = (4, 8, 12, 16, 24, 32, 48, 64)  # 8 to 128 frames with tubelets of two frames
MEGABYTE: Final = 1e6


class CostLine(NamedTuple):
    """The costs of one method against the keep ratio or the number of frames."""

    method: str
    x: Sequence[float]
    costs: list[StageCost]


def draw_costs(path: Path, overrides: ProfileOverrides) -> None:
    """Draw a PNG of 1200 x 900 pixels: GMACs (top) and memory of a clip (bottom) by keep ratio and by frames.

    There is a line per method, with the same overrides; only EVEREST has a keep ratio.

    Raises:
        RecipeError: the overrides are impossible.
    """
    recipes = {method: overrides.applied(name, everything=False) for method, name in METHODS.items()}
    by_ratio = [_by_ratio(method, recipe, overrides) for method, recipe in recipes.items()]
    by_frames = []
    for method, recipe in recipes.items():
        lengths = [slices * recipe.model.tubelet[0] for slices in SLICES]
        costs = [_cost(replace(recipe, data=replace(recipe.data, frames=length))) for length in lengths]
        by_frames.append(CostLine(method, lengths, costs))
    shown = recipes["everest"]
    with png_figure(path, (12, 9), points=13, dpi=100, tight=False) as figure:
        panels = figure.subplots(2, 2, sharex="col")
        _draw(panels[:, 0], by_ratio, f"share of tokens kept (rho_pre), {shown.data.frames} frames")
        _draw(panels[:, 1], by_frames, "frames of a clip")
        panels[0, 0].set_ylabel("GMACs of a clip, forward\n(the papers' GFLOPs)")
        panels[1, 0].set_ylabel(f"activations of a clip, MB\n({precision_of(shown)}, estimate)")
        figure.suptitle(f"Pre-training {shown.model.backbone} at {shown.data.size} pixels")
        handles, labels = panels[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _cost(recipe: Recipe) -> StageCost:
    return stage_cost(recipe, "pretrain", value_bytes=VALUE_BYTES[precision_of(recipe)])


def _by_ratio(method: str, recipe: Recipe, overrides: ProfileOverrides) -> CostLine:
    """Return costs by keep ratio; a constant for a method that has none."""
    selection = recipe.pretrain.selection
    if not isinstance(selection, ByImportance):
        cost = _cost(recipe)
        return CostLine(method, [RATIOS[0], RATIOS[-1]], [cost, cost])
    seen = selection.visible_ratio or 0
    ratios = [ratio for ratio in RATIOS if ratio > seen]
    if not ratios:
        raise RecipeError(f"--visible {overrides.visible}: leaves no keep ratio above it to draw")
    pretrain = recipe.pretrain
    selections = [replace(selection, keep_ratio=ratio) for ratio in ratios]
    costs = [_cost(replace(recipe, pretrain=replace(pretrain, selection=each))) for each in selections]
    return CostLine(method, ratios, costs)


def _draw(column: Sequence[Axes], lines: Sequence[CostLine], label: str) -> None:
    """Draw the two panels of one column."""
    for number, line in enumerate(lines):
        style: dict[str, Any] = {
            "color": COLORS[number],
            "linestyle": LINES[number],
            "linewidth": 2,
            "marker": "o" if len(line.x) > 2 else "",
            "markersize": 4,
            "label": line.method,
        }
        column[0].plot(line.x, [cost.gmacs for cost in line.costs], **style)
        memory = [cost.activation_bytes_per_clip / MEGABYTE for cost in line.costs]
        column[1].plot(line.x, memory, **style)
    for panel in column:
        panel.grid(alpha=0.3)
        panel.set_ylim(bottom=0)
    column[1].set_xlabel(label)
