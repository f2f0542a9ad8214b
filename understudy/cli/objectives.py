"""`understudy objectives`: list the table, prove it on an enumerable MDP, show what the divergences do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from understudy.data.files import told_when_unwritable
from understudy.errors import ConfigError

if TYPE_CHECKING:
    from understudy.exact.frontier import Fit
    from understudy.exact.report import Row

app = typer.Typer(help="The divergences and losses: list, show, verify.", no_args_is_help=True, add_completion=False)
OUT = typer.Option(None, help="Where to draw it: a .png or .svg file.")
JSON = typer.Option(False, "--json", help="Print JSON for machines.")


@app.command("list")
def list_objectives(as_json: bool = JSON) -> None:
    """List everything that params.yaml can name."""
    table = _table()
    if as_json:
        typer.echo(json.dumps(table, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    shown = Table("setting", "value", "what it is", "source", title="Objectives")
    for row in table:
        shown.add_row(*(Text(row[key]) for key in ("setting", "name", "what", "source")))
    _console().print(shown)


@app.command()
def verify(
    vocab: int = typer.Option(4, help="Tokens, EOS among them."),
    horizon: int = typer.Option(5, help="Largest number of response tokens."),
    seed: int = typer.Option(0, help="Of experts and policies."),
    as_json: bool = JSON,
) -> None:
    """Prove every objective on a token MDP by enumeration; ends with 1 when a row fails."""
    from understudy.exact import verify as proofs

    started = time.monotonic()
    try:
        proofs.check_size(vocab, horizon, seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rows = sorted(proofs.verify(vocab, horizon, seed), key=lambda row: row.proof)
    failed = [row for row in rows if not row.passed]
    seconds = time.monotonic() - started
    if as_json:
        settings = {"vocab": vocab, "horizon": horizon, "seed": seed, "seconds": round(seconds, 1)}
        result = {"passed": not failed, "failed": len(failed), **settings, "rows": [row.to_json() for row in rows]}
        typer.echo(json.dumps(result, indent=2))
    else:
        console = _console()
        console.print(proofs.describe(vocab, horizon))
        console.print(_proof_table(rows))
        verdict = f"{len(rows) - len(failed)} of {len(rows)} rows hold (seed {seed}, {seconds:.0f} s)."
        console.print(
            f"[bold red]{len(failed)} FAILED.[/] {verdict}" if failed else f"[bold green]Proven.[/] {verdict}"
        )
    if failed:
        raise typer.Exit(1)


@app.command()
def show(
    out: Path | None = OUT,
    as_json: bool = JSON,
) -> None:
    """Show which divergences cover the expert's habits and which seek one of them."""
    from understudy.exact import frontier

    if out is not None and out.suffix not in (".png", ".svg"):
        raise ConfigError(f"--out {str(out)!r} ends in {out.suffix!r}; give a name that ends in .png or .svg.")
    path, named = frontier.alpha_path(), frontier.named_fits()
    if out is not None:
        with told_when_unwritable(out, "--out"):
            _draw(path, out)
    if as_json:
        result: dict[str, Any] = {
            "alpha_path": [item.to_json() for item in path],
            "named": [item.to_json() for item in named],
            "plot": None if out is None else str(out),
        }
        typer.echo(json.dumps(result, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("divergence", "coverage", "precision", "width", "entropy", title="A policy too small for its expert")
    for item in [*path, *named]:
        numbers = (item.coverage, item.precision, item.width, item.entropy)
        table.add_row(Text(item.name), *(f"{number:.3f}" for number in numbers))
    _console().print(table)
    _console().print(
        "coverage: expert mass that the policy can write; precision: policy mass that is typical of the expert; "
        "alpha 0 is reverse KL, alpha 1 forward KL."
    )
    if out is not None:
        typer.echo(f"Drawn: {out}")


def _table() -> list[dict[str, str]]:
    from understudy.objectives.discriminator import DISCRIMINATOR_LOSSES
    from understudy.objectives.divergences import DIVERGENCES, alpha
    from understudy.objectives.likelihood import LIKELIHOODS
    from understudy.objectives.selfplay import PREFERENCE_LOSSES

    rows = [
        {"setting": "align.divergence", "name": row.name, "what": row.minimises, "source": f"Eq {row.equation}"}
        for row in DIVERGENCES.values()
    ]
    half = alpha(0.5)
    rows.append(
        {"setting": "align.divergence", "name": "alpha:<a>", "what": half.minimises, "source": f"Eq {half.equation}"}
    )
    rows += [
        {"setting": "align.discriminator.loss", "name": row.name, "what": row.meaning, "source": f"Eq {row.equation}"}
        for row in DISCRIMINATOR_LOSSES.values()
    ]
    rows += [
        {"setting": setting, "name": name, "what": _first_line(function), "source": source}
        for setting, functions, source in (
            ("sft.objective", LIKELIHOODS, "3.4.1-3.4.2"),
            ("align.selfplay.loss", PREFERENCE_LOSSES, "3.4.5"),
        )
        for name, function in functions.items()
    ]
    return rows


def _first_line(function: Any) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _proof_table(rows: list[Row]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("proof", "system", "statement", "error", "bound", "", title="Proofs")
    for row in rows:
        mark = Text("ok", "green") if row.passed else Text("FAIL", "bold red")
        texts = (str(row.proof), row.system, row.statement, f"{row.error:.2e}", f"{row.bound:.1e}")
        table.add_row(*map(Text, texts), mark)
    return table


def _console() -> Any:
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _draw(path: list[Fit], out: Path) -> None:
    import os

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from understudy.exact import frontier
    from understudy.objectives import divergence

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    orders = [item.order for item in path]
    left.plot(orders, [item.coverage for item in path], "o-", color="#1b6ca8", label="coverage of the expert")
    left.plot(orders, [item.precision for item in path], "s-", color="#c8553d", label="precision of the policy")
    left.set(xlabel="α   (0: reverse KL, seeks · 1: forward KL, covers)", ylabel="mass", ylim=(0, 1.05))
    left.set_title("A policy too small for its expert must choose")
    left.legend(frameon=False, loc="lower left")
    expert_Y = frontier.bimodal_expert(28)
    right.fill_between(range(len(expert_Y)), expert_Y.tolist(), color="#cccccc", label="expert")
    for name, colour in (("forward_kl", "#1b6ca8"), ("reverse_kl", "#c8553d"), ("js", "#2b2b2b")):
        policy_Y = frontier.best_policy(divergence(name), expert_Y)[1]
        right.plot(policy_Y.tolist(), "--" if name == "js" else "-", color=colour, label=name)
    right.set(xlabel="response", ylabel="probability", ylim=(0, None))
    right.set_title("One prompt: the best policy of each divergence")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
    figure.savefig(aside, dpi=160)
    plt.close(figure)
    os.replace(aside, out)
