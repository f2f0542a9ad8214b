"""Step champion: whom the challenger has to beat, by the registry's word at this moment; never cached.

Its output is an input of evaluate, so that evaluate's cache key holds the champion's content: a new champion is a new
evaluation, the same one a cache hit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from understudy.platform import where
from understudy.platform.context import step_context
from understudy.platform.current_champion import current_champion
from understudy.records import PolicyRef

NAME = "champion"


def run(config: Mapping[str, Any], aligned: PolicyRef) -> str:
    """Return the champion's record as JSON; "" where there is none, or where it is the aligned policy itself.

    Raises:
        ServiceUnreachable: the registry does not answer clearly, which is not the same as having no champion.
        IntegrityError: the champion does not say which weights it has.
    """
    with step_context(NAME, config) as context:
        uri = where.tracking_uri(context.workdir)
        champion = current_champion(uri, str(config["name"]), context.workdir)
        # Compared with itself it would say nothing, and a run that repeats the champion's would miss the cache.
        if champion is None or champion.sha256 == aligned.sha256:
            return ""
        return json.dumps(champion.to_json(), sort_keys=True)
