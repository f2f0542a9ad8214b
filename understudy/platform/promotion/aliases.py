"""The registry's aliases, as promotion needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform.storage import first_line, without_secrets

if TYPE_CHECKING:
    from understudy.platform.registry import Registry

CHAMPION, PREVIOUS = "champion", "previous"


class Aliases(Protocol):
    """Names for versions of a model; each read and each write is atomic by itself."""

    def get(self, model: str, alias: str) -> str | None:
        """Return the version that has the alias."""

    def set(self, model: str, alias: str, version: str | None) -> None:
        """Give the alias to a version, or to none; again changes nothing."""


class MlflowAliases:
    """The aliases of an MLflow registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def get(self, model: str, alias: str) -> str | None:
        """Return the version that has the alias."""
        with self._answering():
            found = self.registry.client.get_registered_model(model).aliases.get(alias)
        return None if found is None else str(found)

    def set(self, model: str, alias: str, version: str | None) -> None:
        """Give the alias to a version, or to none; again changes nothing.

        A version that was deleted since cannot be the previous champion, so then there is none.

        Raises:
            ConfigError: a version that was deleted is to be champion.
        """
        with self._answering():
            if version is not None and self._gone(model, version):
                if alias != PREVIOUS:
                    raise ConfigError(
                        f"Version {version} of {model} was deleted from the registry; it cannot be @{alias}. Name "
                        "another version."
                    )
                version = None
            if version is None:
                self.registry.client.delete_registered_model_alias(model, alias)
            else:
                self.registry.client.set_registered_model_alias(model, alias, version)

    def _gone(self, model: str, version: str) -> bool:
        from mlflow import MlflowException

        try:
            self.registry.client.get_model_version(model, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return True
        return False

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from mlflow import MlflowException
        from requests import RequestException

        try:
            yield
        except (RequestException, MlflowException) as error:
            raise ServiceUnreachable(
                f"MLflow at {without_secrets(self.registry.uri)} did not do what was asked: {first_line(error)}. "
                "Check the server, then run the same command again: what was begun is finished or undone first."
            ) from error
