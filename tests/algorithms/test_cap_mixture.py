"""CAP with a mixture beside it: trusted where the pool looks even, zero-shot where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captune.adapted import export_adapted, open_adapted
from captune.algorithms import ALGORITHMS, default_config
from captune.algorithms.cap_mixture import CapMixture
from captune.config import TaskConfig
from captune.errors import ConfigError
from captune.training.context import open_context
from captune.training.trial import TrainingTrial

SMALL = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 16, "learning_rate": 0.05}


def cell(imbalance: float, paradigm: str = "ul") -> TaskConfig:
    return TaskConfig.parse({"dataset": "digits", "paradigm": paradigm, "pool_imbalance": imbalance})


def trained(directory: Path, method: str, imbalance: float = 20, **values: Any) -> TrainingTrial:
    task = cell(imbalance)
    config = default_config(method, task).with_values({"tuning": "features", **SMALL, **values})
    run = TrainingTrial.open(task, config, algorithm=ALGORITHMS[method], seed=0, directory=directory, role="report")
    while not run.trained:
        run.run_epoch()
    run.finish()
    return run


def mixed(run: TrainingTrial) -> CapMixture:
    algorithm = run._algorithm
    assert isinstance(algorithm, CapMixture)
    return algorithm


def test_imbalance_from_zero_shot_is_half_the_distance_of_its_shares_from_even(tmp_path: Path) -> None:
    context = open_context(cell(20), "report", "cpu")
    predicted = context.zero_shot_logits(context.task.pool).argmax(1).tolist()
    shares = [predicted.count(label) / len(predicted) for label in range(10)]
    run = trained(tmp_path / "one", "cap_mixture", imbalance_from="zero_shot")
    assert mixed(run).imbalance == pytest.approx(sum(abs(share - 0.1) for share in shares) / 2)
    other = mixed(trained(tmp_path / "other", "cap_mixture", imbalance_from="mixture")).imbalance
    both = mixed(trained(tmp_path / "both", "cap_mixture")).imbalance
    assert both == pytest.approx((mixed(run).imbalance + other) / 2)


@pytest.mark.parametrize("source", ["both", "mixture", "zero_shot"])
def test_a_long_tail_is_seen(tmp_path: Path, source: str) -> None:
    values = {"imbalance_from": source}
    even, tailed = (trained(tmp_path / str(imbalance), "cap_mixture", imbalance, **values) for imbalance in (1, 50))
    assert mixed(even).trust > 0.9
    assert mixed(tailed).imbalance > mixed(even).imbalance + 0.1


def test_without_mixture_full_trust_is_cap_and_none_is_zero_shot(tmp_path: Path) -> None:
    images = open_context(cell(20), "report", "cpu").task.test
    cap = trained(tmp_path / "cap", "cap")._algorithm.predict(images)
    full = trained(tmp_path / "full", "cap_mixture", trust_until=1.0, mixture_weight=0.0)
    assert mixed(full).trust == 1
    torch.testing.assert_close(full._algorithm.predict(images), cap, atol=0, rtol=0)
    none = trained(tmp_path / "none", "cap_mixture", trust_below=0.0, trust_until=0.01, fallback="zero_shot")
    assert mixed(none).trust == 0
    torch.testing.assert_close(none._algorithm.predict(images), none.context.zero_shot_logits(images).softmax(1))


def test_the_text_mixture_is_what_is_left_without_cap_and_guard(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", "text_mixture")
    mixture = trained(tmp_path / "mixture", "cap_mixture", trust_until=1.0, mixture_weight=1.0)
    images = alone.context.task.test
    torch.testing.assert_close(alone._algorithm.predict(images), mixture._algorithm.predict(images), atol=1e-5, rtol=0)


def test_where_nothing_is_trusted_the_anchored_mixture_predicts(tmp_path: Path) -> None:
    none = trained(tmp_path / "none", "cap_mixture", trust_below=0.0, trust_until=0.01)
    anchored = trained(tmp_path / "anchored", "anchored")
    images = none.context.task.test
    assert mixed(none).trust == 0
    torch.testing.assert_close(none._algorithm.predict(images), anchored._algorithm.predict(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("enough", "share"), [(0, 1.0), (20, 1.0), (400, 0.0)])
def test_a_pool_of_few_images_per_class_is_not_trusted(tmp_path: Path, enough: int, share: float) -> None:
    """The even pool of digits has some 108 images per class: more than 20, fewer than half of 400."""
    run = trained(tmp_path / "run", "cap_mixture", 1.0, enough_images=enough, trust_until=1.0)
    per_class = len(run.context.task.pool) / 10
    assert mixed(run).trust == share
    half = trained(tmp_path / "half", "cap_mixture", 1.0, enough_images=int(per_class / 0.75), trust_until=1.0)
    assert mixed(half).trust == pytest.approx(0.5, abs=0.02)


def test_trust_falls_in_a_straight_line_and_the_logits_of_all_three_are_mixed(tmp_path: Path) -> None:
    run = trained(
        tmp_path / "half", "cap_mixture", trust_below=0.0, trust_until=0.9, mixture_weight=0.25, fallback="zero_shot"
    )
    algorithm = mixed(run)
    assert algorithm.trust == pytest.approx(1 - algorithm.imbalance / 0.9)
    images = run.context.task.test
    cap = trained(tmp_path / "cap", "cap")._algorithm.predict(images).log()
    zero_shot = run.context.zero_shot_logits(images)
    features = run.context.image_features_MD[torch.tensor(images)]
    mixture = features @ algorithm.mixture.weights_KD.T + algorithm.mixture.bias_K
    expected = algorithm.trust * (0.75 * cap + 0.25 * mixture) + (1 - algorithm.trust) * zero_shot
    torch.testing.assert_close(run._algorithm.predict(images), expected.softmax(1), atol=1e-5, rtol=0)


def test_zero_shot_learning_keeps_the_pool_to_its_unseen_classes(tmp_path: Path) -> None:
    task = cell(1, "trzsl")
    config = default_config("cap_mixture", task).with_values({"tuning": "features", **SMALL})
    run = TrainingTrial.open(
        task, config, algorithm=ALGORITHMS["cap_mixture"], seed=0, directory=tmp_path, role="report"
    )
    unseen_K = run.context.pseudolabelled_K
    prior_K = mixed(run).mixture.prior_K
    assert float(prior_K[~unseen_K].abs().sum()) == 0 and float(prior_K[unseen_K].sum()) == pytest.approx(1)


def test_shares_that_are_not_estimated_cannot_open_the_guard() -> None:
    with pytest.raises(ConfigError, match="imbalance_from must be 'zero_shot' where pool_prior is off"):
        default_config("cap_mixture", cell(1)).with_values({"pool_prior": False})


@pytest.mark.parametrize("values", [{}, {"tuning": "prompts", "prompts": "text"}, {"tuning": "prompts"}])
def test_the_checkpoint_and_its_export_keep_mixture_and_guard(tmp_path: Path, values: dict[str, Any]) -> None:
    run = trained(tmp_path / "run", "cap_mixture", trust_below=0.0, trust_until=0.9, **values)
    assert 0 < mixed(run).trust < 1 and run.context.image_views is not None
    images = run.context.task.test[:16]
    pixels = run.context.image_views.weak(images)
    expected = run._algorithm.predict(images)
    model = open_adapted(tmp_path / "run", device="cpu")
    torch.testing.assert_close(model.probabilities(pixels), expected, atol=1e-4, rtol=0)
    export_adapted(model, tmp_path / "export")
    torch.testing.assert_close(
        open_adapted(tmp_path / "export", device="cpu").probabilities(pixels), expected, atol=1e-4, rtol=0
    )
