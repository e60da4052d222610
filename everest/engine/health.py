"""Training health checks: collapse, a loss no better than guessing, the best validation and overfitting."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from scipy.special import entr
from scipy.stats import beta

from everest.config.heads import Heads
from everest.config.stage_settings import FinetuneSettings
from everest.engine.schedule import USUAL_LR, Schedule, learning_rate_advice
from everest.engine.step_log import RECENT_LOSSES
from everest.errors import SMALLER_UPDATES, DivergedError
from everest.metrics.names import METRICS
from everest.models.mae import MaskedAutoencoder
from everest.system.events import notice, warning
from everest.system.run_folder import Row

if TYPE_CHECKING:
    from everest.engine.training import Training

# All numbers are our choice.
COLLAPSED_STEPS: Final = 50  # in a row, with a spread of the projections (everest.models.view_model) below:
MIN_SPREAD: Final = 0.02
NEAR_MEAN_COLOR: Final = 0.95  # above this fraction of the one-color loss, little is learned
# Of the way from the training loss of guessing to that of a model that knows every label. After few steps
# only a loss that has hardly moved is reported, at the end also one of a model that underfits.
STILL_GUESSING: Final = 0.03
UNDERFITS: Final = 0.2
RISEN: Final = 1.1  # a mean training loss above this times that of guessing has risen: the run diverged
PEAKED: Final = 2.0  # one training loss above this times that of guessing: the updates were too large
MEAN_VALIDATIONS: Final = 5  # overfitting is judged by the mean losses of so many validations
LOSS_RISE: Final = 1.2  # overfitting: the validation loss is above this times its lowest,
LOSS_FALL: Final = 0.95  # and the training loss is below this times its value at that time


class ValidationHistory:
    """The validations of a run so far, read from metrics.jsonl, so that a resumed run knows all of them.

    Args:
        rows: of metrics.jsonl.
        metric: compares validations; a name of everest.metrics.names.METRICS.
    """

    def __init__(self, rows: Iterable[Row], metric: str) -> None:
        self.metric = metric
        self.rows: list[Row] = []
        self.best: Row | None = None
        self.since_best = 0  # validations after the best one
        self.train_losses: list[float | None] = []  # means before each validation; None: no loss was finite
        self._losses: list[float] = []  # training losses since the last validation
        for row in rows:
            self.add(row)

    @property
    def best_value(self) -> float | None:
        """The best value of the metric."""
        return None if self.best is None else self.best[f"val_{self.metric}"]

    def add(self, row: Row) -> bool:
        """Add a row of metrics.jsonl; returns whether it is the best validation so far.

        A smaller loss decides between equal values, which are common with few videos.
        """

        def quality(row: Row) -> tuple[float, float]:
            value = row[f"val_{self.metric}"]
            return value if METRICS[self.metric].is_higher_better else -value, -row["val_loss"]

        if f"val_{self.metric}" not in row:
            if isinstance(row.get("loss"), float | int):
                self._losses.append(row["loss"])
            return False
        self.rows.append(row)
        self.train_losses.append(fmean(self._losses) if self._losses else None)
        self._losses = []
        is_best = self.best is None or quality(row) > quality(self.best)
        self.since_best = 0 if is_best else self.since_best + 1
        if is_best:
            self.best = row
        return is_best

    def overfitting_warning(self, guessing_loss: float) -> str | None:
        """A warning if the validation loss stays far above its lowest while the training loss falls.

        Both are means of the last validations: the loss of few videos jumps from one to the next. A training
        loss above that of guessing has learned nothing: it may fall from the peak of a run that diverged.
        """
        losses = [row["val_loss"] for row in self.rows]
        lowest = losses.index(min(losses)) if losses else 0
        trained = [loss for loss in self.train_losses[-MEAN_VALIDATIONS:] if loss is not None]
        if len(losses) - 1 - lowest < MEAN_VALIDATIONS or len(trained) < MEAN_VALIDATIONS:
            return None
        train_loss = self.train_losses[lowest]
        risen, fallen = fmean(losses[-MEAN_VALIDATIONS:]), fmean(trained)
        if train_loss is None or fallen >= min(LOSS_FALL * train_loss, guessing_loss):
            return None
        if risen <= LOSS_RISE * losses[lowest]:
            return None
        return (
            f"overfitting: since step {self.rows[lowest]['step']}, the validation loss rose from "
            f"{losses[lowest]:.3g} to {risen:.3g}, and the training loss fell from {train_loss:.3g} to "
            f"{fallen:.3g}. The best weights are kept; more videos, augmentation or fewer steps help"
        )


class CollapseWatch:
    """Stops a run whose features have long been the same for all videos, so that it cannot learn.

    Args:
        rows: of metrics.jsonl, so that a resumed run continues the count.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._collapsed = 0  # collapsed steps in a row
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows of metrics.jsonl; DivergedError if the projections have collapsed."""
        for row in rows:
            if "view_spread" not in row:  # of an autoencoder
                continue
            spread = row["view_spread"]
            self._collapsed = self._collapsed + 1 if spread is not None and spread < MIN_SPREAD else 0
            if self._collapsed >= COLLAPSED_STEPS:
                raise DivergedError(
                    f"step {row['step']}: the features have collapsed: all videos have nearly the same ones "
                    f"(view_spread {spread:.2g}); check that the videos differ, or lower pretrain.base_lr"
                )


def closing_event(training: Training) -> dict[str, Any]:
    """Compare the last losses of pre-training with guessing; a warning if little is learned."""
    plan, losses, model = training.plan, training.step_log.losses, training.trained_model
    text = f"mean loss of the last {len(losses)} steps: {fmean(losses):.3f}"
    if not isinstance(model, MaskedAutoencoder):
        videos = min(plan.videos_per_step, len(training.dataset))  # another draw of a video is ignored
        chance = (plan.views - 1) / max(1, plan.views * videos - 1)
        texts = {
            "view_top1": "{:.0%} of clips retrieve their own video within the batch "
            f"(view_top1; chance {chance:.0%})",
            "view_spread": "projection spread {:.2f} (maximum 1)",
            "camera_loss": "camera motion error {:.2f} (guessing: 1)",
        }
        rows = [row for row in training.context.run_folder.rows() if row.get("view_spread") is not None]
        for name, measured in texts.items():
            values = [row[name] for row in rows[-RECENT_LOSSES:] if row.get(name) is not None]
            text += f"; {measured.format(fmean(values))}" if values else ""
        return notice(text)
    guessing_loss = model.targets.loss_of_one_color  # normalized targets have a variance of about 1
    if guessing_loss is None or model.camera_weight:
        return notice(text)
    text += f"; predicting each tubelet's mean color gives about {guessing_loss:g}"
    if has_diverged(fmean(losses), guessing_loss):
        return warning(f"{text}: the loss rose above it, so the run diverged; {SMALLER_UPDATES}")
    if fmean(losses) <= NEAR_MEAN_COLOR * guessing_loss:
        return notice(text)
    advice = learning_rate_advice(plan, new_weights=training.state.header.origin is None)
    return warning(f"{text}: little is learned; {advice or 'try more steps or another base_lr'}")


def has_diverged(loss: float, guessing_loss: float) -> bool:
    """Whether a mean training loss has risen above that of guessing, so that smaller updates help."""
    return loss > RISEN * guessing_loss


def chance_warning(
    plan: Schedule,
    loss: float,
    settings: FinetuneSettings,
    heads: Heads,
    *,
    guessing_loss: float,
    highest: float,
    ends: bool,
) -> str | None:
    """A warning if a loss is above that of guessing, or hardly below; the advice follows from the direction.

    Equal probabilities have the loss ln(classes) for any targets, also smoothed and mixed ones.

    Args:
        loss: the mean of the last training losses.
        guessing_loss: that of outputs that are all 0 (`everest.finetuning.loss_of_guessing`).
        highest: the highest training loss of the run; a loss that rose and came back needs no higher rate.
        ends: whether the run is at its end.
    """
    sizes = [head.outputs for head in heads]
    is_plain = settings.class_weights == "none" and all(head.task == "single-label" for head in heads)
    logarithms = " and ".join(f"ln({size})" for size in sizes)
    logarithms = f"{'the mean of ' if len(sizes) > 1 else ''}{logarithms} = " if is_plain else ""
    guessing = f"that of guessing, {logarithms}{guessing_loss:.2f}"
    if has_diverged(loss, guessing_loss):
        return f"the loss, {loss:.3g}, rose above {guessing}: the run diverged; {SMALLER_UPDATES}"
    if not is_plain:
        return None
    mixing = {"mixup": settings.mixup, "cutmix": settings.cutmix}
    lowest = fmean(lowest_loss(size, smoothing=settings.label_smoothing, **mixing) for size in sizes)
    if loss < guessing_loss - (UNDERFITS if ends else STILL_GUESSING) * (guessing_loss - lowest):
        return None
    fewer = "lower finetune.mixup and finetune.cutmix, " if any(mixing.values()) else ""
    rate = "lower" if plan.peak_lr > USUAL_LR[1] or highest > PEAKED * guessing_loss else "higher"
    return (
        f"the loss, {loss:.2f}, is still near {guessing}. Check that the labels "
        f"belong to the videos; try {fewer}more steps or a {rate} base_lr"
    )


def lowest_loss(num_classes: int, *, smoothing: float, mixup: float, cutmix: float) -> float:
    """The cross-entropy of a model that knows every class: the mean entropy of smoothed and mixed targets.

    With equally frequent classes, 1 - 1 / num_classes of the mixed clips have two classes. Shares have the
    Beta distributions of Mixup and CutMix; that the frame's border cuts boxes of CutMix is left out.
    """
    rest = smoothing / num_classes  # the probability of each class that a target does not have

    def entropy(fraction: float) -> float:
        """The entropy of a target with two classes."""
        both = entr(fraction * (1 - smoothing) + rest) + entr((1 - fraction) * (1 - smoothing) + rest)
        return float(both + (num_classes - 2) * entr(rest))

    alphas = [alpha for alpha in (mixup, cutmix) if alpha > 0]
    mixed_entropy = fmean(float(beta(a, a).expect(entropy)) for a in alphas) if alphas else entropy(1)
    return mixed_entropy + (entropy(1) - mixed_entropy) / num_classes
