"""`understudy doctor`: is this machine fit for a run?"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from understudy.cli import options
from understudy.errors import UnderstudyError

HELP = "Check this machine: versions, disk, memory, GPU, services."
LIBRARIES = ("torch", "transformers", "kfp", "mlflow", "dvc", "accelerate", "peft", "datasets", "boto3", "pydantic")
MIN_FREE_GB = 2.0
MIN_MEMORY_GB = 4.0
app = typer.Typer(help=HELP, add_completion=False)


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `ok` false means that a run would fail or suffer; `say` says what to do."""

    name: str
    value: str
    ok: bool
    say: str = ""


@app.command(help=HELP)
def doctor(
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Look, say, and end with exit code 1 if something is wrong."""
    findings = [_python(), *_versions(Path("constraints.txt")), *_machine(workdir), _gpu(), *_services(workdir)]
    if as_json:
        typer.echo(json.dumps({"ok": all(f.ok for f in findings), "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        for finding in findings:
            mark = "ok " if finding.ok else "BAD"
            typer.echo(f"{mark} {finding.name:<15} {finding.value}" + (f"  → {finding.say}" if finding.say else ""))
    bad = [finding.name for finding in findings if not finding.ok]
    if bad and not as_json:
        raise UnderstudyError(f"{len(bad)} of {len(findings)} checks failed: {', '.join(bad)}.")
    if bad:
        raise typer.Exit(1)


def _python() -> Finding:
    fits = sys.version_info >= (3, 11)
    return Finding("python", platform.python_version(), fits, "" if fits else "install Python 3.11 or newer")


def _versions(constraints: Path) -> list[Finding]:
    pinned = {}
    if constraints.is_file():
        lines = constraints.read_text(encoding="utf-8").splitlines()
        pinned = dict(line.strip().split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    findings = []
    for name in LIBRARIES:
        try:
            installed = version(name)
        except PackageNotFoundError:
            findings.append(Finding(name, "absent", False, "pip install -c constraints.txt -e ."))
            continue
        wanted = pinned.get(name)
        fits = wanted is None or installed.split("+")[0] == wanted.split("+")[0]
        findings.append(Finding(name, installed, fits, "" if fits else f"constraints.txt names {wanted}, install that"))
    return findings


def _machine(workdir: Path) -> list[Finding]:
    import psutil

    existing = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    memory = psutil.virtual_memory().available / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    writable = os.access(existing, os.W_OK)
    return [
        Finding("workdir", str(workdir), writable, "" if writable else "not writable; name another with --workdir"),
        Finding("disk", f"{free:.1f} GB free", free >= MIN_FREE_GB, "" if free >= MIN_FREE_GB else "free some space"),
        Finding(
            "memory",
            f"{memory:.1f} GB available",
            memory >= MIN_MEMORY_GB,
            "" if memory >= MIN_MEMORY_GB else f"the default run needs up to {MIN_MEMORY_GB:.0f} GB",
        ),
        Finding("cores", f"{cores} (runtime.threads sets how many are used)", True),
    ]


def _gpu() -> Finding:
    """Ask the driver rather than torch, whose import costs seconds."""
    nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return Finding("gpu", f"{len(nodes)} NVIDIA device(s)" if nodes else "none; runs use the CPU", True)


def _services(workdir: Path) -> list[Finding]:
    from understudy.platform import where
    from understudy.platform.steps.preflight import service_problems

    params = where.params_here()
    where.use_endpoint(params)
    tracking, storage = where.named_tracking_uri(params), where.storage_uri(params)
    return [
        _service("mlflow", tracking, service_problems(tracking, None, workdir) if tracking else []),
        _service("storage", storage, service_problems(None, storage, workdir) if storage else []),
    ]


def _service(name: str, uri: str | None, problems: list[str]) -> Finding:
    from understudy.platform.storage import without_secrets

    shown = without_secrets(uri) if uri else "local, in the working directory"
    return Finding(name, shown, not problems, " ".join(problems))
