"""What the exam lets a rule choose from: every method's predictions on a world, without a study around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captune.algorithms import ALGORITHMS, default_config
from captune.algorithms.cap_mixture import anchored_mixture
from captune.config import TrialConfig
from captune.data.paradigms import IntArray
from captune.errors import CaptuneError
from captune.training.context import Context
from captune.training.loop import Loop

# The paper's 50 epochs of 50 steps take minutes a world; these keep the order of the methods (README).
BUDGETS = {
    "full": {},
    "quick": {"epochs": 10, "steps_per_epoch": 20},
}
_ROUNDS = {"num_iterations": 5, "epochs": 4}
# The text mixture is in the cache as "mixture-even", beside what it is with the pool's shares.
LEFT_OUT = ("supervised",)

Predict = Callable[[IntArray], Tensor]


@dataclass(frozen=True)
class Candidate:
    """A method with a budget and a seed.

    Attributes:
        method: a key of ALGORITHMS, or "mixture" (the anchored mixture of `cap_mixture` alone).
        budget: a key of BUDGETS; training-free methods have none.
        seed: of the training.
    """

    method: str
    budget: str = ""
    seed: int = 0

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return self.method + (f"@{self.budget}" if self.budget else "") + (f"~{self.seed}" if self.seed else "")

    @classmethod
    def of_key(cls, key: str) -> Candidate:
        """The candidate of a key."""
        name, _, seed = key.partition("~")
        method, _, budget = name.partition("@")
        return cls(method, budget, int(seed or 0))


def training_free() -> tuple[Candidate, ...]:
    """The methods that cost next to nothing."""
    names = [name for name, method in ALGORITHMS.items() if not method.trains and name not in LEFT_OUT]
    return tuple(Candidate(name) for name in (*names, "mixture"))


def trained(budget: str, *, seeds: int = 1) -> tuple[Candidate, ...]:
    """The methods that train, cheapest first, so that a fill that is cut short has most of them."""
    order = ("fpl", "cap_mixture", "cap", "grip", "cpl")
    names = [name for name, method in ALGORITHMS.items() if method.trains and name not in LEFT_OUT]
    names.sort(key=lambda name: order.index(name) if name in order else -1)
    return tuple(Candidate(name, budget, seed) for seed in range(seeds) for name in names)


def config_of(candidate: Candidate, context: Context) -> TrialConfig:
    """The method's default configuration on frozen features at the candidate's budget."""
    config = default_config(candidate.method, context.task.config, "features")
    values = dict(BUDGETS[candidate.budget]) if candidate.budget else {}
    if values and hasattr(config, "num_iterations"):
        values |= _ROUNDS
    return config.with_values(values)


def predictions(candidate: Candidate, context: Context) -> Iterator[tuple[str, Predict]]:
    """Train a candidate; yields (key, function of image indices → probabilities).

    `cap_mixture` trains CAP unchanged, so one training yields both.
    """
    if candidate.method == "mixture":
        mixture = anchored_mixture(context, None, pool_prior=True)
        for name, prior_K in (("mixture", mixture.prior_K.clamp(min=1e-9).log()), ("mixture-even", 0.0)):
            bias_K = mixture.bias_K + prior_K

            def predict(indices: IntArray, bias_K: Tensor = bias_K) -> Tensor:
                rows = torch.as_tensor(np.array(indices))
                return (context.image_features_MD[rows] @ mixture.weights_KD.T + bias_K).softmax(-1)

            yield name, predict
        return
    config = config_of(candidate, context)
    method = ALGORITHMS[candidate.method]
    algorithm = method.build(context, config, candidate.seed)
    num_epochs = method.num_epochs(config)
    loop = Loop(algorithm, config, num_epochs)
    for _ in range(num_epochs):
        loop.run_epoch()
    yield candidate.key, algorithm.predict
    if candidate.method == "cap_mixture":
        algorithm.learned_share = 1.0  # type: ignore[attr-defined]
        yield Candidate("cap", candidate.budget, candidate.seed).key, algorithm.predict


def failure(error: CaptuneError) -> str:
    """What a table says of a candidate that could not be had."""
    return str(error).splitlines()[0]
