"""One promotion at a time: the kernel's lock on this machine, a file with an expiry in a bucket, a Kubernetes Lease.

A local lease ends with its process, however that ended. One in a bucket ends by its expiry, told by the bucket's own
clock; its holder renews it now and then and before each step that changes anything, and stops when another has taken it
over.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from understudy.errors import WorkdirBusy
from understudy.platform.promotion.kubernetes_lease import NAMESPACE, KubernetesLease, lease_name
from understudy.platform.promotion.places import LocalPlace, Place, writable

NAME = "lease.json"
LIFETIME_SECONDS = 120.0
WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.02
_POLL_REMOTE_SECONDS = 0.25
Confirm = Callable[[], None]


@contextmanager
def hold(place: Place, owner: str, wait_seconds: float = WAIT_SECONDS) -> Iterator[Confirm]:
    """Hold the place for one change; gives a function that raises once the lease is another's.

    A thread renews the lease until the block ends: to verify large weights takes longer than it lives.

    Raises:
        WorkdirBusy: another still holds it after `wait_seconds`; names the owner.
    """
    with ExitStack() as held:
        renewals: list[Confirm] = []
        if namespace := os.environ.get(NAMESPACE):
            lease = KubernetesLease(namespace, lease_name(place.uri), owner, LIFETIME_SECONDS)
            renewals.append(held.enter_context(lease.hold(wait_seconds)).renew)
        if isinstance(place, LocalPlace):
            held.enter_context(local_lease(place.folder, owner, wait_seconds))
        else:
            renewals.append(held.enter_context(conditional_lease(place, owner, wait_seconds, LIFETIME_SECONDS)))
        yield held.enter_context(_kept_alive(renewals))


@contextmanager
def _kept_alive(renewals: Sequence[Confirm]) -> Iterator[Confirm]:
    """Give what renews all of them, and call it now and then until the block ends."""
    turn, ended = threading.Lock(), threading.Event()

    def confirm() -> None:
        with turn:
            for renew in renewals:
                renew()

    def keep() -> None:
        while not ended.wait(LIFETIME_SECONDS / 4):
            with turn, suppress(Exception):  # whoever works learns it from `confirm`
                for renew in renewals if not ended.is_set() else ():
                    renew()

    thread = threading.Thread(target=keep, daemon=True)
    if renewals:
        thread.start()
    try:
        yield confirm
    finally:
        with turn:
            ended.set()


@contextmanager
def local_lease(folder: Path, owner: str, wait_seconds: float = WAIT_SECONDS) -> Iterator[Confirm]:
    """Hold the kernel's lock on `lease.json`, which names the owner and when they expect to be done."""
    deadline = time.monotonic() + wait_seconds
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / NAME).open("a+", encoding="utf-8")
    with opened as file:
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                file.seek(0)
                raise _busy(str(folder), file.read(), wait_seconds)
            time.sleep(_POLL_SECONDS)
        file.truncate(0)
        file.write(_content(owner, LIFETIME_SECONDS, secrets.token_hex(8)))
        file.flush()
        try:
            yield lambda: None
        finally:
            file.truncate(0)


@contextmanager
def conditional_lease(
    place: Place, owner: str, wait_seconds: float = WAIT_SECONDS, lifetime_seconds: float = LIFETIME_SECONDS
) -> Iterator[Confirm]:
    """Hold `lease.json` by conditional writes; one that is older than its lifetime may be taken over."""
    token = secrets.token_hex(8)
    deadline = time.monotonic() + wait_seconds
    while not _take(place, _content(owner, lifetime_seconds, token).encode()):
        if time.monotonic() >= deadline:
            found = place.read(NAME)
            raise _busy(place.uri, found.data.decode() if found else "", wait_seconds)
        time.sleep(_POLL_REMOTE_SECONDS)

    def renew() -> None:
        found = place.read(NAME)
        data = _content(owner, lifetime_seconds, token).encode()
        mine = found is not None and _parsed(found.data).get("token") == token
        if not mine or found is None or not place.replace(NAME, data, found.tag):
            raise WorkdirBusy(
                f"The lease at {place.uri} expired and was taken over while {owner} worked; nothing more was changed. "
                "Run the same command again: what was begun is finished or undone first."
            )

    try:
        yield renew
    finally:
        found = place.read(NAME)
        if found is not None and _parsed(found.data).get("token") == token:
            place.replace(NAME, b"{}", found.tag)


def _take(place: Place, data: bytes) -> bool:
    found = place.read(NAME)
    if found is None:
        return place.create(NAME, data)
    held = _parsed(found.data)
    expired = found.age_seconds > float(held.get("lifetime_seconds", 0.0))
    return (not held or expired) and place.replace(NAME, data, found.tag)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _content(owner: str, lifetime_seconds: float, token: str) -> str:
    now = time.time()
    return json.dumps(
        {
            "owner": owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": token,
            "since": _utc(now),
            "expires": _utc(now + lifetime_seconds),
            "lifetime_seconds": lifetime_seconds,
            "nonce": secrets.token_hex(4),
        }
    )


def _parsed(data: bytes | str) -> dict[str, Any]:
    try:
        held = json.loads(data or "{}")
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _busy(where: str, content: str, waited_seconds: float) -> WorkdirBusy:
    held = _parsed(content)
    who = f"{held['owner']} (since {held['since']}, until {held['expires']})" if held.get("owner") else "another"
    return WorkdirBusy(
        f"The champion is being changed by {who}; the lease at {where} was not free within {waited_seconds:g} s. "
        "Wait for it and run the same command again."
    )
