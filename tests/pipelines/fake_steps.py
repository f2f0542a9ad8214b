"""The bodies of the fake pipeline's steps."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from understudy.errors import DataRefused, Preempted
from understudy.platform.context import step_context
from understudy.platform.steps import pack, unpack
from understudy.records import DiscriminatorRef


def first(config: dict[str, Any], model: Any, record: str) -> None:
    with step_context("first", config) as context:
        pack(model, record, _store(context.workdir, f"first {config['value']}"))


def second(config: dict[str, Any], given: str, model: Any, record: str) -> None:
    with step_context("second", config) as context:
        text = unpack(given, DiscriminatorRef).sha256
        if config.get("mode") == "refuse":
            raise DataRefused("7 of 10 rows are bad; correct them.")
        if config.get("mode") == "bug":
            raise KeyError("lost")
        if config.get("mode") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if config.get("mode") in ("loop", "deaf"):
            saved = context.checkpoint_dir("lineage") / "state"
            context.note("looping")
            while config["mode"] == "deaf" or not context.should_stop():
                time.sleep(0.05)
            saved.write_text("7")
            raise Preempted("Its state is saved at round 7. Run the same command again to resume.")
        pack(model, record, _store(context.workdir, f"second {config['value']} {text}"))


def _store(workdir: Path, text: str) -> DiscriminatorRef:
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = workdir / "store" / digest
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text").write_text(text)
    return DiscriminatorRef(str(folder), digest, "", "", None)
