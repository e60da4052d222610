"""Partial fine-tuning of ViT-B against training all weights: parameters, memory and the time of a step.

    python benchmarks/lora_step.py

A step is forward pass, backward pass and AdamW on two clips of 16 frames in float32, of the recipe k400
without stochastic depth. CPU seconds of one thread; the contenders take turns in one process. Parameters,
state and saved activations are counted, the same on every machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measuring import Times, alternate, by_machine, markdown, publish, ratio, with_earlier
from saved import saved_bytes_per_clip, without_numbers
from steps import clips_for, our_pass

from everest.config.recipe import load_recipe
from everest.engine.network import set_lr, stage_optimizer
from everest.models.classifier import VideoClassifier
from everest.models.memory import count_weights
from everest.models.partial import choose_trained
from everest.profiling.profile import stage_spec
from everest.system.compute import configure_cpu

BATCH = 2
FULL = "all weights"
CASES = {
    FULL: (),
    "LoRA, rank 8, qkv and proj": ("finetune.lora.rank=8",),
    "freeze: first:6": ("finetune.freeze=first:6",),
    "freeze: encoder": ("finetune.freeze=encoder",),
}
LEARNING_RATE = 1e-6  # the weights change as in training


def overrides(name: str) -> list[str]:
    return ["model.backbone=vit-b", "finetune.drop_path=0.0", *CASES[name]]


def model_of(name: str) -> VideoClassifier:
    """The model in training mode, with the frozen parts and the adapters of a case."""
    torch.manual_seed(0)
    recipe = load_recipe("k400", overrides=overrides(name))
    model = stage_spec(recipe, "finetune").build().train()
    choose_trained(model, recipe.finetune)
    assert isinstance(model, VideoClassifier)
    return model


def counts(name: str) -> dict[str, Any]:
    """Trained parameters, MB of the state of a run in float32, and saved MB of a clip."""
    recipe = load_recipe("k400", overrides=overrides(name))
    weights = count_weights(stage_spec(recipe, "finetune"), recipe.finetune)
    found: dict[str, Any] = {"trained": weights.trained}
    found["state_mb"] = sum(weights.state_bytes(training=True).values()) / 1e6
    model = model_of(name)
    with without_numbers(model):
        clips = clips_for(model, 2)
        for dtype in (torch.float32, torch.bfloat16):
            key = f"saved_{'bf16' if dtype == torch.bfloat16 else 'fp32'}_mb"
            found[key] = saved_bytes_per_clip(model, our_pass(model, dtype), clips) / 1e6
    return found


def step_of(name: str) -> Callable[[int], None]:
    """A function that runs a step of a case."""
    model, recipe = model_of(name), load_recipe("k400", overrides=overrides(name))
    optimizer = stage_optimizer(model, recipe.finetune)
    set_lr(optimizer, LEARNING_RATE)
    loss_of, clips = our_pass(model, torch.float32), clips_for(model, BATCH)

    def step(number: int) -> None:
        loss_of(clips).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rows_of(times: dict[str, Times], rounds: int) -> list[dict[str, Any]]:
    return [
        {
            **{"case": name, "rounds": rounds, "batch": BATCH},
            **counts(name),
            **{"seconds": round(times[name].median, 2), **ratio(times[FULL], times[name])},
        }
        for name in CASES
    ]


def table(rows: list[dict[str, Any]]) -> str:
    head = [
        "trained part of ViT-B",
        "trained parameters (M)",
        "weights, gradients, moments (MB)",
        "saved activations of a clip, fp32 / bf16 (MB)",
        f"CPU seconds of a step of {BATCH} clips",
        "speedup, median (quartiles)",
    ]
    cells = [
        [
            row["case"],
            f"{row['trained'] / 1e6:.2f}",
            f"{row['state_mb']:.0f}",
            f"{row['saved_fp32_mb']:.1f} / {row['saved_bf16_mb']:.1f}",
            f"{row['seconds']:.2f}",
            "" if row["case"] == FULL else f"**{row['ratio']:.2f}x** ({row['low']:.2f}-{row['high']:.2f})",
        ]
        for row in rows
    ]
    return markdown(head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    configure_cpu()
    times = alternate({name: step_of(name) for name in CASES}, rounds=options.rounds)
    rows = with_earlier("lora_step", rows_of(times, options.rounds), key=("case",))
    publish("lora_step", rows, by_machine(rows, table))


if __name__ == "__main__":
    main()
