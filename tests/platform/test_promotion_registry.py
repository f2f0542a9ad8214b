"""Aliases on a real MLflow registry where versions vanish and hands move aliases."""

from __future__ import annotations

import pytest
from support.champions import candidate, expecting

from understudy.errors import ConfigError, IntegrityError
from understudy.platform.promotion.aliases import MlflowAliases
from understudy.platform.promotion.change import promote, rollback
from understudy.platform.promotion.journal import pending
from understudy.platform.promotion.places import LocalPlace
from understudy.platform.promotion.transition import Ledger
from understudy.platform.registry import Registry

MODEL = "tiny"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    return Registry(f"sqlite:///{folder}/mlflow.db", folder)


@pytest.fixture
def ledger(registry, tmp_path):
    """Version 1, then version 2 was promoted."""
    client = registry.client
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    client.create_registered_model(MODEL)
    for _ in range(3):
        client.create_model_version(MODEL, str(tmp_path / "weights"))
    made = Ledger(MlflowAliases(registry), LocalPlace(tmp_path / "promotion"))
    promoted(made, "1", None)
    promoted(made, "2", "1")
    return made


def promoted(to: Ledger, version: str, champion: str | None):
    return promote(to, candidate(version), expecting(champion), "tests", "The gate passed.", 30.0)


def aliases(of: Ledger) -> tuple[str | None, str | None]:
    return of.aliases.get(MODEL, "champion"), of.aliases.get(MODEL, "previous")


def test_a_previous_champion_that_was_deleted_holds_nothing_up(registry, ledger):
    promoted(ledger, "3", "2")
    registry.client.delete_model_version(MODEL, "1")
    outcome = rollback(ledger, MODEL, None, candidate, "tests", "It was worse.", 30.0)
    # The state to go back to had version 1 as the previous champion.
    assert outcome.transition.state_after.previous == "1"
    assert aliases(ledger) == ("2", None) and pending(ledger.place) is None


def test_a_champion_that_was_deleted_is_said_and_changes_nothing(registry, ledger):
    registry.client.delete_model_version(MODEL, "1")
    with pytest.raises(ConfigError, match="Version 1 of tiny was deleted from the registry; it cannot be @champion"):
        rollback(ledger, MODEL, None, candidate, "tests", "It was worse.", 30.0)
    assert aliases(ledger)[0] == "2"
    outcome = promoted(ledger, "3", "2")
    assert outcome.recovered.endswith("was undone") and aliases(ledger) == ("3", "2")


def test_a_version_deleted_between_the_evidence_and_the_alias(registry, ledger):
    def examine(before):
        registry.client.delete_model_version(MODEL, "3")
        return {"verdict": "pass"}

    with pytest.raises(ConfigError, match="Version 3 of tiny was deleted"):
        promote(ledger, candidate("3"), examine, "tests", "The gate passed.", 30.0)
    assert aliases(ledger) == ("2", "1")


def test_an_alias_moved_by_hand_is_what_counts(registry, ledger):
    registry.client.set_registered_model_alias(MODEL, "champion", "3")
    outcome = rollback(ledger, MODEL, None, candidate, "tests", "It was worse.", 30.0)
    # No decision made version 3 champion, so the alias `previous` says whom it replaced.
    assert outcome.state.champion == "1" and aliases(ledger)[0] == "1"
    registry.client.delete_registered_model_alias(MODEL, "champion")
    with pytest.raises(ConfigError, match="tiny has no champion, so there is nothing to roll back"):
        rollback(ledger, MODEL, None, candidate, "tests", "It was worse.", 30.0)


def test_a_champion_deleted_in_the_middle_of_a_promotion_is_told(registry, ledger):
    def crash(step: str) -> None:
        if step == "champion":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promoted(Ledger(ledger.aliases, ledger.place, None, crash), "3", "2")
    registry.client.delete_model_version(MODEL, "3")
    with pytest.raises(IntegrityError, match="from version 2 to 3 was cut off, and @champion is None by now"):
        promoted(ledger, "1", "2")
    registry.client.set_registered_model_alias(MODEL, "champion", "2")
    assert promoted(ledger, "1", "2").recovered.endswith("was undone")
