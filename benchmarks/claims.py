"""The claims of the papers that docs/evidence.md examines, and when a difference supports one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from everest.sweep.report import make_report

MARGIN: Final = 3.0  # points, our choice: a smaller loss counts as none
UNRESOLVED: Final = "not resolvable at this size"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about two arms of a part: that the first is better, or that it is not worse."""

    part: str
    arms: tuple[str, str]
    text: str
    origin: str
    better: bool = True  # otherwise: not worse by MARGIN
    metric: str | None = None  # of the results; None: that of the part

    def verdict(self, low: float, high: float) -> str:
        """The meaning of the 95 % interval of the first arm minus the second."""
        least = 0.0 if self.better else -MARGIN
        if low > least:
            return "seen"
        return "the opposite is seen" if high < least else UNRESOLVED

    def difference(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The first arm minus the second; None if one of them has no results."""
        measured = {arm["arm"] for arm in results["arms"]}
        if not measured.issuperset(self.arms):  # a labeled set was left out
            return None
        report = make_report(results, metric=self.metric, against=self.arms[1])
        return next(arm["difference"] for arm in report["arms"] if arm["arm"] == self.arms[0])

    def of_set(self, name: str) -> Claim:
        """The claim about a labeled set of real clips."""
        return replace(self, arms=tuple(f"{arm}, {name}" for arm in self.arms))


def without_interval(difference: dict[str, Any]) -> str:
    """Why a difference has no interval."""
    return "one seed" if len(difference["seeds"]) == 1 else "all seeds alike"


OTHERS: Final = {  # methods that EVEREST is compared with, and where the paper does
    "VideoMAE, 75 %": "Figure 5",
    "VideoMAE, 90 %": "Figure 5",
    "ST-MAE": "ours",
    "running cell": "Table 17",
}


def _methods(part: str, suffix: str) -> tuple[Claim, ...]:
    budget = "as many steps" if not suffix else "as many GMACs"
    return tuple(
        Claim(
            part=part,
            arms=("EVEREST", f"{name}{suffix}"),
            text=f"EVEREST is better than {name}, with {budget}",
            origin=origin,
        )
        for name, origin in OTHERS.items()
    )


def _distances(part: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(part=part, arms=("L2", name), text=f"L2 is better than {name}", origin="Table 9")
        for name in ("L1", "negative cosine", "negative CKA")
    )


def _order(part: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            part=part,
            arms=("descending, descending", name),
            text=f"descending in both stages is better than {name}",
            origin="Table 16",
        )
        for name in ("descending, ascending", "ascending, descending", "ascending, ascending")
    )


def _ratios(part: str, few: str, compared: dict[str, tuple[str, str]]) -> tuple[Claim, ...]:
    return tuple(
        Claim(part=part, arms=(few, arm), text=text, origin=origin, better=False)
        for arm, (text, origin) in compared.items()
    )


def _frame_selection(part: str, where: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            part=part,
            arms=(f"alpha {alpha}", "off"),
            text=f"frame selection with alpha {alpha} helps{where}",
            origin="Table 13",
        )
        for alpha in ("1.3", "1.5", "2")
    )


def _kept(part: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            part=part,
            arms=(f"{method}, kept tokens", f"{method}, all tokens"),
            text=f"fine-tuning an encoder of {method} on the kept tokens is not worse than on all",
            origin=origin,
            better=False,
        )
        for method, origin in (("VideoMAE 75 %", "Tables 5 and 11"), ("ST-MAE 75 %", "ours"))
    )


def _camera(name: str, text: str, *, better: bool = True, falls: bool = False) -> Claim:
    """A claim about selection without the camera's motion on a set; `falls`: that it is worse."""
    arms = (f"without the camera, {name}", f"plain, {name}")
    return Claim(
        part="camera-clips",
        arms=arms[::-1] if falls else arms,
        text=f"on {name}, selection without the motion of the camera {text}",
        origin="ours",
        better=better,
    )


def _few(share: str, other: str, what: str) -> tuple[Claim, ...]:
    """The claims about LVMAE that predicts few tokens."""
    metrics = {"fine-tuned": None, "frozen, by a linear probe": "probe.linear.top1"}
    return tuple(
        Claim(
            part="lvmae-few",
            arms=(f"adaptive, {share}", f"{other}, {share}"),
            text=f"LVMAE with {share} of the tokens, {use}: adaptive tokens are better than {what}",
            origin="LVMAE",
            metric=metric,
        )
        for use, metric in metrics.items()
    )


# Chosen before the runs: sets that the settings should help, and sets that they should not harm.
MOVING: Final = ("tennis7", "interaction6", "surveillance2-shaken", "weizmann10-shaken")
RESTING: Final = ("surveillance2", "weizmann10")
CLAIMS: Final = (
    *(
        Claim(
            part="methods",
            arms=(name, "from scratch"),
            text=f"pre-training with {name} is better than training from scratch",
            origin="ours",
        )
        for name in ("EVEREST", *OTHERS)
    ),
    *_methods("methods", ""),
    *(
        Claim(
            part="methods-visible",
            arms=("EVEREST", name),
            text=f"EVEREST is better than {what}, with as many visible tokens",
            origin=origin,
        )
        for name, what, origin in (
            ("no selection", "the same pre-training on all tokens", "ours"),
            ("ST-MAE, 75 %", "ST-MAE, 75 %", "ours"),
            ("running cell, 75 %", "running cell, 75 %", "Table 17"),
        )
    ),
    *_methods("methods-gmacs", ", equal GMACs"),
    *_distances("distances"),
    *_order("order"),
    *_ratios(
        "keep-ratios",
        "PT 0.5, FT 0.6",
        {
            "PT 1.0, FT 0.6": ("pre-training on half of the tokens is not worse than on all", "ours"),
            "PT 0.5, FT 1.0": ("fine-tuning on 60 % of the tokens is not worse than on all", "Table 10"),
        },
    ),
    *_frame_selection("frame-selection", " on clips whose shape rests"),
    *_kept("other-encoders"),
    *(_camera(name, "is better") for name in MOVING),
    *(_camera(name, "is not worse", better=False) for name in RESTING),
    _camera("cameramotion8", "is worse, because the classes are this motion", falls=True),
    *(
        Claim(
            part=part,
            arms=(f"12 frames, equal {budget}", "8 frames"),
            text=f"one and a half times as many frames are better with as many {budget}",
            origin=origin,
        )
        for part, budget, origin in (("frames", "GMACs", "ours"), ("frames-steps", "steps", "Table 12"))
    ),
    *(
        Claim(
            part="lvmae",
            arms=("adaptive", name),
            text=f"LVMAE: predicting adaptive tokens is better than {what}",
            origin="LVMAE",
        )
        for name, what in (
            ("from scratch", "no pre-training"),
            ("random", "random tokens"),
            ("frame difference", "the tokens with the largest frame difference"),
            ("all", "predicting all tokens"),
        )
    ),
    Claim(
        part="lvmae-few",
        arms=("adaptive, 5 %", "from scratch"),
        text="LVMAE with 5 % of the tokens, adaptive, fine-tuned: pre-training is better than none",
        origin="LVMAE",
    ),
    *_few("5 %", "random", "random ones"),
    *_few("2 %", "random", "random ones"),
    *_few("5 %", "frame difference", "those with the largest frame difference"),
)
FOUR_TIMES: Final = "EVEREST, 4000 steps"
CLIPS_CLAIMS: Final = (  # about each labeled set of real clips
    *(
        Claim(
            part=part,
            arms=(arm, other),
            text=f"{arm.replace(', ', ' with ')} is better than {what}",
            origin=origin,
        )
        for part, arm, other, what, origin in (
            ("methods-clips", "EVEREST", "from scratch", "training from scratch", "ours"),
            ("steps-clips", FOUR_TIMES, "from scratch", "training from scratch", "ours"),
            ("steps-clips", FOUR_TIMES, "EVEREST, 1000 steps", "with 1000 steps", "Figure 5"),
        )
    ),
    *_methods("methods-clips", ""),
    *_methods("methods-clips-gmacs", ", equal GMACs"),
    *_distances("distances-clips"),
    *_order("order-clips"),
    *_ratios(
        "keep-ratios-clips",
        "PT 0.3, FT 0.15",
        {
            "PT 1.0, FT 0.15": ("pre-training on 30 % of the tokens is not worse than on all", "ours"),
            "PT 0.3, FT 1.0": ("fine-tuning on 15 % of the tokens is not worse than on all", "Table 10"),
        },
    ),
    *_ratios(
        "finetune-steps-clips",
        "15 %, 600 steps",
        {
            "all tokens, 600 steps": (
                "fine-tuning on 15 % of the tokens is not worse than on all, with twice as many steps",
                "Table 10",
            ),
        },
    ),
    Claim(
        part="finetune-steps-clips",
        arms=("all tokens, 600 steps", "all tokens, 300 steps"),
        text="fine-tuning on all tokens is better with twice as many steps",
        origin="ours",
    ),
    *_frame_selection("frame-selection-clips", " on clips with long still parts"),
    Claim(
        part="frames-clips",
        arms=("24 frames, equal GMACs", "16 frames"),
        text="24 frames are better than 16, with as many GMACs",
        origin="ours",
    ),
    *_kept("other-encoders-clips"),
)
