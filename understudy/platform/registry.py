"""MLflow's model registry: versions with an alias, tagged with where they came from.

The model folder is put together here instead of by `mlflow.transformers.log_model`, which imports torch, loads the
weights and writes them again: the registered files are the stored files, byte for byte, and no pickle is among them.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from platform import python_version
from typing import Any

from understudy.data.files import is_full_disk
from understudy.errors import ConfigError, IntegrityError, ServiceUnreachable, UnderstudyError
from understudy.platform.git import git
from understudy.platform.manifest import MANIFEST, describe_folder, manifest_bytes, manifest_sha256
from understudy.platform.storage import first_line, without_secrets
from understudy.platform.tracking import check_reachable, make_store
from understudy.records import RegistryEntry

POLICY_MANIFEST = "policy-manifest.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
_WEIGHTS_AND_CONFIG = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", MANIFEST)
_REQUIREMENTS = ("transformers", "torch", "accelerate", "mlflow")
_CODE = ("understudy", "components", "pipelines", "examples", "pyproject.toml", "constraints.txt")  # examples: judges
_DIRTY = "-dirty"
_UNKNOWN_ORIGIN = {"git_commit": "unknown", "git_dirty": "unknown"}


@dataclass(frozen=True)
class Version:
    """One registered version, as people see it; `metrics` maps decoding to metric to value."""

    name: str
    version: str
    aliases: list[str]
    tags: dict[str, str]
    metrics: dict[str, dict[str, float]]


class Registry:
    """The registry at an MLflow tracking URI.

    Raises:
        ServiceUnreachable: by every method, when the server does not answer.
    """

    def __init__(self, uri: str, workdir: Path) -> None:
        self.uri = uri
        self.workdir = workdir
        check_reachable(uri)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with self._answering():
            import logging

            import mlflow

            for logger in ("mlflow", "alembic"):
                logging.getLogger(logger).setLevel(logging.ERROR)
            mlflow.set_tracking_uri(uri)
            make_store(uri)
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            self.client.search_registered_models(max_results=1)

    def register(
        self,
        name: str,
        alias: str,
        folder: Path,
        tags: Mapping[str, str],
        experiment: str,
        run_id: str | None,
        temperature: float | None = None,
    ) -> RegistryEntry:
        """Register a policy folder; the same weights with the same report are the same version.

        `temperature`, if the evaluation found one, becomes what the version samples at unless told otherwise.

        Raises:
            IntegrityError: the folder holds a pickle.
        """
        refuse_pickles(folder)
        with self._answering():
            known = self._same_content(name, tags)
            version = known or self._create(name, folder, tags, experiment, run_id, temperature)
            if known is None or alias not in known.aliases:
                self.client.set_registered_model_alias(name, alias, version.version)
            return RegistryEntry(
                name=name,
                version=str(version.version),
                alias=alias,
                uri=f"models:/{name}/{version.version}",
                tags={key: str(value) for key, value in version.tags.items()},
            )

    def versions(self, name: str | None = None) -> list[Version]:
        """Return all versions, newest first within each name."""
        with self._answering():
            names = [name] if name else self._names()
            return [version for each in names for version in self._versions_of(each)]

    def find(self, reference: str) -> Version:
        """Return `NAME`, `NAME@alias` or `NAME/version`; a bare name means its newest version.

        Raises:
            ConfigError: there is no such model, alias or version; names the closest.
        """
        name, alias, number = _split(reference)
        with self._answering():
            names = [] if (known := self._knows(name)) else self._names()
        if not known:
            close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
            hint = f"Did you mean {', '.join(close)}?" if close else "None is registered yet: `understudy run` does it."
            raise ConfigError(f"There is no registered model {name!r} at {without_secrets(self.uri)}. {hint}")
        found = self.versions(name)
        for version in found:
            if (alias is None or alias in version.aliases) and (number is None or number == version.version):
                return version
        aliases = sorted({f"@{item}" for version in found for item in version.aliases})
        there = ", ".join(aliases + [f"/{version.version}" for version in found]) or "nothing"
        raise ConfigError(f"Model {name!r} has no {'@' + alias if alias else '/' + str(number)}. It has {there}.")

    def download(self, version: Version, into: Path) -> Path:
        """Return a local folder with the version's Hugging Face files: where they lie, or a copy in `into`."""
        import mlflow

        with self._answering():
            lies_here = self.client.get_model_version_download_uri(version.name, version.version).startswith("file:")
            # Elsewhere MLflow, told no folder, makes one that nobody removes.
            target = None if lies_here else str(into)
            uri = f"models:/{version.name}/{version.version}"
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=target)) / "model"

    def _knows(self, name: str) -> bool:
        from mlflow import MlflowException

        try:
            self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no name at all
                raise
            return False
        return True

    def _names(self) -> list[str]:
        return sorted(model.name for model in _all(self.client.search_registered_models))

    def _versions_of(self, name: str) -> list[Version]:
        aliases: dict[str, list[str]] = {}
        for alias, number in self.client.get_registered_model(name).aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        found = sorted(_all(self.client.search_model_versions, f"name='{name}'"), key=lambda item: -int(item.version))
        return [_version(name, item, sorted(aliases.get(str(item.version), []))) for item in found]

    def _same_content(self, name: str, tags: Mapping[str, str]) -> Any:
        keys = ("weights_sha256", "report_sha256")
        found = _all(self.client.search_model_versions, f"name='{name}'")
        same = [item for item in found if all(item.tags.get(key) == tags[key] for key in keys)]
        # The search leaves aliases out; the version read by itself has them.
        return self.client.get_model_version(name, same[0].version) if same else None

    def _create(
        self,
        name: str,
        folder: Path,
        tags: Mapping[str, str],
        experiment: str,
        run_id: str | None,
        temperature: float | None,
    ) -> Any:
        from mlflow import MlflowException

        logged = self.client.create_logged_model(self._experiment_id(experiment), name, run_id, dict(tags))
        with tempfile.TemporaryDirectory(prefix="understudy-register-") as aside:
            write_model_folder(folder, Path(aside), logged.model_id, run_id, temperature)
            entries = describe_folder(Path(aside))
            (Path(aside) / MANIFEST).write_bytes(manifest_bytes(entries))
            tags = {**tags, "registered_sha256": manifest_sha256(entries)}
            self.client.log_model_artifacts(logged.model_id, aside)
        self.client.finalize_logged_model(logged.model_id, "READY")
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"models:/{logged.model_id}"
        return self.client.create_model_version(name, source, run_id, dict(tags), model_id=logged.model_id)

    def _experiment_id(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (self.workdir.absolute() / "mlartifacts").as_uri() if self.uri.startswith("sqlite") else None
        return str(self.client.create_experiment(name, artifact_location=artifacts))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from mlflow import MlflowException
        from requests import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except SQLAlchemyError as error:
            if is_full_disk(error):  # told by who called, as for any other file
                raise
            # Its own words go on with the statement; what the database said comes first.
            first = next(iter(str(error).splitlines()), type(error).__name__)[:300]
            raise IntegrityError(
                f"MLflow's database {without_secrets(self.uri)} cannot be used: {without_secrets(first)}. "
                "Restore it, or move it away: `understudy run` makes a new one."
            ) from error
        except (RequestException, MlflowException) as error:
            if is_full_disk(error):
                raise
            raise ServiceUnreachable(
                f"MLflow at {without_secrets(self.uri)} did not do what was asked: {first_line(error)}. "
                "Check tracking.uri and the server, then run the same command again; nothing is registered twice."
            ) from error


def write_model_folder(
    policy: Path, target: Path, model_id: str, run_id: str | None, temperature: float | None = None
) -> None:
    """Write MLflow's transformers and pyfunc flavours around the files of a policy folder.

    Only generation_config.json differs from the stored file, and only when a temperature is given.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    shutil.copytree(policy, target / "model", copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(MANIFEST))
    not_tokenizer = shutil.ignore_patterns(*_WEIGHTS_AND_CONFIG)
    shutil.copytree(policy, target / "components/tokenizer", copy_function=shutil.copyfile, ignore=not_tokenizer)
    if (policy / MANIFEST).exists():
        shutil.copyfile(policy / MANIFEST, target / POLICY_MANIFEST)
    if temperature is not None:
        tuned = _read_json(policy / "generation_config.json") | {"do_sample": True, "temperature": temperature}
        (target / "model/generation_config.json").write_text(json.dumps(tuned, indent=2, sort_keys=True) + "\n")
    _write_environment(target)
    config = _read_json(policy / "config.json")
    defaults = generation_defaults(target / "model")
    model = Model(run_id=run_id, model_uuid=model_id, model_id=model_id, signature=_signature(defaults))
    model.add_flavor(
        "transformers",
        transformers_version=package_version("transformers"),
        code=None,
        task="text-generation",
        instance_type="TextGenerationPipeline",
        source_model_name="",
        pipeline_model_type=(config.get("architectures") or ["AutoModelForCausalLM"])[0],
        model_binary="model",
        components=["tokenizer"],
        tokenizer_type=_read_json(policy / "tokenizer_config.json").get("tokenizer_class", "AutoTokenizer"),
        torch_dtype=f"torch.{config.get('dtype') or config.get('torch_dtype') or 'float32'}",
    )
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.transformers",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={"do_sample": True, **defaults},
    )
    model.save(str(target / "MLmodel"))


def generation_defaults(policy: Path) -> dict[str, Any]:
    """Return max_new_tokens and temperature: the policy's own, else half its context (at most 256) and 1."""
    own = _read_json(policy / "generation_config.json")
    config = _read_json(policy / "config.json")
    context = int(config.get("max_position_embeddings") or config.get("n_positions") or 512)
    return {
        "max_new_tokens": int(own.get("max_new_tokens") or max(1, min(256, context // 2))),
        "temperature": float(own.get("temperature") or 1.0),
    }


def refuse_pickles(folder: Path) -> None:
    """Raise IntegrityError when a folder holds a file that would run code when it is loaded."""
    bad = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in _PICKLES)
    if bad:
        raise IntegrityError(
            f"{folder} holds pickles {bad}; loading one can run any code. Save as safetensors instead."
        )


def code_origin() -> dict[str, str]:
    """Return the commit of the code and whether it was changed since; "unknown" for what cannot be known.

    An image has no Git: its build sets UNDERSTUDY_GIT_COMMIT, with `-dirty` behind it where the code was changed since
    (docker/build.sh), and its steps get UNDERSTUDY_IMAGE_DIGEST. Params, data and judges have digests of their own.
    """
    given = os.environ.get("UNDERSTUDY_GIT_COMMIT")
    origin = _told_origin(given) if given else _git_origin(Path(__file__).resolve())
    digest = os.environ.get("UNDERSTUDY_IMAGE_DIGEST")
    return origin | ({"image_digest": digest} if digest else {})


def _told_origin(revision: str) -> dict[str, str]:
    commit = revision.removesuffix(_DIRTY)
    if commit == "unknown":
        return dict(_UNKNOWN_ORIGIN)
    return {"git_commit": commit, "git_dirty": str(commit != revision).lower()}


def _git_origin(file: Path) -> dict[str, str]:
    """Ask the repository that tracks this file; one that only surrounds it (a .venv in it) says nothing about it."""
    top = file.parents[2]
    if _git(top, "ls-files", "--error-unmatch", "--", str(file)) is None:
        return dict(_UNKNOWN_ORIGIN)
    commit, changes = _git(top, "rev-parse", "HEAD"), _git(top, "status", "--porcelain", "--", *_CODE)
    if not commit or changes is None:
        return dict(_UNKNOWN_ORIGIN)
    return {"git_commit": commit, "git_dirty": str(bool(changes)).lower()}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = git(folder, *arguments, timeout_seconds=20)
    except UnderstudyError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str, item: Any, aliases: list[str]) -> Version:
    """Return MLflow's version as ours; metrics that somebody bent stay a tag, so that verification finds them."""
    tags = dict(sorted(item.tags.items()))
    try:
        metrics = json.loads(tags.get("metrics", "{}"))
    except ValueError:
        metrics = None
    if isinstance(metrics, dict) and all(isinstance(values, dict) for values in metrics.values()):
        tags.pop("metrics", None)
    else:
        metrics = {}
    return Version(name=name, version=str(item.version), aliases=aliases, tags=tags, metrics=metrics)


def _all(search: Callable[..., Any], *query: str) -> list[Any]:
    """Return what a search of MLflow's client finds, of every page."""
    page = search(*query)
    found = list(page)
    while page.token:
        page = search(*query, page_token=page.token)
        found += page
    return found


def _split(reference: str) -> tuple[str, str | None, str | None]:
    reference = reference.removeprefix("models:/")
    name, at, alias = reference.partition("@")
    name, slash, number = name.partition("/")
    return name, alias if at else None, number if slash else None


def _signature(defaults: Mapping[str, Any]) -> Any:
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec(DataType.string)])
    tokens = ParamSpec("max_new_tokens", DataType.long, defaults["max_new_tokens"])
    temperature = ParamSpec("temperature", DataType.double, defaults["temperature"])
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema([tokens, temperature]))


def _write_environment(target: Path) -> None:
    import yaml

    pins = [f"{name}=={package_version(name).partition('+')[0]}" for name in _REQUIREMENTS]
    (target / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    python_env = {"python": python_version(), "dependencies": ["-r requirements.txt"]}
    (target / "python_env.yaml").write_text(yaml.safe_dump(python_env), encoding="utf-8")
    conda = {"name": "mlflow-env", "dependencies": [f"python={python_version()}", "pip", {"pip": pins}]}
    (target / "conda.yaml").write_text(yaml.safe_dump(conda), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content
