"""`everest probe`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.option_groups import LabeledListOptions, grouped, is_on_cpu
from everest_cli.output import Display, print_json


@grouped
def probe(
    run: LabeledListOptions,
    probes: Annotated[
        str, typer.Option("--probes", metavar="NAME,…", help="Probes to train.")
    ] = "knn,linear,attentive",
    batch: o.Batch = 1,
    gpus: o.OneGpu = "auto",
) -> None:
    """Probe a frozen encoder: train simple classifiers on data.train, evaluate them on data.test.

    The features are of the central clip of each video.

    Example: everest probe --checkpoint runs/pretrain --recipe ucf101 --data /data/ucf101
    """
    weights, recipe = run.find()

    from everest.inference.model import OpenedModel
    from everest.probes.probe import probe

    names = [name.strip() for name in probes.split(",")]
    model = OpenedModel.open(weights, recipe=recipe, clips=1, crops=1, cpu=is_on_cpu(gpus))
    with Display(quiet=run.quiet) as display:
        result = probe(model, names, batch=batch, report=display.report)
    print_json(result) if run.as_json else _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from everest.evaluation.metric_text import as_text, nearest_texts
    from everest.metrics.names import METRICS

    console, tables = Console(soft_wrap=True), {}
    by_head = result.get("heads", {"": result})
    for head, of_head in by_head.items():
        rows = dict(of_head["probes"])
        for baseline, of_baseline in of_head["baselines"].items():
            rows |= {f"{name}, {baseline.replace('_', ' ')}": row for name, row in of_baseline.items()}
        metrics = tuple(name for name in METRICS if name in next(iter(rows.values())))
        rows |= {name: {metrics[0]: of_head[name]} for name in ("majority", "chance") if name in of_head}
        # Heads of one task share a table.
        table = tables.setdefault(metrics, Table("probe", *(METRICS[name].title for name in metrics)))
        for name, row in rows.items():
            table.add_row(f"{head} {name}".strip(), *(as_text(METRICS[m], row.get(m)) for m in metrics))
    for table in tables.values():
        console.print(table, markup=False, highlight=False)
    for text in nearest_texts(by_head):
        typer.echo(text)
    skipped = f", {result['skipped']} skipped" if result["skipped"] else ""
    typer.echo(f"{result['train']} training videos, {result['test']} test videos{skipped}")
