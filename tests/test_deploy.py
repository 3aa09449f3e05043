"""The files that run the jobs on a cluster: read as Ray and KubeRay read them, and as our own command line does."""

import copy
import pprint
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from recap_ray import cli
from recap_ray.settings import CaptionSettings

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "deploy").iterdir()), ROOT / "docs" / "cluster.md"]
RAY = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]

# Of KubeRay's custom resource definitions (ray-operator/config/crd/bases, 1.6): the fields of each level.
RAY_JOB = (
    "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata rayClusterSpec runtimeEnvYAML "
    "shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished"
).split()
RAY_CRON_JOB = "schedule jobTemplate suspend".split()
RAY_CLUSTER = (
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec managedBy "
    "rayVersion suspend workerGroupSpecs"
).split()
AUTOSCALER = "env envFrom idleTimeoutSeconds image imagePullPolicy resources upscalingMode version volumeMounts".split()
HEAD_GROUP = "enableIngress headService rayStartParams serviceType template".split()
WORKER_GROUP = "groupName maxReplicas minReplicas numOfHosts rayStartParams replicas scaleStrategy template".split()
# Of Kubernetes' own Pod.
POD_TEMPLATE = "metadata spec".split()
POD = "containers nodeSelector serviceAccountName tolerations volumes".split()
CONTAINER = "env envFrom image name resources volumeMounts".split()


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture
def launcher() -> dict[str, Any]:
    return read("cluster.yaml")


@pytest.fixture
def run_command(monkeypatch):
    """Runs a command up to where its job would begin, and gives the settings that the job would get."""

    def run_command(arguments: list[str]) -> CaptionSettings:
        given = []
        job = SimpleNamespace(caption=lambda settings: given.append(settings) or 0)
        monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=lambda name: job))
        assert cli.run(arguments) == 0
        return given[0]

    return run_command


def arguments_of(command: str) -> list[str]:
    """What is behind `python -m recap_ray` or `python jobs/caption.py`."""
    words = shlex.split(command)
    assert words[0] == "python"
    return words[3:] if words[1:3] == ["-m", "recap_ray"] else [Path(words[1]).stem, *words[2:]]


def cron_line() -> str:
    """What cron gives to the shell."""
    (line,) = [line for line in (ROOT / "deploy" / "crontab").read_text().splitlines() if line.startswith("0 2 ")]
    assert not re.search(r"(?<!\\)%", line), "an unescaped % ends the command"
    return line.split(maxsplit=5)[5].replace(r"\%", "%")


# cluster.yaml


def test_ray_accepts_cluster_yaml(launcher, monkeypatch):
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    config = prepare_config(copy.deepcopy(launcher))
    validate_config(config)
    types = config["available_node_types"]
    assert {name: (kind["min_workers"], kind["max_workers"]) for name, kind in types.items()} == {
        "head": (0, 0),
        "gpu": (0, launcher["max_workers"]),
    }


def test_the_head_gives_no_cpu_and_workers_are_gpus_on_spot_from_zero(launcher):
    head, gpu = (launcher["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["resources"]["GPU"] == 1 and gpu["min_workers"] == 0
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_nothing_of_the_launchers_own_defaults_is_left_to_chance(launcher):
    """Commands that are not given are taken from Ray's defaults, which install another Ray."""
    assert {name for name in launcher if name.endswith("_commands")} == {
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    }


def test_make_wheel_makes_what_nodes_install(launcher):
    rule = (ROOT / "Makefile").read_text().partition("\nwheel:")[2].partition("\n\n")[0]
    assert "dist/constraints.txt" in rule
    assert launcher["file_mounts"]["/home/ray/dist"] == "dist"
    assert all("--constraint /home/ray/dist/constraints.txt" in line for line in launcher["setup_commands"])


# KubeRay


def check_fields(given: Mapping[str, Any], known: list[str]) -> None:
    assert given.keys() <= set(known)


@pytest.mark.parametrize("name", ["deploy/rayjob.yaml", "deploy/raycronjob.yaml"])
def test_every_field_is_one_that_kuberay_knows(name):
    resource = read(name)
    assert resource["apiVersion"] == "ray.io/v1"
    job = resource["spec"]
    if resource["kind"] == "RayCronJob":
        check_fields(job, RAY_CRON_JOB)
        job = job["jobTemplate"]
    else:
        assert resource["kind"] == "RayJob"
    check_fields(job, RAY_JOB)
    cluster = job["rayClusterSpec"]
    check_fields(cluster, RAY_CLUSTER)
    check_fields(cluster["autoscalerOptions"], AUTOSCALER)
    check_fields(cluster["headGroupSpec"], HEAD_GROUP)
    for group in cluster["workerGroupSpecs"]:
        check_fields(group, WORKER_GROUP)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        check_fields(group["template"], POD_TEMPLATE)
        check_fields(group["template"]["spec"], POD)
        for container in group["template"]["spec"]["containers"]:
            check_fields(container, CONTAINER)


def test_a_run_on_kubernetes_scales_from_zero_goes_on_after_a_failure_and_cleans_up():
    job = read("deploy/rayjob.yaml")["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    cluster = job["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == 0 < workers["maxReplicas"]
    for quantity in ("requests", "limits"):
        assert workers["template"]["spec"]["containers"][0]["resources"][quantity]["nvidia.com/gpu"] == "1"


def test_a_nightly_run_and_its_cluster_are_gone_before_the_next_one():
    cron = read("deploy/raycronjob.yaml")["spec"]
    minute, hour, *days = cron["schedule"].split()
    assert minute.isdigit() and hour.isdigit() and days == ["*", "*", "*"], "once a day"
    job = cron["jobTemplate"]
    assert job["backoffLimit"] == 0, "each try has a deadline of its own"
    assert job["activeDeadlineSeconds"] + job["ttlSecondsAfterFinished"] < 24 * 3600 - 1800


def test_the_nightly_run_is_the_single_run():
    once, nightly = read("deploy/rayjob.yaml")["spec"], read("deploy/raycronjob.yaml")["spec"]["jobTemplate"]
    assert (once["entrypoint"], once["rayClusterSpec"]) == (nightly["entrypoint"], nightly["rayClusterSpec"])


# The commands


def test_the_command_of_the_runs_on_kubernetes_is_one_of_ours(run_command):
    command = read("deploy/rayjob.yaml")["spec"]["entrypoint"]
    assert not set(command) & set("*?{}[]$\"'\\;&|<>()"), "two shells read it"
    settings = run_command(arguments_of(command))
    assert settings.images.startswith("s3://") and settings.output.startswith("s3://")
    assert settings.device == "cuda", "no GPU is there to be found when the job begins"


def test_the_settings_file_for_clusters_is_one_of_ours(run_command, tmp_path):
    content = read("deploy/caption.yaml")
    (tmp_path / "caption.yaml").write_text(yaml.safe_dump(content))
    settings = run_command(["caption", "--config", str(tmp_path / "caption.yaml")])
    assert (settings.device, settings.actor_range) == ("cuda", (1, 64))


def test_the_cron_line_is_a_shell_command_that_submits_a_job_of_ours():
    line = cron_line()
    assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0
    submit, _, command = line.rpartition(" -- ")
    assert re.search(r'ray job submit .*--submission-id "caption-\$\(date \+%F\)" .*--working-dir \.$', submit)
    assert arguments_of(command) == ["caption", "--config", "deploy/caption.yaml"]
    assert (ROOT / "jobs" / "caption.py").exists()


@pytest.mark.parametrize(
    ("jobs", "submits"),
    [
        ({}, True),
        ({"caption-2026-01-30": "RUNNING", "caption-2026-01-29": "SUCCEEDED"}, False),
        ({"caption-2026-01-30": "PENDING"}, False),
        ({"caption-2026-01-30": "FAILED", "caption-2026-01-29": "STOPPED"}, True),
        ({"evaluate-2026-01-30": "RUNNING", "caption-2026-01-30": "SUCCEEDED"}, True),
    ],
)
def test_the_cron_line_submits_nothing_while_a_run_goes_on(jobs, submits, tmp_path):
    """The rest of the line is run as it is, beside a `ray` that only lists jobs as Ray's own does."""
    from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
    from ray.job_submission import JobStatus

    listed = [
        JobDetails(type=JobType.SUBMISSION, submission_id=name, status=JobStatus(status), entrypoint="python x.py")
        for name, status in jobs.items()
    ]
    (tmp_path / "listed").write_text(pprint.pformat(listed))
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/bash\n[ "$2" = list ] && exec cat "${0%/*}/listed"\necho "$@" > "${0%/*}/submitted"\n')
    ray.chmod(0o755)
    line = cron_line().replace("/home/REPLACE-user/recap-ray", str(tmp_path))
    subprocess.run(["bash", "-c", line], env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert (tmp_path / "submitted").exists() == submits
    if submits:
        assert re.search(r"--submission-id caption-\d{4}-\d\d-\d\d ", (tmp_path / "submitted").read_text())


# All files


def test_all_files_name_the_ray_of_the_lock():
    found = {path.name: set(re.findall(r"rayproject/ray:([\d.]+\d)", path.read_text())) for path in FILES}
    assert all(versions <= {RAY} for versions in found.values()), found
    assert found["cluster.yaml"] and found["Dockerfile"]
    for name in ("rayjob", "raycronjob"):
        assert f'rayVersion: "{RAY}"' in (ROOT / "deploy" / f"{name}.yaml").read_text()


def test_no_file_holds_a_secret():
    for path in FILES:
        assert not re.search(r"(?i)(secret_access_key|auth_token|hf_token)\s*[:=]\s*[\w/+]{8}", path.read_text()), path
