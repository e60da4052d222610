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


def print_stages(document: dict[str, Any]) -> None:
    """One column per stage. The figures of an evaluation are per video, its activations per clip."""
    title = (
        f"{document['backbone']}, {document['frames']} frames, {document['size']} pixels "
        f"({document['recipe']}, {document['precision']})"
    )
    table = _table(title, "", *document["stages"])
    stages = list(document["stages"].values())
    for name, cell in (
        ("GMACs forward (the papers' GFLOPs)", lambda s: f"{s['gmacs']:.2f}"),
        ("GFLOPs forward (2 x GMACs)", lambda s: f"{s['gflops']:.2f}"),
        ("GFLOPs forward and backward", lambda s: f"{s['training_gflops']:.1f}" if "views" not in s else "-"),
        ("GMACs of the frozen tokenizer", _tokenizer),
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
    _print_waits(document["stages"])
    if "plot" in document:
        typer.echo(document["plot"])


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
    """Print for every measured stage whether the step waits for the loader, and the remedies."""
    for name, stage in stages.items():
        if "loading" not in stage:
            continue
        found = stage["loading"]
        if found["waits"] == "loader":
            typer.echo(f"{name}: the step is slower than the loader")
            continue
        typer.echo(f"{name}: the step waits for videos, {found['data_wait']:.0%} of its time. Remedies:")
        for help_ in found["helps"]:
            typer.echo(f"  {help_}")


def print_comparison(profiles: list[dict[str, Any]]) -> None:
    """One row per method and stage, with the ratio of the first method's GMACs to it."""
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
    for document in profiles:
        for name, stage in document["stages"].items():
            table.add_row(
                document["method"],
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
    """Every figure of the paper next to everest's; two for memory, as the paper's attention was not fused."""
    for number in sorted({row["table"] for row in rows}):
        table = _table(f"Table {number}", "quantity", "unit", "paper", "everest", "difference", "note")
        for row in rows:
            if row["table"] == number:
                table.add_row(*(Text(cell) for cell in _paper_cells(row)))
        _show(table)
    typer.echo(
        "GMACs are what the papers print as GFLOPs. Memory is estimated: model state of 8 GPUs and\n"
        "activations in bf16, with fused / unfused attention; the paper measured it, with unfused attention."
    )


def _paper_cells(row: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    computed, difference = "needs GPU", ""
    if "ours_fused" in row:
        computed = f"{row['ours_fused']:.1f} / {row['ours_unfused']:.1f}"
        difference = f"{row['deviation_percent_fused']:+.0f} % / {row['deviation_percent_unfused']:+.0f} %"
    elif row["ours"] is not None:
        computed = row["rounded"]
        difference = f"{row['deviation_percent']:+.2f} %"
    needs = "needs GPU to measure" if "ours_fused" in row else ""
    note = "; ".join(part for part in (row["note"], needs) if part)
    return row["what"], row["unit"], row["paper"], computed, difference, note
