"""Params of the services and of the machine: where things happen, not what comes out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from understudy.config.sections import Section


class TrackingConfig(Section):
    """MLflow; `uri` null means a sqlite store in the working directory."""

    uri: str | None = None
    experiment: str = "understudy"
    system_metrics: bool = True


class StorageConfig(Section):
    """Where content lives; `uri` null means a folder in the working directory, else s3://bucket/prefix."""

    uri: str | None = None
    endpoint_url: str | None = None
    dvc_remote: str | None = None


class NotifyConfig(Section):
    """Where the outcome is sent, if anywhere; the URL may hold a secret, so only its variable is named."""

    webhook_url_env: str | None = None
    timeout_seconds: float = Field(default=10.0, gt=0)


class RuntimeConfig(Section):
    """How this machine is used."""

    threads: int = Field(default=2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
