"""A mistake is answered by the nearest good thing, before Ray starts and anything is trained."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captune.cli.main import main
from captune.cli.places import studies_in
from captune.config import StudyConfig, TaskConfig
from captune.errors import UsageError, did_you_mean, did_you_mean_path
from captune.records.layout import BEST_CONFIG
from captune.studies.checks import check_storage
from captune.studies.planning import plan_study
from captune.tuning.open_study import OpenStudy

RUN = ("run", "--dry-run", "--paradigm", "ul")
DIGITS = (*RUN, "--dataset", "digits")
ADAPT = ("adapt", "--dataset", "digits", "--paradigm", "ul", "--epochs", "1", "--steps-per-epoch", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((captured.out + captured.err).split())


def make_study(directory: Path) -> Path:
    study = StudyConfig(task=TaskConfig.parse({"dataset": "digits", "paradigm": "ul"}))
    plan = plan_study(study, directory)
    OpenStudy(plan.directory, study, plan.info, plan.space, durable=False).close()
    return directory


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--dry-run", "--dataset", "digits", "--paradigm", "UL"), "Did you mean 'ul'?"),
        ((*DIGITS, "--method", "CAP"), "Did you mean 'cap'?"),
        ((*DIGITS, "--concurrency", "0"), "--concurrency: must be at least 1, got 0"),
        ((*DIGITS, "--shots", "3"), "--paradigm ul, which uses no labels. Did you mean --paradigm ssl?"),
        ((*ADAPT, "--out", "x", "--shots", "3"), "Did you mean --paradigm ssl?"),
        ((*ADAPT, "--out", "x", "--device", "gpu"), "--device must be auto, cpu, cuda or cuda:N, but got 'gpu'. Did you"
         " mean 'cuda'?"),
        ((*ADAPT, "--out", "x", "--device", "cpuu"), "Did you mean 'cpu'?"),
        ((*DIGITS, "--address", "nowhere"), "'nowhere', which is no HOST:PORT"),
        ((*DIGITS, "--storage", "nonsense"), "'nonsense': no address of a database"),
        ((*DIGITS, "--storage", "sqlite:////no/such/folder/copy.db"), "no folder /no/such/folder"),
        ((*DIGITS, "--descriptions", "nowhere.yaml"), "nowhere.yaml"),
    ],
)  # fmt: skip
def test_options(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    code, output = call(capsys, *arguments)
    assert said in output and code == 2 and "not an error captune foresaw" not in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_gpus_that_are_not_there_are_said_before_ray_starts(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    code, output = call(capsys, "run", *DIGITS[2:], "--gpus-per-trial", "1", "--out", "study")
    assert code == 2 and "--gpus-per-trial needs a GPU that PyTorch can use" in output and "doctor" in output
    assert not (here / "study").exists()
    for more in ((), ("--dry-run",), ("--address", "127.0.0.1:1")):
        code, output = call(capsys, "run", *DIGITS[2:], "--gpus-per-trial", "2", "--out", "study", *more)
        assert code == 2 and "a trial must ask for one GPU at most" in output
    code, output = call(capsys, *ADAPT, "--device", "cuda:1", "--out", "x")
    assert code == 2 and "must be a GPU that PyTorch can use, but got 'cuda:1'" in output


def test_a_dataset_that_is_a_path(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "photos").mkdir()
    (here / "list.csv").write_text("path\n")
    (here / "f.npz").write_bytes(b"")
    for given, meant in (("photos", "folder:photos"), (here / "photos", f"folder:{here}/photos"),
                         ("list.csv", "csv:list.csv"), ("f.npz", "features:f.npz")):  # fmt: skip
        assert f"Did you mean '{meant}'?" in call(capsys, *RUN, "--dataset", given)[1]
    said = call(capsys, *RUN, "--dataset", here / "fotos")[1]
    assert "Your own images are folder:DIR" in said and f"Did you mean '{here}/photos'?" in said


def test_a_suggestion_is_made_only_when_it_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, *RUN, "--dataset", "cifar10")[1]
    assert "Did you mean" not in said and "Known: digits, caltech101" in said
    assert did_you_mean("digts", ["digits", "dtd"]) == "Did you mean 'digits'?"
    assert did_you_mean("MARGIN_SCALE", ["margin_scale"]) == "Did you mean 'margin_scale'?"
    assert did_you_mean("xyz", ["cap", "fpl"]) == "Known: cap, fpl."


def test_weights_that_are_none(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    for place, label in enumerate(("a", "b")):
        (here / "photos" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(8 * place + number).integers(0, 255, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(here / "photos" / label / f"{number}.png")
    Image.new("RGB", (8, 8)).save(here / "picture.pt", format="JPEG")
    (here / "notes.pt").write_text("where did I put them?\n")
    for file, kind in (("picture.pt", "a JPEG image"), ("notes.pt", "a text")):
        code, said = call(
            capsys, "adapt", "--dataset", "folder:photos", "--paradigm", "ul", "--backbone", "ViT-B-32",
            "--pretrained", file, "--out", "x",
        )  # fmt: skip
        assert code == 1 and f"but got {kind}" in said and "Is it the right file?" in said


def test_yaml_that_says_nothing_or_a_thing_twice(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "empty.yaml").write_text("")
    (here / "twice.yaml").write_text("margin_scale: 1\nmargin_scale: 2\n")
    assert "but got nothing (in empty.yaml)" in call(capsys, *ADAPT, "--out", "x", "--config", "empty.yaml")[1]
    assert "'margin_scale' again" in call(capsys, *ADAPT, "--out", "x", "--config", "twice.yaml")[1]
    assert "Did you mean 'twice.yaml'?" in call(capsys, *ADAPT, "--out", "x", "--config", "twic.yaml")[1]


def test_a_space_of_another_method(capsys: pytest.CaptureFixture[str]) -> None:
    space = Path(__file__).parents[2] / "search_spaces" / "grip.yaml"
    code, said = call(capsys, *DIGITS, "--space", space)
    assert code == 2 and "one of 'grip' for a study of 'cap'" in said and "Say --method grip" in said


def test_a_database_that_does_not_answer(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody else has the port, and nobody listens there
        address = f"postgresql://me:secret@127.0.0.1:{silent.getsockname()[1]}/studies"
        for arguments in (DIGITS, ("run", *DIGITS[2:], "--out", "study")):
            code, said = call(capsys, *arguments, "--storage", address)
            assert code == 2 and "a database that answers" in said and "secret" not in said
    assert not (here / "study").exists()
    check_storage(f"sqlite:///{here}/copy.db")
    assert not (here / "copy.db").exists()
    with pytest.raises(UsageError, match="a database that answers"):
        check_storage("sqlit:///x.db")


def test_paths_of_studies(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    first, second = make_study(here / "runs" / "digits-ul-cap"), make_study(here / "runs" / "digits-ul-fpl")
    (here / "runs" / "report").mkdir()
    (here / "runs" / "report" / "report.html").write_text("")
    (here / "runs" / "notes.txt").write_text("")
    for command in ("status", "resume", "report", "stop"):
        code, said = call(capsys, command, "runs/digts-ul-cap")
        assert code == 2 and "Did you mean 'runs/digits-ul-cap'?" in said, command
    assert studies_in([here / "runs"]) == [first, second]
    (first / BEST_CONFIG).write_text("")
    assert studies_in([first / "study.yaml", first / BEST_CONFIG, first]) == [first]
    notes: list[str] = []
    assert studies_in(sorted((here / "runs").iterdir()), notes) == [first, second]
    assert len(notes) == 2 and any("a report of several studies" in note for note in notes)
    with pytest.raises(UsageError, match="a report of several studies, no study"):
        studies_in([here / "runs" / "report"], [])
    assert "digits-ul-cap" in call(capsys, "status")[1]
    shutil.rmtree(here / "runs")
    assert call(capsys, "status")[0] == 1


def test_the_nearest_path_is_named_as_it_was_typed(here: Path) -> None:
    (here / "runs" / "one").mkdir(parents=True)
    assert did_you_mean_path(Path("runs/onee")) == "Did you mean 'runs/one'?"
    assert did_you_mean_path(Path("rnus/one")) == "Did you mean 'runs'?"
    assert did_you_mean_path(here / "runs" / "onee") == f"Did you mean '{here}/runs/one'?"
    assert did_you_mean_path(Path("elsewhere")) is None


def test_weights_that_are_neither_here_nor_to_be_had_are_said_before_ray_starts(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for name in ("dark", "light"):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "photos" / name / f"{number}.png")
    command = ["run", "--dataset", f"folder:{here}/photos", "--paradigm", "ul"]
    named = ["--backbone", "ViT-B-32", "--pretrained", "openai", "--out", here / "study"]
    monkeypatch.setenv("CAPTUNE_CACHE", str(here / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    code, said = call(capsys, *command, *named)
    assert code == 1 and "the weights of ViT-B-32 openai must be on disk" in said
    assert "--pretrained" in said and "Ray" not in said.replace("loading PyTorch and Ray", "")
    assert not (here / "study").exists()
