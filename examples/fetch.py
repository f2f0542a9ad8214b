"""Fetches the default demonstrations, falling back to the standard library's docstrings where the wheel cannot be had.

    python -m examples.fetch

The one entry of `make demo` and dvc.yaml; takes the options of examples/ansible/extract.py. With the fallback,
evaluation's validity judge answers "undecided", and the report says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from examples.ansible import extract as ansible
from examples.stdlib import extract as stdlib


def main(argv: Iterable[str] | None = None) -> int:
    """Write demonstrations.jsonl, ansible_schema.json and source.json; 0 for either source."""
    options = ansible.arguments_parser().parse_args(None if argv is None else list(argv))
    out, max_chars, limit = options.out, options.max_chars or None, options.limit or None
    collections = None if options.all else options.collections
    try:
        source = ansible.write(out, options.wheel_folder or out, collections, max_chars, limit)
    except KeyError as error:
        print(f"Collection {error} is not in ansible {ansible.VERSION}; --all takes every one.", file=sys.stderr)
        return 2
    except ansible.WheelUnavailable as error:
        print(
            f"The ansible wheel cannot be had ({error}). Falling back to the docstrings of this Python's standard "
            "library: there is no validity judge for them. Run again with a package index in reach for Ansible.",
            file=sys.stderr,
        )
        source = stdlib.write(out, max_chars, limit, reason=str(error))
    print(json.dumps(source, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
