"""The choice from what a study's candidates predict: what `captune.decisions.advice` says of them."""

from __future__ import annotations

from collections.abc import Sequence

from captune.decisions.advice import Advice, advise, gain_model_for
from captune.decisions.candidates import advised_config, candidate_trials, needs_ensemble
from captune.decisions.choice_record import AdviceWords, Candidate, Choice
from captune.decisions.evidence import Evidence
from captune.decisions.presence import absent_in, absent_sentence
from captune.decisions.scores import Scorer
from captune.records import ANCHORED, BALANCED, ENSEMBLE, PROBE, TEXT_MIXTURE, TRANSCLIP, ZERO_SHOT, StudyRecord, Trial

_WORDS: dict[str, AdviceWords] = {
    ZERO_SHOT: "keep zero-shot",
    BALANCED: "use balanced zero-shot",
    ANCHORED: "use the anchored mixture",
    TEXT_MIXTURE: "use the text mixture",
    TRANSCLIP: "use transclip",
    PROBE: "use the probe",
    ENSEMBLE: "use the ensemble",
}


def choose_by_predictions(study: StudyRecord, evidence: Evidence, class_names: Sequence[str] = ()) -> Choice:
    """The choice of a study whose candidates left their predictions; no label is read.

    Args:
        study: its record, all trials ended.
        evidence: of the candidates in `candidate_trials`.
        class_names: where given, the reason also names those that seem absent from the pool.
    """
    trials = candidate_trials(study)
    said = advise(evidence)
    shares = {name: round(share, 4) for name, share in said.blend.items()}
    adapted = [name for name, group in trials.items() if group[0].config_id is not None]
    best = max(adapted, key=lambda name: said.scores[name], default=None)
    name = _advised_name(said, trials)
    labels = {one: _label(study, one, group) for one, group in trials.items()}
    considered = said.considered
    return Choice(
        advice=_words(said, name),
        name=name,
        config_id=None if best is None else trials[best][0].config_id,
        config={} if best is None else trials[best][0].config,
        reason=_with_absent(_reason(study, said, evidence, labels), evidence, class_names),
        candidates=_candidates(said, shares, trials),
        sentence=said.say(labels),
        weights=shares,
        expected={} if considered is None else {key: round(value, 4) for key, value in vars(considered).items()},
        advised=advised_config(study, shares if name == ENSEMBLE else {name: 1.0}),
        learned_from=gain_model_for(evidence).seen,
    )


def _advised_name(said: Advice, trials: dict[str, list[Trial]]) -> str:
    """The trial that the advice stands for: the seeds of one configuration are an ensemble too."""
    first = next(iter(said.weights))
    return first if len(said.weights) == 1 and trials[first][0].config_id is None else ENSEMBLE


def _words(said: Advice, name: str) -> AdviceWords:
    if said.considered is not None and said.considered.low == said.considered.high == 0:
        return "adaptation changed nothing"
    return "adapt" if name == ENSEMBLE and len(said.weights) == 1 else _WORDS[name]


def _label(study: StudyRecord, name: str, group: Sequence[Trial]) -> str:
    """How a sentence calls a candidate: `grip (c3)`, `zero-shot`, else as `--method` does: `text_mixture`."""
    if group[0].config_id is not None:
        return f"{group[0].method or study.method} ({name})"
    return "zero-shot" if name == ZERO_SHOT else name


def _reason(study: StudyRecord, said: Advice, evidence: Evidence, labels: dict[str, str]) -> str:
    learned = gain_model_for(evidence)
    ranked = sorted(said.scores, key=lambda name: -said.scores[name])
    scores = ", ".join(f"{labels.get(name, name)} {said.scores[name]:+.1f}" for name in ranked)
    return (
        f"Compared by {compared_by(evidence)}: {scores}. What the ensemble gains is expected from {learned.worlds} "
        f"development tasks made of {', '.join(learned.seen)}"
    )


def compared_by(evidence: Evidence) -> str:
    """What the scores of candidates compare, and how much the accuracy on validation images weighs among it."""
    predictions = (
        f"their predictions on {len(evidence.neighbours_Nk)} unlabelled images (agreement with the nearest images and "
        "with balanced zero-shot, classes merged; against zero-shot)"
    )
    labelled = evidence.validation
    if labelled is None or not len(labelled.labels_V):
        return predictions
    images, share = f"{len(labelled.labels_V)} validation images", Scorer(evidence).validation_share
    if not share:
        return f"{predictions}, not on the {images}, which are all of seen or all of unseen classes"
    return f"accuracy on {images} (which weighs {100 * share:.4g} %) and {predictions}"


def _with_absent(reason: str, evidence: Evidence, class_names: Sequence[str]) -> str:
    absent = absent_sentence(absent_in(evidence), class_names) if class_names else None
    return reason if absent is None else f"{reason}. {absent}"


def _candidates(said: Advice, shares: dict[str, float], trials: dict[str, list[Trial]]) -> tuple[Candidate, ...]:
    listed = [
        Candidate(name, group[0].config_id, said.scores[name], None, len(group)) for name, group in trials.items()
    ]
    if needs_ensemble(shares, trials):
        listed.append(Candidate(ENSEMBLE, None, said.blend_score, None, 1))
    return tuple(listed)
