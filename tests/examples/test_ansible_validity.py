from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.ansible import extract, validity
from examples.ansible.wheel import Wheel

GOOD = "acme.net.vlan:\n  name: office\n"

# rule → (text that breaks it, the part that says so, the same text mended)
BROKEN = {
    "yaml: not closed": ("acme.net.vlan: {name: office", "yaml", "acme.net.vlan: {name: office}"),
    "yaml: tab": ("acme.net.vlan:\n\tname: office", "yaml", GOOD),
    "yaml: two documents": (GOOD + "---\n" + GOOD, "yaml", "---\n" + GOOD),
    "yaml: unknown tag": ("acme.net.vlan:\n  name: !vault x", "yaml", GOOD),
    "yaml: python tag": ("acme.net.vlan:\n  name: !!python/object/apply:os.system [x]", "yaml", GOOD),
    "yaml: impossible date": ("acme.net.vlan:\n  name: 2024-99-99", "yaml", "acme.net.vlan:\n  name: 2024-09-09"),
    "yaml: alias": ("acme.net.vlan:\n  name: &a x\n  host: *a", "yaml: an alias", GOOD + "  host: x"),
    "duplicate_key": (GOOD + "  name: lab\n", "duplicate_key: 'name'", GOOD),
    "one_module: empty": ("", "one_module: the document is empty", GOOD),
    "one_module: text": ("Add a VLAN", "one_module", GOOD),
    "one_module: list": ("- " + GOOD.replace("\n", "\n  "), "one_module", GOOD),
    "one_module: two": (GOOD + "acme.store.bucket: {size: 1}", "one_module: 2 keys", GOOD + "register: result"),
    "one_module: none": ("register: result", "one_module: 0 keys", "register: result\n" + GOOD),
    "module": (GOOD.replace("vlan", "vlam"), "module: 'acme.net.vlam'", GOOD),
    "module: short name": (GOOD.replace("acme.net.", ""), "module: 'vlan'", GOOD),
    "module: withdrawn": ("acme.net.gone:\n  name: x", "module", "acme.net.old_vlan:\n  name: x"),
    "arguments": ("acme.net.vlan: name=office", "arguments", "acme.net.vlan: {name: office}"),
    "required": ("acme.net.vlan: {number: 1}", "required: name", "acme.net.vlan: {number: 1, vlan_name: x}"),
    "required: no arguments": ("acme.net.vlan:", "required: name", GOOD),
    "required: suboption": (
        GOOD + "  ports: [{speed: fast}]",
        "required: port is missing in acme.net.vlan.ports",
        GOOD + "  ports: [{speed: fast, port: 1}]",
    ),
    "unknown_option": (GOOD + "  colour: red", "unknown_option: colour", GOOD + "  host: red"),
    "unknown_option: suboption": (
        GOOD + "  ports: [{port: 1, lane: 2}]",
        "unknown_option: lane is no option of acme.net.vlan.ports",
        GOOD + "  ports: [{port: 1}]",
    ),
    "type: int": (GOOD + "  number: ten", "type: acme.net.vlan.number is text", GOOD + "  number: '10'"),
    "type: int, not bool": (GOOD + "  number: true", "type", GOOD + "  number: '{{ n }}'"),
    "type: float": (GOOD + "  ratio: half", "type: acme.net.vlan.ratio", GOOD + "  ratio: 1e-3"),
    "type: bool": (GOOD + "  enabled: perhaps", "type: acme.net.vlan.enabled", GOOD + "  enabled: 'yes'"),
    "type: dict": (GOOD + "  labels: [a]", "type: acme.net.vlan.labels is a list", GOOD + "  labels: {a: 1}"),
    "type: list": (GOOD + "  tags: {a: 1}", "type: acme.net.vlan.tags", GOOD + "  tags: red,green"),
    "type: str": ("acme.net.vlan: {name: [office]}", "type: acme.net.vlan.name is a list", GOOD),
    "type: element": (GOOD + "  ports: [1]", "type: acme.net.vlan.ports has an element", GOOD + "  ports: []"),
    "type: of a fragment": (GOOD + "  timeout: long", "type: acme.net.vlan.timeout", GOOD + "  timeout: 30"),
    "choice": (GOOD + "  mode: both", "choice: acme.net.vlan.mode is 'both'", GOOD + "  mode: trunk"),
    "choice: boolean word": (GOOD + "  mode: off", "choice", GOOD + "  mode: on"),
    "choice: element": (GOOD + "  tags: [red, blue]", "choice: acme.net.vlan.tags is 'blue'", GOOD + "  tags: [red]"),
    "choice: of a comma list": (GOOD + "  tags: red,blue", "choice", GOOD + "  tags: red,green"),
    "choice: suboption": (
        GOOD + "  ports: [{port: 1, speed: medium}]",
        "choice: acme.net.vlan.ports.speed",
        GOOD + "  ports: [{port: 1, speed: slow}]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_rule_catches_its_violation_and_nothing_else(case: str, schema: dict[str, Any]) -> None:
    broken, expected, mended = BROKEN[case]
    found = validity.check(broken, schema)
    assert len(found) == 1 and found[0].startswith(expected), found
    assert found[0].startswith(case.split(":")[0] + ":")
    assert validity.check(mended, schema) == []


def test_every_rule_of_the_docstring_has_a_case() -> None:
    documented = {line.split()[0] for line in (validity.__doc__ or "").splitlines() if line.startswith("    ")}
    assert documented == {case.split(":")[0] for case in BROKEN}


def test_all_problems_are_named_at_once(schema: dict[str, Any]) -> None:
    found = validity.check("acme.net.vlan: {number: ten, mode: both, colour: red}", schema)
    assert [problem.split(":")[0] for problem in found] == ["required", "type", "choice", "unknown_option"]


def test_expert_text_passes(wheel: Wheel, schema: dict[str, Any]) -> None:
    rows, _ = extract.extract(wheel, wheel.collections, None)
    assert {row["prompt"]: validity.check(row["response"], schema) for row in rows} == {
        row["prompt"]: [] for row in rows
    }


def test_unknown_options_are_undecidable_where_a_fragment_is_not_in_the_wheel(schema: dict[str, Any]) -> None:
    assert validity.check("acme.store.bucket: {owner: me}", schema) == []
    assert not validity.decidable("acme.store.bucket: {owner: me}", schema)
    assert validity.decidable(GOOD, schema)
    assert validity.check("acme.store.bucket: {size: big}", schema)[0].startswith("type")


LINKS = zip("abcdefgh", "bcdefghi", strict=True)
BOMB = "a: &a [x,x,x]\n" + "".join(f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in LINKS)
HOSTILE = {
    "aliases that expand": BOMB,
    "a loop": "acme.net.vlan: &a\n  name: *a",
    "flow nesting": "acme.net.vlan: " + "[" * 100_000,
    "closed flow nesting": "acme.net.vlan: {name: " + "[" * 390 + "]" * 390 + "}",
    "block nesting": "acme.net.vlan:\n  " + "- " * 9_000 + "x",
    "deep indentation": "".join(" " * i + "a:\n" for i in range(190)),
    "complex keys": "? " * 5_000 + "a",
    "long": "acme.net.vlan:\n  name: " + "x" * 1_000_000,
    "many digits": "acme.net.vlan:\n  name: n\n  number: " + "9" * 10_000,
    "sexagesimal": "acme.net.vlan:\n  name: n\n  number: " + "1:" * 4_000 + "1.",
    "binary": bytes(range(256)).decode("latin-1"),
    "lone surrogate": "acme.net.vlan: {name: \ud800}",
    "NUL": "acme.net.vlan: {name: \0}",
    "list as key": "? [a, b]\n: c",
    "merge of nothing": "<<: 3",
    "value tag": "acme.net.vlan: {=: 3}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_scores_zero_quickly(case: str, schema: dict[str, Any]) -> None:
    found: list[tuple[list[str], float]] = []
    # A thread has the smallest stack that the judge may meet, and a clock of its own work.
    thread = threading.Thread(target=lambda: found.append((validity.check(HOSTILE[case], schema), time.thread_time())))
    thread.start()
    thread.join()
    ((problems, cpu_seconds),) = found
    assert problems != [] and cpu_seconds < 1.0


YAMLISH = st.text(alphabet="acme.netvlan: \n-[]{}&*!|>'\"?#%@,0123\t<=~", max_size=80)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), YAMLISH, YAMLISH.map(lambda text: GOOD + "  " + text)))
def test_no_text_raises(text: str) -> None:
    schema = {"modules": {"acme.net.vlan": {"options": {"name": {"type": "int"}}, "complete": True}}, "redirects": {}}
    assert all(problem.split(":")[0] in (validity.__doc__ or "") for problem in validity.check(text, schema))


@pytest.fixture
def workdir(tmp_path: Path, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / validity.SCHEMA_NAME).write_text(json.dumps(schema))
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    return tmp_path


def test_judge_scores(workdir: Path) -> None:
    assert validity.judge("Add a VLAN", GOOD, GOOD) == 1.0
    assert validity.judge("Add a VLAN", "acme.net.vlan: {number: 1}", GOOD) == 0.0


def test_judges_of_what_was_asked_count_valid_calls_of_that_module_or_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = {"options": {"name": {"type": "str"}}, "complete": True}
    modules = {name: option for name in ("acme.net.vlan", "acme.net.port", "acme.cloud.vlan")}
    (tmp_path / "raw").mkdir()
    schema = {"modules": modules, "redirects": {"acme.old.vlan": "acme.net.vlan"}}
    (tmp_path / "raw" / validity.SCHEMA_NAME).write_text(json.dumps(schema))
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))

    def judged(response: str, reference: str = GOOD) -> list[float]:
        judges = (validity.judge, validity.judge_collection, validity.judge_module)
        return [judge("Add a VLAN", response, reference) for judge in judges]

    assert judged("acme.net.vlan: {name: other}") == [1.0, 1.0, 1.0]
    assert judged("acme.old.vlan: {name: other}") == [1.0, 1.0, 1.0]  # a module that was renamed
    assert judged("acme.net.port: {name: office}") == [1.0, 1.0, 0.0]
    assert judged("acme.cloud.vlan: {name: office}") == [1.0, 0.0, 0.0]
    assert judged("acme.net.vlan: {number: 1}") == [0.0, 0.0, 0.0]
    assert all(map(math.isnan, judged("Hello.", "Hello!")))


def test_judge_is_undecided_on_other_demonstrations(workdir: Path) -> None:
    assert math.isnan(validity.judge("Say hello", "Hello.", "Hello!"))


def test_judge_is_undecided_without_a_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="undecided"):
        assert math.isnan(validity.judge("Add a VLAN", GOOD, GOOD))
    with pytest.raises(FileNotFoundError, match="python -m examples.ansible.extract"):
        validity.check(GOOD)


def test_a_run_in_another_working_directory_finds_the_schema_beside_the_demonstrations(
    tmp_path: Path, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".understudy/raw").mkdir(parents=True)
    (tmp_path / ".understudy/raw" / validity.SCHEMA_NAME).write_text(json.dumps(schema))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / "elsewhere"))
    assert validity.judge("Add a VLAN", GOOD, GOOD) == 1.0
