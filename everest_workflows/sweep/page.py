"""The page of a sweep, by the template of all results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everest.evaluation.page import PageContent, Point, Section
from everest.metrics.names import METRICS, value_text
from everest_workflows.sweep.table import format_cell, without_empty_columns


def summarize_sweep(
    documents: Sequence[Mapping[str, Any]], table: Sequence[Sequence[str]], notes: Sequence[str]
) -> PageContent:
    """What the page of a sweep shows; the first of the documents, which have a `figure`, gives the answer."""
    document = documents[0]
    measured = [variant for variant in document["variants"] if variant["seeds"]]
    answer = [f"no values of {document['title']} yet"]
    if measured:
        choose, rank = (max, "highest") if document["higher_is_better"] else (min, "lowest")
        best = choose(measured, key=lambda variant: variant["mean"])
        value = value_text(document["metric"], best["mean"])
        answer = [f"{rank} {document['title']}: {best['variant']}, {value}"]
    digits = "+.1f" if document["percent"] else "+.4g"
    for variant in measured:
        if (difference := variant["difference"]) is None:
            continue
        interval = format_cell(difference["interval"], digits)
        text = f"Δ vs. {document['against']}: {variant['variant']} {difference['mean']:{digits}}"
        answer.append(f"{text} (paired 95 % CI: {interval})" if interval else text)
    points = [
        Point(
            name=variant["variant"],
            value=variant["mean"],
            interval=variant["interval"],
            is_selected=variant["variant"] == document["against"],
        )
        for variant in measured
    ]
    titles, *rows = without_empty_columns(table)
    figures = [Section(heading=document["title"], figure=document["figure"]) for document in documents]
    return PageContent(
        title=f"Sweep of {document['recipe']}: {document['summary']}".removesuffix(": "),
        answer=answer,
        metric=document["metric"] if document["metric"] in METRICS and points else "",
        points=points,
        chance=next((variant["chance"] for variant in measured if variant["chance"] is not None), None),
        sections=[Section(heading="Variants", lines=notes, titles=titles, rows=rows), *figures],
    )
