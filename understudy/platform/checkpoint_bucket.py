"""Checkpoints in the bucket, for a step whose working directory ends with its pod.

    <storage>/checkpoints/<step>-<lineage>/{a,b}/tensors.safetensors, state.json, manifest.json, step.json

Two places take turns, so that one is whole while the other is written, and nothing has to be deleted, which the
credentials of steps may not do. `step.json` says which step a place holds: it is emptied first and written last. Who
reads checks the digests of `manifest.json`, so that two attempts that overlap for a moment can at worst cost a place.
What runs leave that are never finished goes by age: docs/operations.md.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.errors import ContentMissing, UnderstudyError
from understudy.platform.object_storage import Location, S3Store, download_object, reachable, read_object
from understudy.platform.storage import CHECKPOINTS
from understudy.training.checkpoint import FILES, TENSORS, checkpoint_name, is_whole, step_of

if TYPE_CHECKING:
    from understudy.platform.context import StepContext

_PLACES = ("a", "b")
_STEP = "step.json"
_NOTHING = b"{}"


def mirror_of(context: StepContext, lineage: str) -> BucketCheckpoints | None:
    """Return where copies of a step's checkpoints go; None where its working directory outlives it.

    That is so on the machine of `understudy run`, and where storage is a folder.
    """
    if "UNDERSTUDY_RUNNER_PID" in os.environ or not isinstance(context.store, S3Store):
        return None
    root = Location.parse(f"{context.store.root}/{CHECKPOINTS}/{context.step}-{lineage}")
    return BucketCheckpoints(root, context.note)


class BucketCheckpoints:
    """Copies of one lineage's checkpoints.

    Args:
        root: their place in the bucket.
        note: tells the person who watches.
    """

    def __init__(self, root: Location, note: Callable[[str], None]) -> None:
        self._root, self._note = root, note
        self._steps: dict[str, int] | None = None  # of each place that holds one; None: not asked yet

    def put(self, folder: Path) -> None:
        """Copy a checkpoint, unless it is there, where the older one is; if that fails, say so and go on."""
        step = step_of(folder)
        try:
            with reachable(self._root) as client:
                steps = self._known(client)
                if step in steps.values():
                    return
                place = min(_PLACES, key=lambda name: steps.get(name, -1))
                self._write(client, f"{place}/{_STEP}", _NOTHING)
                for path in folder.iterdir():
                    client.upload_file(str(path), self._root.bucket, self._root.key(f"{place}/{path.name}"))
                self._write(client, f"{place}/{_STEP}", json.dumps({"step": step}).encode())
                steps[place] = step
        except UnderstudyError as error:
            self._steps = None
            self._note(f"Warning: the checkpoint of step {step} is on this machine alone. {error}")

    def fetch_newer(self, folder: Path, step: int) -> bool:
        """Bring the newest whole copy that is newer than `step` into `folder`; say whether there was one.

        Raises:
            ServiceUnreachable: the bucket does not answer; to begin anew would lose what it may hold.
        """
        with reachable(self._root) as client:
            steps = self._known(client)
            for place, held in sorted(steps.items(), key=lambda item: item[1], reverse=True):
                if held <= step:
                    break
                if self._fetch(client, place, folder, held):
                    self._note(f"Going on from the checkpoint of step {held} in {self._root.uri}.")
                    return True
                del steps[place]  # the next copy goes there, and the whole one stays
        return False

    def clear(self) -> None:
        """Let no copy be found again, and take next to no room."""
        try:
            with reachable(self._root) as client:
                for place in _PLACES:  # also one whose copy was cut off
                    self._write(client, f"{place}/{_STEP}", _NOTHING)
                    self._write(client, f"{place}/{TENSORS}", b"")
                self._steps = {}
        except UnderstudyError as error:  # they go by age
            self._note(f"Warning: checkpoints that are no longer needed stay in the bucket. {error}")

    def _fetch(self, client: Any, place: str, folder: Path, step: int) -> bool:
        final = folder / checkpoint_name(step)
        aside = folder / f".{final.name}.{os.getpid()}"
        aside.mkdir(parents=True, exist_ok=True)
        try:
            for name in FILES:
                download_object(client, self._root, f"{place}/{name}", aside / name)
            whole = is_whole(aside)
        except ContentMissing:
            whole = False
        if whole:
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
        else:
            shutil.rmtree(aside, ignore_errors=True)
            self._note(f"Warning: the checkpoint of step {step} in {self._root.uri} is damaged and is left out.")
        return whole

    def _known(self, client: Any) -> dict[str, int]:
        """The step that each place holds, of those that hold one."""
        if self._steps is None:
            found = {place: self._step_in(client, place) for place in _PLACES}
            self._steps = {place: step for place, step in found.items() if step is not None}
        return self._steps

    def _step_in(self, client: Any, place: str) -> int | None:
        try:
            step = json.loads(read_object(client, self._root, f"{place}/{_STEP}")).get("step")
        except (ContentMissing, ValueError, AttributeError):
            return None
        return step if isinstance(step, int) else None

    def _write(self, client: Any, path: str, content: bytes) -> None:
        client.put_object(Bucket=self._root.bucket, Key=self._root.key(path), Body=content)
