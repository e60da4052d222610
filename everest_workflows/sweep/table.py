"""The table of a sweep's report, in the terminal, as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from everest.metrics.names import value_text
from everest.system.text import time_text

LATEX: Final = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
}


def make_report_table(*documents: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the titles of the columns, then the row of each variant, for one metric or several."""
    titles = ["variant", "seeds"]
    for document in documents:
        titles += [f"{document['title']}, mean", "95 % CI", f"Δ vs. {document['against']}"]
        differences = [row["difference"] for row in document["variants"] if row["difference"]]
        unit = "groups" if any(each["groups"] < each["videos"] for each in differences) else "videos"
        titles += ["95 % CI (paired)", f"95 % CI ({unit} and seeds)", "p"]
    yield (*titles, "training GMACs", "peak memory", "training time")
    for variants in zip(*(document["variants"] for document in documents), strict=True):
        cells = [variants[0]["variant"], str(max(len(variant["seeds"]) for variant in variants))]
        for document, variant in zip(documents, variants, strict=True):
            cells += _format_metric(document, variant)
        memory, hours = variants[0]["memory_bytes"], variants[0]["hours"]
        yield (
            *cells,
            format_cell([variants[0]["gmacs"]], ".4g"),
            "" if memory is None else f"{memory / 2**30:.1f} GiB",
            "" if hours is None else time_text(3600 * hours),
        )


def _format_metric(document: Mapping[str, Any], variant: Mapping[str, Any]) -> list[str]:
    """The cells of a variant for a metric."""
    digits = ".1f" if document["percent"] else ".4g"
    difference = variant["difference"] or {}
    return [
        value_text(document["metric"], variant["mean"]) if variant["seeds"] else "",
        format_cell(variant["interval"], digits),
        format_cell([difference.get("mean")], f"+{digits}"),
        format_cell(difference.get("interval"), f"+{digits}"),
        format_cell(difference.get("group_interval"), f"+{digits}"),
        format_cell([difference.get("p")], ".2g"),
    ]


def format_cell(values: Sequence[float | None] | None, form: str) -> str:
    """A value, or the two ends of an interval; differences of percentages are in points."""
    return " to ".join(f"{value:{form}}" for value in values or () if value is not None)


def without_empty_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The columns of a table with a value below their title."""
    filled = [any(cells) for cells in zip(*rows[1:], strict=True)]
    return [[cell for cell, is_filled in zip(row, filled, strict=True) if is_filled] for row in rows]


def format_rows(rows: Sequence[Sequence[str]], kind: str) -> str:
    """A table as `markdown`, `csv` or `latex`; the first row has the titles, empty columns are left out."""
    rows = without_empty_columns(rows)
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()
    if kind == "markdown":
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = [f"| {' | '.join(row)} |" for row in escaped]
        return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
    lines = [
        " & ".join("".join(LATEX.get(letter, letter) for letter in cell) for cell in row) for row in rows
    ]
    head, *body = (rf"{line} \\" for line in lines)
    begin = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])
