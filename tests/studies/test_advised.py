"""What a study advises is one thing: what it says, saves, writes for `adapt`, predicts and reports is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from captune.adapted import open_adapted
from captune.adapting import adapt_once, check_out, configuration
from captune.config import TaskConfig
from captune.decisions import by_predictions
from captune.decisions.advice import Advice, advise
from captune.decisions.evidence import Evidence
from captune.records import TEXT_MIXTURE, Phase, Role, StudyRecord
from captune.results import report
from captune.results.load import load_study
from captune.studies.closing import close_study
from captune.studies.planning import plan_study
from captune.training.context import open_context
from captune.training.trial import PREDICTIONS, limit_threads
from tests.slow import slow_but
from tests.studies.lives import advise_everything, run_trials, settings


def advise_a_reference(evidence: Evidence) -> Advice:
    """What is advised, with all the weight on the text mixture: which cells it wins changes with what was learned."""
    alone = {TEXT_MIXTURE: 1.0}
    return replace(advise(evidence), weights=alone, blend=alone)


Closed = Callable[[str], tuple[Path, StudyRecord, set[str]]]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Closed:
    """Paradigm → a closed study of it with its stress trials, the record and the names of the files of its report."""

    @cache
    def study_of(paradigm: str) -> tuple[Path, StudyRecord, set[str]]:
        limit_threads(1)
        directory = tmp_path_factory.mktemp(paradigm) / "study"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "_figures", lambda studies, tables: {})  # only tables and files of words are read
            if paradigm == "tft":
                patch.setattr(by_predictions, "advise", advise_a_reference)
            run_trials(plan_study(settings(paradigm, confirm_seeds=2, stress=paradigm == "ul"), directory)).close()
            record, files = close_study(directory)
        return directory, record, {file.name for file in files}

    return study_of


@pytest.mark.parametrize(
    "paradigm", slow_but(lambda paradigm: paradigm in ("ul", "ssl"), ["ul", "tft", "ssl", "trzsl"])
)
def test_adapt_and_predict_reproduce_the_advised_accuracy_to_the_last_image(
    closed: Closed, tmp_path: Path, paradigm: str
) -> None:
    limit_threads(1)
    directory, record, names = closed(paradigm)
    assert {"best_config.yaml", "checkpoint.safetensors", "predictions.csv"} <= names
    choice = record.choice
    # In tft one reference was given all the weight, elsewhere an ensemble is advised: both must hold.
    assert choice is not None and choice.advised["method"] == ("text_mixture" if paradigm == "tft" else "blend")
    role = Role.SCORE if paradigm in ("ul", "ssl") else Role.REPORT
    task = TaskConfig(dataset="digits", paradigm=paradigm)  # type: ignore[arg-type]

    method, config, learned = configuration(task, config=directory / "best_config.yaml")
    assert (method, learned) == (choice.advised["method"], role)
    check_out(tmp_path / "adapted")
    metrics = adapt_once(task, method, config, tmp_path / "adapted", role=learned)
    context = open_context(task, role)
    assert context.image_views is not None
    pixels = context.image_views.weak(context.task.test)
    predicted = open_adapted(directory, device="cpu").probabilities(pixels).argmax(-1)
    again = open_adapted(tmp_path / "adapted", device="cpu").probabilities(pixels).argmax(-1)
    assert torch.equal(predicted, again)
    if choice.name in ("ensemble", "text_mixture"):
        key = f"{choice.name}-report" if role is Role.REPORT else str(choice.name)
        trial = load_study(directory).find(key)
        assert trial is not None and trial.metric == metrics["metric"]
        own = safetensors.torch.load_file(directory / "trials" / key / PREDICTIONS)["test_probs"].argmax(-1)
        assert torch.equal(predicted, own)
    said = [line.split(",")[1] for line in (directory / "predictions.csv").read_text().splitlines()[1:]]
    assert said == [context.task.class_names[label] for label in predicted.tolist()]


def test_a_study_of_features_is_reproduced_to_the_last_image(tmp_path: Path) -> None:
    limit_threads(1)
    generator = np.random.default_rng(5)
    labels_M, text_KD = np.arange(300) % 6, generator.normal(size=(6, 32))
    image_MD = text_KD[(labels_M + (generator.random(300) < 0.25)) % 6] + 0.9 * generator.normal(size=(300, 32))
    file = tmp_path / "f.npz"
    np.savez(
        file, image_features=image_MD.astype(np.float32), text_features=text_KD.astype(np.float32), labels=labels_M,
        split=np.array(["train", "train", "test"] * 100), class_names=np.array([f"thing {k}" for k in range(6)]),
        logit_scale=np.array([5.0], np.float32),
    )  # fmt: skip
    task = TaskConfig(dataset=f"features:{file}", paradigm="ul")
    study = settings("ul", confirm_seeds=2).model_copy(update={"task": task})
    directory = tmp_path / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_figures", lambda studies, tables: {})
        patch.setattr(by_predictions, "advise", advise_everything)
        run_trials(plan_study(study, directory)).close()
        record, _ = close_study(directory)
    assert record.choice is not None and record.choice.advised["method"] == "blend"
    method, config, role = configuration(task, config=directory / "best_config.yaml")
    check_out(tmp_path / "adapted")
    metrics = adapt_once(task, method, config, tmp_path / "adapted", role=role)
    trial = record.find(record.choice.name)
    assert trial is not None and trial.metric == metrics["metric"]
    said = pd.read_csv(directory / "predictions.csv").set_index("image")["class"]
    assert said.index.tolist() == list(range(2, 300, 3)) and said.nunique() > 2
    for place in (directory, tmp_path / "adapted"):
        table = open_adapted(place, device="cpu").predict(features=image_MD)
        assert table["class"][said.index].tolist() == said.tolist()
        assert np.isclose((table["class"][said.index] == [f"thing {k}" for k in labels_M[2::3]]).mean(), trial.metric)


def test_the_tables_name_what_is_advised(closed: Closed) -> None:
    directory, record, _ = closed("ul")
    assert record.choice is not None and record.choice.weights and record.choice.sentence is not None
    robust, best = (pd.read_csv(directory / name, comment="#") for name in ("robustness.csv", "best_configs.csv"))
    assert list(robust[robust["advised"].astype(str).isin(("yes", "True"))]["configuration"]) == [record.choice.name]
    row = best.iloc[0]
    assert row["advised_candidate"] == record.choice.name and record.choice.sentence.rstrip(".") in row["answer"]
    assert row["expected_low"] <= row["expected_gain"] <= row["expected_high"] and 0 < row["risk"] < 1
    trial = record.find(record.choice.name)
    assert trial is not None and np.isclose(row["advised_test"], trial.metric)
    assert record.choice.sentence in (directory / "best_config.yaml").read_text()


def test_what_is_stressed_is_what_was_chosen(closed: Closed) -> None:
    directory, record, _ = closed("ul")
    assert record.choice is not None and record.choice.weights
    stressed = record.of_phase(Phase.STRESS)
    assert {trial.name for trial in stressed} >= {"xensemble-imbalance10", "xensemble-pool25"}
    members = record.choice.advised["members"]
    for trial in stressed:
        assert trial.scored and trial.method == "blend"
        assert [one["method"] for one in trial.config["members"]] == [one["method"] for one in members]
    table = pd.read_csv(directory / "robustness.csv", comment="#").set_index("configuration")
    columns = ["imbalance_1", "imbalance_10", "imbalance_50", "pool_25", "pool_50"]
    assert table.loc["ensemble", columns].notna().all() and table[columns].notna().all(axis=1).sum() == 1
