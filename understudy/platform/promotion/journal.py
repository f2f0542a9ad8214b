"""The write-ahead journal: what is about to be changed, on disk before anything is."""

from __future__ import annotations

import json

from understudy.errors import IntegrityError, WorkdirBusy
from understudy.platform.promotion.decisions import Transition, canonical
from understudy.platform.promotion.places import Place

NAME = "journal.json"


def pending(place: Place) -> Transition | None:
    """Return the transition that was begun and neither finished nor undone.

    Raises:
        IntegrityError: the journal is not one.
    """
    found = place.read(NAME)
    if found is None:
        return None
    try:
        entry = json.loads(found.data)["pending"]
        return None if entry is None else Transition.from_json(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{place.uri}/{NAME} is not a journal ({error!r}). Compare the aliases with the last decision record, "
            "then remove it."
        ) from error


def begin(place: Place, transition: Transition) -> None:
    """Note a transition before it changes anything."""
    _write(place, canonical({"pending": transition.to_json()}))


def end(place: Place) -> None:
    """Note that nothing is pending."""
    _write(place, canonical({"pending": None}))


def _write(place: Place, data: bytes) -> None:
    found = place.read(NAME)
    written = place.create(NAME, data) if found is None else place.replace(NAME, data, found.tag)
    if not written:
        raise WorkdirBusy(f"Another process writes {place.uri}/{NAME}. Wait for it and run the same command again.")
