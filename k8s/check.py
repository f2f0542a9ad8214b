"""Render every overlay and check it strictly, offline: `python3 -m k8s.check [--release] [--record] [environment…]`.

Ends with 0 when everything holds, 1 with one line per problem, 2 when a tool is missing. With a folder of
CustomResourceDefinitions in UNDERSTUDY_CRDS custom kinds are held to them, and `--record` writes down the fields that
were valid; without it they are held to those fields.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from k8s.checks import cluster, fields, monitoring, names, network, pipelines, pods, references, schemas
from k8s.checks.render import ENVIRONMENTS, ROOT, CheckError, Object, environment


def policies(items: list[Object], production: bool, root: Path = ROOT) -> Iterator[str]:
    """Yield every violation in the objects of one environment."""
    yield from pods.restricted(items)
    yield from pods.images(items, production)
    yield from pods.resources(items)
    yield from pods.probes(items)
    yield from pods.secrets(items)
    yield from network.network_policies(items)
    yield from network.reachable_services(items)
    yield from references.references(items)
    yield from references.selectors(items)
    yield from references.wiring(items)
    yield from names.names(items)
    yield from names.queue_labels(items)
    yield from cluster.permissions(items)
    yield from cluster.schedules(items)
    yield from cluster.queues(items)
    yield from cluster.training_runtimes(items)
    yield from cluster.champion(items)
    yield from cluster.argo(items, root)
    yield from monitoring.alerts(items, root)
    yield from monitoring.dashboards(items)
    yield from pipelines.compiled_pipelines(items)


def duplicates(items: list[Object]) -> Iterator[str]:
    """Yield objects that two folders of one environment both render: each would undo the other."""
    seen: set[tuple[str, str, str]] = set()
    for item in items:
        meta = item["metadata"]
        key = (item["kind"], meta.get("namespace", ""), meta["name"])
        if key in seen:
            yield f"{key[0]}/{key[2]}: is rendered twice"
        seen.add(key)


def problems(items: list[Object], name: str, release: bool = False) -> Iterator[str]:
    """Yield everything that is wrong with the objects of one environment."""
    yield from duplicates(items)
    yield from schemas.problems(items, schemas.crds_folder())
    yield from policies(items, production=name == "production")
    if release:
        yield from pods.unreleased(items)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the environments and print what is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m k8s.check", description=__doc__)
    parser.add_argument("--release", action="store_true", help="refuse placeholders of digests, too")
    parser.add_argument("--record", action="store_true", help=f"write {fields.FILE.name} from the definitions")
    parser.add_argument("environments", nargs="*", default=ENVIRONMENTS)
    options = parser.parse_args(arguments)
    crds = schemas.crds_folder()
    if options.record and crds is None:
        parser.error("--record needs a folder of CustomResourceDefinitions in UNDERSTUDY_CRDS")
    found: list[str] = []
    seen: list[Object] = []
    for name in options.environments:
        try:
            items = [item for folder in environment(name).values() for item in folder]
        except CheckError as error:
            print(error, file=sys.stderr)
            return 2
        seen += items
        found += [f"{name}: {problem}" for problem in problems(items, name, options.release)]
    if crds and not found and set(options.environments) == set(ENVIRONMENTS):
        found += _recorded(schemas.record(seen, crds), options.record)
    for problem in found:
        print(f"k8s {problem}", file=sys.stderr)
    if not found:
        fit = "their definitions" if crds else f"the fields in k8s/checks/{fields.FILE.name}"
        print(f"k8s: {', '.join(options.environments)}: all objects render, fit {fit} and keep the policies.")
    return 1 if found else 0


def _recorded(current: dict[str, fields.Fields], write: bool) -> Iterator[str]:
    if write:
        fields.FILE.write_text(fields.text(current), encoding="utf-8")
        fields.recorded.cache_clear()
    elif current != fields.recorded():
        yield f"{fields.FILE.name} is not what the objects use: {fields.COMMAND}"


if __name__ == "__main__":
    sys.exit(main())
