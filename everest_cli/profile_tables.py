"""The tables of `everest profile`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer
from rich.text import Text

from everest_cli.output import print_table

MB, GB = 1e6, 1e9
PAPER_TABLES = {  # subjects of the paper's tables
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


def _tokens(tokens: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in tokens.items())


def print_profile(document: dict[str, Any]) -> None:
    """Print a column per stage, then the comparison. `eval` is per video, its activations per clip."""
    title = (
        f"{document['backbone']}, {document['frames']} frames, {document['size']} pixels "
        f"({document['recipe']}, {document['precision']})"
    )
    rows: list[list[str]] = []
    stages = list(document["stages"].values())
    for name, cell in (
        ("GMACs forward (the papers' GFLOPs)", _number_of("gmacs")),
        ("GMACs of ST-MAE's own program", _number_of("released_gmacs")),
        ("GFLOPs forward (2 x GMACs)", _number_of("gflops")),
        ("GFLOPs forward and backward", _number_of("training_gflops", digits=1)),
        ("GMACs of the frozen tokenizer", _number_of("tokenizer_gmacs")),
        ("GMACs of the frozen teacher", _number_of("teacher_gmacs")),
        ("GFLOPs of the camera's motion", _number_of("camera_gflops", digits=3)),
        ("views (clips x crops)", _views),
        ("parameters", lambda s: f"{s['parameters'] / 1e6:.2f} M"),
        ("trained parameters", _trained),
        ("tokens", lambda s: _tokens(s["tokens"])),
        ("activations of a clip, estimate", lambda s: f"{s['activation_bytes_per_clip'] / MB:.1f} MB"),
        ("weights", _gigabytes_of("weights")),
        ("gradients", _gigabytes_of("gradients")),
        ("AdamW moments", _gigabytes_of("moments")),
        ("frozen tokenizer, estimate", _gigabytes_of("tokenizer")),
        ("frozen teacher, estimate", _gigabytes_of("teacher")),
        ("measured step", _measured),
        ("measured loader", _loading),
    ):
        cells = [cell(stage) for stage in stages]
        if all(text is not None for text in cells) and set(cells) != {"-"}:
            rows.append([name, *map(str, cells)])
    _print_table(title, ["", *document["stages"]], rows)
    for name, stage in document["stages"].items():
        if "loading" not in stage:
            continue
        loader = stage["loading"]
        if loader["waits"] == "loader":
            typer.echo(f"{name}: the loader is fast enough: the step is slower")
        else:
            typer.echo(f"{name}: the step waits for videos, {loader['data_wait']:.0%} of its time. Remedies:")
            for remedy in loader["helps"]:
                typer.echo(f"  {remedy}")
    if "plan" in document:
        typer.echo(document["plan"]["sentence"])
    if document["compare"]:
        _print_comparison(document["compare"])


def _number_of(key: str, *, digits: int = 2) -> Callable[[dict[str, Any]], str]:
    """The cell of a number that only some stages have."""
    return lambda stage: "-" if stage.get(key) is None else f"{stage[key]:.{digits}f}"


def _gigabytes_of(part: str) -> Callable[[dict[str, Any]], str]:
    """The cell of a part of the model's state, which only some stages have."""
    return lambda s: f"{s['model_state'][part] / GB:.2f} GB" if part in s["model_state"] else "-"


def _views(stage: dict[str, Any]) -> str:
    return f"{stage['views']['clips']} x {stage['views']['crops']}" if "views" in stage else "-"


def _trained(stage: dict[str, Any]) -> str:
    """Only of a stage that trains a part of its parameters."""
    trained = stage.get("trained_parameters", stage["parameters"])
    return "-" if trained == stage["parameters"] else f"{trained / 1e6:.2f} M"


def _measured(stage: dict[str, Any]) -> str | None:
    if "measured" not in stage:
        return None
    step = stage["measured"]
    seconds = step["step_seconds"]
    return (
        f"{seconds['median']:.3f} s ({seconds['min']:.3f} to {seconds['max']:.3f}) for {step['batch']} "
        f"clips: {step['clips_per_second']:.2f} clips/s, peak {step['peak_memory_bytes'] / GB:.2f} GB "
        f"({step['device']}, {step['precision']})"
    )


def _loading(stage: dict[str, Any]) -> str | None:
    if "loading" not in stage:
        return "-" if "views" in stage else None
    loader = stage["loading"]
    return (
        f"{loader['clips_per_second']:.1f} clips/s with {loader['workers']} workers "
        f"({loader['clips_per_second_of_one_process']:.1f} of one process)"
    )


def _print_comparison(profiles: list[dict[str, Any]]) -> None:
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
    for document in profiles:
        released = [
            f"{stage['released_gmacs']:.2f} GMACs in {name}"
            for name, stage in document["stages"].items()
            if "released_gmacs" in stage
        ]
        if released:
            typer.echo(
                f"{document['method']}: its own program has a class token and predicts all tokens: "
                f"{', '.join(released)}"
            )


def print_paper(rows: list[dict[str, Any]]) -> None:
    """Print the paper's figures next to everest's: two of memory, as the paper's attention was not fused."""
    for number in sorted({row["table"] for row in rows}):
        cells = []
        for row in (row for row in rows if row["table"] == number):
            computed, difference, needs = "needs GPU", "", ""
            if "ours_fused" in row:
                fused, unfused = row["deviation_percent_fused"], row["deviation_percent_unfused"]
                computed = f"{row['ours_fused']:.1f} / {row['ours_unfused']:.1f}"
                difference, needs = f"{fused:+.0f} % / {unfused:+.0f} %", "needs GPU to measure"
            elif row["ours"] is not None:
                computed, difference = row["rounded"], f"{row['deviation_percent']:+.2f} %"
            note = "; ".join(part for part in (row["note"], needs) if part)
            cells.append((row["what"], row["unit"], row["paper"], computed, difference, note))
        columns = ("quantity", "unit", "paper", "everest", "difference", "note")
        _print_table(f"Table {number}: {PAPER_TABLES[number]}", columns, cells)
    typer.echo(
        "everest: the paper's quantity computed here, with as many digits; difference: before rounding,\n"
        "in percent of the paper's. rho_pre: keep ratio, the share of tokens kept; mask: share hidden.\n"
        "GMACs are what the papers print as GFLOPs. Memory is estimated: model state of 8 GPUs and\n"
        "activations in bf16, with fused / unfused attention; the paper measured it, with unfused attention."
    )
