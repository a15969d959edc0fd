"""captune doctor: what it looks at, what it calls broken, how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captune.cli import doctor
from captune.cli.main import main
from captune.tuning import gpus, machine
from captune.tuning.gpus import GpuProof
from captune.tuning.machine import BROKEN, FINE, NOTE, Finding, examine

CPU_ONLY = GpuProof(
    torch="2.9.0+cpu", trouble="torch 2.9.0+cpu is a build without CUDA", next_step="Install a CUDA build."
)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((captured.out + captured.err).split())


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.fixture(scope="module")
def proof() -> GpuProof:
    """What torch in this process says of this machine's GPUs."""
    return gpus.judge(**gpus._look(), driver=gpus._driver(), expected=0)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_process_of_its_own_finds_what_this_one_does(proof: GpuProof) -> None:
    assert gpus.prove_gpus() == proof


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_this_machine_says_why_it_has_no_gpu(proof: GpuProof) -> None:
    assert proof.torch == torch.__version__
    assert proof.trouble is not None and proof.devices == ()


def test_this_machine_is_told_and_a_directory_that_is_missing_breaks_it(
    proof: GpuProof, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_LEAST_MEMORY", 1)
    monkeypatch.setattr(machine, "_LEAST_DISK", 1)
    monkeypatch.setattr(doctor, "prove_gpus", lambda: proof)
    code, output = call(capsys, "--shared", str(tmp_path))
    assert code == 0 and "Nothing to fix." in output
    for told in (f"torch: {torch.__version__}", "CPUs:", "memory:", "GB free", "Ray: captune", "token:", str(tmp_path)):
        assert told in output
    assert "A study with these options starts a Ray of its own and trains" in output
    code, output = call(capsys, "--gpus-per-trial", "2")
    assert code == 1 and "a trial must ask for one GPU at most" in output and "1 thing to fix." in output
    code, output = call(capsys, "--cpus-per-trial", "100000")
    assert code == 1 and "a trial must fit into a node" in output
    code, output = call(capsys, "--shared", str(tmp_path / "nowhere"))
    assert code == 1 and "1 thing to fix." in output
    assert "nowhere is not there" in output and "on every node" in output


def test_a_dead_address_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = call(capsys, "--address", "127.0.0.1:1")
    assert code == 2
    assert "--address must lead to a running Ray cluster" in output


def test_a_machine_without_gpus_is_no_broken_one_unless_ray_counts_some() -> None:
    assert by_name(examine(gpus=CPU_ONLY))["GPU"].state == NOTE
    counted = by_name(examine(gpus=CPU_ONLY, expected_gpus=2))["GPU"]
    assert counted.state == BROKEN and "Ray counts 2" in counted.found and counted.next_step == "Install a CUDA build."
    driven = GpuProof(
        torch="2.9.0+cu130", cuda="13.0", driver="570.1", trouble="driver 570.1 is too old", next_step="Newer."
    )
    assert by_name(examine(gpus=driven))["GPU"].state == BROKEN, "there is a GPU, and it cannot be used"


def test_gpus_that_work_are_named_with_their_driver() -> None:
    proof = GpuProof(
        torch="2.9.0+cu130", cuda="13.0", driver="580.82.07", devices=("NVIDIA H100, capability 9.0, 80 GB",)
    )
    finding = by_name(examine(gpus=proof, expected_gpus=1))["GPU"]
    assert finding.state == FINE
    assert finding.found == "NVIDIA H100, capability 9.0, 80 GB, driver 580.82.07"


def test_a_full_disk_and_a_full_memory_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LEAST_DISK", 10**18)
    monkeypatch.setattr(machine, "_LEAST_MEMORY", 10**18)
    found = by_name(examine(gpus=CPU_ONLY))
    assert found["temporary files"].state == found["memory"].state == BROKEN


def test_a_token_that_others_can_read_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret")
    path.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    finding = by_name(examine(gpus=CPU_ONLY))["token"]
    assert finding.state == NOTE and "644" in finding.found and "secret" not in finding.found
