"""The schema of a schedule: every problem at once, with file and field; the pin is one line that can be rewritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from understudy.errors import ConfigError
from understudy.platform.promotion.manifests import write_pin
from understudy.platform.schedules_spec import Schedule, load_schedule, load_schedules, unmounted

ROOT = Path(__file__).parents[2]
TEXT = """\
name: nightly
cron: "0 0 3 * * *"
pipeline_version: toy-0123456789ab   # pinned
enabled: true
concurrency: 1
catch_up: false
budget_gpu_hours: 60
environments: [production]
on_new_data: true
params:
  seed: 3
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_all_problems_of_all_files_at_once(tmp_path: Path) -> None:
    bad = TEXT.replace('"0 0 3 * * *"', '"0 3 * * *"').replace("concurrency: 1", "concurrency: 2")
    bad = bad.replace("catch_up: false", "catch_up: true").replace("toy-0123456789ab", "latest").replace("60", "0")
    write(tmp_path, "nightly", bad.replace("enabled:", "enbled:"))
    write(tmp_path, "other", TEXT)
    with pytest.raises(ConfigError) as error:
        load_schedules(tmp_path)
    message = str(error.value)
    for words in (
        "nightly.yaml: 7 problems",
        "cron: has 5 fields",
        "concurrency: Input should be 1",
        "catch_up: Input should be False",
        "pipeline_version: String should match",
        "budget_gpu_hours: Input should be greater than 0",
        "enbled: unknown key; did you mean 'enabled'?",
        "enabled: missing",
        "other.yaml: name is 'nightly'; a file is named like its schedule",
    ):
        assert words in message, words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "holds list, not a mapping"),
        ("name: [\n", "is not valid YAML"),
        (TEXT.replace("pipeline_version: toy-0123456789ab", "pipeline_version:\n  toy-0123456789ab"), "on one line"),
        (TEXT + "enabled: false\n", "the key 'enabled' stands twice"),
        (TEXT + "  seed: 4\n", "the key 'seed' stands twice"),
        (TEXT.replace("enabled: true", "enabled: 1"), "enabled: Input should be a valid boolean"),
        (TEXT.replace("concurrency: 1", "concurrency: true"), "concurrency: is true or false, not a number"),
        (TEXT.replace("catch_up: false", "catch_up: 0"), "catch_up: Input should be a valid boolean"),
        (TEXT.replace("hours: 60", "hours: true"), "budget_gpu_hours: is true or false, not a number"),
        (TEXT.replace("hours: 60", 'hours: "60"'), "budget_gpu_hours: Input should be a valid number"),
        (TEXT.replace("hours: 60", "hours: .nan"), "budget_gpu_hours: Input should be"),
        (TEXT.replace('"0 0 3 * * *"', '"0 0 3 30 2 *"'), "never starts: no month it names has a day 30"),
        (TEXT.replace("  seed: 3", "  registry.name: 2026-01-01"), "params.registry.name: .*date.*put it in quotes"),
        (TEXT.replace("name: nightly", "name: wöchentlich"), "name: String should match"),
        (TEXT.replace("name: nightly", "name: " + "a" * 41), "name: String should match"),
        (TEXT.replace("  seed: 3", "  seed.: 3").replace("seed.", '""'), "not of the form section.key=value"),
    ],
)
def test_files_that_are_no_schedule(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_schedule(write(tmp_path, "nightly", text))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("&a {data.source: *a}", "Circular reference"),
        ("{sft.learning_rate: .nan}", "Out of range float"),
        ("{sft.learning_rate: .inf}", "Out of range float"),
        ('{data.source: "\\ud800"}', "surrogates not allowed"),
        ("{seed: " + "9" * 5000 + "}", "is not valid YAML"),
        ("{seed: " + "[" * 3000 + "]" * 3000 + "}", "is not valid YAML: it is nested too deeply"),
    ],
)
def test_params_that_no_json_can_hold_are_refused_with_their_file(tmp_path: Path, params: str, words: str) -> None:
    path = write(tmp_path, "nightly", TEXT.replace("params:\n  seed: 3", f"params: {params}"))
    with pytest.raises(ConfigError, match=words) as error:
        load_schedule(path)
    assert str(path) in str(error.value)


def test_files_that_would_be_passed_over_or_cannot_be_read_are_told(tmp_path: Path) -> None:
    write(tmp_path, "nightly", TEXT)
    (tmp_path / "weekly.yml").write_text(TEXT)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)weekly.yml: schedules end with .yaml.*folder.yaml cannot be read"):
        load_schedules(tmp_path)
    (tmp_path / "kustomization.yaml").write_text("configMapGenerator: 3\n")
    assert "is no kustomization with a configMapGenerator" in str(unmounted(tmp_path))


def test_environments(tmp_path: Path) -> None:
    write(tmp_path, "nightly", TEXT)
    assert list(load_schedules(tmp_path, "production")) == list(load_schedules(tmp_path)) == ["nightly"]
    assert load_schedules(tmp_path, "staging") == {}
    with pytest.raises(ConfigError, match="does not exist"):
        load_schedules(tmp_path / "absent")


def test_the_name_changes_with_the_spec_and_not_with_what_kfp_can_change(tmp_path: Path) -> None:
    schedule = load_schedule(write(tmp_path, "nightly", TEXT))
    name = schedule.run_name({"config": {"seed": 1}})
    assert name.startswith("understudy-nightly-") and len(name) == len("understudy-nightly-") + 12
    assert schedule.model_copy(update={"enabled": False}).run_name({"config": {"seed": 1}}) == name
    assert schedule.run_name({"config": {"seed": 2}}) != name
    assert schedule.model_copy(update={"cron": "0 0 4 * * *"}).run_name({"config": {"seed": 1}}) != name
    other = schedule.model_copy(update={"pipeline_version": "toy-aaaaaaaaaaaa"})
    assert other.run_name({"config": {"seed": 1}}) != name


def test_a_new_pin_changes_one_line_only() -> None:
    changed = write_pin(TEXT, "toy-ffffffffffff")
    differing = [(a, b) for a, b in zip(TEXT.splitlines(), changed.splitlines(), strict=True) if a != b]
    assert differing == [
        ("pipeline_version: toy-0123456789ab   # pinned", "pipeline_version: toy-ffffffffffff   # pinned")
    ]
    assert yaml.safe_load(changed)["pipeline_version"] == "toy-ffffffffffff"


def test_overrides_reach_the_params(tmp_path: Path) -> None:
    path = write(tmp_path, "nightly", TEXT + "  data.source: s3://bucket/prefix/\n  evaluation.temperatures: [0.5]\n")
    params = load_schedule(path).run_params(ROOT / "params.yaml")
    assert (params.seed, params.data.source, params.evaluation.temperatures) == (3, "s3://bucket/prefix/", (0.5,))
    wrong = load_schedule(write(tmp_path, "nightly", TEXT + "  sft.epoch: 2\n"))
    with pytest.raises(ConfigError, match="did you mean 'sft.epochs'"):
        wrong.run_params(ROOT / "params.yaml")


def test_the_schedules_in_git_are_valid() -> None:
    schedules = load_schedules(ROOT / "pipelines" / "schedules")
    assert schedules and all(isinstance(schedule, Schedule) for schedule in schedules.values())
