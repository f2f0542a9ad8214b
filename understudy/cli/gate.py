"""`understudy model gate`: what a report says by the rules of `gate.yaml`, or what sample those rules need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli import options
from understudy.errors import ConfigError, GateRefused

if TYPE_CHECKING:
    from rich.console import RenderableType

    from understudy.evaluation.gate import Decision, Gate, RuleVerdict

Report = Annotated[
    str | None,
    typer.Argument(help="report.json, its folder, NAME@alias or NAME/version; none: the sample that the rules need"),
]
COLOURS = {"pass": "green", "fail": "red", "not_enough_evidence": "yellow", "skipped": "dim"}


def gate(
    report: Report = None,
    gate_file: options.Gate = Path("gate.yaml"),
    challenger: Annotated[str | None, typer.Option(help="Policy in the report. Default: aligned.")] = None,
    champion: Annotated[str | None, typer.Option(help="Policy in the report, or none. Default: its champion.")] = None,
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Say whether the challenger of a report may replace its champion; ends with 4 if not."""
    from understudy.evaluation.gate import decide, load_gate

    rules = load_gate(gate_file)
    if report is None:
        _show_plan(rules, as_json)
        return
    found, registered = _read(report, workdir)
    known = found.get("protocol", {}).get("policies", {})
    ours = challenger or next((name for name, sha256 in known.items() if sha256 == registered), "aligned")
    theirs = champion or ("champion" if "champion" in known else "none")
    try:
        decision = decide(rules, found, ours, None if theirs == "none" else theirs)
    except GateRefused as error:
        if as_json:
            typer.echo(json.dumps({"verdict": "refused", "headline": str(error), "rules": []}, indent=1))
        raise
    if as_json:
        typer.echo(json.dumps(decision.to_json(), indent=1, allow_nan=False))
    else:
        _show(decision)
    if not decision.accepts:
        more = f" About {decision.more_prompts:,} more prompts would settle it." if decision.more_prompts else ""
        raise GateRefused(f"{decision.headline}{more}")


def _read(report: str, workdir: Path) -> tuple[dict[str, Any], str | None]:
    """Return the parsed report, and the digest of the weights if a registered version was named."""
    path = Path(report)
    path = path / "report.json" if path.is_dir() else path
    weights = None
    if not path.is_file():
        if report.endswith(".json") or report.startswith((".", "/")):
            raise ConfigError(f"There is no report at {str(path)!r}. Name report.json, its folder, or a model.")
        from understudy.cli.model import open_registry, storage_of_params
        from understudy.platform.storage import open_store

        tags = open_registry(workdir).find(report).tags
        weights = tags.get("weights_sha256")
        store = open_store(storage_of_params(), workdir)
        path = store.fetch(tags["report_uri"], tags["report_sha256"]) / "report.json"
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}. Name the report.json that evaluate wrote.") from error
    if not isinstance(found, dict) or not isinstance(found.get("protocol", {}), dict):
        raise ConfigError(f"{path} is JSON, but not a report. Name the report.json that evaluate wrote.")
    return found, weights


def _show(decision: Decision) -> None:
    from rich.console import Console

    # A block per rule and no table: names that one would copy stay whole on a narrow screen, too.
    console = Console(highlight=False)
    for rule in decision.rules:
        for line in _block(rule):
            console.print(line, overflow="fold")
    _say_undecided(decision.rules)
    how = f" {decision.confidence:.0%} one-sided; correction: {decision.correction}."
    typer.echo(decision.headline + (how if decision.verdict != "no_rule" else ""))


def _block(rule: RuleVerdict) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    from understudy.evaluation.gate.words import OUTCOMES, demand, number, rule_name

    yield Text.assemble((OUTCOMES[rule.verdict], COLOURS[rule.verdict]), f" ({rule.kind})")
    lines = [rule_name(rule)]
    if rule.verdict == "skipped":
        lines.append("no champion yet to compare with")
    else:
        limits = "" if rule.low is None else f", limits {number(rule, rule.low)} … {number(rule, rule.high)}"
        wanted = "" if rule.bound is None else f", wanted {demand(rule)}"
        more = f", {rule.more_prompts:,} more would settle it" if rule.more_prompts else ""
        lines.append(number(rule, rule.value) + limits + wanted)
        lines.append(f"{rule.prompts:,} prompts in {rule.groups:,} groups{more}")
    # As Text, so that brackets in the name of a judge or a slice are not read as markup.
    yield from (Padding(Text(line), (0, 0, 0, 2), expand=False) for line in lines)


def _say_undecided(rules: list[RuleVerdict]) -> None:
    for rule in rules:
        if rule.undecided or (rule.verdict == "not_enough_evidence" and rule.value is None):
            typer.echo(rule.text)


def _show_plan(gate: Gate, as_json: bool) -> None:
    from understudy.evaluation.gate.decision import strictest_level
    from understudy.evaluation.gate.rules import planned_prompts

    planned = [
        (rule.name, rule.against, planned_prompts(gate, rule, strictest_level(gate, rule)))
        for rule in (*gate.primary, *gate.guards)
    ]
    if as_json:
        rows = [{"rule": name, "against": against, "required_prompts": number} for name, against, number in planned]
        typer.echo(json.dumps(rows, indent=1))
        return
    for name, against, prompts in planned:
        needs = f"{prompts:,} prompts" if prompts else "as measured: state standard_deviation to plan it"
        typer.echo(f"{name} against {against}: {needs}")
    typer.echo(
        f"At {gate.confidence:.0%} confidence and {gate.power:.0%} power, in {gate.minimum_groups} groups or more."
    )
