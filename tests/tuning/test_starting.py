"""Ray as it starts on machines as they are: without a home folder, under load, with a cluster named elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray._private.services as services

from captune.errors import StudyError, UsageError
from captune.tuning import cluster, ray_internals


@pytest.fixture
def own_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The token of a test lies in its own folder."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize("home", ["/proc/nohome", "/dev/null/home"])
def test_a_home_that_cannot_be_written_names_the_variable_that_helps(
    own_token: None, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN_PATH") as caught:
        cluster.ensure_token()
    assert home in str(caught.value)


def test_a_node_that_is_slow_to_come_up_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def get_node(*arguments: Any) -> dict[str, str]:
        asked.append(arguments)
        if len(asked) < 4:
            raise RuntimeError("no such node yet")
        return {"node": "here"}

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.delenv(ray_internals._GCS_WAIT, raising=False)
    with ray_internals.patient_start(60.0):
        assert os.environ[ray_internals._GCS_WAIT] == "60"
        assert services.get_node("127.0.0.1:1", "id") == {"node": "here"}
    assert asked == [("127.0.0.1:1", "id")] * 4
    assert services.get_node is get_node
    assert ray_internals._GCS_WAIT not in os.environ


def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_node(*_: Any) -> None:
        raise RuntimeError("never")

    monkeypatch.setattr(services, "get_node", get_node)
    with ray_internals.patient_start(0.3), pytest.raises(RuntimeError, match="never"):
        services.get_node("127.0.0.1:1", "id")


def test_a_start_that_fails_says_how_long_was_waited(
    own_token: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def init(**options: Any) -> None:
        assert options["address"] == "local"  # whatever RAY_ADDRESS says
        time.sleep(0.3)
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "_USUAL_START_SECONDS", 0.05)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
    said: list[str] = []
    monkeypatch.setattr(cluster, "_say_that_ray_is_slow", lambda: said.append("waiting"))
    with (
        pytest.raises(StudyError, match=r"within 180 s, but got The current node timed out"),
        cluster.connected(None, threads=1),
    ):
        raise AssertionError("not reached")
    assert said == ["waiting"]
