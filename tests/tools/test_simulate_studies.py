"""Known truth: confirming beats taking the luckiest trial once runs are noisy, and the shipped figures say so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.tools import simulate_studies


def by_strategy(noise: float) -> pd.DataFrame:
    table = simulate_studies.simulate_strategies(noise, np.random.default_rng(1), num_studies=1500)
    return table.set_index("strategy")


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_confirming_loses_less_than_luck_at_the_same_cost(noise: float) -> None:
    table = by_strategy(noise)
    for lucky in simulate_studies.STRATEGIES[:2]:
        assert table.loc["confirmed", "regret"] < table.loc[lucky, "regret"]
        assert table.loc["confirmed", "optimism"] < table.loc[lucky, "optimism"]
        assert table.loc["confirmed", "below_zero_shot"] <= table.loc[lucky, "below_zero_shot"]


def test_without_noise_confirming_changes_nothing() -> None:
    table = by_strategy(0.0)
    assert table.loc["confirmed", "mean_quality"] == table.loc["luckiest of the search", "mean_quality"]


def test_advice_is_rarely_to_adapt_where_that_loses_and_mostly_where_it_pays() -> None:
    generator = np.random.default_rng(2)
    adapt = {gain: simulate_studies.simulate_advice(gain, 3, generator)["adapt"].iloc[0] for gain in (-0.04, 0.0, 0.1)}
    assert adapt[-0.04] < 0.04 and adapt[0.0] < 0.17 and adapt[0.1] > 0.8


def test_shipped_table_is_what_the_code_gives() -> None:
    shipped = pd.read_csv(simulate_studies.MEASUREMENTS / "simulated_studies.csv")
    assert set(shipped["question"]) == {"choice", "coverage", "advice"}
    generator = np.random.default_rng(0)
    first = simulate_studies.simulate_strategies(simulate_studies.NOISES[0], generator)
    own = shipped[(shipped["question"] == "choice") & (shipped["noise"] == 0)]
    assert np.allclose(own["regret"], first["regret"], atol=1e-7)
