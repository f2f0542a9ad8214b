"""The params of registration and promotion: under which name, by which rules, deployed from where."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, model_validator

from understudy.config.sections import Section


class RegistryConfig(Section):
    """The name under which models are registered."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^/:@'\"`\\\x00-\x1f\x7f]+$")
    alias: str = Field(min_length=1, pattern=r"^[A-Za-z][\w-]*$")

    @model_validator(mode="after")
    def _only_promotion_makes_champions(self) -> Self:
        if self.alias in ("champion", "previous"):
            raise ValueError(f"alias {self.alias!r} is given by promotion alone, past whose gate it would lead")
        return self


class PromotionConfig(Section):
    """Whether the last step may make the registered version champion, by which rules, and from where it is deployed.

    Off: a person does it, with `understudy model promote`.
    """

    enabled: bool = False
    gate: str = Field(default="gate.yaml", min_length=1)
    gitops: str | None = None  # a repository's folder, or an address that `git clone` takes; null: deploy nothing
    environments: tuple[str, ...] = Field(default=("staging",), min_length=1)
    branch: str | None = None  # null: the one that is checked out
    remote: str | None = None  # pushed to; an address is always pushed back to
    wait_seconds: float = Field(default=300.0, ge=0)  # for another promotion at work

    @model_validator(mode="after")
    def _no_secret_in_an_address(self) -> Self:
        if self.gitops is not None and re.search(r"(https?://[^/]*@|://[^/@]*:[^/@]*@)", self.gitops):
            raise ValueError(
                "gitops is an address with credentials, which would stand in logs and MLflow; give them to Git by its "
                "own configuration (a credential helper, or GIT_CONFIG_COUNT and GIT_CONFIG_KEY_0… from a Secret)"
            )
        return self
