"""`understudy model compare · ladder`: two models side by side, a person's verdict, and where all versions stand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from random import SystemRandom
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli import options
from understudy.errors import ConfigError

if TYPE_CHECKING:
    from understudy.cli.model_stream import Answerer
    from understudy.platform.registry import Version

VERDICTS = {"l": "left", "r": "right", "t": "tie", "s": "skip", "q": "quit"}
QUESTION = "Which is better? [l]eft [r]ight [t]ie [s]kip [q]uit: "


def compare(
    first: Annotated[
        str, typer.Argument(metavar="A", help="NAME@alias, NAME/version, or NAME for its highest version")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="the other one")],
    prompt: Annotated[
        list[str], typer.Option("--prompt", help="What to answer; may be repeated. Default: lines of stdin.")
    ] = [],  # noqa: B006 - typer reads it, nobody writes it
    blind: Annotated[bool, typer.Option("--blind", help="Hide which is which, ask which is better, feed Elo.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: each version's own.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 is greedy. Default: each version's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same texts.")] = 0,
    workdir: options.Workdir = options.WORKDIR,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; what --blind shows and asks goes to stderr.")
    ] = False,
) -> None:
    """Show two registered models' answers side by side as they are written; --blind asks which is better."""
    from understudy.cli.model import open_registry
    from understudy.cli.model_stream import Answerer

    if any(not text.strip() for text in prompt):
        raise ConfigError("--prompt is empty. Give the text that the models are to answer.")
    registry = open_registry(workdir)
    versions = registry.find(first), registry.find(second)
    names = [f"{version.name}/{version.version}" for version in versions]
    if names[0] == names[1]:
        raise ConfigError(f"{first} and {second} are both {names[0]}. Name two versions.")
    answerers = [Answerer(registry, version, max_new_tokens, temperature) for version in versions]
    tally: dict[str, int] = dict.fromkeys([*names, "tie"], 0)
    compared: list[dict[str, Any]] = []
    for number, text in enumerate(prompt or _typed_prompts()):
        order = [0, 1]
        if blind:
            # Not from --seed: whoever knows it could tell which is which.
            SystemRandom().shuffle(order)
        sides = [answerers[index] for index in order]
        titles = ["left", "right"] if blind else names
        if not as_json:
            show(sides, text, seed + number, titles)
        else:
            answers = write(sides, text, seed + number, titles, to_stderr=True, silent=not blind)
            compared.append({"prompt": text, "answers": answers, "verdict": None})
        if not blind:
            continue
        verdict = ask(to_stderr=as_json)
        if verdict == "quit":
            break
        if verdict != "skip":
            _enter(workdir, [versions[index] for index in order], verdict, tally)
        if compared:
            compared[-1]["verdict"] = {"left": sides[0].name, "right": sides[1].name}.get(verdict, verdict)
        typer.echo(f"left was {sides[0].name}, right was {sides[1].name}", err=as_json)
    if as_json:
        typer.echo(json.dumps({"models": names, "compared": compared, "tally": tally}, indent=1, ensure_ascii=False))
    elif any(tally.values()):
        typer.echo("  ".join(f"{name}: {count}" for name, count in tally.items()))


def ladder(
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write an SVG there.")] = None,
) -> None:
    """Show the Elo ratings of all registered versions."""
    from understudy.cli.model import open_registry, storage_of_params
    from understudy.platform.ladder import open_ladder, ratings, rows

    registered = [f"{version.name}/{version.version}" for version in open_registry(workdir).versions()]
    found = ratings(open_ladder(workdir, storage_of_params()).matches(), registered)
    if plot is not None:
        _plot(plot, rows(found))
    if as_json:
        typer.echo(json.dumps(rows(found), indent=1))
        return
    if not found:
        typer.echo("No model is registered yet. `understudy run` trains and registers one.")
        return
    width = max(len("version"), *(len(rating.version) for rating in found))
    typer.echo(f"{'version':<{width}}  rating  wins  ties  losses")
    for each in found:
        typer.echo(f"{each.version:<{width}}  {each.rating:6.0f}  {each.wins:4}  {each.ties:4}  {each.losses:6}")


def show(sides: list[Answerer], prompt: str, seed: int, titles: list[str]) -> None:
    """Write both answers: in two columns as they come on a terminal, else one below the other."""
    if not sys.stdout.isatty():
        write(sides, prompt, seed, titles)
        return
    from rich.live import Live

    texts = ["", ""]
    with Live(_columns(titles, texts), refresh_per_second=12, vertical_overflow="visible") as live:
        for index, piece in _pieces(sides, prompt, seed):
            texts[index] += piece
            live.update(_columns(titles, texts))


def write(
    sides: list[Answerer], prompt: str, seed: int, titles: list[str], to_stderr: bool = False, silent: bool = False
) -> list[dict[str, Any]]:
    """Write the answers one below the other, and return them with the models' names."""
    answers = []
    for side, title in zip(sides, titles, strict=True):
        if silent:
            answers.append({"model": side.name, **side.answer(prompt, seed)})
            continue
        typer.echo(f"--- {title}", err=to_stderr)
        answer = side.answer(prompt, seed, lambda text: typer.echo(text, nl=False, err=to_stderr))
        answers.append({"model": side.name, **answer})
        typer.echo(err=to_stderr)
    return answers


def ask(to_stderr: bool = False) -> str:
    """Return left, right, tie, skip or quit; the end of the input quits."""
    while True:
        typer.echo(QUESTION, nl=False, err=to_stderr)
        line = sys.stdin.readline()
        if not line:
            typer.echo(err=to_stderr)
            return "quit"
        word = line.strip().lower()
        if not sys.stdin.isatty():
            typer.echo(word, err=to_stderr)
        if word and (word in VERDICTS or word in VERDICTS.values()):
            return VERDICTS[word[0]]
        typer.echo(f"{word!r} is none of {', '.join(VERDICTS.values())}.", err=to_stderr)


def _typed_prompts() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            typer.echo("Prompt (empty to end): ", nl=False)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()


def _pieces(sides: list[Answerer], prompt: str, seed: int) -> Iterator[tuple[int, str]]:
    """Yield (side, piece of text) as both write at once; what one raises is raised here."""
    pieces: SimpleQueue[tuple[int, str | BaseException | None]] = SimpleQueue()

    def write(side: int) -> None:
        try:
            sides[side].answer(prompt, seed, lambda text: pieces.put((side, text)))
            pieces.put((side, None))
        except BaseException as error:
            pieces.put((side, error))

    for side in range(len(sides)):
        Thread(target=write, args=(side,), daemon=True).start()
    writing = len(sides)
    while writing:
        index, piece = pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        if piece is None:
            writing -= 1
        else:
            yield index, piece


def _columns(titles: list[str], texts: list[str]) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(expand=True)
    for _ in titles:
        grid.add_column(ratio=1)
    # As Text, so that brackets in an answer are not read as markup.
    grid.add_row(*(Panel(Text(text), title=Text(title)) for title, text in zip(titles, texts, strict=True)))
    return grid


def _enter(workdir: Path, sides: list[Version], verdict: str, tally: dict[str, int]) -> None:
    from understudy.cli.model import storage_of_params
    from understudy.platform.ladder import STEP_PERSON, Match, open_ladder

    left, right = (f"{side.name}/{side.version}" for side in sides)
    weights = [side.tags.get("weights_sha256", "") for side in sides]
    result = {"left": "W", "right": "L", "tie": "T"}[verdict]
    open_ladder(workdir, storage_of_params()).add(Match(left, right, result, "person", STEP_PERSON, "", *weights))
    tally[{"left": left, "right": right, "tie": "tie"}[verdict]] += 1


def _plot(path: Path, found: list[dict[str, Any]]) -> None:
    from understudy.evaluation.canvas import standalone
    from understudy.evaluation.plots_pair import draw_ladder

    drawn = draw_ladder(found)
    if not drawn:
        raise ConfigError("The ladder is empty, so there is nothing to plot. Register a model first.")
    try:
        path.write_text(standalone(drawn[0].svg), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file with --plot.") from error
