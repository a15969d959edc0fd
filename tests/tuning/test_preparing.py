"""Datasets decoded and encoded once for all studies that share them, beside the training, and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster as LocalNodes

from captune.config import StudyConfig, TaskConfig
from captune.data import catalog
from captune.data.build_once import Work
from captune.data.catalog import images_of
from captune.data.digits import load_digits_arrays
from captune.errors import StudyError
from captune.records import JOURNAL, StudyRecord, read_journal
from captune.records.events import Prepared
from captune.studies.planning import plan_study
from captune.studies.running import Settings, run_studies
from captune.tuning import cluster as cluster_module
from captune.tuning import preparing
from captune.tuning.preparing import Made, NodePreparer, Preparation
from captune.tuning.progress import standing
from tests.tuning.fakes import info, study
from tests.tuning.simulate import make_cell

PARADIGMS = ("ul", "ssl", "trzsl", "tft")


def cells_of(place: Path, *tasks: TaskConfig, **facts: Any) -> list[Any]:
    found = []
    for number, task in enumerate(tasks):
        directory = place / str(number)
        directory.mkdir()
        settings = study(trials=2, confirm_top=0).model_copy(update={"task": task})
        found.append(make_cell(directory, settings, info(f"cell-{number}", **facts)))
    return found


def prepared_events(*directories: Path) -> list[Prepared]:
    return [event for at in directories for event in read_journal(at / JOURNAL) if isinstance(event, Prepared)]


def test_cells_share_images_over_paradigms_shots_and_pools_but_not_over_backbones_and_places() -> None:
    task = TaskConfig(dataset="digits", paradigm="ul")
    for same in ({"paradigm": "trzsl"}, {"shots": 4}, {"pool_fraction": 0.5}, {"template": "{}"}):
        assert images_of(task.model_copy(update=same)) == images_of(task), same
    for other in ({"backbone": "ViT-B-32"}, {"precision": "bf16"}, {"cache_dir": Path("/a")}, {"dataset": "dtd"}):
        assert images_of(task.model_copy(update=other)) != images_of(task), other


def test_a_matrix_reads_a_dataset_once_for_all_its_cells(tmp_path: Path) -> None:
    catalog._read_dataset.cache_clear()
    for paradigm in PARADIGMS:
        for method in ("cap", "fpl"):
            task = TaskConfig(dataset="digits", paradigm=paradigm, cache_dir=tmp_path)
            plan_study(StudyConfig(task=task, method=method, trials=1), tmp_path / f"{paradigm}-{method}")
    assert catalog._read_dataset.cache_info().misses == 1


def test_no_two_cells_encode_the_same_images(tmp_path: Path) -> None:
    tasks = [TaskConfig(dataset="digits", paradigm=paradigm, cache_dir=tmp_path / "store") for paradigm in PARADIGMS]
    cells = cells_of(tmp_path, *tasks)
    preparation = Preparation(cells)
    assert preparation.groups == [cells]
    preparation.prepare_here()
    (made,) = prepared_events(*(cell.directory for cell in cells))
    assert made.decoded == made.encoded == 1797, "every image of digits, once"
    assert made in StudyRecord(cells[0].directory, read_journal(cells[0].directory / JOURNAL)).prepared
    Preparation(cells).prepare_here()
    assert len(prepared_events(*(cell.directory for cell in cells))) == 1, "nothing was left to do"


class Node:
    """A preparer of a node whose answers come when the test says so; an answer is its own reference."""

    def __init__(self) -> None:
        self.prepare = self
        self.asked: list[dict[str, Any]] = []

    def options(self, **_: Any) -> Node:
        return self

    def remote(self, what: Any, *more: Any) -> Any:
        if more:
            return self
        self.asked.append(what)
        return f"answer {len(self.asked)}"


def test_cells_begin_as_their_images_are_ready_and_one_that_cannot_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    answers: dict[str, Made] = {}
    alive = {"Alive": True, "Resources": {"CPU": 2.0}, "NodeID": "a" * 56}
    named = {"NodeManagerHostname": "worker", "NodeManagerAddress": "10.0.0.2"}
    head = {"Alive": True, "Resources": {"CPU": 0.0}, "NodeID": "b" * 56}
    monkeypatch.setattr(preparing.ray, "nodes", lambda: [head, alive | named])
    monkeypatch.setattr(preparing.ray, "remote", lambda **_: lambda _cls: node)
    monkeypatch.setattr(preparing.ray, "kill", lambda _actor: None)
    monkeypatch.setattr(preparing.ray, "get", answers.__getitem__)
    monkeypatch.setattr(preparing.ray, "wait", lambda refs, **_: ([ref for ref in refs if ref in answers], []))
    monkeypatch.setattr(preparing, "_EVERY_SECONDS", 0.0)
    large, small, broken = (TaskConfig(dataset=name, paradigm="ul") for name in ("large", "small", "broken"))
    cells = cells_of(tmp_path, large, small, small.model_copy(update={"shots": 3}), broken)
    cells[0].info = info("cell-0", num_pool=10_000)
    preparation = Preparation(cells)
    preparation.begin(preparing.Allotment(1))
    assert [task["dataset"] for task in node.asked] == ["small", "broken", "large"], "the head has no room for a trial"
    assert all(cell.next_trial() is None and not cell.finished for cell in cells)
    assert standing(cells[0]).phase == "preparing images"
    answers["answer 1"] = Made(Work(decoded=10, encoded=10), 1.5)
    preparation.look()
    assert cells[1].next_trial() is not None and cells[2].next_trial() is not None
    assert cells[0].next_trial() is None, "its images are not ready"
    assert [event.encoded for event in prepared_events(*(cell.directory for cell in cells))] == [10]
    answers["answer 2"] = Made(refused="no such folder")
    preparation.look()
    assert cells[3].finished and "worker (10.0.0.2, aaaaaaaa): no such folder" in str(cells[3].unable)
    answers["answer 3"] = Made(refused="does not answer: gone", silent=True)
    preparation.look()
    assert cells[0].finished and cells[0].unable, "no node is left that could run it"
    assert not cells[1].finished


def test_a_node_on_which_a_read_hangs_is_done_without_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()

    def hang(_task: dict[str, Any], look: Callable[[], None]) -> Made:
        look()
        stuck.wait()
        return Made()

    monkeypatch.setattr(preparing, "prepare_this_process", hang)
    made = NodePreparer(gpus=False, patience=0.3).prepare({})
    stuck.set()
    assert made.silent and "must make a step within --trial-timeout (0 s)" in str(made.refused)
    (cell,) = cells_of(tmp_path, TaskConfig(dataset="digits", paradigm="ul"))
    told: list[str] = []
    preparation = Preparation([cell], told.append)
    preparation._settle([cell], {"good": Made(), "dead": made})
    assert cell.unable is None and cell.next_trial() is not None, "the good node trains"
    (sentence,) = told
    assert sentence.startswith("cell-0: the images are not ready on dead, which is done without: the preparation")
    preparation._settle([cell], {"dead": made})
    assert "dead: the preparation of images must make a step" in str(cell.unable)


def test_what_a_late_node_makes_for_its_first_trial_is_counted_too(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, TaskConfig(dataset="digits", paradigm="ul"))
    trial = cell.next_trial()
    cell.deliver(trial.key, {"rows": [], "node": "late", "prepared": {"decoded": 5, "encoded": 5}})
    assert [(event.node, event.encoded) for event in prepared_events(cell.directory)] == [("late", 5)]


# ── with Ray ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def nodes() -> Iterator[LocalNodes]:
    cluster_module.ensure_token()
    local = LocalNodes(initialize_head=True, head_node_args={"num_cpus": 0})
    local.add_node(num_cpus=1)
    local.wait_for_nodes()
    yield local
    ray.shutdown()
    local.shutdown()


def photographs(place: Path, each: int, names: Sequence[str] = ("zero", "one", "two")) -> TaskConfig:
    images_NHW, labels_N = load_digits_arrays()
    for label, name in enumerate(names):
        (place / name).mkdir(parents=True)
        for number, row in enumerate(np.flatnonzero(labels_N == label)[:each]):
            Image.fromarray(images_NHW[row]).save(place / name / f"{number}.png")
    return TaskConfig(dataset=f"folder:{place}", paradigm="ul", cache_dir=place.parent / "store", backbone="tiny")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_matrix_on_a_cluster_encodes_each_image_once_and_a_dataset_that_is_missing_there_stops_no_other(
    nodes: LocalNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = photographs(tmp_path / "own", each=20)
    gone = photographs(tmp_path / "gone", each=20)
    fixed = {"tuning": "features", "epochs": 2}
    tasks = [own, own.model_copy(update={"paradigm": "tft"}), gone]
    plans = [
        plan_study(StudyConfig(task=task, trials=1, confirm_top=0, fixed=fixed), tmp_path / f"run-{number}")
        for number, task in enumerate(tasks)
    ]
    # After it was planned, before a node looks.
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    with pytest.raises(StudyError, match="every node that runs trials must see the data"):
        run_studies(plans, Settings(address=nodes.address, dashboard=False, logger="none"))
    assert not (tmp_path / "run-2").exists(), "nothing of it had begun"
    made = prepared_events(tmp_path / "run-0", tmp_path / "run-1")
    assert sum(event.decoded or 0 for event in made) == sum(event.encoded or 0 for event in made) == 60
    for number in (0, 1):
        record = StudyRecord(tmp_path / f"run-{number}", read_journal(tmp_path / f"run-{number}" / JOURNAL))
        assert record.choice is not None and (record.directory / "report.html").exists()
