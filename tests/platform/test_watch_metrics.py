from __future__ import annotations

import re
from pathlib import Path

import promql_parser
import pytest
import yaml

from understudy.errors import ConfigError
from understudy.evaluation.drift import MetricDrift, Window
from understudy.platform.watch_metrics import METRICS, WatchMetrics

DOCS = Path(__file__).parents[2] / "docs/monitoring.md"


def window(number: int, drift: bool) -> Window:
    found = MetricDrift("response length", 60, 0.5, 0.3, 0.001, 0.01, 9.0, 3.0, drift)
    silent = MetricDrift("perplexity", 3, None, None, None, 0.01, None, 3.0, False)
    return Window(number, 60, [found, silent])


def test_a_drift_stays_seen_after_the_window_in_which_it_was_found(tmp_path):
    path = tmp_path / "m.prom"
    metrics = WatchMetrics("a", "3", None, "127.0.0.1", path)
    assert 'understudy_watch_windows{model="a",version="3"} 0.0' in path.read_text()
    metrics.update(window(1, True), 60, 2)
    metrics.update(window(2, False), 120, 4)
    text = path.read_text()
    assert 'understudy_watch_drift{metric="response_length",model="a",version="3"} 1.0' in text
    assert 'understudy_watch_drift{metric="perplexity",model="a",version="3"} 0.0' in text
    assert 'distance{metric="perplexity"' not in text
    assert 'understudy_watch_windows{model="a",version="3"} 2.0' in text
    assert 'understudy_watch_quarantined_rows{model="a",version="3"} 4.0' in text
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")} == set(METRICS)


def test_a_port_in_use_is_named():
    first = WatchMetrics("a", "3", 0, "127.0.0.1", None)
    try:
        with pytest.raises(ConfigError, match=f"--metrics-port {first.port} on 127.0.0.1 cannot be listened on"):
            WatchMetrics("a", "3", first.port, "127.0.0.1", None)
    finally:
        first.close()


def test_the_documented_rule_parses_and_uses_names_that_exist():
    text = DOCS.read_text(encoding="utf-8")
    rule = yaml.safe_load(re.search("```yaml\n(.*?)```", text, flags=re.DOTALL).group(1))
    expressions = [each["expr"] for group in rule["spec"]["groups"] for each in group["rules"]]
    for expression in expressions:
        promql_parser.parse(expression)
    assert set(re.findall(r"understudy_watch_\w+", text)) == set(METRICS)
