"""`understudy model promote · rollback · verify · provenance`: who may be champion, and where a model comes from."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli import options
from understudy.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from rich.tree import Tree

    from understudy.platform.lineage.walk import Node, Walked
    from understudy.platform.promotion.change import Outcome
    from understudy.platform.promotion.gitops import GitOps

Repository = Annotated[
    Path | None,
    typer.Option("--gitops", help="Repository to deploy from. Default: deploy nothing.", envvar="UNDERSTUDY_GITOPS"),
]
Environments = Annotated[
    list[str], typer.Option("--environment", help="Where to deploy; may be repeated.", envvar="UNDERSTUDY_ENVIRONMENTS")
]
Branch = Annotated[
    str | None,
    typer.Option("--branch", help="Commit there. Default: what is checked out.", envvar="UNDERSTUDY_GITOPS_BRANCH"),
]
Remote = Annotated[str | None, typer.Option("--push", help="Push to this remote.", envvar="UNDERSTUDY_GITOPS_REMOTE")]
Wait = Annotated[float, typer.Option("--wait", min=0.0, help="Seconds to wait for another promotion.")]
_MARKS = {"ok": "[green]✓[/]", "damaged": "[red]✗[/]", "absent": "[yellow]?[/]", "noted": "[dim]·[/]"}


def promote(
    model: options.Model,
    gate: options.Gate = Path("gate.yaml"),
    approve: Annotated[str | None, typer.Option("--approve", help="Decide as a person, for this reason.")] = None,
    gitops: Repository = None,
    environment: Environments = ["staging"],  # noqa: B006 - typer reads it, nobody writes it
    branch: Branch = None,
    push: Remote = None,
    wait: Wait = 300.0,
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Make a version the champion, if the gate passes and nothing forbids it."""
    from understudy.cli.model import open_registry, storage_of_params
    from understudy.platform.promotion.aliases import MlflowAliases
    from understudy.platform.promotion.change import actor
    from understudy.platform.promotion.change import promote as change
    from understudy.platform.promotion.examine import Examination
    from understudy.platform.promotion.places import place_of
    from understudy.platform.promotion.transition import Ledger

    if approve is not None and not approve.strip():
        raise ConfigError("--approve is empty. Give the reason for which you decide.")
    repository = _gitops(gitops, environment, branch, push)
    registry = open_registry(workdir)
    version = registry.find(model)
    examination = Examination(registry, gate, approve, storage_of_params())
    candidate = examination.candidate(version, deployed=repository is not None)
    ledger = Ledger(MlflowAliases(registry), place_of(workdir, version.name, storage_of_params()), repository)
    reason = approve.strip() if approve else None
    outcome = change(
        ledger, candidate, lambda before: examination.examine(version, before), actor(), reason, wait_seconds=wait
    )
    _say(f"{version.name}/{version.version}", outcome, as_json)


def rollback(
    model: Annotated[str, typer.Argument(help="NAME")],
    to: Annotated[str | None, typer.Option("--to", help="A version, or none. Default: the champion before.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the record.")] = "Rolled back by a person.",
    gitops: Repository = None,
    environment: Environments = ["staging"],  # noqa: B006 - typer reads it, nobody writes it
    branch: Branch = None,
    push: Remote = None,
    wait: Wait = 300.0,
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Go back to an earlier champion: alias, deployed URI and pinned pipeline versions, in one commit."""
    from understudy.cli.model import open_registry, storage_of_params
    from understudy.platform.promotion.aliases import MlflowAliases
    from understudy.platform.promotion.change import Candidate, actor
    from understudy.platform.promotion.change import rollback as change
    from understudy.platform.promotion.examine import Examination
    from understudy.platform.promotion.places import place_of
    from understudy.platform.promotion.transition import Ledger

    name = model.partition("@")[0].partition("/")[0]
    if name != model:
        raise ConfigError(
            f"Rollback takes the name alone, not {model!r}: it goes back from the champion that there is. Say "
            f"`understudy model rollback {name}`; which version to go back to is named with --to VERSION."
        )
    repository = _gitops(gitops, environment, branch, push)
    registry = open_registry(workdir)
    name = registry.find(name).name
    if to is not None and to != "none":
        to = registry.find(f"{name}/{to.rpartition('/')[2]}").version
    examination = Examination(registry, Path("gate.yaml"), None, storage_of_params())

    def candidate_of(version: str) -> Candidate:
        return examination.candidate(registry.find(f"{name}/{version}"), deployed=repository is not None)

    ledger = Ledger(MlflowAliases(registry), place_of(workdir, name, storage_of_params()), repository)
    _say(name, change(ledger, name, to, candidate_of, actor(), reason, wait_seconds=wait), as_json)


def verify(
    model: Annotated[str | None, typer.Argument(help="As for `show`; none with --artifacts")] = None,
    artifacts: Annotated[Path | None, typer.Option("--artifacts", help="Verify a folder of copies, offline.")] = None,
    copy: Annotated[Path | None, typer.Option("--copy", help="Copy all that is verified into a new folder.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also on what is not kept here.")] = False,
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Walk from a version to its raw source and recompute every digest on the way."""
    from understudy.platform.lineage.artifacts import CopiedArtifacts, copy_artifacts
    from understudy.platform.lineage.walk import walk

    if (model is None) == (artifacts is None) or (artifacts and copy):
        raise ConfigError("Name a model, or a folder of copies with --artifacts; --copy goes with a model.")
    if artifacts is not None:
        with tempfile.TemporaryDirectory(prefix="understudy-verify-") as scratch:
            found = walk(CopiedArtifacts(artifacts, Path(scratch)))
    else:
        from understudy.cli.model import open_registry, storage_of_params
        from understudy.platform.promotion.examine import stored_artifacts

        registry = open_registry(workdir)
        with stored_artifacts(registry, registry.find(str(model)), storage_of_params()) as stored:
            found = walk(stored)
            if copy is not None and not found.damaged:
                copy_artifacts(stored, found.lineage, copy)
    _show_walk(found, as_json, strict)


def provenance(
    model: options.Model,
    sign: Annotated[bool, typer.Option("--sign", help="Sign with the configured key and keep it.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write there instead of printing.")] = None,
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Print the in-toto statement of a version (SLSA v1), or its signed envelope where there is one."""
    from understudy.cli.model import open_registry, storage_of_params
    from understudy.data.files import write_atomically
    from understudy.platform.lineage import provenance as form
    from understudy.platform.lineage.record import read_lineage
    from understudy.platform.lineage.sign_version import require_key, sign_version
    from understudy.platform.storage import open_store
    from understudy.records import RegistryEntry

    registry = open_registry(workdir)
    version = registry.find(model)
    store = open_store(storage_of_params(), workdir)
    entry = RegistryEntry(version.name, version.version, "", "", version.tags)
    missing = [tag for tag in ("lineage_uri", "lineage_sha256", "registered_sha256") if tag not in entry.tags]
    if missing:
        raise IntegrityError(f"{model} has no {', '.join(missing)}: it was registered before lineage was kept.")
    if sign:
        require_key()
        entry = sign_version(registry, store, entry)
    tags = {name: value for name, value in entry.tags.items() if value}
    if "provenance_sha256" in tags:
        text = (store.fetch(tags["provenance_uri"], tags["provenance_sha256"]) / form.FILE).read_text("utf-8")
    else:
        lineage = read_lineage(store.fetch(tags["lineage_uri"], tags["lineage_sha256"]))
        content = form.statement(lineage, tags["lineage_sha256"], tags["registered_sha256"])
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if output is not None:
        write_atomically(output, text.encode())
    if as_json:
        shown = {"model": f"{version.name}/{version.version}", "signed": "provenance_sha256" in tags}
        shown |= {"output": None if output is None else str(output), "provenance": json.loads(text)}
        typer.echo(json.dumps(shown, indent=1, ensure_ascii=False))
    elif output is None:
        typer.echo(text, nl=False)


def _gitops(repository: Path | None, environments: list[str], branch: str | None, remote: str | None) -> GitOps | None:
    from understudy.platform.promotion.gitops import open_gitops

    return None if repository is None else open_gitops(repository, tuple(environments), branch, remote)


def _say(name: str, outcome: Outcome, as_json: bool) -> None:
    transition, applied = outcome.transition, outcome.applied
    if as_json:
        found: dict[str, Any] = {"changed": applied is not None, "recovered": outcome.recovered}
        found |= {"state": outcome.state.to_json()}
        if transition and applied:
            decision = {"number": applied.decision.number, "sha256": applied.decision.sha256}
            found |= {"transition": transition.to_json(), "decision": decision, "commit": applied.commit}
        typer.echo(json.dumps(found, indent=1))
        return
    if outcome.recovered:
        typer.echo(f"An earlier change that had been cut off: {outcome.recovered}.")
    if transition is None or applied is None:
        typer.echo(f"{name} is champion already; nothing was changed.")
        return
    before, after = transition.state_before, transition.state_after
    typer.echo(f"{transition.model}: champion {before.champion or 'none'} → {after.champion or 'none'}")
    typer.echo(f"  previous   {after.previous or 'none'}")
    typer.echo(f"  decision   {applied.decision.number}, sha256 {applied.decision.sha256[:12]}: {transition.reason}")
    if applied.commit:
        typer.echo(f"  commit     {applied.commit[:12]} ({', '.join(after.serving)})")


def _show_walk(walked: Walked, as_json: bool, strict: bool) -> None:
    from understudy.platform.lineage.signing import TRUSTED_KEYS

    # Where keys are trusted, a signature that was taken away is worth as much as one that is wrong.
    unasked = () if strict and os.environ.get(TRUSTED_KEYS) else ("signature",)
    absent = [node for node in walked.root.walk() if node.status == "absent" and node.kind not in unasked]
    bad = walked.damaged + (absent if strict else [])
    if as_json:
        content = {"verified": not bad, "signed_by": walked.signed_by, "tree": walked.root.to_json()}
        typer.echo(json.dumps(content, indent=1))
    else:
        from rich.console import Console

        Console(highlight=False).print(_tree(walked.root))
    if bad:
        links = "; ".join(f"{node.kind} {node.name}" for node in bad)
        raise IntegrityError(
            f"{walked.root.name} does not verify: {len(bad)} of {len(list(walked.root.walk()))} links do not hold "
            f"({links}). Do not use it; restore what differs from a copy, or train it again."
        )
    if not as_json:
        note = f" {len(absent)} not kept here could not be checked." if absent else ""
        typer.echo(f"{walked.root.name} verifies.{note}")


def _tree(node: Node, parent: Tree | None = None) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    detail = f"\n[yellow]{escape(node.detail)}[/]" if node.detail else ""
    label = f"{_MARKS[node.status]} {node.kind} [bold]{escape(node.name)}[/] [dim]{node.digest[:12]}[/]{detail}"
    branch = Tree(label) if parent is None else parent.add(label)
    for child in node.children:
        _tree(child, branch)
    return branch
