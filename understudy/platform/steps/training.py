"""What the sft and align steps share: the loop's surroundings, the demonstrations, storing a policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.config import section_sha256
from understudy.data.files import temporary_folder
from understudy.errors import ConfigError

if TYPE_CHECKING:
    from understudy.data.demonstrations import Demonstration
    from understudy.models.language_model import LanguageModel
    from understudy.platform.context import StepContext
    from understudy.platform.storage import Stored
    from understudy.records import DatasetRef, PolicyRef
    from understudy.training.loop import Loop
    from understudy.training.processes import Processes


def join_processes(context: StepContext, precision: str) -> Processes:
    """Return this process among those that accelerate started for the step; usually it is alone."""
    import torch

    from understudy.training.loop import create_accelerator
    from understudy.training.processes import Processes

    torch.set_num_threads(context.threads)
    return Processes(create_accelerator(precision, context.device))


def create_loop(context: StepContext, processes: Processes, lineage: str) -> Loop:
    """Return the surroundings of a loop: device, processes, tracker, checkpoints keyed by lineage.

    They go once the step has succeeded as a whole.
    """
    from understudy.platform.checkpoint_bucket import mirror_of
    from understudy.training.checkpoint import Checkpoints
    from understudy.training.loop import Loop

    checkpoints = Checkpoints(context.checkpoint_dir(lineage), mirror=mirror_of(context, lineage))
    context.when_done(checkpoints.clear)
    return Loop(processes.accelerator, context.tracker, checkpoints, context.should_stop)


def refuse_sharded_adapters(processes: Processes, adapted: Mapping[str, bool]) -> None:
    """Raise ConfigError, naming every setting, if adapters are asked for where weights are sharded (FSDP)."""
    named = [setting for setting, is_set in adapted.items() if is_set]
    if processes.sharded and named:
        raise ConfigError(
            f"{' and '.join(named)}: adapters do not go with weights sharded over {processes.count} processes (FSDP), "
            "because merging them needs whole weights. Use UNDERSTUDY_ACCELERATE=ddp, which trains adapters in whole "
            "copies, or train all weights."
        )


def fetch(context: StepContext, processes: Processes, record: PolicyRef) -> Path:
    """Return a local folder with a stored policy; one process of a machine downloads it."""
    with processes.first_on_each_machine():
        return context.store.fetch(record.uri, record.sha256)


def lineage_of(config: Mapping[str, Any], *parents: str) -> str:
    """Digest of everything that the result depends on, so that a retry finds its checkpoints and nothing else does."""
    return section_sha256(dict(config), *parents)[:32]


def load_demonstrations(
    context: StepContext, dataset: DatasetRef, *splits: str, processes: Processes | None = None
) -> list[list[Demonstration]]:
    """Materialise a dataset version and read some of its splits."""
    from understudy.data.demonstrations import load_split
    from understudy.platform.context import current_run
    from understudy.platform.datasets import materialise

    if run := current_run():
        run.log_dataset(dataset)
    with processes.first_on_each_machine() if processes else nullcontext():
        folder = materialise(dataset, context.workdir)
    return [load_split(folder, split) for split in splits]


def account_for_skipped(
    context: StepContext, split: str, skipped: Sequence[Mapping[str, str]], num_rows: int
) -> list[dict[str, str]]:
    """Note how many rows of a split are left out, and return a line for each, with its split, id and reason."""
    if skipped:
        context.note(count_of_skipped(split, skipped, num_rows))
    return [{"split": split, **line} for line in skipped]


def count_of_skipped(split: str, skipped: Sequence[Mapping[str, str]], num_rows: int) -> str:
    """Return how many rows of a split are left out, and why the first of them is."""
    return (
        f"{len(skipped)} of {num_rows} {split} demonstrations are left out (skipped.jsonl); the first: "
        f"{skipped[0]['id']}: {skipped[0]['reason']}."
    )


def store_policy(context: StepContext, policy: LanguageModel, loop: Loop, skipped: Sequence[Any]) -> Stored:
    """Store a policy's folder with the history of its training and the rows that were left out.

    Nothing in it depends on the clock, so the same run gives the same digest.
    """
    weights = whole_weights(loop.processes, policy.model)

    def write(folder: Path) -> None:
        policy.save(folder, weights)
        write_jsonl(folder / "history.jsonl", loop.history)
        if skipped:
            write_jsonl(folder / "skipped.jsonl", skipped)

    return publish(context, loop.processes, "policy", write)


def whole_weights(processes: Processes, module: Any) -> dict[str, Any] | None:
    """All weights of a module whose shards are spread over processes; None where each process has them whole."""
    return processes.whole(module.state_dict()) if processes.sharded else None


def publish(context: StepContext, processes: Processes, name: str, write: Callable[[Path], None]) -> Stored:
    """Let one process write a folder and put it into the store; return in all where it lies."""
    from understudy.platform.storage import Stored

    def put() -> dict[str, str]:
        with temporary_folder(context.workdir) as folder:
            write(folder)
            return asdict(context.store.put_folder(folder, name))

    return Stored(**processes.on_main(put))


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
