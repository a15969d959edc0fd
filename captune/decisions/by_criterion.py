"""The choice by a criterion: the best configuration, and whether to use it, from selection scores alone.

Studies choose from the predictions themselves (`captune.decisions.by_predictions`). This rule is for those that cannot:
where sealed labels choose (oracle, research only), and studies of older captunes that stored no predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from captune.decisions import statistics
from captune.decisions.choice_record import AdviceWords, Candidate, Choice
from captune.decisions.criteria import (
    AGREE_BALANCED,
    AGREE_SMOOTH,
    AGREE_ZERO_SHOT,
    LABEL_FREE_FALLBACKS,
    VAL,
    VAL_SMOOTH,
    criterion_named,
    part_against_balanced,
    part_against_zero_shot,
)
from captune.plain_text import counted
from captune.records import BALANCED, ENSEMBLE, ZERO_SHOT, Phase, Role, State, StudyRecord, Trial

LEVEL = 0.9
"""One-sided confidence a gain over zero-shot must reach.

A false positive is cheap: if the two are equal, adapting loses nothing.
"""
NO_OP_AGREEMENT = 0.99
"""Above this agreement with zero-shot an adapted model is called a no-op (measured on real features: 71-96 % of those
with k at the images a class has)."""


def choose_by_criterion(study: StudyRecord) -> Choice:
    """The final choice from selection scores over confirmation seeds; sealed labels are not read.

    The best configuration is that of `best_candidate`. The advice is then, in this order:

    1. "adaptation changed nothing": its predictions agree with zero-shot's on more than 99 % of the held-out pool.
    2. "adapt": it beats zero-shot, in the part of the criterion that zero-shot has no part in by more than the noise
       (`noise_margin`), and is not below balanced zero-shot where that competes; "use the ensemble" when the ensemble
       does so too and leads the best configuration beyond its seeds' noise. Where the criterion uses labels, these are
       few (20 images for two shots of ten classes): a gain inside their noise counts when a label-free criterion on the
       held-out pool shows one beyond its own.
    3. "use balanced zero-shot": it competes and beats zero-shot by more than the noise.
    4. "keep zero-shot".

    A candidate that a criterion is built on scores 1 by construction, or nearly, so it is judged by another:

    ================= ============================ ==============================
    criterion         zero-shot is judged by       balanced zero-shot is judged by
    ================= ============================ ==============================
    agree-balanced    itself                       nothing: it does not compete
    agree-smooth      neighbours, and itself too   neighbours
    val-smooth        itself                       val
    others            itself                       itself
    ================= ============================ ==============================

    Where a study selects by agree-zero-shot, agree-smooth takes its place (agree-balanced, if that was not recorded).
    """
    criterion = comparison_criterion(study)
    groups = adapted_groups(study)
    names = [name for name in (ZERO_SHOT, BALANCED, ENSEMBLE) if study.find(name) is not None]
    candidates = [_candidate(study, name, [study.find(name)], criterion) for name in names]
    adapted = [_candidate(study, name, trials, criterion) for name, trials in groups.items()]
    listed = (*candidates, *adapted)
    best = best_candidate(adapted)
    zero = score_under(study, study.find(ZERO_SHOT), criterion)
    if best is None:
        return Choice("keep zero-shot", ZERO_SHOT, None, {}, "no configuration finished with a score", listed)
    config = groups[best.name][0].config

    def conclude(advice: AdviceWords, name: str, reason: str) -> Choice:
        return Choice(advice, name, best.config_id, config, reason, listed)

    agreement = statistics.mean(_criterion_values(study, groups[best.name], AGREE_ZERO_SHOT))
    if agreement is not None and agreement > NO_OP_AGREEMENT:
        reason = f"{best.name} predicts what zero-shot predicts on {_share(agreement)} of the held-out pool images"
        return conclude("adaptation changed nothing", ZERO_SHOT, reason)
    if zero is None:
        return conclude("keep zero-shot", ZERO_SHOT, "zero-shot has no score to compare with: no gain can be shown")
    shown, said = _gain_shown(study, best.name, groups[best.name], criterion)
    ensemble = study.find(ENSEMBLE)
    if ensemble is not None and _gain_shown(study, ENSEMBLE, [ensemble], criterion, noise_of=groups[best.name])[0]:
        lead = known(score_under(study, ensemble, criterion)) - known(best.mean_score)
        if lead > (_seed_margin(study, groups[best.name], criterion) or 0.0):
            score = _share(known(score_under(study, ensemble, criterion)))
            words = f"The selection score of the ensemble is {score}. {said}"
            return conclude("use the ensemble", ENSEMBLE, words)
    if not shown and criterion_named(criterion).labels and known(best.mean_score) > zero:
        second = _label_free(study)
        if second is not None and _criterion_values(study, groups[best.name], second):
            shown, opinion = _gain_shown(study, best.name, groups[best.name], second)
            said += f". By a second criterion: {opinion}"
    rival, ahead, words = _against_balanced(study, groups[best.name], criterion)
    if shown and not ahead:
        return conclude("adapt", best.name, said)
    if rival:
        return conclude("use balanced zero-shot", BALANCED, said + words)
    return conclude("keep zero-shot", ZERO_SHOT, said)


def best_candidate(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the highest mean score over its seeds; ties go to the lower configuration number.

    One with fewer than half the seeds of the most confirmed candidate (dropped by the race, or with failed trials) is
    not considered.
    """
    most = max((candidate.num_seeds for candidate in candidates), default=0)
    eligible = [one for one in candidates if one.mean_score is not None and 2 * one.num_seeds >= most]
    return max(eligible, key=lambda one: (known(one.mean_score), -(one.config_id or 0)), default=None)


def best_configuration(study: StudyRecord, settled: Mapping[str, float] | None = None) -> int | None:
    """The number of the configuration that `choose_by_criterion` would name best now; None without a finished trial.

    Args:
        study: the study's record.
        settled: scores by trial that replace the recorded ones under the study's own criterion (the vote of all).
    """
    criterion = comparison_criterion(study)
    replaced = (settled or {}) if criterion == study.select_by else {}
    groups = adapted_groups(study)
    best = best_candidate([_candidate(study, name, trials, criterion, replaced) for name, trials in groups.items()])
    return None if best is None else best.config_id


def _against_balanced(study: StudyRecord, trials: Sequence[Trial], criterion: str) -> tuple[bool, bool, str]:
    """Whether balanced zero-shot beats zero-shot by more than the noise, whether it is ahead of `trials`, and in words.

    Neither where it does not compete.
    """
    fair = part_against_balanced(criterion) or criterion
    balanced, zero = (score_under(study, study.find(name), fair) for name in (BALANCED, ZERO_SHOT))
    if balanced is None or zero is None or not balanced_competes(study, fair):
        return False, False, ""
    error = _image_error(study, [study.find(BALANCED)], balanced - zero, fair) or 0.0
    needed = statistics.normal_quantile(LEVEL) * error
    ahead = balanced > known(statistics.mean(_criterion_values(study, trials, fair)))
    words = f". By {fair} balanced zero-shot has {_share(balanced)}, zero-shot {_share(zero)}"
    return balanced - zero > needed, ahead and balanced > zero, words


def _gain_shown(
    study: StudyRecord,
    name: str,
    trials: Sequence[Trial],
    criterion: str,
    *,
    noise_of: Sequence[Trial] | None = None,
) -> tuple[bool, str]:
    """Whether a configuration's gain over zero-shot is positive and, fairly measured, beyond the noise; and in words.

    Args:
        study: the study's record.
        name: what the words call it.
        trials: its trials.
        criterion: what the candidates are compared by.
        noise_of: the trials whose noise stands for its own (the ensemble is one trial).
    """
    zero = study.find(ZERO_SHOT)
    fair = part_against_zero_shot(criterion) or criterion
    if score_under(study, zero, fair) is None or not _criterion_values(study, trials, fair):
        fair = criterion
    values = _criterion_values(study, trials, criterion)
    centre, base = known(statistics.mean(values)), known(score_under(study, zero, criterion))
    said = f"The selection score of {name} is {_share(centre)} ({criterion}, {counted(len(values), 'seed')}), "
    said += f"zero-shot's is {_share(base)}. "
    gain = centre - base
    if fair != criterion:
        fair_base = known(score_under(study, zero, fair))
        gain = known(statistics.mean(_criterion_values(study, trials, fair))) - fair_base
        said += f"By {fair}, the part of it that does not favour zero-shot, the gain is {_points(gain)}"
    else:
        said += f"The gain is {_points(gain)}"
    margin, explained = noise_margin(study, noise_of or trials, gain, fair)
    return centre > base and gain > margin, f"{said}; less than {_points(margin)} could be chance ({explained})"


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _points(value: float) -> str:
    return f"{100 * value:.2f} points"


def _label_free(study: StudyRecord) -> str | None:
    zero_shot = study.find(ZERO_SHOT)
    return next((name for name in LABEL_FREE_FALLBACKS if zero_shot is not None and name in zero_shot.scores), None)


def comparison_criterion(study: StudyRecord) -> str:
    """The criterion adapted and frozen candidates are compared by: the study's, unless zero-shot is 1 under it."""
    if part_against_zero_shot(study.select_by) is None:
        return _label_free(study) or AGREE_BALANCED
    return study.select_by


def balanced_competes(study: StudyRecord, criterion: str) -> bool:
    """Whether balanced zero-shot can be ranked: not by agreement with itself, which is 1 whatever it is worth."""
    score = score_under(study, study.find(BALANCED), criterion)
    if criterion_named(criterion).labels:
        return True
    return part_against_balanced(criterion) is not None and score is not None and score < 1


def noise_margin(study: StudyRecord, trials: Sequence[Trial], gain: float, criterion: str) -> tuple[float, str]:
    """What a gain over zero-shot must exceed to be shown at `LEVEL`, one-sided, and the words for it.

    √(a² + b²), a for the seeds (`_seed_margin`), b for the finite number n of scored images, all of which every seed
    shares, so that b does not shrink with seeds. b is a normal margin of the trial's own standard error where it
    recorded one (`neighbours`: a jackknife over images). Else: the two predictions differ on a share q of the images,
    so the difference of two accuracies (or agreements) has variance at most (q − gain²)/n; q is 1 − agreement with
    zero-shot. For harmonic means, `val-smooth` and `ami` that is an approximation.
    """
    seeds = _seed_margin(study, trials, criterion)
    images = _image_error(study, trials, gain, criterion)
    words = ["one seed, so the spread over seeds is unknown" if seeds is None else f"seeds {100 * seeds:.2f}"]
    if images is None:
        words.append("the number of scored images is unknown")
    else:
        images *= statistics.normal_quantile(LEVEL)
        words.append(f"{num_scored_images(study, criterion)} scored images {100 * images:.2f}")
    return math.hypot(seeds or 0.0, images or 0.0), f"{', '.join(words)}; {100 * LEVEL:.0f} %, one-sided"


def _seed_margin(study: StudyRecord, trials: Sequence[Trial], criterion: str) -> float | None:
    """The Student margin of a mean over seeds, its variance pooled over all confirmed configurations; None of one seed.

    Three seeds of one configuration say little of their noise; those of four say enough for half the margin.
    """
    num_seeds = len(_criterion_values(study, trials, criterion))
    groups = [_criterion_values(study, group, criterion) for group in adapted_groups(study).values()]
    pooled = statistics.pooled_deviation(groups)
    if num_seeds < 2 or pooled is None:
        return None
    deviation, freedom = pooled
    return statistics.student_quantile(LEVEL, freedom) * deviation / math.sqrt(num_seeds)


def num_scored_images(study: StudyRecord, criterion: str) -> int | None:
    """How many images a selection score is measured on, from the study's own record or its settings."""
    task = study.task
    said = study.opened.num_scored
    if criterion == VAL_SMOOTH:
        # The mean of two independent measurements has a quarter of the sum of their variances.
        labelled, held_out = num_scored_images(study, VAL), num_scored_images(study, AGREE_SMOOTH)
        return round(4 / (1 / labelled + 1 / held_out)) if labelled and held_out else None
    # Where nothing is held out (trzsl) every criterion is measured on the validation images.
    if isinstance(said, int) and (criterion == study.select_by or study.paradigm == "trzsl"):
        return said
    if criterion == VAL:
        shots, classes = task.get("shots"), study.opened.num_classes
        return classes * min(2 if shots is None else shots, 4) if isinstance(classes, int) else None
    pool = study.opened.num_pool
    if criterion_named(criterion).labels or not isinstance(pool, int):
        return None
    return max(1, round(pool * float(task.get("holdout_fraction", 0.2))))


def _image_error(study: StudyRecord, trials: Sequence[Trial | None], gain: float, criterion: str) -> float | None:
    finished = [trial for trial in trials if trial is not None and trial.state is State.COMPLETE]
    recorded = [trial.gain_errors[criterion] for trial in finished if criterion in trial.gain_errors]
    if recorded:
        return statistics.mean(recorded)
    agreement = statistics.mean(_criterion_values(study, trials, AGREE_ZERO_SHOT))
    images = num_scored_images(study, criterion)
    if agreement is None or not images:
        return None
    return math.sqrt(max(0.0, (1 - agreement) - gain**2) / images)


def adapted_groups(study: StudyRecord) -> dict[str, list[Trial]]:
    """Confirmed configurations with their score-role trials; without any, every finished search trial by itself."""
    groups = {
        name: [trial for trial in trials if trial.role is Role.SCORE]
        for name, trials in study.configurations().items()
        if not name.startswith(ENSEMBLE)
    }
    if any(trial.scored for trials in groups.values() for trial in trials):
        return {name: trials for name, trials in groups.items() if trials}
    return {trial.key: [trial] for trial in study.of_phase(Phase.SEARCH) if trial.scored}


def _candidate(
    study: StudyRecord,
    name: str,
    trials: Sequence[Trial | None],
    criterion: str,
    settled: Mapping[str, float] | None = None,
) -> Candidate:
    values = _criterion_values(study, trials, criterion, settled)
    if not values and name in (ZERO_SHOT, BALANCED, ENSEMBLE):
        score = score_under(study, study.find(name), criterion)
        values = [] if score is None else [score]
    config_id = next((trial.config_id for trial in trials if trial is not None), None)
    return Candidate(name, config_id, statistics.mean(values), statistics.standard_deviation(values), len(values))


def _criterion_values(
    study: StudyRecord, trials: Sequence[Trial | None], criterion: str, settled: Mapping[str, float] | None = None
) -> list[float]:
    finished = [trial for trial in trials if trial is not None and trial.state is State.COMPLETE]
    values = [(settled or {}).get(trial.key, score_under(study, trial, criterion)) for trial in finished]
    return [value for value in values if value is not None]


def score_under(study: StudyRecord, trial: Trial | None, criterion: str) -> float | None:
    """The study's own score where the criterion is the study's, else the criterion's last value."""
    if trial is None:
        return None
    own = trial.score if criterion == study.select_by else None
    return own if own is not None else trial.scores.get(criterion)


def known(value: float | None) -> float:
    """A score for ordering: what is missing is below everything."""
    return -math.inf if value is None else value
