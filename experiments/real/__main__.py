"""`python -m experiments.real`: run the cells that are missing, then print the tables of all that are there.

With --report nothing is run; without --out the tables are written into docs/results.md and docs/results-real.md, from
the cells in results/ and results-*/ beside this file. With --sample-only nothing is measured or printed: run again
without it, on a machine without weights too, to do so.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.real.arms import ARMS, Arm
from experiments.real.tasks import TASKS, pretrained_overrides

if TYPE_CHECKING:
    from experiments.real.cell import Settings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIZES = {"500": 500, "2000": 2000, "all": None}
TABLE = "table"
SMOKE_ROWS = 24
SMOKE = (
    "sft.epochs=1",
    "align.num_rounds=2",
    "align.discriminator.warmup_rounds=1",
    "align.discriminator.warmup_updates_per_round=1",
    "align.discriminator.batch_pairs=4",
    "align.selfplay.batch_pairs=4",
    "align.rollout.prompts_per_round=4",
    "align.rollout.responses_per_prompt=2",
    "evaluation.max_prompts=16",
    "evaluation.temperatures=[0.5]",
)
SMOKE_SHORT = ("align.rollout.max_response_tokens=80", "evaluation.max_response_tokens=16")


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when every asked cell is there, 1 when cells cannot be paired."""
    parser = create_parser()
    options = parser.parse_args(arguments)
    if options.lora and not options.model:
        parser.error("--lora puts adapters on pretrained weights; name their folder with --model.")
    results = options.out or (ROOT / "build" / "real-smoke" / "results" if options.smoke else HERE / "results")
    if not options.report:
        _run(options, results)
    if options.sample_only:
        return 0
    try:
        _report(results, to_pages=options.report and results == HERE / "results")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _report(results: Path, to_pages: bool) -> None:
    from experiments import blocks
    from experiments.real.folders import kept, load_all
    from experiments.real.report import pages, printed
    from experiments.real.study import load_cells

    if not to_pages:
        print(printed(load_cells(results)))
        return
    blocks.write_and_tell(pages(load_all(kept(results))))


def _run(options: argparse.Namespace, results: Path) -> None:
    import torch
    import transformers

    from experiments.real.cell import Cell, Folders, Study

    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    study = Study(Folders(results, options.work), settings_from(options), device, options.sample_only)
    cells = [
        Cell(TASKS[task], size, _shortened(ARMS[arm]) if options.smoke else ARMS[arm], seed)
        for task in options.tasks
        for size in ([SMOKE_ROWS] if options.smoke else map(SIZES.get, options.sizes))
        for arms in [_arms(options.arms, task, size)]
        for seed in options.seeds  # a seed's arms next to each other: what is cut short is still paired
        for arm in arms
    ]
    if not cells:
        sys.exit(
            f"No table has arms of {', '.join(options.tasks)} at {', '.join(options.sizes)}; name some with --arms."
        )
    if options.measure_only:
        cells = [cell for cell in cells if study.samples_path(cell).is_file()]
    started = time.monotonic()
    for number, cell in enumerate(cells, 1):
        made = study.run(cell)
        best = made["validation"][made["tuned"]]
        said = f"validation {made['validation']['T=1']:.3f}, {made['tuned']} {best:.3f}"
        line = f"{time.monotonic() - started:6.0f} s  {number} of {len(cells)}  {cell.name}: {said}"
        print(line, file=sys.stderr, flush=True)


def _arms(named: list[str], task: str, size: int | None) -> list[str]:
    """The named arms; `TABLE` stands for those that the pages' tables have of a task and size."""
    kept = (HERE / "results").glob(f"{task}-{size or 'all'}-*.json") if TABLE in named else ()
    wanted = {*named, *(path.stem.split("-")[2] for path in kept)}
    return [arm for arm in ARMS if arm in wanted]


def _shortened(arm: Arm) -> Arm:
    """The arm as a smoke run has it: epochs that it names itself are no params, which SMOKE would stand over."""
    return replace(arm, epochs=min(arm.epochs, 1))


def settings_from(options: argparse.Namespace) -> Settings:
    """What the options lay over the params of all cells."""
    from experiments.real.cell import Settings

    over = tuple(options.set)
    if options.smoke:
        over = (*over, *SMOKE, *(() if set(options.tasks) <= {"sort", "pick"} else SMOKE_SHORT))
    if not options.model:
        return Settings(over=over)
    return Settings(pretrained_overrides(options.model, options.lora), over, options.lora)


def create_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["pick"])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["500"])
    arms = "default: all; table: those of the pages' table"
    parser.add_argument("--arms", nargs="+", choices=[TABLE, *ARMS], default=list(ARMS), metavar="ARM", help=arms)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--model", type=Path, help="folder of weights, or of one GGUF file; default: from scratch")
    parser.add_argument("--lora", action="store_true", help="adapters instead of all weights; with --model")
    parser.add_argument("--smoke", action="store_true", help="tiny settings; numbers without meaning, kept aside")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--sample-only", action="store_true", help="train and sample; measure when run again without it")
    part.add_argument("--measure-only", action="store_true", help="measure what was sampled, train nothing")
    part.add_argument("--report", action="store_true", help="run nothing; write the pages, or with --out print")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="over every arm")
    parser.add_argument("--out", type=Path, help="folder of the cells; one for each model and set of overrides")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "real", help="folder of weights and data")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
