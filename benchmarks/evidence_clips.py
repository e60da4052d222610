"""The tables of docs/evidence.md on real clips, with a column for each labeled set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from claims import ON_CLIPS, Claim, without_interval
from measuring import markdown
from run_evidence import CLIPS, LABELED, SHAKEN

from everest.sweep.report import make_report

CONTENT: Final = {  # of the labeled sets of real clips
    "surveillance2": "fights or none, of cameras that rest",
    "interaction6": "two people shake hands, hug, kick, point, punch or push; the camera rests",
    "tennis7": "tennis strokes, filmed by the audience",
    "weizmann10": "whole-body actions before a camera that rests; test clips of one person",
    "cameramotion8": "a simulated camera over frames of other clips; its motion is the class",
    "surveillance2-shaken": "copies with a simulated hand-held camera",
    "weizmann10-shaken": "copies with a simulated hand-held camera",
}
Results = Mapping[str, dict[str, Any]]


def sets_table(results: Results) -> str:
    """The labeled sets of real clips."""
    counts = {
        name: count for part in CLIPS if part in results for name, count in results[part]["videos"].items()
    }
    rows = []
    for name, content in CONTENT.items():
        classes = (LABELED | SHAKEN)[name]
        videos = (str(counts.get(f"{name} {part}", "")) for part in ("train", "test"))
        rows.append([f"`{name}`", content, str(classes), f"{100 / classes:.1f} %", *videos])
    return markdown(["set", "clips", "classes", "chance", "train", "test"], rows)


def clips_claims(results: Results) -> str:
    """Each claim about real clips, with the difference that was measured on each labeled set."""
    rows = [
        [claim.text, claim.origin, *(_clips_cell(claim.of_set(name), results) for name in LABELED)]
        for claim in ON_CLIPS
    ]
    return markdown(["claim", "paper", *LABELED], rows)


def _clips_cell(claim: Claim, results: Results) -> str:
    part = results.get(claim.part)
    if part is None or (difference := claim.difference(part)) is None:
        return "not measured"
    if difference["interval"] is None:
        return f"{difference['mean']:+.1f}: {without_interval(difference)}"
    low, high = difference["interval"]
    numbers, verdict = f"{difference['mean']:+.1f} ({low:+.1f} to {high:+.1f})", claim.verdict(low, high)
    return numbers if verdict.startswith("not") else f"**{numbers}: {verdict}**"


def clips_table(document: dict[str, Any]) -> str:
    """The arms of a part on real clips, with a column for each labeled set."""
    found = _reports(document)
    method = document["against"].rpartition(", ")[0]
    seeds = {len(arm["seeds"]) for report in found.values() for arm in report["arms"]}
    rows = [
        [arms[0]["arm"], f"{arms[0]['gmacs']:.4g}", *map(_accuracy, arms)]
        for arms in zip(*(report["arms"] for report in found.values()), strict=True)
    ]
    minus = f"in parentheses, minus {method} (bold: resolved)"
    above = f"Top-1 accuracy in percent, mean of {max(seeds)} seeds; {minus}"
    return f"{above}:\n\n{markdown(['arm', 'GMACs of training', *found], rows)}"


def _accuracy(arm: dict[str, Any]) -> str:
    mean, difference = f"{arm['mean']:.1f}", arm["difference"]
    if difference is None:
        return mean
    if difference["interval"] is None:
        return f"{mean} ({difference['mean']:+.1f})"
    low, high = difference["interval"]
    text = f"{mean} ({difference['mean']:+.1f}, {low:+.1f} to {high:+.1f})"
    return text if low <= 0 <= high else f"**{text}**"


def _reports(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The report of each labeled set, whose arms are compared with each other only."""
    method = document["against"].rpartition(", ")[0]
    found = {}
    for name in (name.removesuffix(" train") for name in document["videos"] if name.endswith(" train")):
        own = [arm for arm in document["arms"] if arm["arm"].endswith(f", {name}")]
        arms = [arm | {"arm": arm["arm"].removesuffix(f", {name}")} for arm in own]
        found[name] = make_report(document | {"arms": arms, "against": method})
    return found
