from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_stages_name_files_that_exist_and_the_source_of_the_default_params() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    source = yaml.safe_load((ROOT / "params.yaml").read_text())["data"]["source"]
    made = {name for stage in stages.values() for out in stage["outs"] for name in out}
    needed = {dependency for stage in stages.values() for dependency in stage["deps"]}
    assert source in made and source in needed and source in stages["ingest"]["cmd"]
    assert [path for path in needed - made if not (ROOT / path).exists()] == []
    assert all(out[name]["cache"] is False for stage in stages.values() for out in stage["outs"] for name in out)
