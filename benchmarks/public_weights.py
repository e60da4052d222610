"""Compare public weights on a labeled set: frozen (k-NN, linear) and fine-tuned, beside from scratch.

Each name is a run folder, a file, `hf:OWNER/NAME`, `timm:NAME` or `timm:NAME=FILE`. Clips and encoder follow
from the weights, unless --set changes them. Baselines are the difference image, with
the probes of frozen weights, and the same recipe without weights. Results are kept in OUT/results.json, so a
repeated call continues. Writes OUT/public_weights.md.

python benchmarks/public_weights.py RECIPE DATA OUT NAME... [--seeds 3] [--set KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from measuring import difference_text, markdown, write_results

from everest import inference_api, stages
from everest.checkpoints.describe import load_model, read_weight_settings
from everest.checkpoints.load import find_weights
from everest.config.recipe import recipe_for_run
from everest.config.recipe_files import find_recipe
from everest.inference.opened_model import OpenedModel
from everest.models.classifier import VideoClassifier
from everest.probes.probe import probe
from everest.system.events import ignore_event
from everest.system.files import write_text
from everest.system.text import read_json
from everest_workflows.sweep.report import compare_pairs, find_spread

SCRATCH: Final = "from scratch"
DIFFERENCES: Final = "difference image"
PROBES: Final = ("knn", "linear")
HEAD: Final = ["weights", "k-NN", "linear", "fine-tuned", "fine-tuned, beside from scratch"]


def probed(name: str, recipe: str, data: str, overrides: list[str]) -> dict[str, Any]:
    """The top-1 of the probes of frozen weights, and of the difference image of the same clips."""
    changes = [*read_weight_settings(name).overrides, *overrides]
    settings = recipe_for_run(find_recipe(recipe), data=data, overrides=changes)
    model = OpenedModel.open(find_weights(name), recipe=settings, views=(1, 1))
    document = probe(model, PROBES, batch=4, report=ignore_event)
    baseline = document["baselines"]["difference_image"]
    return {
        name: {each: document["probes"][each]["top1"] for each in PROBES},
        DIFFERENCES: {each: baseline[each]["top1"] for each in PROBES},
    }


def finetuned(name: str, recipe: str, data: str, overrides: list[str], seed: int, folder: Path) -> float:
    """The top-1 on the test list after fine-tuning; the step is chosen on the validation list."""
    init = None if name == SCRATCH else name
    run = stages.finetune(
        find_recipe(recipe),
        init=init,
        data=data,
        overrides=[*([] if init is None else read_weight_settings(init).overrides), *overrides],
        seed=seed,
        output=folder,
    )
    model = load_model(run)
    assert isinstance(model, VideoClassifier)
    return inference_api.evaluate(model)["top1"]


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each set of weights, the baselines last; differences are paired by seed, bold if beyond 0."""
    scratch = by_seed(results.get(SCRATCH, {}))
    rows = []
    for name, result in results.items():
        top1 = by_seed(result)
        cells = [f"{result[each]:.1f}" if each in result else "" for each in PROBES]
        mean = f"{find_spread(list(top1.values())).mean:.1f}" if top1 else ""
        difference = difference_text(compare_pairs(top1, scratch)) if name != SCRATCH else ""
        rows.append([name, *cells, mean, difference])
    return markdown(HEAD, sorted(rows, key=lambda row: row[0] in (SCRATCH, DIFFERENCES)))


def by_seed(result: dict[str, Any]) -> dict[int, float]:
    """The top-1 after fine-tuning, by seed."""
    return {int(seed): top1 for seed, top1 in result.get("finetuned", {}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", help="with the lists, the clips and the fine-tuning")
    parser.add_argument("data", help="the folder of lists and videos")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning; 0: probes only")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    shared = (options.recipe, options.data, options.overrides)
    path = options.out / "results.json"
    results: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}

    def keep(name: str, values: dict[str, Any]) -> None:
        results.setdefault(name, {}).update(values)
        write_results(path, results)

    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        if "linear" not in results.get(name, {}):
            for row, values in probed(name, *shared).items():
                keep(row, values)
    for number, name in enumerate([*options.names, SCRATCH]):
        for seed in range(options.seeds):
            top1 = results.get(name, {}).get("finetuned", {})
            if str(seed) not in top1:
                folder = options.out / "runs" / f"{number}-{seed}"
                keep(name, {"finetuned": {**top1, str(seed): finetuned(name, *shared, seed, folder)}})
    write_text(options.out / "public_weights.md", table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
