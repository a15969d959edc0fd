"""The private parts of Ray and Optuna that captune leans on are there, and do what is said of them."""

from __future__ import annotations

import faulthandler
import inspect
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import optuna
import ray
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from ray.tune.execution.tune_controller import TuneController

from captune.tuning import optuna_internals, ray_internals
from captune.tuning.environment import RAY_VARIABLES, ray_environment


def test_on_loopback_changes_what_ray_read_and_puts_it_back(monkeypatch) -> None:
    from ray._private import ray_constants

    monkeypatch.setenv(ray_internals.NETWORK_SWITCH, "1")
    before = ray_constants.ENABLE_RAY_CLUSTER
    with ray_internals.on_loopback():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
        assert os.environ[ray_internals.NETWORK_SWITCH] == "0"
    assert ray_constants.ENABLE_RAY_CLUSTER is before
    assert os.environ[ray_internals.NETWORK_SWITCH] == "1"


def test_nothing_is_killed_below_a_raylet_that_has_ended(monkeypatch) -> None:
    """Its number may belong to another process by then, here to that of the test."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ended.pid = os.getpid()
    node = SimpleNamespace(all_processes={"raylet": [SimpleNamespace(process=ended)]})
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ray_internals.kill_below_own_raylet()
    child.communicate(b"\n", timeout=60)
    assert child.returncode == 0


def test_a_node_on_this_machine_is_looked_for_as_long_as_the_block_says(monkeypatch) -> None:
    from ray._private import services

    asked: list[object] = []
    monkeypatch.setattr(
        services, "get_node_to_connect_for_driver", lambda _client, timeout_seconds=60: asked.append(timeout_seconds)
    )
    with ray_internals.node_found_within(5):
        services.get_node_to_connect_for_driver(None)
    services.get_node_to_connect_for_driver(None)
    assert asked == [5, 60]
    monkeypatch.setattr(services, "get_node_to_connect_for_driver", lambda _client, _ip: asked.append("old"))
    with ray_internals.node_found_within(5):
        services.get_node_to_connect_for_driver(None, None)
    assert asked[-1] == "old"


def test_rays_failure_handler_follows_the_environment_even_where_ray_was_imported_before(monkeypatch) -> None:
    from ray._private import ray_constants

    monkeypatch.setattr(ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", False, raising=False)
    with ray_internals.environment_heard():
        assert ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER is True
    assert ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER is False


def test_where_ray_has_no_switch_for_its_failure_handler_the_commands_is_put_back(monkeypatch, tmp_path) -> None:
    from ray._private import ray_constants

    monkeypatch.delattr(ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", raising=False)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with (tmp_path / "trace").open("w") as file:
            with ray_internals.environment_heard():
                faulthandler.register(signal.SIGTERM, file=file)  # a handler in C, as Ray's is
                os.kill(os.getpid(), signal.SIGTERM)
                assert heard == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM]
            faulthandler.unregister(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_environment_has_rays_variables_only_while_ray_is_used_and_the_users_stay(monkeypatch) -> None:
    for name in RAY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    before = dict(os.environ)
    with ray_environment():
        assert os.environ["RAY_AUTH_MODE"] == "token" and os.environ["RAY_DEDUP_LOGS"] == "1"
        with ray_environment():
            pass
        assert set(RAY_VARIABLES) <= set(os.environ)
    assert dict(os.environ) == before


def test_rays_own_sigterm_handler_is_kept_out() -> None:
    from ray._private import utils

    before = utils.set_sigterm_handler
    with ray_internals.signals_kept():
        assert utils.set_sigterm_handler is not before
        utils.set_sigterm_handler(None)
    assert utils.set_sigterm_handler is before


def test_tunes_controller_still_knows_trials_by_their_actors() -> None:
    assert "_trial_to_actor" in inspect.getsource(TuneController)


def test_a_trial_entered_past_the_public_ways_is_as_one_that_was_asked_for() -> None:
    study = optuna.create_study(direction="maximize")
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}
    )
    trial_id = optuna_internals.add_trial(study, template)
    optuna_internals.set_intermediate_value(study, trial_id, 50, 0.25)
    optuna_internals.finish_trial(study, trial_id, TrialState.COMPLETE, [0.75], {"node": "a"})
    (trial,) = study.trials
    assert optuna_internals.identity(trial) == trial_id
    assert (trial.state, trial.value, trial.params) == (TrialState.COMPLETE, 0.75, {"x": 0.5})
    assert (trial.intermediate_values, trial.user_attrs) == ({50: 0.25}, {"node": "a"})
