"""The files of launch/: they are what they claim to be, secure, and agree with each other and with captune."""

from __future__ import annotations

import copy
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
ROOT = LAUNCH.parent
SCRIPTS = ["local.sh", "slurm.sbatch"]
CLUSTERS = ["ray-aws.yaml", "ray-gcp.yaml", "ray-onprem.yaml"]
COMMAND_LISTS = [
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
]


def _cluster(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / name).read_text(encoding="utf-8"))


def _all_files() -> list[Path]:
    return sorted(path for path in LAUNCH.iterdir() if path.is_file())


# ── scripts ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_valid_bash(name: str):
    checked = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_shellcheck_clean(name: str):
    # From the test extra: it lies beside the interpreter.
    checked = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), LAUNCH / name], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stops_at_its_first_error(name: str):
    assert re.search(r"^set -euo pipefail$", (LAUNCH / name).read_text(), flags=re.MULTILINE)


def test_local_sh_is_executable():
    assert (LAUNCH / "local.sh").stat().st_mode & 0o100


# ── Ray's cluster launcher ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_file_satisfies_rays_own_schema(name: str):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema checks Ray's schema")
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(_cluster(name), schema)


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_up_would_take_a_cluster_file_once_its_defaults_are_in(name: str):
    pytest.importorskip("jsonschema", reason="Ray validates with jsonschema")
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(_cluster(name)))
    validate_config(prepared)
    # Ray's template would open the dashboard; ours must have replaced it, not joined it.
    assert not any("0.0.0.0" in command for command in prepared["head_start_ray_commands"])


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_starts_ray_with_a_token_and_its_dashboard_on_loopback(name: str):
    cluster = _cluster(name)
    (head,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in cluster["worker_start_ray_commands"] if "ray start" in command]
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert "--head" in head and "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_token_file_travels_and_is_closed_before_ray_starts(name: str):
    cluster = _cluster(name)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"][0]


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_command_of_a_cluster_file_is_valid_shell(name: str):
    cluster = _cluster(name)
    for key in COMMAND_LISTS:
        for command in cluster[key]:
            checked = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True)
            assert checked.returncode == 0, f"{key}: {command}: {checked.stderr}"


@pytest.mark.parametrize("name", ["ray-aws.yaml", "ray-gcp.yaml"])
def test_a_cloud_cluster_keeps_trials_off_the_head_and_has_a_first_worker(name: str):
    cluster = _cluster(name)
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"]["CPU"] == 0
    worker = types["gpu_worker"]
    assert worker["resources"]["GPU"] >= 1
    assert 1 <= worker["min_workers"] <= worker["max_workers"] <= cluster["max_workers"]


def test_aws_nodes_use_a_security_group_of_the_users_and_encrypted_disks():
    for kind, node in _cluster("ray-aws.yaml")["available_node_types"].items():
        config = node["node_config"]
        # Without SecurityGroupIds Ray makes a group that takes SSH from 0.0.0.0/0.
        assert config["SecurityGroupIds"], kind
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])


def test_gcp_workers_are_spot_machines_in_the_apis_own_words():
    scheduling = _cluster("ray-gcp.yaml")["available_node_types"]["gpu_worker"]["node_config"]["scheduling"]
    assert "preemptible" not in scheduling, "the old form: such machines end after a day in any case"
    assert scheduling["provisioningModel"] == "SPOT"
    assert scheduling["instanceTerminationAction"] == "DELETE"
    assert scheduling["automaticRestart"] is False
    assert scheduling["onHostMaintenance"] == "TERMINATE"  # GPUs cannot move


def test_gcp_images_bring_a_driver_for_the_cuda_that_torch_is_built_for():
    from captune.tuning.gpus import OLDEST_DRIVER

    worker = _cluster("ray-gcp.yaml")["available_node_types"]["gpu_worker"]["node_config"]
    (driver,) = re.findall(r"-nvidia-(\d+)$", worker["disks"][0]["initializeParams"]["sourceImage"])
    assert int(driver) >= OLDEST_DRIVER[max(OLDEST_DRIVER)][0]


@pytest.mark.parametrize("name", ["ray-aws.yaml", "ray-gcp.yaml"])
def test_a_share_of_the_cloud_is_given_to_its_user(name: str):
    (mount,) = [command for command in _cluster(name)["setup_commands"] if "mount -t nfs" in command]
    assert mount.rstrip().endswith('&& sudo chown "$(id -u):$(id -g)" /shared')


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_client_servers_port_is_named(name: str):
    (head,) = [command for command in _cluster(name)["head_start_ray_commands"] if "ray start" in command]
    assert "--ray-client-server-port=" in head


# ── Docker ────────────────────────────────────────────────────────────────────────────────────────


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (LAUNCH / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_is_pinned_and_runs_as_an_ordinary_user():
    instructions = _instructions()
    bases = [value for word, value in instructions if word == "FROM"]
    assert bases and all(re.search(r":[\d.]+-", base) for base in bases)
    words = [word for word, _ in instructions]
    (user,) = [value for word, value in instructions if word == "USER"]
    assert not user.startswith(("root", "0"))
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert dict(instructions)["ENV"].startswith("RAY_AUTH_MODE=token")


def test_what_the_image_copies_from_the_repository_is_there():
    for word, value in _instructions():
        if word == "COPY" and "--from" not in value:
            *sources, _ = value.split()
            missing = [source for source in sources if not (ROOT / source).exists()]
            assert missing == []


def test_ray_has_one_version_in_all_files():
    image = dict(re.findall(r"ARG (\w+)=(\S+)", (LAUNCH / "Dockerfile").read_text()))["RAY_VERSION"]
    found = {"Dockerfile": image}
    for path in _all_files():
        for version in re.findall(r"ray\[[\w,]+\]==([\d.]+)", path.read_text()):
            found[path.name] = version
    found["kuberay"] = re.search(r'rayVersion: "([\d.]+)"', (LAUNCH / "kuberay-rayjob.yaml").read_text())[1]
    assert set(found.values()) == {image}


# ── Grafana ───────────────────────────────────────────────────────────────────────────────────────


def _dashboard() -> dict[str, Any]:
    return json.loads((LAUNCH / "grafana-dashboard.json").read_text(encoding="utf-8"))


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return queries + [str(variable.get("definition", "")) for variable in dashboard["templating"]["list"]]


def test_the_dashboard_shows_exactly_the_metrics_that_captune_publishes():
    telemetry = pytest.importorskip("captune.tuning.telemetry", reason="telemetry names the metrics")
    shown = set(re.findall(r"\bray_(captune_\w+)", "\n".join(_expressions(_dashboard()))))
    assert shown == set(telemetry.METRICS)


def test_the_dashboard_asks_for_labels_that_its_metrics_have():
    telemetry = pytest.importorskip("captune.tuning.telemetry", reason="telemetry names the labels")
    for expression in _expressions(_dashboard()):
        for name, selector in re.findall(r"ray_(captune_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*=~?", selector))
            assert labels <= set(telemetry.METRICS[name][1]), expression


def test_the_dashboards_panels_are_distinct_explained_and_do_not_overlap():
    panels = _dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"]


# ── the whole folder ──────────────────────────────────────────────────────────────────────────────


def test_the_readme_names_every_file_and_links_to_none_that_is_missing():
    readme = (LAUNCH / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in _all_files()} - {"README.md"}
    linked = {link for link in re.findall(r"\]\(([^)]+)\)", readme) if not link.startswith("http")}
    assert linked == names


def test_no_file_holds_a_secret():
    patterns = {
        "a key": r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY",
        "a token's text": r"RAY_AUTH_TOKEN\s*[=:]\s*[^\s$]",
        "a long hexadecimal": r"\b[0-9a-f]{32,}\b",
        "a password": r"(?i)\bpassword\s*[:=]\s*\S",
    }
    for path in _all_files():
        for what, pattern in patterns.items():
            assert not re.search(pattern, path.read_text(encoding="utf-8")), f"{path.name} holds {what}"


def _captune_commands() -> list[tuple[str, str, list[str]]]:
    """Each `captune run|resume|status …` in the folder as (file, subcommand, words)."""
    found = []
    for path in _all_files():
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"\\\n#?\s*", " ", text)  # continued lines, in comments too
        if path.suffix == ".yaml":
            text = re.sub(r"\n    (?=--)", " ", text)  # folded entrypoints
        for subcommand, rest in re.findall(r"captune(?:[\w:.]*)? (run|resume|status) ([^\n`'#&;|]*)", text):
            found.append((path.name, subcommand, shlex.split(rest.replace("…", " ").replace('"', " "))))
    return found


def test_every_captune_command_in_the_folder_uses_options_that_exist():
    from captune.cli.resume import resume
    from captune.cli.run import run
    from captune.cli.status import status

    known = {
        command.__name__: {f"--{name.replace('_', '-')}" for name in inspect.signature(command).parameters}
        for command in (run, resume, status)
    }
    commands = _captune_commands()
    assert len(commands) > 10
    for file, subcommand, words in commands:
        unknown = [word for word in words if word.startswith("--") and word not in known[subcommand]]
        assert unknown == [], f"{file}: captune {subcommand} {' '.join(words)}"
