"""Step ingest in parts: shards in pods of their own and a merge, or shards in processes of this machine.

The same dataset version either way, and the same as in one process: `understudy.data.shards`. Every pod lists the
source itself and cuts it in the same way; the merge refuses shards that did not see the same files. Stored shards
expire (docs/decisions/0010), so the merge reads the part of one that is gone itself.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy import errors
from understudy.config import DataConfig, validate
from understudy.data.files import temporary_folder, told_when_full
from understudy.data.ingest import Ingested, merge_shards
from understudy.data.shards import ingest_shard, plan_shard
from understudy.data.sources import Listing
from understudy.errors import ConfigError, ContentMissing, UnderstudyError
from understudy.platform.steps import unpack
from understudy.platform.steps.ingest import finish, list_any, publish_ingested, source_sha256
from understudy.platform.storage import INGEST_SHARDS, renew
from understudy.records import DatasetRef, ShardRef

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from understudy.platform.context import StepContext

_MIN_PROCESS_BYTES = 1 << 20  # less is read sooner than a Python starts
_ERROR = "error.json"


def run_shard(config: Mapping[str, Any], index: int, count: int) -> ShardRef:
    """Validate part `index` of `count` for a pipeline and store it; `config` is the ingest step's.

    Raises:
        DataRefused: one of its files is truncated or damaged.
        ConfigError: the source does not exist or the section is wrong.
        ServiceUnreachable: object storage does not answer.
    """
    from understudy.platform.context import step_context

    with step_context("ingest_shard", {**config, "step": "ingest_shard"}) as context:
        data = validate(DataConfig, config["data"], where="data")
        listing = list_any(data.source)
        with told_when_full(context.workdir), temporary_folder(context.workdir) as scratch:
            report = ingest_shard(listing, plan_shard(listing, index, count), data, scratch / "shard")
            stored = context.store.put_folder(scratch / "shard", INGEST_SHARDS)
        ref = ShardRef(stored.uri, stored.sha256, index, count, report.rows, sum(report.bad_by_reason.values()))
        context.finish(ref)
        return ref


def run_merge(config: Mapping[str, Any], shards: Sequence[str]) -> DatasetRef:
    """Join the shards, given as their records' texts, and publish the version, as step ingest does.

    Raises:
        DataRefused: as step ingest; also when the source changed since a shard read it.
        IntegrityError: a shard has no record, or two, or is not what its record says.
        ServiceUnreachable: object storage does not answer.
    """
    from understudy.platform.context import step_context

    refs = [unpack(text, ShardRef) for text in shards]
    with step_context("ingest", config) as context:
        data = validate(DataConfig, config["data"], where="data")
        digest = str(config.get("source_sha256") or "") or source_sha256(data.source)
        listing = list_any(data.source)
        with ExitStack() as stack:
            stack.enter_context(told_when_full(context.workdir))
            scratch = stack.enter_context(temporary_folder(context.workdir))
            folders = [_fetched_or_made_again(context, ref, listing, data, scratch) for ref in refs]
            ingested = stack.enter_context(merge_shards(listing, folders, data, context.workdir))
            return finish(context, publish_ingested(ingested, data, context.workdir, digest, refuse_empty=True))


def _fetched_or_made_again(
    context: StepContext, ref: ShardRef, listing: Listing, config: DataConfig, scratch: Path
) -> Path:
    try:
        folder = context.store.fetch(ref.uri, ref.sha256)
        renew(folder)
        return folder
    except ContentMissing:
        context.note(
            f"Shard {ref.index} of {ref.count} is no longer at {ref.uri}: its part of the source is read again."
        )
    folder = scratch / f"shard-{ref.index}"
    ingest_shard(listing, plan_shard(listing, ref.index, ref.count), config, folder)
    return folder


@contextmanager
def ingest_in_processes(listing: Listing, config: DataConfig, workdir: Path, count: int) -> Iterator[Ingested]:
    """Do as `understudy.data.ingest.ingest` with `count` processes, at most one a source file or started MiB.

    Raises:
        DataRefused: as `ingest`; of several damaged files the first in reading order is named.
        UnderstudyError: a process was killed; the disk is full.
    """
    if count < 1:
        raise ConfigError(f"The number of shards is {count}; it must be at least 1.")
    num_bytes = sum(file.num_bytes for file in listing.files)
    count = min(count, max(len(listing.files), 1 + num_bytes // _MIN_PROCESS_BYTES))
    with told_when_full(workdir), temporary_folder(workdir) as scratch:
        folders = [scratch / f"shard-{index}" for index in range(count)]
        _run_processes(config, folders)
        with merge_shards(listing, folders, config, workdir) as ingested:
            yield ingested


def _run_processes(config: DataConfig, folders: Sequence[Path]) -> None:
    # Spawned, for a forked process may inherit the locks of threads that it does not have.
    spawn = multiprocessing.get_context("spawn")
    settings = config.model_dump_json()
    processes: list[SpawnProcess] = []
    try:
        for index, folder in enumerate(folders):
            folder.mkdir()
            processes.append(spawn.Process(target=_shard, args=(settings, index, len(folders), str(folder))))
            processes[-1].start()
        for index, (process, folder) in enumerate(zip(processes, folders, strict=True)):
            process.join()
            if process.exitcode:
                raise _error_of(folder, index, process.exitcode)
    finally:
        for process in processes:
            if process.pid is None:  # interrupted before it started
                continue
            process.terminate()
            process.join()


def _shard(settings: str, index: int, count: int, folder: str) -> None:
    """Run one shard in a process of its own; what goes wrong is left in its folder."""
    # Ctrl-C reaches all processes of a terminal; the first alone answers it, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = DataConfig.model_validate_json(settings)
        listing = list_any(config.source)
        with told_when_full(Path(folder)):
            ingest_shard(listing, plan_shard(listing, index, count), config, Path(folder))
    except UnderstudyError as error:
        text = json.dumps({"kind": type(error).__name__, "message": str(error)})
        (Path(folder) / _ERROR).write_text(text, encoding="utf-8")
        raise SystemExit(error.exit_code) from None


def _error_of(folder: Path, index: int, exit_code: int) -> UnderstudyError:
    path = folder / _ERROR
    if path.is_file():
        told = json.loads(path.read_bytes())
        kind: type[UnderstudyError] = getattr(errors, told["kind"])
        return kind(told["message"])
    return UnderstudyError(
        f"The process of shard {index} ended with {exit_code} and without a word: it was probably killed, for example "
        "because memory ran out. Use fewer shards, then run the same command again."
    )
