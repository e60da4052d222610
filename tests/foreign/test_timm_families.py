import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from small_runs import json_of, run

from everest.checkpoints.public_weights import TIMM_TABLE, TimmFamily, timm_families
from everest.foreign.timm_images import foreign_parts

SCRIPT = Path(__file__).parents[2] / "docs" / "timm_table.py"
script = runpy.run_path(str(SCRIPT))
is_of, NOT_VIT = script["is_of"], script["NOT_VIT"]
TRIED = [family for family in timm_families() if family.family not in (NOT_VIT, "I-JEPA")]
same_timm = pytest.mark.skipif(
    timm.__version__ not in TIMM_TABLE.read_text().partition("\n")[0], reason="the table is of another timm"
)


@same_timm
@pytest.mark.parametrize("family", TRIED, ids=lambda family: family.family)
def test_the_first_name_of_a_family_loads_if_the_table_says_so(family: TimmFamily):
    before = timm_families()[: timm_families().index(family)]
    name = next(
        name
        for name in timm.list_pretrained()
        if is_of(name, family.pattern) and not any(is_of(name, other.pattern) for other in before)
    )
    with torch.device("meta"):
        parts = list(foreign_parts(timm.create_model(name, num_classes=0)))
    assert (not parts) == family.loads
    assert all(part in (family.because or "") for part in parts)


def test_patterns_are_of_architectures_and_tags():
    assert is_of("vit_base_patch16_224.dino", "beit_* vit_*.dino")
    assert not is_of("vit_base_patch16_224.mae", "vit_*.dino")
    assert is_of("vit_base_patch14_dinov2.lvd142m", "vit_*_dinov2")
    assert not is_of("vit_base_patch14_dinov2.lvd142m", "vit_*_dino")


def test_the_families_are_printed():
    rows = json_of("weights", "list", "--timm")
    assert [(row["family"], row["names"]) for row in rows] == [
        (family.family, family.names) for family in timm_families()
    ]
    patterns = run("weights", "list", "--timm", "-q")
    assert "vit_*_dinov3*" in patterns
    assert "samvit_*" not in patterns
    shown = run("weights", "list")
    assert "videomae-base" in shown
    assert "no: the architecture VisionTransformerSAM" in shown


@same_timm
@pytest.mark.slow
def test_the_table_is_not_stale():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
