"""The compiled DAG: golden file, order by data, small bodies, arguments that change only what reads them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.arguments import arguments
from understudy.cli.pipeline import compiled_files
from understudy.config import load_params
from understudy.errors import ConfigError
from understudy.platform.steps import for_kfp, from_kfp

ROOT = Path(__file__).parents[2]


def test_the_golden_file_is_what_the_pipeline_compiles_to() -> None:
    for name, text in compiled_files().items():
        assert (ROOT / "pipelines" / "compiled" / name).read_text() == text, "run `make golden`"


def test_every_step_waits_for_preflight_and_order_comes_from_data() -> None:
    compiled = next(yaml.safe_load_all((ROOT / "pipelines" / "compiled" / "retrain.yaml").read_text()))
    tasks = compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    waits = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()}
    assert waits["preflight"] == set() and waits["ingest"] == {"preflight"}
    assert waits["sft-2"] == {"align", "ingest", "sft"}
    assert waits["register"] == {"align", "evaluate", "ingest"}
    promotion = compiled["components"]["comp-condition-2"]["dag"]["tasks"]
    assert waits["condition-2"] == {"register"} and list(promotion) == ["promote"]
    assert tasks["condition-2"]["triggerPolicy"]["condition"].endswith("promotion_enabled'] == true")
    assert not promotion["promote"]["cachingOptions"]
    inputs = compiled["root"]["inputDefinitions"]["parameters"]
    assert {name: inputs[name]["defaultValue"] for name in inputs if inputs[name].get("isOptional")} == {
        "promote_config": {}, "promotion_enabled": False,
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "components").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_component_body_is_short_and_imports_inside(path: Path) -> None:
    tree = ast.parse(path.read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert function.end_lineno is not None and function.end_lineno - function.body[0].lineno + 1 <= 15
    top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert top <= {"kfp", "kfp.dsl", "components", "typing"}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("align.learning_rate=0.1", {"preflight", "align", "register"}),
        ("align.sft_coefficient_start=0.1", {"preflight", "align", "register"}),
        ("align.min_held_out_auc=0.6", {"preflight", "align", "register"}),
        ("sft.withheld_fraction=0.2", {"preflight", "sft", "sft_longer", "register"}),
        ("evaluation.samples_shown=3", {"preflight", "evaluate", "register"}),
        ("data.max_bad_fraction=0.5", {"preflight", "ingest", "register"}),
        ("runtime.threads=1", set()),
        ("tracking.experiment=other", set()),
        ("promotion.enabled=true", {"preflight", "promote", "promotion_enabled"}),
        ("promotion.gate=none.yaml", set()),
    ],
)
def test_a_param_changes_only_the_steps_that_read_it(
    override: str, changed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    source = f"data.source={ROOT / 'examples' / 'tiny' / 'demonstrations.jsonl'}"
    before, after = (arguments(load_params(ROOT / "params.yaml", [source, *more])) for more in ([], [override]))
    names = [*before, *(name for name in after if name not in before)]
    assert {name.removesuffix("_config") for name in names if before.get(name) != after.get(name)} == changed


def test_align_is_told_the_fraction_that_it_aligns_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    source = f"data.source={ROOT / 'examples' / 'tiny' / 'demonstrations.jsonl'}"

    def align_config(fraction: float) -> dict[str, Any]:
        more = [f"sft.withheld_fraction={fraction}", "align.demonstrations=withheld"]
        config: dict[str, Any] = arguments(load_params(ROOT / "params.yaml", [source, *more]))["align_config"]
        return config

    assert [align_config(fraction)["withheld_fraction"] for fraction in (0.2, 0.3)] == [0.2, 0.3]
    assert align_config(0.2)["align"]["demonstrations"] == "withheld"
    with pytest.raises(ConfigError, match=r"demonstrations is withheld but sft\.withheld_fraction is 0.*above 0"):
        align_config(0)


def test_the_gate_travels_as_it_was_reviewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    source = f"data.source={ROOT / 'examples' / 'tiny' / 'demonstrations.jsonl'}"

    def given(*more: str) -> dict[str, Any]:
        return arguments(load_params(ROOT / "params.yaml", [source, *more]))

    # A pipeline version from before the step, to which a rollback may pin a schedule, would refuse the names.
    assert not {name for name in given() if "promot" in name}
    enabled = given("promotion.enabled=true", "promotion.gitops=cluster")
    assert enabled["promotion_enabled"] is True
    assert enabled["promote_config"]["gate_yaml"] == (ROOT / "gate.yaml").read_text()
    assert enabled["promote_config"]["promotion"]["gitops"] == "cluster"
    with pytest.raises(ConfigError, match="Gate file 'none.yaml' does not exist"):
        given("promotion.enabled=true", "promotion.gate=none.yaml")


def test_nulls_and_whole_numbers_survive_kfp() -> None:
    config: dict[str, Any] = {"a": None, "b": [1, None], "c": {"d": 2.5, "e": 3}}
    assert from_kfp(for_kfp(config)) == config
    assert from_kfp({"c": 7.0}) == {"c": 7}
