"""The tables of benchmarks/evidence/tables.md on real clips, with a column for each labeled set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from claims import CLIPS_CLAIMS, UNRESOLVED, Claim, without_interval
from measuring import markdown
from run_evidence import CLIPS, LABELED, SHAKEN

from everest.sweep.report import make_report

CONTENT: Final = {  # of the labeled sets of real clips
    "surveillance2": "fights or none, of cameras that rest",
    "interaction6": "two people shake hands, hug, kick, point, punch or push; the camera rests",
    "tennis7": "tennis strokes, filmed by the audience",
    "weizmann10": "whole-body actions filmed by a camera that rests; test clips of one person",
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
        shares = [f"{100 / classes:.1f} %", _largest_class(results, name)]
        rows.append([f"`{name}`", content, str(classes), *shares, *videos])
    return markdown(["set", "clips", "classes", "chance", "largest class", "train", "test"], rows)


def _largest_class(results: Results, name: str) -> str:
    """The share of the test clips that an answer with the most frequent class gets right."""
    arms = (arm for part in CLIPS if part in results for arm in results[part]["arms"])
    shares = (
        row["metrics"]["majority_top1"]
        for arm in arms
        if arm["arm"].endswith(f", {name}")
        for row in arm["seeds"]
    )
    share = next(shares, None)
    return "" if share is None else f"{share:.1f} %"


def clips_claims(results: Results) -> str:
    """Each claim about real clips, with the difference that was measured on each labeled set."""
    rows = [
        [claim.text, claim.origin, *(_clips_cell(claim.of_set(name), results) for name in LABELED)]
        for claim in CLIPS_CLAIMS
    ]
    return markdown(["claim", "paper", *LABELED], rows)


def _clips_cell(claim: Claim, results: Results) -> str:
    part = results.get(claim.part)
    if part is None or (difference := claim.difference(part)) is None:
        return "not measured"
    if difference["interval"] is None:
        return f"{difference['mean']:+.1f}: {without_interval(difference)}"
    numbers = _with_interval(difference["mean"], difference["interval"], sign="+")
    verdict = claim.verdict(*difference["interval"])
    return numbers if verdict == UNRESOLVED else f"**{numbers}: {verdict}**"


def clips_table(document: dict[str, Any]) -> str:
    """The arms of a part on real clips, with a column for each labeled set."""
    found = _reports(document)
    method = document["against"].rpartition(", ")[0]
    rows = [
        [arms[0]["arm"], f"{arms[0]['gmacs']:.4g}", *map(_accuracy, arms)]  # the sets cost about the same
        for arms in zip(*(report["arms"] for report in found.values()), strict=True)
    ]
    below = f"below, the difference from *{method}*, bold if zero is outside its interval"
    table = markdown(["arm", "GMACs of training", *found], rows)
    return f"Top-1 accuracy in percent (95 % interval); {below}:\n\n{table}"


def _accuracy(arm: dict[str, Any]) -> str:
    """The mean of an arm and, below, its difference from the arm that all are compared with."""
    mean, difference = _with_interval(arm["mean"], arm["interval"]), arm["difference"]
    if difference is None:
        return mean
    less = _with_interval(difference["mean"], difference["interval"], sign="+")
    low, high = difference["interval"] or (0, 0)
    return f"{mean}<br>{less}" if low <= 0 <= high else f"{mean}<br>**{less}**"


def _with_interval(value: float, interval: Sequence[float] | None, *, sign: str = "") -> str:
    if interval is None:
        return f"{value:{sign}.1f}"
    return f"{value:{sign}.1f} ({interval[0]:{sign}.1f} to {interval[1]:{sign}.1f})"


def _reports(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The report of each labeled set, whose arms are compared with each other only."""
    method = document["against"].rpartition(", ")[0]
    found = {}
    for name in (name.removesuffix(" train") for name in document["videos"] if name.endswith(" train")):
        own = [arm for arm in document["arms"] if arm["arm"].endswith(f", {name}")]
        arms = [arm | {"arm": arm["arm"].removesuffix(f", {name}")} for arm in own]
        found[name] = make_report(document | {"arms": arms, "against": method})
    return found
