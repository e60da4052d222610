"""Writes the tables and figures of benchmarks/evidence/tables.md from benchmarks/evidence/results.

    python benchmarks/evidence_page.py

The text between `<!-- evidence: NAME -->` and `<!-- end of NAME -->` is replaced.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from evidence_tables import (
    CLAIMS,
    MEASURES,
    UNIFORM_AND_CHANGE,
    VARIATIONS,
    Claim,
    Results,
    clips_claims,
    clips_table,
    features_table,
    letters_table,
    measures_table,
    pairs_table,
    sets_table,
    without_interval,
)
from held_out_clips import LETTERS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from measuring import markdown
from run_evidence import CLIPS, PARTS
from view_features import RESULTS as FEATURES
from view_features import RESULTS_OF_LETTERS
from view_labels import RESULTS as OF_LABELS
from view_labels import kept_table, labels_table

from everest.figures.style import COLORS
from everest.system.files import atomic_file
from everest_demo.event_pairs import event_set
from everest_workflows.sweep.report import draw_report, make_report
from everest_workflows.sweep.table import make_report_table

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "evidence" / "results"
LVMAE: Final = HERE / "results" / "lvmae_variants.json"
IMPORTANCE: Final = HERE / "results" / "importance.json"
OF_LETTERS: Final = HERE / "results" / "view_letters.json"
PAGE: Final = HERE / "evidence" / "tables.md"
BLOCK: Final = re.compile(r"(<!-- evidence: ([\w-]+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
VARIANTS: Final = ("methods", "keep-ratios")  # the parts whose variants are sampled
BUDGETS: Final = "steps"  # the part that is drawn by each budget
STYLE: Final[Any] = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


def draw_figures(results: Mapping[str, dict[str, Any]], folder: Path) -> Sequence[Path]:
    """Draw the figures of the parts that have run."""
    sampled = []
    for part in (*VARIANTS, BUDGETS):
        if part in results:
            sampled.append(folder / f"evidence-{part}.png")
            draw = draw_budgets if part == BUDGETS else draw_report
            draw(sampled[-1], make_report(results[part]))
    return sampled


def draw_line(
    panel: Axes,
    x: Sequence[float],
    spreads: Sequence[tuple[float, tuple[float, float] | None]],
    *,
    color: str,
    label: str,
) -> None:
    """Draw means with their intervals, where there are intervals."""
    bars = [
        [mean - interval[0] if interval else 0.0 for mean, interval in spreads],
        [interval[1] - mean if interval else 0.0 for mean, interval in spreads],
    ]
    means = [mean for mean, _ in spreads]
    panel.errorbar(x, means, bars, color=color, marker="o", capsize=3, label=label)


def draw_budgets(path: Path, report: Mapping[str, Any]) -> None:
    """Draw the metric of each method by its steps, its GMACs and its hours, like EVEREST Figures 1a, 5, 7.

    Args:
        report: of a sweep whose variants are called `METHOD, NUMBER steps`. Other variants are horizontal
            lines.
    """
    points: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    levels: dict[str, float] = {}
    for variant in (variant for variant in report["variants"] if variant["values"]):
        method, _, steps = variant["variant"].removesuffix(" steps").rpartition(", ")
        if method:
            points[method].append((int(steps), variant))
        else:
            levels[variant["variant"]] = variant["mean"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4), dpi=120, layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        titles = ("steps of pre-training", "GMACs of training (all steps)", "hours of training")
        for panel, title, key in zip(panels, titles, ("steps", "gmacs", "hours"), strict=True):
            for (method, variants), color in zip(points.items(), COLORS, strict=False):
                ordered = sorted(variants, key=lambda variant: variant[0])
                x = [steps if key == "steps" else variant[key] for steps, variant in ordered]
                spreads = [(variant["mean"], variant["interval"]) for _, variant in ordered]
                draw_line(panel, x, spreads, color=color, label=method)
            for name, level in levels.items():
                panel.axhline(level, color="0.4", linestyle="--", label=name)
            panel.set_xscale("log")
            if key == "steps":
                panel.set_xticks(sorted({steps for variants in points.values() for steps, _ in variants}))
            else:
                panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=20))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
            panel.set_xlabel(title)
            panel.grid(alpha=0.3)
        panels[0].set_ylabel(f"{report['title']} (%)")
        panels[0].legend(frameon=False)
        with atomic_file(path) as part:
            figure.savefig(part, format="png")


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The results of each part that has run."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def lvmae_results() -> dict[str, Any]:
    """The rows of results/lvmae_variants.json as the results of a sweep; their GMACs were not counted."""
    document, videos = json.loads(LVMAE.read_text()), event_set()
    variants: dict[str, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        hours = sum(row["seconds"].values()) / 3600
        measured = {"seed": row["seed"], "metrics": {"top1": row["top1"]}, "gmacs": math.nan, "hours": hours}
        variants.setdefault(row["variant"], []).append(measured)
    return {
        "recipe": "lvmae-demo",
        "summary": "LVMAE variants",
        "videos": {"test": videos.test_per_class * len(videos.classes)},
        "stages": ["pretrain", "finetune", "eval"],
        "metric": "top1",
        "against": "random",
        "jobs": {"all": len(document["rows"]), "finished": len(document["rows"])},
        "variants": [
            {"variant": variant, "overrides": {}, "seeds": rows} for variant, rows in variants.items()
        ],
        "failures": [],
    }


def page_blocks(results: Results) -> dict[str, str]:
    """The tables of the page, by the name of their block."""
    lvmae = lvmae_results()
    blocks = dict.fromkeys(PARTS, "This part has not been run yet.")
    blocks |= {"claims": claims_table({**results, "lvmae": lvmae}), "claims-clips": clips_claims(results)}
    blocks |= {"setup": setup_table(results), "sets": sets_table(results)}
    for part, document in results.items():
        blocks[part] = clips_table(document) if part in CLIPS else part_table(document)
    blocks["lvmae"] = _table(make_report(lvmae), without=("training",))
    features = json.loads(FEATURES.read_text())["results"]
    blocks |= {f"features-{measure}": features_table(features, measure) for measure in MEASURES}
    of_letters = json.loads(RESULTS_OF_LETTERS.read_text())["results"]
    blocks["features-draws"] = pairs_table(features, of_letters, UNIFORM_AND_CHANGE)
    blocks["features-variations"] = pairs_table(features, of_letters, VARIATIONS)
    blocks["features-letters"] = measures_table(of_letters, LETTERS)
    of_labels = json.loads(OF_LABELS.read_text())["results"]
    blocks["labels"], blocks["labels-kept"] = labels_table(of_labels), kept_table(of_labels)
    blocks["letters"] = letters_table(json.loads(OF_LETTERS.read_text())["results"])
    blocks["composites"] = composites_table(json.loads(IMPORTANCE.read_text())["composites"])
    return blocks


def filled(text: str, results: Results) -> str:
    """The page with its tables."""
    blocks = page_blocks(results)
    return BLOCK.sub(lambda match: f"{match[1]}\n{blocks[match[2]]}\n\n{match[3]}", text)


def claims_table(results: Results) -> str:
    """Each claim of a paper with the measured difference."""
    rows = [_claim_row(claim, results.get(claim.part)) for claim in CLAIMS]
    head = ["claim", "paper", "difference (points)", "95 % interval", "seeds", "test videos", "here"]
    return markdown(head, rows)


def _claim_row(claim: Claim, results: dict[str, Any] | None) -> list[str]:
    row = [claim.text, claim.origin]
    if results is None or (difference := claim.difference(results)) is None:
        return [*row, "", "", "", "", "not measured"]
    mean, seeds = f"{difference['mean']:+.1f}", str(len(difference["seeds"]))
    tests = results["videos"].get(
        f"{claim.variants[0].rpartition(', ')[2]} test", results["videos"].get("test")
    )
    if difference["interval"] is None:
        return [*row, mean, "", seeds, str(tests), without_interval(difference)]
    low, high = difference["interval"]
    return [*row, mean, f"{low:+.1f} to {high:+.1f}", seeds, str(tests), claim.summary(low, high)]


def setup_table(results: Results) -> str:
    """The videos of each part, the machine, and the version of the program."""
    rows = []
    for part, document in results.items():
        sizes = document["videos"]
        labeled_sets = sum(name.endswith(" train") for name in sizes)
        if part in CLIPS and labeled_sets > 1:
            sizes = {"unlabeled": sizes["unlabeled"], "labeled sets": labeled_sets}
        videos = ", ".join(f"{count} {name}" for name, count in sizes.items())
        done, machine = document["jobs"], document["machine"]
        jobs = f"{done['finished']} of {done['all']}"
        made_by = [f"{machine['cpu']}, torch {machine['torch']}", f"`{machine['commit']}`"]
        rows.append([f"`{part}`", videos, jobs, *made_by])
    return markdown(["part", "videos", "jobs", "machine", "commit"], rows)


def part_table(document: dict[str, Any]) -> str:
    """The variants of a part; of frozen encoders one table for each probe."""
    tables = [_table(make_report(document))]
    if {"eval", "probe"} <= set(document["stages"]):
        names = sorted(
            {name for variant in document["variants"] for row in variant["seeds"] for name in row["metrics"]}
        )
        probes = [name for name in names if name.startswith("probe.") and name.endswith(".top1")]
        probed = [
            variant
            for variant in document["variants"]
            if any(row["metrics"].keys() & probes for row in variant["seeds"])
        ]
        tables += [_table(make_report(document | {"variants": probed}, metric=name)) for name in probes]
    return "\n\n".join(tables)


def _table(report: dict[str, Any], *, without: Sequence[str] = ()) -> str:
    columns, *rows = make_report_table(report)
    filled = [any(cells) for cells in zip(*rows, strict=True)]
    places = [at for at, name in enumerate(columns) if filled[at] and not name.startswith(("p", *without))]
    return markdown([columns[place] for place in places], [[row[place] for place in places] for row in rows])


def composites_table(rows: list[dict[str, Any]]) -> str:
    """The fractions of the kept tokens that are on the object."""
    fractions = [name for name in rows[0] if name.startswith("0.")]
    cells = []
    for row in rows:
        of_cut = row[fractions[0]].get("of_cut")
        precision = [f"{row[fraction]['precision']:.2f}" for fraction in fractions]
        cells.append([row["camera"], row["measure"], *precision, "" if of_cut is None else f"{of_cut:.2f}"])
    return markdown(
        ["camera", "measure", *(f"kept {fraction}" for fraction in fractions), "time index after the middle"],
        cells,
    )


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()  # it has no options
    results = read_results()
    PAGE.write_text(filled(PAGE.read_text(), results))
    for path in (PAGE, *draw_figures(results, PAGE.parent)):
        print(path)


if __name__ == "__main__":
    main()
