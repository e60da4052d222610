"""benchmarks/evidence/tables.md has the numbers of the committed results, and no others."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from evidence_page import BLOCK, draw_figures, filled, page_blocks, read_results
from evidence_tables import CLAIMS, CLIPS_CLAIMS, Claim, clips_claims
from run_evidence import CLIPS, FILES, LABELED, PARTS, of_every_set, sweep_of

from everest.config.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "benchmarks" / "evidence" / "tables.md"


def test_the_page_has_a_block_for_each_part_and_is_what_the_results_give():
    text = PAGE.read_text()
    assert {match[2] for match in BLOCK.finditer(text)} == set(page_blocks({}))
    assert filled(text, read_results()) == text


def test_the_text_between_the_tables_has_no_numbers_of_its_own():
    text = BLOCK.sub("", PAGE.read_text())
    text = re.sub(r"```.*?```|`[^`]*`|\([^)]*\.png\)", "", text, flags=re.DOTALL)
    text = re.sub(r"(Tables?|Figures?) [\d, and]+|top-1", "", text)  # of the paper
    assert re.findall(r"\d+", text) == []


def test_every_claim_is_about_variants_of_its_part():
    of_clips = [claim.of_set(name) for claim in CLIPS_CLAIMS for name in LABELED if name in CLIPS[claim.part]]
    for claim in (*CLAIMS, *of_clips):
        for variant in claim.variants:
            if claim.part in CLIPS:
                variant, _, name = variant.rpartition(", ")
                assert name in CLIPS[claim.part]
            assert variant in sweep_of(claim.part)["variants"], claim


def test_a_claim_is_seen_if_the_whole_interval_supports_it():
    unknown, opposite = "not resolvable at this size", "the opposite is seen"
    for better, low, high, summary in (
        (True, 0.1, 2.0, "seen"),
        (True, 0.0, 2.0, unknown),
        (True, -2.0, -0.1, opposite),
        (False, -2.9, 1.0, "seen"),
        (False, -3.1, 9.0, unknown),
        (False, -9.0, -3.1, opposite),
    ):
        claim = Claim(part="methods", variants=("a", "b"), text="", origin="", better=better)
        assert claim.summary(low, high) == summary


@pytest.mark.parametrize("part", PARTS)
def test_every_variant_has_a_valid_recipe(part: str):
    sweep = sweep_of(part)
    variants = of_every_set(sweep["variants"], tuple(CLIPS[part])) if part in CLIPS else sweep["variants"]
    for settings in variants.values():
        overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items() if key != "stages"]
        load_recipe(str(FILES / sweep["recipe"]), overrides=overrides)


@pytest.mark.slow
def test_sweeps_on_rendered_and_on_real_clips_run_quickly(tmp_path: Path, shared: Path):
    command = [sys.executable, ROOT / "benchmarks" / "run_evidence.py", tmp_path, "--quick"]
    command += ["--only", "order,order-clips", "--videos", shared / "videos" / "actions"]
    subprocess.run([*command, "--sets", "surveillance2"], check=True, timeout=1800)
    results = read_results(tmp_path / "quick" / "results")
    assert results.keys() == {"order", "order-clips"}
    for document in results.values():
        assert document["jobs"]["finished"] == document["jobs"]["all"] > 0
        assert document["failures"] == []
    measured = [
        row for row in clips_claims(results).splitlines()[2:] if row.split(" | ")[2] != "not measured"
    ]
    assert len(measured) == sum(claim.part == "order-clips" for claim in CLIPS_CLAIMS) > 0


@pytest.mark.slow
def test_the_committed_results_draw_the_figures(tmp_path: Path):
    images = draw_figures(read_results(), tmp_path)
    assert len(images) == 3
    assert all(image.stat().st_size > 10_000 for image in images)


def test_the_findings_have_the_intervals_of_the_tables():
    adapted = json.loads((ROOT / "benchmarks" / "results" / "adapted_features.json").read_text())
    texts = PAGE.read_text() + "".join(adapted["table"])
    tables = re.findall(r"([+-]?\d+\.\d) to ([+-]?\d+\.\d)", texts)
    known = {(float(low), float(high)) for low, high in tables}
    mouse = json.loads((ROOT / "benchmarks" / "results" / "mouse.json").read_text())
    known |= {tuple(row["interval"]) for row in mouse["folds"]["suggestion_minus"].values()}
    known |= {(-high, -low) for low, high in known}  # of the other variant
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("evidence.md", "start/choosing.md"))
    findings = re.findall(r"\(([+-]?\d+\.\d) to ([+-]?\d+\.\d)\)", pages)
    assert len(findings) >= 20
    assert [pair for pair in findings if (float(pair[0]), float(pair[1])) not in known] == []
