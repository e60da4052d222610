"""Variants of a sweep with equal cost."""

import re
from pathlib import Path

import pytest

from everest.config.stage_settings import STAGES
from everest.config.yaml import read_yaml
from everest.models.cost import count_macs
from everest.profiling.profile import make_stage_spec
from everest_workflows.sweep.equal_cost import with_equal_cost
from everest_workflows.sweep.request import read_request
from everest_workflows.sweep.sweep_jobs import resolve_variants
from tests.support.small_runs import called

SWEEP = """
recipe: small
variants:
  few: {}
  many: {pretrain.selection.keep_ratio: 0.6, pretrain.selection.visible_ratio: 0.4}
  no pre-training: {stages: [finetune, eval]}
"""


def test_stages_have_equal_gmacs_and_the_file_is_a_sweep(tmp_path: Path):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    printed = called("recipes", "show", tmp_path / "sweep.yaml", "--equal", "gmacs").stdout
    (tmp_path / "equal.yaml").write_text(printed)
    recipes = resolve_variants(read_request(str(tmp_path / "equal.yaml")), data=None)
    few, many = recipes["few"], recipes["many"]
    for stage in STAGES:
        costs = [
            getattr(recipe, stage).steps * count_macs(make_stage_spec(recipe, stage)).total
            for recipe in (few, many)
        ]
        assert costs[1] == pytest.approx(costs[0], rel=0.01)
    assert few.pretrain.steps is not None
    assert many.pretrain.steps is not None
    assert many.pretrain.steps < few.pretrain.steps
    values = read_yaml(printed, "printed")
    assert values["against"] == "few"
    assert values["summary"].endswith("equal GMACs of the forward passes in training")
    assert "pretrain.steps" not in values["variants"]["no pre-training"]


def test_measured_steps_give_whole_lengths(tmp_path: Path):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    request = with_equal_cost(read_request(str(tmp_path / "sweep.yaml")), "hours")
    few, many, _ = request.variants
    assert few.overrides == {}
    assert many.overrides["pretrain.steps"] >= 1


@pytest.mark.parametrize(
    ("written", "options", "message"),
    [
        ("recipe: small\nvariants: {a: {}, b: {finetune.epochs: 3}}", (), "finetune has epochs in one"),
        ("base: small", (), "--equal: give a sweep file, and leave out --resolved"),
        (SWEEP, ("--resolved",), "--equal: give a sweep file, and leave out --resolved"),
    ],
)
def test_what_cannot_be_equal_is_one_line(
    tmp_path: Path, written: str, options: tuple[str, ...], message: str
):
    (tmp_path / "file.yaml").write_text(written)
    ended = called("recipes", "show", tmp_path / "file.yaml", "--equal", "gmacs", *options, code=2)
    assert re.fullmatch(f"error: .*{re.escape(message)}.*\n", ended.stderr)
