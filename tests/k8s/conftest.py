"""The rendered environments, once for all tests."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from k8s.checks.render import Object, environment, render  # noqa: E402


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[Object]]:
    return {
        name: [item for folder in environment(name).values() for item in folder] for name in ("staging", "production")
    }


@pytest.fixture(scope="session")
def with_components(rendered: dict[str, list[Object]], tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The production objects where every component is named by the overlay."""
    folder = tmp_path_factory.mktemp("overlay")
    apps = os.path.relpath(ROOT / "k8s/apps", folder.resolve())
    components = sorted(path.name for path in (ROOT / "k8s/apps/components").iterdir())
    lines = ["namespace: understudy", "resources:", f"  - {apps}/production", "components:"]
    lines += [f"  - {apps}/components/{name}" for name in components]
    (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    there = {(item["kind"], item["metadata"]["name"]) for item in rendered["production"]}
    added = [item for item in render(folder) if (item["kind"], item["metadata"]["name"]) not in there]
    return [*rendered["production"], *added]


@pytest.fixture
def items(rendered: dict[str, list[Object]]) -> list[Object]:
    """A copy of the production objects, free to be broken."""
    return copy.deepcopy(rendered["production"])
