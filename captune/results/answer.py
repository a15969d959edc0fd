"""A study's answer in plain words: what to use, what that gains, how sure it is, what to type next.

The advice and its reason were fixed before any test label was read (`captune.decisions`). This module adds what the
test labels showed afterwards; it never changes the advice.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

from captune.config import TaskConfig
from captune.decisions import statistics
from captune.records import ENSEMBLE, REFERENCES, ZERO_SHOT, StudyRecord
from captune.records.layout import CHECKPOINT
from captune.results.best import metrics_by_seed, recorded_choice, reference_metric
from captune.results.findings_tables import findings_of
from captune.results.formats import in_words, percent

_USE = {
    "keep zero-shot": "Keep zero-shot",
    "adaptation changed nothing": "Keep zero-shot: the best configuration predicts the same",
}


@dataclass(frozen=True)
class Measured:
    """A candidate's result on the test labels: its metric, its gain over zero-shot, and an interval of that gain."""

    metric: float
    gain: float | None
    low: float | None
    high: float | None
    over: str
    """What the interval accounts for: "seeds", "test images" or "seeds and test images"; empty without an interval."""


@dataclass(frozen=True)
class Answer:
    """The answer of a study.

    Attributes:
        name: the advised candidate.
        sentence: what to use, what it gains, how sure that is.
        caveat: why the advice stands although another candidate is better on the test; empty if none is.
        command: what to type next.
        best_by_test: the candidate that is best on the test; None if the advised one has no test metric.
        regret: how much better that one is than the advised one, a fraction, at least 0.
        measured: the advised candidate's test result; None before the test labels were read, or if there are none.
    """

    name: str
    sentence: str
    caveat: str
    command: str
    best_by_test: str | None
    regret: float | None
    measured: Measured | None


def answer_of(study: StudyRecord) -> Answer:
    """The answer of a study; provisional if the study has not ended."""
    name = recorded_choice(study).name
    measured = measured_of(study, name)
    best, regret = best_by_test(study, name)
    return Answer(
        name=name,
        sentence=_sentence(study, name, measured),
        caveat=_caveat(study, best, regret),
        command=next_command(study, name),
        best_by_test=best,
        regret=regret,
        measured=measured,
    )


def measured_of(study: StudyRecord, name: str) -> Measured | None:
    """The test metric of a candidate (mean over seeds) and its gain over zero-shot; None without a metric.

    The interval of the gain combines the spread over seeds (Student), if there are several, and the sampling error of
    the test images (paired differences, normal), if the study recorded it.
    """
    values = list(metrics_by_seed(study, name).values())
    centre, zero = statistics.mean(values), reference_metric(study, ZERO_SHOT)
    if centre is None:
        return None
    if zero is None or name == ZERO_SHOT:
        return Measured(centre, None, None, None, "")
    gain, over = centre - zero, []
    spread, found = statistics.t_interval([value - zero for value in values]), findings_of(study)
    halves = []
    if spread is not None:
        over.append("seeds")
        halves.append(spread.half_width)
    if found.get("candidate") == name and found.get("gain_error") is not None:
        over.append("test images")
        halves.append(statistics.normal_quantile(0.5 + statistics.LEVEL / 2) * float(found["gain_error"]))
    if not halves:
        return Measured(centre, gain, None, None, "")
    # Seeds and images are independent sources of error.
    half = math.hypot(*halves)
    return Measured(centre, gain, gain - half, gain + half, " and ".join(over))


def best_by_test(study: StudyRecord, advised: str) -> tuple[str | None, float | None]:
    """The candidate with the best test metric (mean over seeds), and how far it is ahead of the advised one.

    Both are None if the advised candidate has no test metric. The advised candidate wins ties.
    """
    names = dict.fromkeys([*REFERENCES, ENSEMBLE, *study.configurations(), advised])
    means = {name: statistics.mean(list(metrics_by_seed(study, name).values())) for name in names}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if advised not in known:
        return None, None
    best = max(known, key=lambda name: (known[name], name == advised))
    return best, known[best] - known[advised]


def _metric_words(study: StudyRecord) -> str:
    if study.metric_name == "harmonic_mean":
        return "harmonic mean of the accuracies on seen and on unseen classes"
    return study.metric_name.replace("_", " ")


def _sentence(study: StudyRecord, name: str, measured: Measured | None) -> str:
    choice = recorded_choice(study)
    first = (choice.sentence or _USE.get(choice.advice, f"Use {in_words(name)}")).rstrip(".")
    if study.advises_nothing:
        return "There is no advice yet: no configuration has ended."
    if study.choice is None:
        return f"{first}, as far as this study has come; it has not ended."
    if not study.sealed_opened:
        return f"{first}. How good that is on test images is not known yet."
    if measured is None:
        return f"{first}. No test image has a label, so how good that is was not measured."
    metric, zero = _metric_words(study), reference_metric(study, ZERO_SHOT)
    where = f"on {study.opened.num_test} test images" if study.opened.num_test else "on the test images"
    if measured.gain is None or zero is None:
        return f"{first}. Its {metric} {where} is {percent(measured.metric)} %."
    return f"{first}. Its {metric} {where} is {percent(measured.metric)} %, {_gain_words(measured, zero)}."


def _gain_words(measured: Measured, zero: float) -> str:
    gain = measured.gain or 0.0
    size = f"{100 * abs(gain):.1f} points {'above' if gain >= 0 else 'below'} zero-shot's {percent(zero)} %"
    if measured.low is None or measured.high is None:
        return size
    return f"{size} (95 % interval over {measured.over}: {_signed(measured.low)} to {_signed(measured.high)} points)"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _caveat(study: StudyRecord, best: str | None, regret: float | None) -> str:
    if best is None or not regret or f"{100 * regret:.1f}" == "0.0":
        return ""
    return (
        f"On the test, {in_words(best)} is {100 * regret:.1f} points better. The advice stays as it is: it was made "
        "before a test label was read, and the best of several test results is partly luck, so a choice by them would "
        "promise more than new images keep."
    )


def next_command(study: StudyRecord, name: str) -> str:
    """The command that uses the advised candidate, or that resumes the study if it has not chosen yet."""
    if study.choice is None:
        return f"captune resume {shlex.quote(study.directory.name)}"
    if (study.directory / CHECKPOINT).is_file():
        return "captune predict . " + ("NEW.npz" if study.dataset.startswith("features:") else "PHOTOS")
    options = " ".join(task_options(study.task))
    if name == ZERO_SHOT:
        return f"captune adapt {options} --method zero_shot --out adapted"
    return f"captune adapt {options} --config best_config.yaml --out adapted"


def task_options(task: dict[str, Any]) -> list[str]:
    """The command line's options that name a task: every setting that is not the default, except the cache folder."""
    found: list[str] = []
    for name, field in TaskConfig.model_fields.items():
        value = task.get(name)
        if value is None or name in ("cache_dir", "unseal_pool") or value == field.default:
            continue
        option = f"--{name.replace('_', '-')}"
        found += [option] if value is True else [option, shlex.quote(str(value))]
    return found
