"""The command line: sub-commands imported only when they are used, errors said in one paragraph.

A command module has `app = typer.Typer(...)`. Everything it raises as an UnderstudyError ends here.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import typer
from typer._click import Command, Context, exceptions
from typer.core import TyperCommand, TyperGroup

from understudy import __version__
from understudy.errors import Preempted, UnderstudyError

# name → (module, what it does); the help text stands here so that `understudy --help` imports no command.
COMMANDS = {
    "run": ("understudy.cli.run", "Run the whole pipeline here: ingest, SFT, align, evaluate, register."),
    "data": ("understudy.cli.data", "Ingest, show and verify dataset versions."),
    "model": ("understudy.cli.model", "List, show and use registered models."),
    "objectives": ("understudy.cli.objectives", "The divergences: list, show, verify."),
    "pipeline": ("understudy.cli.pipeline", "The cluster: compile the pipeline, submit and cancel runs."),
    "schedule": ("understudy.cli.schedule", "Schedules on the cluster: plan, apply, trigger, budget and cost."),
    "ui": ("understudy.cli.ui", "Open MLflow's web interface on the runs of this working directory."),
    "doctor": ("understudy.cli.doctor", "Check this machine: versions, disk, memory, GPU, services."),
}
_FULL_DISK = (
    "The disk is full ({}). Free some space, or name a working directory on another disk with --workdir DIR, then run "
    "the same command again."
)
_INTERRUPTED = "Interrupted. Run the same command again to resume."
_TYPER_INTERRUPTED = 130  # what typer makes of a Ctrl-C in a command, without a word
CONTEXT = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """A group whose commands are modules, imported when invoked."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the command names in their order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Import the named command's module; for the help page a stand-in is enough."""
        if cmd_name not in COMMANDS:
            return None
        module, help_text = COMMANDS[cmd_name]
        if ctx.resilient_parsing or _only_help():
            return TyperCommand(cmd_name, help=help_text, short_help=help_text)
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=LazyGroup,
    context_settings=CONTEXT,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align language models from expert demonstrations alone, and take them to production.",
)


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="Show a traceback with every error."),
    version: bool = typer.Option(False, "--version", help="Say the version and end.", is_eager=True),
) -> None:
    if version:
        typer.echo(f"understudy {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and end the process with the error's exit code."""
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run one command line and return its exit code; `--debug` anywhere adds tracebacks, and changes nothing else."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        result: Any = typer.main.get_command(app).main(arguments, prog_name="understudy", standalone_mode=False)
    except exceptions.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _say(_INTERRUPTED, Preempted.exit_code)
    except BrokenPipeError:
        # The reader went away (`| head`); point stdout elsewhere so that Python's last flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except UnderstudyError as error:
        if debug:
            traceback.print_exception(error)
        return _say(str(error), error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        from understudy.data.files import full_disk_words, is_full_disk

        if is_full_disk(error):
            return _say(_FULL_DISK.format(full_disk_words(error)), UnderstudyError.exit_code)
        remedy = "" if debug else " Run the command with --debug to see where."
        return _say(f"Unexpected {type(error).__name__}: {error}.{remedy}", UnderstudyError.exit_code)
    if result == _TYPER_INTERRUPTED:
        return _say(_INTERRUPTED, Preempted.exit_code)
    return result if isinstance(result, int) else 0


def _only_help() -> bool:
    """Say whether the command line asks for the group's own help: nothing but options is on it."""
    return not any(argument in COMMANDS for argument in sys.argv[1:])


def _say(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr)
    return exit_code
