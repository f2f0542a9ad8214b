"""The picture in the README shows the compiled pipeline: its steps, and no arrow that is no dependency there."""

from __future__ import annotations

import html
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
NAMES = {"sft-2": "sft_longer", "condition-2": "promote"}


def compiled() -> dict[str, set[str]]:
    """Return what each step depends on; `notify` comes last in any case."""
    pipeline = next(yaml.safe_load_all((ROOT / "pipelines" / "compiled" / "retrain.yaml").read_text("utf-8")))
    tasks = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert list(pipeline["components"]["comp-condition-2"]["dag"]["tasks"]) == ["promote"]
    found = {
        NAMES.get(name, name): {NAMES.get(other, other) for other in task.get("dependentTasks", [])}
        for name, task in tasks.items()
    }
    return found | {"notify": set(found)}


def drawn() -> tuple[set[str], set[tuple[str, str]]]:
    titles = re.findall(r"<title>(.*?)</title>", (ROOT / "docs" / "images" / "dag.svg").read_text("utf-8"))
    names = [html.unescape(title) for title in titles[1:]]
    return {name for name in names if "->" not in name}, {
        (name.partition("->")[0], name.partition("->")[2]) for name in names if "->" in name
    }


def test_the_picture_shows_every_step_and_no_other() -> None:
    assert drawn()[0] == set(compiled())


def test_every_arrow_is_a_dependency_and_every_step_is_reached() -> None:
    depends = compiled()
    arrows = drawn()[1]
    assert [(start, end) for start, end in sorted(arrows) if start not in depends[end]] == []
    assert {end for _, end in arrows} == set(depends) - {"preflight"}
