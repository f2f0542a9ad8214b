"""A synthetic wheel: collections written here, in the shape of those inside the ansible wheel."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples.ansible.extract import extract  # noqa: E402
from examples.ansible.wheel import Wheel  # noqa: E402

VLAN = '''
raise SystemExit("a module of the wheel must never run")
DOCUMENTATION = r"""
module: vlan
options:
  name: {type: str, required: true, aliases: [vlan_name]}
  number: {type: int}
  ratio: {type: float}
  enabled: {type: bool}
  mode: {type: str, choices: [access, trunk, 'on']}
  tags: {type: list, elements: str, choices: [red, green]}
  labels: {type: dict}
  key: {type: str, required: true, description: Read from the environment variable ACME_KEY if not given.}
  ports:
    type: list
    elements: dict
    suboptions:
      port: {type: int, required: true}
      speed: {type: str, choices: [fast, slow]}
extends_documentation_fragment: [acme.net.api, acme.net.api.extra, action_common_attributes]
"""
EXAMPLES = r"""
- name: Add   a VLAN
  acme.net.vlan:
    name: office
    number: 10
  register: result
- name: Add a VLAN by its short name
  vlan: {name: lab, host: h}
- name: Add a VLAN
  acme.net.vlan:
    name: office
    number: 10
- name: Repeated
  acme.net.vlan: {name: "{{ item }}"}
  loop: [a, b]
- name: Old name
  acme.net.old_vlan: {name: lab}
- name: One line
  acme.net.vlan: name=office
- name: Slipped
  acme.net.vlan:
    name: office
    delegate_to: localhost
- acme.net.vlan: {name: nameless}
- name: Somebody else's
  ansible.builtin.debug: {msg: hello}
- hosts: all
  tasks:
    - name: Inside a play
      acme.net.vlan: {name: play}
- block:
    - name: Inside a block
      acme.net.vlan: {name: block, labels: {long: "%s"}}
"""
''' % ("x" * 300)

API = '''
from somewhere import helpers
class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  host: {type: str}
  name: {type: int}
"""
    def __init__(self):
        text = f"""
options:
  timeout: {{type: int}}
  level: {{type: str, choices: [{helpers.CHOICE}]}}
"""
        self.EXTRA = text
'''

BUCKET = '''
DOCUMENTATION = """
module: bucket
options:
  size: {type: int}
extends_documentation_fragment: ansible.builtin.files
"""
EXAMPLES = """
- name: Make a bucket
  acme.store.bucket: {size: 3, mode: '0644'}
"""
'''

FILES = {
    "ansible_collections/acme/net/plugins/modules/__init__.py": "",
    "ansible_collections/acme/net/plugins/modules/vlan.py": VLAN,
    "ansible_collections/acme/net/plugins/modules/prose.py": 'DOCUMENTATION = "module: prose"\nEXAMPLES = "a: b: c"\n',
    "ansible_collections/acme/net/plugins/modules/broken.py": "def (",
    "ansible_collections/acme/net/plugins/doc_fragments/api.py": API,
    "ansible_collections/acme/net/meta/runtime.yml": (
        "plugin_routing: {modules: {old_vlan: {redirect: acme.net.vlan}, gone: {tombstone: {}}}}"
    ),
    "ansible_collections/acme/store/plugins/modules/bucket.py": BUCKET,
    "ansible_collections/acme/store/plugins/modules/sidecar.yml": (
        "DOCUMENTATION: {module: sidecar, options: {size: {type: int}}}\n"
        "EXAMPLES: |\n  - name: From a sidecar file\n    acme.store.sidecar: {size: 1}\n"
    ),
}


@pytest.fixture(scope="session")
def wheel_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheel") / "synthetic.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(scope="session")
def wheel(wheel_path: Path) -> Wheel:
    return Wheel(wheel_path)


@pytest.fixture(scope="session")
def schema(wheel: Wheel) -> dict[str, Any]:
    _, schema = extract(wheel, wheel.collections, None)
    return json.loads(json.dumps(schema))
