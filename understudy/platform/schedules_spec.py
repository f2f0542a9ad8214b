"""A schedule as reviewed YAML (`pipelines/schedules/*.yaml`), one per file: the schema, all problems told at once.

Concurrency and catch-up are stated so that a reader sees them, and have one allowed value each: two retrainings at once
would share quota and race for the registry, and a backlog of missed nights trains the same data several times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StrictBool

from understudy.config import Params, apply_override, load_params, validate
from understudy.config.sections import Section, read_yaml
from understudy.errors import ConfigError
from understudy.platform.cron import cron_problem
from understudy.platform.promotion.manifests import read_pin

FOLDER = Path("pipelines/schedules")
PREFIX = "understudy-"
HASH_CHARS = 12


def _six_fields(text: str) -> str:
    if problem := cron_problem(text):
        raise ValueError(problem)
    return text


def _is_false(value: bool) -> bool:
    if value:
        raise ValueError("Input should be False")
    return value


def _no_number(value: Any) -> Any:
    """Refuse what only equals true, false or a number: `enabled: 1`, `budget_gpu_hours: true`."""
    if isinstance(value, bool):
        raise ValueError("is true or false, not a number")
    return value


class Schedule(Section):
    """When which version of the pipeline runs with which params, and what it may cost."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
    cron: Annotated[str, AfterValidator(_six_fields)]  # seconds minutes hours day month weekday, in KFP's zone: UTC
    pipeline_version: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,115}[a-z0-9])?-[0-9a-f]{12}$")
    enabled: StrictBool
    concurrency: Annotated[Literal[1], BeforeValidator(_no_number)]
    catch_up: Annotated[StrictBool, AfterValidator(_is_false)]
    budget_gpu_hours: Annotated[float, Field(gt=0, strict=True), BeforeValidator(_no_number)]  # of one run
    environments: tuple[Literal["staging", "production"], ...] = Field(min_length=1)
    on_new_data: StrictBool  # `schedule trigger` starts a run, too, when the source's content changes
    params: dict[str, Any]  # overrides of params.yaml: {"section.key": value}

    @property
    def pipeline(self) -> str:
        """Name of the pipeline that the pinned version belongs to."""
        return self.pipeline_version.rpartition("-")[0]

    def spec_sha256(self, arguments: Mapping[str, Any]) -> str:
        """Digest of all that a recurring run cannot change: everything but `enabled` and what only we read."""
        fixed = {"cron": self.cron, "pipeline_version": self.pipeline_version, "arguments": dict(arguments)}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    def run_name(self, arguments: Mapping[str, Any]) -> str:
        """Name of the recurring run in KFP; it changes whenever the spec does, because KFP cannot change one."""
        return f"{PREFIX}{self.name}-{self.spec_sha256(arguments)[:HASH_CHARS]}"

    def run_params(self, base: Path) -> Params:
        """Return the whole params of its runs: those of `base` with the schedule's overrides.

        Raises:
            ConfigError: naming every problem at once.
        """
        return load_params(base, [f"{name}={json.dumps(value)}" for name, value in self.params.items()])


def load_schedules(folder: Path = FOLDER, environment: str | None = None) -> dict[str, Schedule]:
    """Read every schedule of a folder, by name; with an environment, those that run there.

    Raises:
        ConfigError: every problem of every file at once, each with its file and field.
    """
    schedules: dict[str, Schedule] = {}
    problems: list[str] = []
    if not folder.is_dir():
        raise ConfigError(f"The folder {str(folder)!r} does not exist. Run in the project's folder, or name one.")
    problems += [f"{path}: schedules end with .yaml; rename it" for path in sorted(folder.glob("*.yml"))]
    for path in sorted(path for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"):
        try:
            schedule = load_schedule(path)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if schedule.name != path.stem:
            problems.append(f"{path}: name is {schedule.name!r}; a file is named like its schedule: {path.stem!r}")
        schedules[schedule.name] = schedule
    if problems:
        raise ConfigError("\n".join(problems))
    return {name: item for name, item in schedules.items() if environment in (None, *item.environments)}


def load_schedule(path: Path) -> Schedule:
    """Read one schedule.

    Raises:
        ConfigError: every problem at once, with file and field.
    """
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a number of 5,000 digits
        raise ConfigError(f"{path} is not valid YAML: {error}. Correct the line it names.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping such as `name:` and `cron:`.")
    schedule = validate(Schedule, data, where=str(path))
    for name in schedule.params:
        try:
            apply_override({}, f"{name}=1")
            json.dumps(schedule.params[name], allow_nan=False, ensure_ascii=False).encode()
        except ConfigError as error:
            raise ConfigError(f"{path}: params: {error}") from error
        except TypeError as error:
            raise ConfigError(f"{path}: params.{name}: {error}; put it in quotes.") from error
        except ValueError as error:  # an anchor within itself, no number, half of a surrogate pair
            raise ConfigError(f"{path}: params.{name} cannot be written as JSON: {error}.") from error
    if read_pin(path.read_text(encoding="utf-8")) != schedule.pipeline_version:
        raise ConfigError(f"{path}: pipeline_version must stand on one line of its own, as `pipeline_version: NAME`.")
    return schedule


def unmounted(folder: Path) -> str | None:
    """Return how a folder differs from its kustomization.yaml, which carries the files to the cluster, or None."""
    path = folder / "kustomization.yaml"
    if not path.is_file():
        return None
    try:
        generators = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("configMapGenerator", [])
        named = {name for generator in generators for name in generator.get("files", [])}
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        return f"{path} is no kustomization with a configMapGenerator: {error}"
    there = {item.name for item in folder.glob("*.yaml")} - {path.name}
    if named == there:
        return None
    return f"{path} names {sorted(named)}, the folder holds {sorted(there)}; name every schedule under `files`."
