"""Whole studies of real runs without Ray: nothing sealed is seen before the choice, and what the choice is given."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from captune.config import TaskConfig
from captune.data import paradigms
from captune.decisions import by_predictions
from captune.decisions.by_criterion import choose_by_criterion
from captune.records import JOURNAL
from captune.records.layout import PREDICTIONS
from captune.results.classes import classes_table
from captune.results.load import load_study
from captune.results.report import report_study
from captune.results.robustness import robustness_table
from captune.training import context, evaluation, scoring
from captune.training.ensemble import write_ensemble
from tests.journals import journal_lines
from tests.slow import slow_but
from tests.studies.lives import advise_everything, search, settings
from tests.tuning.simulate import outcomes


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    found = [event for event in journal_lines(directory / JOURNAL) if event["event"] == kind]
    return [{name: value for name, value in event.items() if name not in ("time", "seconds")} for event in found]


def weights(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    files = sorted((directory / "trials").glob("*/*.safetensors"))
    return {f"{file.parent.name}/{file.name}": safetensors.torch.load_file(file) for file in files}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Paradigm → a study of it with its choice and test metrics, run once; not to be written into."""

    @cache
    def study_of(paradigm: str) -> Path:
        forget()
        return search(tmp_path_factory.mktemp("studied") / paradigm, settings(paradigm))

    return study_of


def forget() -> None:
    for cached in (context.open_context, scoring._clusters, evaluation._test_truth):
        cached.cache_clear()


@pytest.mark.parametrize(
    "paradigm", slow_but(lambda paradigm: paradigm in ("ul", "trzsl"), ["ul", "ssl", "trzsl", "tft"])
)
def test_search_choice_and_every_weight_are_unchanged_when_the_sealed_labels_are_garbage(
    studied: Callable[[str], Path], tmp_path: Path, paradigm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = studied(paradigm)
    real_init = paradigms.SealedLabels.__init__

    def garbage(self: Any, **labels_N: Any) -> None:
        draw = np.random.default_rng(0)
        real_init(self, **{name: draw.permutation((labels + 1) % 10) for name, labels in labels_N.items()})

    monkeypatch.setattr(paradigms.SealedLabels, "__init__", garbage)
    forget()
    spoiled = search(tmp_path / "spoiled", settings(paradigm))
    forget()
    assert outcomes(spoiled) == outcomes(honest)
    assert events(spoiled, "choice") == events(honest, "choice")
    assert events(spoiled, "settled") == events(honest, "settled")
    before, after = weights(honest), weights(spoiled)
    assert before.keys() == after.keys()
    for file, tensors in before.items():
        assert all(torch.equal(tensor, after[file][name]) for name, tensor in tensors.items()), file
    # The garbage was there to be seen: once the seal is open, every metric is another.
    metrics = [[report["metrics"]["metric"] for report in events(run, "report")] for run in (honest, spoiled)]
    assert len(metrics[0]) == len(metrics[1]) > 5
    assert all(true > 2 * wrong for true, wrong in zip(*metrics, strict=True))


def test_the_ensemble_is_a_candidate_scored_reported_and_averaged_again_when_the_study_goes_on(
    studied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(studied("ul"), tmp_path / "ul"))
    run = load_study(directory)
    ensemble = run.find("ensemble")
    assert ensemble is not None and ensemble.score == ensemble.scores["agree-smooth"]
    assert "ensemble" in {candidate["name"] for candidate in events(directory, "choice")[-1]["candidates"]}
    first = load_study(directory).find("ensemble")
    assert first is not None and 0.5 < (first.metric or 0) <= 1
    monkeypatch.setattr(by_predictions, "advise", advise_everything)  # so the new seeds are members, good or not
    search(directory, settings("ul", confirm_seeds=2), resume=True)
    reports = [event for event in events(directory, "report") if event["key"] == "ensemble"]
    assert len(reports) == 2
    keys = [event["key"] for event in events(directory, "report")]
    assert all(keys.count(key) == 1 for key in set(keys) - {"ensemble"})


def test_report_studies_have_an_ensemble_of_their_own(studied: Callable[[str], Path]) -> None:
    run = load_study(studied("trzsl"))
    score, report = run.find("ensemble"), run.find("ensemble-report")
    assert score is not None and report is not None
    assert (score.score, report.score) == (score.scores["pseudo-unseen"], None)
    assert "agree-zero-shot" in score.scores, "without held-out images the validation images are compared"


def test_a_configuration_weighs_the_same_in_the_ensemble_however_many_seeds_it_has(tmp_path: Path) -> None:
    """Class 0 of one test image: (0.2 + 0.4) / 2 = 0.3 and 0.9 make (0.3 + 0.9) / 2 = 0.6."""
    config = TaskConfig(dataset="digits", paradigm="ul")
    paths = [tmp_path / name for name in ("a1", "a2", "b")]
    for path, share in zip(paths, (0.2, 0.4, 0.9), strict=True):
        path.mkdir()
        probs = torch.tensor([[share, 1 - share] + [0.0] * 8]).half()
        safetensors.torch.save_file({"test_probs": probs, "holdout_probs": probs[:0]}, path / PREDICTIONS)
    outcome = write_ensemble(config, "report", [paths[:2], paths[2:]], tmp_path / "out", criterion="agree-smooth")
    assert outcome is not None and outcome["score"] is None
    probs_NK = safetensors.torch.load_file(tmp_path / "out" / PREDICTIONS)["test_probs"]
    assert probs_NK[0, :2].tolist() == pytest.approx([0.6, 0.4], abs=1e-3)


def test_one_configuration_is_no_ensemble(tmp_path: Path) -> None:
    config = TaskConfig(dataset="digits", paradigm="ul")
    assert write_ensemble(config, "score", [[tmp_path]], tmp_path / "out", criterion="agree-smooth") is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("paradigm", slow_but(lambda paradigm: paradigm == "trzsl", ["ssl", "trzsl"]))
def test_ensv_scores_by_the_vote_of_all_not_by_the_vote_of_the_moment(tmp_path: Path, paradigm: str) -> None:
    directory = search(tmp_path / "run", settings(paradigm, select_by="ensv"))
    recorded = {event["key"]: event["score"] for event in events(directory, "finished")}
    assert recorded["zero_shot"] == 1, "alone it agrees with everyone"
    settled = events(directory, "settled")[-1]["scores"]
    zero_shot = load_study(directory).find("zero_shot")
    assert zero_shot is not None and zero_shot.score == settled["zero_shot"] < 1
    candidates = {one.name: one.mean_score for one in choose_by_criterion(load_study(directory)).candidates}
    assert candidates["zero_shot"] == settled["zero_shot"]


def test_oracle_scores_are_the_sealed_metric_and_every_output_is_stamped(tmp_path: Path) -> None:
    directory = search(tmp_path / "run", settings("ul", select_by="oracle"))
    scored = [trial for trial in load_study(directory).trials if trial.scored]
    assert len(scored) >= 6 and all(trial.score == trial.metric for trial in scored)
    assert all(event["score"] is None for event in events(directory, "epoch")), "no run sees a sealed label"
    files = report_study(directory)
    stamped = [path for path in files if path.suffix in (".csv", ".yaml", ".html", ".svg")]
    assert len(stamped) > 10
    for path in stamped:
        assert "selected by sealed labels" in path.read_text(encoding="utf-8").lower(), path.name


def test_mismatched_classes_are_recorded_once_and_marked_in_the_table_of_classes(
    studied: Callable[[str], Path],
) -> None:
    directory = studied("ul")
    (event,) = events(directory, "mismatch")
    record = load_study(directory)
    names, table = record.opened.class_names, classes_table([record])
    marked = table[table["mismatched"].astype(bool)]["class"]
    assert sorted(marked) == sorted(names[label] for label in event["mismatched"])


@pytest.mark.slow
def test_stress_trials_fill_the_columns_of_harder_pools(tmp_path: Path) -> None:
    directory = search(tmp_path / "run", settings("ul", stress=True, trials=2, confirm_top=1))
    table = robustness_table([load_study(directory)])
    columns = ["imbalance_1", "imbalance_10", "imbalance_50", "pool_25", "pool_50"]
    assert (table[columns].notna().all(axis=1)).sum() == 1
