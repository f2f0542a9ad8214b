"""Alerts and dashboards ask only for metrics that somebody exports, and every alert has a runbook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from k8s.checks.render import Object, title
from understudy.platform.exporter import METRICS

# exporter → the names we use of it. Checked against their documentation, not against a running cluster.
FOREIGN = {
    "Kueue's controller": {"kueue_pending_workloads", "kueue_cluster_queue_resource_usage"},
    "NVIDIA's DCGM exporter": {"DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED"},
    "kube-state-metrics": {
        "kube_cronjob_status_last_successful_time",
        "kube_deployment_status_replicas_available",
        "kube_job_status_failed",
    },
    "the kubelet": {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"},
}
EXPORTED = set(METRICS).union(*FOREIGN.values())
_WORDS = {"absent", "and", "avg", "avg_over_time", "by", "count", "increase", "max", "min", "or", "rate", "sum", "time"}
_WORDS |= {"unless", "vector", "without"}
_DURATION = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")


def metric_names(expression: str) -> set[str]:
    """Return the metrics in a PromQL expression: names outside of braces, quotes, ranges and groupings."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    return {name for name in re.findall(r"[A-Za-z_:][\w:]*", bare) if name not in _WORDS}


def alerts(items: list[Object], root: Path) -> Iterator[str]:
    """Each alert: known metrics, a severity, a summary, a duration, and a heading in docs/operations.md."""
    guide = root / "docs" / "operations.md"
    text = guide.read_text(encoding="utf-8") if guide.is_file() else ""
    anchors = {
        re.sub(r"[^\w-]", "", line.lstrip("# ").strip().lower()) for line in text.splitlines() if line[:1] == "#"
    }
    for item in items:
        if item["kind"] != "PrometheusRule":
            continue
        for rule in (rule for group in item["spec"]["groups"] for rule in group["rules"]):
            where = f"{title(item)} {rule['alert']}"
            for name in sorted(metric_names(rule["expr"]) - EXPORTED):
                yield f"{where}: nobody exports {name}"
            if rule.get("labels", {}).get("severity") not in ("critical", "warning", "info"):
                yield f"{where}: severity is not critical, warning or info"
            if not rule.get("annotations", {}).get("summary"):
                yield f"{where}: has no summary"
            if "for" in rule and not _DURATION.fullmatch(rule["for"]):
                yield f"{where}: for {rule['for']!r} is not a duration"
            anchor = rule.get("annotations", {}).get("runbook_url", "").partition("#")[2]
            if anchor != rule["alert"].lower() or anchor not in anchors:
                yield f"{where}: docs/operations.md has no runbook under the heading {rule['alert']}"


def dashboards(items: list[Object]) -> Iterator[str]:
    """Dashboards are JSON, with panels that do not overlap and ask only for known metrics."""
    for item in items:
        if item["metadata"].get("labels", {}).get("grafana_dashboard") != "1":
            continue
        for name, text in item["data"].items():
            board = json.loads(text)
            cells: dict[tuple[int, int], str] = {}
            for panel in board["panels"]:
                where = f"{title(item)} {name} panel {panel['title']!r}"
                for target in panel["targets"]:
                    for metric in sorted(metric_names(target["expr"]) - EXPORTED):
                        yield f"{where}: nobody exports {metric}"
                place = panel["gridPos"]
                for x in range(place["x"], place["x"] + place["w"]):
                    for y in range(place["y"], place["y"] + place["h"]):
                        if x > 23 or cells.setdefault((x, y), panel["title"]) != panel["title"]:
                            yield f"{where}: overlaps another panel or the edge at column {x}, row {y}"
                            break
                    else:
                        continue
                    break
