"""The tables of `everest profile`."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 160  # where no terminal sets the width
MB, GB = 1e6, 1e9


def _show(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, show_header=bool(columns))
    for column in columns:
        table.add_column(column)
    return table


def _tokens(tokens: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in tokens.items())


def print_stages(told: dict[str, Any]) -> None:
    """One column a stage. An evaluation's figures are of a whole video, its activations of one clip."""
    title = (
        f"{told['backbone']}, {told['frames']} frames, {told['size']} pixels ({told['recipe']}, "
        f"{told['precision']})"
    )
    table = _table(title, "", *told["stages"])
    stages = list(told["stages"].values())
    for name, cell in (
        ("GMACs forward (the papers' GFLOPs)", lambda s: f"{s['gmacs']:.2f}"),
        ("GFLOPs forward (2 x GMACs)", lambda s: f"{s['gflops']:.2f}"),
        ("GFLOPs forward and backward", lambda s: f"{s['training_gflops']:.1f}" if "views" not in s else "-"),
        ("GMACs of the frozen tokenizer beside", _tokenizer),
        ("views (clips x crops)", _views),
        ("parameters", lambda s: f"{s['parameters'] / 1e6:.2f} M"),
        ("tokens", lambda s: _tokens(s["tokens"])),
        ("activations of a clip, estimate", lambda s: f"{s['activation_bytes_per_clip'] / MB:.1f} MB"),
        ("weights", lambda s: f"{s['model_state']['weights'] / GB:.2f} GB"),
        ("gradients", lambda s: f"{s['model_state']['gradients'] / GB:.2f} GB"),
        ("AdamW moments", lambda s: f"{s['model_state']['moments'] / GB:.2f} GB"),
        ("largest pass, estimate", lambda s: f"{s['max_batch']} clips" if "max_batch" in s else None),
        ("measured step", _measured),
        ("measured energy", _energy),
        ("measured loader", _loading),
    ):
        cells = [cell(stage) for stage in stages]
        if all(text is not None for text in cells) and set(cells) != {"-"}:
            table.add_row(name, *(Text(str(text)) for text in cells))
    _show(table)
    _print_waits(told["stages"])
    if "plot" in told:
        typer.echo(told["plot"])


def _tokenizer(stage: dict[str, Any]) -> str | None:
    return f"{stage['tokenizer_gmacs']:.2f}" if "tokenizer_gmacs" in stage else "-"


def _views(stage: dict[str, Any]) -> str:
    return f"{stage['views']['clips']} x {stage['views']['crops']}" if "views" in stage else "-"


def _measured(stage: dict[str, Any]) -> str | None:
    if "measured" not in stage:
        return None
    found = stage["measured"]
    seconds = found["step_seconds"]
    return (
        f"{seconds['median']:.3f} s ({seconds['min']:.3f} to {seconds['max']:.3f}) for {found['batch']} "
        f"clips: {found['clips_per_second']:.2f} clips/s, peak {found['peak_memory_bytes'] / GB:.2f} GB "
        f"({found['device']}, {found['precision']})"
    )


def _energy(stage: dict[str, Any]) -> str | None:
    if "measured" not in stage:
        return None
    joules, kwh = stage["measured"]["joules_per_clip"], stage["measured"]["run_kwh"]
    if joules is None:
        return "-"
    return f"{joules:.3g} J a clip" + (f", {kwh:.3g} kWh the run" if kwh is not None else "")


def _loading(stage: dict[str, Any]) -> str | None:
    if "loading" not in stage:
        return "-" if "views" in stage else None
    found = stage["loading"]
    return (
        f"{found['clips_per_second']:.1f} clips/s with {found['workers']} workers "
        f"({found['clips_per_second_of_one_process']:.1f} of one process)"
    )


def _print_waits(stages: dict[str, Any]) -> None:
    """Which of the two waits in every stage whose loader was measured, and what would help."""
    for name, stage in stages.items():
        if "loading" not in stage:
            continue
        found = stage["loading"]
        if found["waits"] == "loader":
            typer.echo(f"{name}: the step is the slower one; the videos keep up")
            continue
        typer.echo(
            f"{name}: the step waits for videos, {found['data_wait']:.0%} of its time. What would help:"
        )
        for help_ in found["helps"]:
            typer.echo(f"  {help_}")


def print_comparison(profiles: list[dict[str, Any]]) -> None:
    """One row a method and stage, with what the first method saves against it."""
    table = _table(
        "\nMethods",
        *(
            "method",
            "stage",
            "GMACs",
            "GFLOPs",
            "everest / it",
            "parameters",
            "activations of a clip",
            "tokens",
        ),
    )
    first = profiles[0]["stages"]
    for told in profiles:
        for name, stage in told["stages"].items():
            table.add_row(
                told["method"],
                name,
                f"{stage['gmacs']:.2f}",
                f"{stage['gflops']:.2f}",
                f"{first[name]['gmacs'] / stage['gmacs']:.2f}",
                f"{stage['parameters'] / 1e6:.2f} M",
                f"{stage['activation_bytes_per_clip'] / MB:.1f} MB",
                _tokens(stage["tokens"]),
            )
    _show(table)


def print_paper(rows: list[dict[str, Any]]) -> None:
    """Every figure of the paper with ours; of memory two, as its attention was not fused."""
    for number in sorted({row["table"] for row in rows}):
        table = _table(f"Table {number}", "what", "unit", "paper", "ours", "deviation", "note")
        for row in rows:
            if row["table"] == number:
                table.add_row(*(Text(cell) for cell in _paper_cells(row)))
        _show(table)
    typer.echo(
        "GMACs are what the papers print as GFLOPs. Memory is estimated: model state of 8 GPUs and\n"
        "activations in bf16, with fused / unfused attention; the paper's was measured, and unfused."
    )


def _paper_cells(row: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    ours, deviation = "needs GPU", ""
    if "ours_fused" in row:
        ours = f"{row['ours_fused']:.1f} / {row['ours_unfused']:.1f}"
        deviation = f"{row['deviation_percent_fused']:+.0f} % / {row['deviation_percent_unfused']:+.0f} %"
    elif row["ours"] is not None:
        ours = row["rounded"]
        deviation = f"{row['deviation_percent']:+.2f} %"
    needs = "needs GPU to measure" if "ours_fused" in row else ""
    note = "; ".join(part for part in (row["note"], needs) if part)
    return row["what"], row["unit"], row["paper"], ours, deviation, note
