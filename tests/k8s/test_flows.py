"""Flows out of the namespace: closed until an environment names an address, and opened as the guide says."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from k8s import check
from k8s.checks.network import matches
from k8s.checks.pipelines import steps
from k8s.checks.render import Object, render

ROOT = Path(__file__).parents[2]
OPTIONAL = {"notify-webhook": "notify", "evaluate-chat-judge": "evaluate", "promote-gitops": "promote"}


def flows(items: list[Object]) -> dict[str, Any]:
    return {item["metadata"]["name"]: item["spec"] for item in items if item["kind"] == "NetworkPolicy"}


def test_each_optional_flow_is_of_one_step_and_closed(rendered: dict[str, list[Object]]) -> None:
    (version,) = [item for item in rendered["production"] if item["kind"] == "PipelineVersion"]
    labels = {step: settings["podMetadata"]["labels"] for step, _, settings in steps(version)}
    for name, step in OPTIONAL.items():
        spec = flows(rendered["production"])[name]
        assert [found for found in labels if matches(spec["podSelector"], labels[found])] == [step]
        assert (spec["policyTypes"], spec["egress"]) == (["Egress"], [])


def test_the_patch_of_the_guide_opens_a_flow(rendered: dict[str, list[Object]], tmp_path: Path) -> None:
    guide = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n( *- target: {kind: NetworkPolicy.*?)```", guide, flags=re.DOTALL)
    (patch,) = yaml.safe_load(textwrap.dedent(block))
    apps = os.path.relpath(ROOT / "k8s/apps/production", tmp_path.resolve())
    patches = [patch | {"target": patch["target"] | {"name": name}} for name in OPTIONAL]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [apps], "patches": patches}))
    opened = render(tmp_path)
    rule = {"to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}], "ports": [{"protocol": "TCP", "port": 443}]}
    assert [flows(opened)[name]["egress"] for name in OPTIONAL] == [[rule]] * 3
    there = {(item["kind"], item["metadata"]["name"]) for item in opened}
    others = [item for item in rendered["production"] if (item["kind"], item["metadata"]["name"]) not in there]
    assert list(check.problems([*opened, *others], "production")) == []
