"""The table of a sweep's report, in the terminal, as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from everest.metrics.names import value_text

NUM_COSTS: Final = 4  # the last columns
LATEX: Final = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
}


def make_report_table(*documents: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the titles of the columns, then the row of each variant, for one metric or several."""
    hours = [variant["hours"] for variant in documents[0]["variants"]]
    unit, per_hour = ("h", 1) if max(filter(None, hours), default=0) >= 2 else ("min", 60)
    costs = ("training GMACs", "GMACs a view", "peak memory (GiB)", f"training time ({unit})")
    titles = ["variant", "seeds"]
    for document in documents:
        percent, points = (" (%)", " (points)") if document["percent"] else ("", "")
        titles += [f"{document['title']}, mean{percent}", "95 % CI"]
        titles.append(f"Δ vs. {document['against']}{points}")
        differences = [row["difference"] for row in document["variants"] if row["difference"]]
        drawn = "groups" if any(each["groups"] < each["videos"] for each in differences) else "videos"
        titles += ["95 % CI (paired)", f"95 % CI ({drawn} and seeds)", "p"]
    yield (*titles, *costs)
    for variants in zip(*(document["variants"] for document in documents), strict=True):
        cells = [variants[0]["variant"], str(max(len(variant["seeds"]) for variant in variants))]
        for document, variant in zip(documents, variants, strict=True):
            cells += _format_metric(document, variant)
        first = variants[0]
        memory, time = first["memory_bytes"], first["hours"]
        yield (
            *cells,
            *(format_cell([first[key]], ".4g") for key in ("gmacs", "view_gmacs")),
            "" if memory is None else f"{memory / 2**30:.1f}",
            "" if time is None else f"{time * per_hour:.1f}",
        )


def _format_metric(document: Mapping[str, Any], variant: Mapping[str, Any]) -> list[str]:
    digits = ".1f" if document["percent"] else ".4g"
    difference = variant["difference"] or {}
    return [
        value_text(document["metric"], variant["mean"]).removesuffix(" %") if variant["seeds"] else "",
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


def format_rows(rows: Sequence[Sequence[str]], kind: str, notes: Sequence[str] = ()) -> str:
    """A table as `markdown`, `csv` or `latex`; the first row has the titles, empty columns are left out.

    For LaTeX (with booktabs), the costs are a table of their own, and the notes are the caption.
    """
    if kind == "latex":
        results, costs = [row[:-NUM_COSTS] for row in rows], [(row[0], *row[-NUM_COSTS:]) for row in rows]
        tables = [results, *([costs] if len(without_empty_columns(costs)[0]) > 1 else [])]
        tabulars = "\n\n\\medskip\n".join(map(_format_tabular, tables))
        text = _escape_latex("; ".join(note.rstrip(".") for note in notes if note))
        caption = f"\\caption{{{text}.}}\n" if text else ""
        return f"\\begin{{table}}\n\\centering\n{tabulars}\n{caption}\\end{{table}}\n"
    rows = without_empty_columns(rows)
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def _format_tabular(rows: Sequence[Sequence[str]]) -> str:
    rows = without_empty_columns(rows)
    head, *body = (rf"{' & '.join(map(_escape_latex, row))} \\" for row in rows)
    begin = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _escape_latex(text: str) -> str:
    """A text with LaTeX's special letters and minus signs escaped."""
    escaped = "".join(LATEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
