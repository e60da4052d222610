"""The tables of `everest profile`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import typer
from rich.text import Text

from everest_cli.output import print_table

MB, GB = 1e6, 1e9
PAPER_TABLES: Final = {  # subjects of the paper's tables
    1: "cost of pre-training and fine-tuning by backbone",
    3: "memory of pre-training by batch size",
    4: "time and memory of pre-training by method",
    5: "cost and memory of fine-tuning with and without EVEREST",
    10: "cost by the share of tokens kept (EVEREST) or masked (VideoMAE, ST-MAE), ViT-B",
    11: "cost of fine-tuning by backbone",
    12: "cost by the number of frames",
    15: "size, memory and cost by the number of convolutions in the embedding",
}


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Iterable[str]]) -> None:
    print_table(columns, rows, title=Text(title), title_justify="left", box=None)


def _tokens(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in tokens.items())


def _measured(step: Mapping[str, Any]) -> str:
    return (
        f"{step['step_seconds']['median']:.3f} s for {step['batch']} clips: {step['clips_per_second']:.2f} "
        f"clips/s, peak {step['peak_memory_bytes'] / GB:.2f} GB ({step['device']}, {step['precision']})"
    )


def _loading(loader: Mapping[str, Any]) -> str:
    waits = f"; the step waits for it {loader['data_wait']:.0%} of its time" if loader["data_wait"] else ""
    return f"{loader['clips_per_second']:.1f} clips/s with {loader['workers']} workers{waits}"


def _advice(stage: str, loader: Mapping[str, Any]) -> str:
    """What limits a stage, and what helps most."""
    speeds = (
        f"{stage}: loader {loader['clips_per_second']:.0f} clips/s, step "
        f"{loader['step_clips_per_second']:.0f} clips/s"
    )
    if not loader["data_wait"]:
        return f"{speeds}: the step is the limit"
    changes = [f"{change} (x{factor:.1f})" for change, factor in loader["changes"].items()]
    return f"{speeds}: the loader is the limit; what helps most: {', then '.join(changes) or 'more cores'}"


# The rows of the table: name, key in the document of --json, and how the value is shown.
ROWS: Final[tuple[tuple[str, str, Callable[[Any], str]], ...]] = (
    ("GMACs forward (the papers' GFLOPs)", "gmacs", "{:.2f}".format),
    ("GFLOPs forward (2 x GMACs)", "gflops", "{:.2f}".format),
    ("GFLOPs forward and backward", "training_gflops", "{:.1f}".format),
    ("GMACs of the frozen tokenizer", "tokenizer_gmacs", "{:.2f}".format),
    ("GMACs of the frozen teacher", "teacher_gmacs", "{:.2f}".format),
    ("views (clips x crops)", "views", "{0[clips]} x {0[crops]}".format),
    ("parameters", "parameters", lambda number: f"{number / 1e6:.2f} M"),
    ("trained parameters", "trained_parameters", lambda number: f"{number / 1e6:.2f} M"),
    ("tokens", "tokens", _tokens),
    ("activations of a clip, estimate", "activation_bytes_per_clip", lambda size: f"{size / MB:.1f} MB"),
    ("weights, gradients, moments", "model_state_bytes", lambda size: f"{size / GB:.2f} GB"),
    ("measured step", "measured", _measured),
    ("measured loader", "loading", _loading),
)


def print_profile(document: Mapping[str, Any]) -> None:
    """Print a column per stage, then the plan and the comparison. `eval` is per video."""
    title = (
        f"{document['backbone']}, {document['frames']} frames, {document['size']} pixels "
        f"({document['recipe']}, {document['precision']})"
    )
    stages = document["stages"].values()
    rows = []
    for name, key, shown in ROWS:
        values = [stage.get(key) for stage in stages]
        if values != [None] * len(values):
            rows.append([name, *("-" if value is None else shown(value) for value in values)])
    _print_table(title, ["", *document["stages"]], rows)
    for name, stage in document["stages"].items():
        if "loading" in stage:
            typer.echo(_advice(name, stage["loading"]))
    if "plan" in document:
        typer.echo(document["plan"]["sentence"])
    if document["compare"]:
        _print_comparison(document["compare"])


def _print_comparison(profiles: Sequence[Mapping[str, Any]]) -> None:
    """Print a row per method and stage, with the ratio of the first method's GMACs to its own."""
    columns = ("method", "stage", "GMACs", "GFLOPs", "everest / it")
    columns += ("parameters", "activations of a clip", "tokens")
    first = profiles[0]["stages"]
    rows = [
        (
            document["method"],
            name,
            f"{stage['gmacs']:.2f}",
            f"{stage['gflops']:.2f}",
            f"{first[name]['gmacs'] / stage['gmacs']:.2f}",
            f"{stage['parameters'] / 1e6:.2f} M",
            f"{stage['activation_bytes_per_clip'] / MB:.1f} MB",
            _tokens(stage["tokens"]),
        )
        for document in profiles
        for name, stage in document["stages"].items()
    ]
    _print_table("\nMethods", columns, rows)


def print_paper(figures: Sequence[Mapping[str, Any]]) -> None:
    """Print the paper's figures next to everest's."""
    columns = ("quantity", "unit", "paper", "everest", "difference", "note")
    for number, subject in PAPER_TABLES.items():
        rows = []
        for figure in (figure for figure in figures if figure["table"] == number):
            computed, difference = "needs GPU", ""
            if figure["ours"] is not None:
                computed, difference = figure["rounded"], f"{figure['deviation_percent']:+.2f} %"
            what = (figure["what"], figure["unit"], figure["paper"])
            rows.append((*what, computed, difference, figure["note"]))
        _print_table(f"Table {number}: {subject}", columns, rows)
    typer.echo(
        "difference: before rounding, in percent of the paper's. GMACs are what the papers print as GFLOPs.\n"
        "Memory is estimated, of 8 GPUs in bf16 with attention that is not fused; the paper measured it."
    )
