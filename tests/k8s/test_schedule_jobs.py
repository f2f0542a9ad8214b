"""The jobs that keep the schedules call commands that exist, with the token, folder and names that the code reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from k8s.checks.pods import templates
from k8s.checks.render import Object
from understudy.cli.schedule import FOLDER, app
from understudy.platform.kfp_token import PATH
from understudy.platform.schedules_kfp import ENDPOINT_VARIABLE

ROOT = Path(__file__).parents[2]
NAMES = ("apply", "drift", "enforce", "trigger")


@pytest.fixture
def pods(rendered: dict[str, list[Object]]) -> dict[str, Any]:
    found = {pod.where.rpartition("-")[2]: pod.spec for pod in templates(rendered["production"])}
    return {name: found[name] for name in NAMES}


def test_their_commands_exist(pods: dict[str, Any]) -> None:
    group: Any = typer.main.get_command(app)
    for pod in pods.values():
        name, command, *options = pod["containers"][0]["args"]
        known = {option for parameter in group.commands[command].params for option in parameter.opts}
        assert name == "schedule" and set(options) <= known
    assert pods["drift"]["containers"][0]["args"] == ["schedule", "plan", "--exit-code"]


def test_what_they_read_is_there(pods: dict[str, Any], rendered: dict[str, list[Object]]) -> None:
    maps = {item["metadata"]["name"]: item["data"] for item in rendered["production"] if item["kind"] == "ConfigMap"}
    for name, pod in pods.items():
        (container,) = pod["containers"]
        env = {entry["name"]: entry for entry in container["env"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert env[ENDPOINT_VARIABLE]["value"].startswith("http://ml-pipeline.kubeflow.")
        data = maps[env["UNDERSTUDY_ENVIRONMENT"]["valueFrom"]["configMapKeyRef"]["name"]]
        assert data["environment"] == "production"
        assert volumes["schedules"]["configMap"]["name"].startswith("understudy-schedules-")  # by content
        assert mounts["schedules"] == f"/app/{FOLDER}"
        token = volumes["kfp-token"]["projected"]["sources"][0]["serviceAccountToken"]
        assert f"{mounts['kfp-token']}/{token['path']}" == PATH and token["audience"] == "pipelines.kubeflow.org"
        assert pod["serviceAccountName"] == f"understudy-schedules-{name}"
        read_only = [{"secretRef": {"name": "understudy-source-storage"}}]
        assert container.get("envFrom") == (read_only if name == "trigger" else None)  # only it reads the source


def test_every_schedule_reaches_the_cluster(rendered: dict[str, list[Object]]) -> None:
    there = {path.name: path.read_text() for path in (ROOT / FOLDER).glob("*.yaml") if path.stem != "kustomization"}
    (data,) = [
        item["data"]
        for item in rendered["production"]
        if item["kind"] == "ConfigMap" and item["metadata"]["name"].startswith("understudy-schedules")
    ]
    assert {name: yaml.safe_load(text) for name, text in data.items() if name != "environment"} == {
        name: yaml.safe_load(text) for name, text in there.items()
    }


def test_apply_runs_after_each_sync(rendered: dict[str, list[Object]]) -> None:
    (job,) = [item for item in rendered["production"] if item["kind"] == "Job"]
    assert job["metadata"]["annotations"] == {
        "argocd.argoproj.io/hook": "PostSync",
        "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
    }
