"""A whole lineage in small: real demonstrations through ingest, made-up weights, a report that the gate can read."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from understudy.config import DataConfig, section_sha256
from understudy.data.demonstrations import load_split
from understudy.platform.registry import Registry, Version
from understudy.platform.steps import ingest, register
from understudy.platform.storage import Store, Stored, open_store
from understudy.records import DatasetRef, EvaluationReport, PolicyRef

COMMIT = "c" * 40
GATE = {
    "confidence": 0.95,
    "power": 0.8,
    "minimum_groups": 5,
    "max_undecided": 0.05,
    "primaries_needed": "all",
    "no_champion": "accept",
    "primary": [{"metric": "judge:quality", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.1}],
    "guards": [],
    "provenance": {"allow_dirty_code": False, "require_signature": False},
}
DATA = {
    "max_prompt_chars": 100, "max_response_chars": 100, "max_bad_fraction": 0.05, "near_duplicate_threshold": None,
    "splits": {"validation": 0.1, "test": 0.2}, "unicode_form": "keep", "fields": None,
}  # fmt: skip


@dataclass
class World:
    """A working directory with a registry; `register` adds versions of the model `tiny`."""

    folder: Path
    datasets: dict[str, DatasetRef] = field(default_factory=dict)

    @property
    def workdir(self) -> Path:
        return self.folder / "work"

    @property
    def store(self) -> Store:
        return open_store(os.environ.get("UNDERSTUDY_STORAGE_URI"), self.workdir)

    @property
    def registry(self) -> Registry:
        return Registry(f"sqlite:///{self.workdir}/mlflow.db", self.workdir)

    def dataset(self, prefix: str = "p", rows: int = 120) -> DatasetRef:
        if prefix in self.datasets:
            return self.datasets[prefix]
        source = self.folder / f"{prefix}.jsonl"
        if not source.exists():
            lines = [json.dumps({"prompt": f"{prefix}{i}", "response": f"r{i}"}) + "\n" for i in range(rows)]
            source.write_text("".join(lines))
        self.datasets[prefix] = ingest.ingest_source(DataConfig(source=str(source), **DATA), self.workdir).ref
        return self.datasets[prefix]

    def gate(self, **provenance: bool) -> Path:
        path = self.folder / "gate.yaml"
        path.write_text(yaml.safe_dump(GATE | {"provenance": GATE["provenance"] | provenance}))
        return path

    def policy(self, name: str, stage: str, dataset: DatasetRef, parent: str | None, base: str) -> PolicyRef:
        stored = self.weights(name, "policy")
        config = config_of(stage)
        code = config["code_sha256"]
        return PolicyRef(
            stored.uri, stored.sha256, stage, dataset.md5, parent, section_sha256(config), code, base, 1.5, 10
        )

    def weights(self, name: str, kind: str) -> Stored:
        folder = self.folder / "made" / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "name": name}))
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(hashlib.sha512(name.encode()).digest() * 8)
        return self.store.put_folder(folder, kind)

    def register(self, name: str, quality: float = 1.0, champion: Version | None = None, **changes) -> Version:
        """Register a version whose answers have this quality, compared with a champion of quality 0.5."""
        dataset = changes.pop("dataset", None) or self.dataset()
        base = changes.pop("base", None) or self.weights("base", "base").uri
        sft = self.policy(f"{name}-sft", "sft", dataset, None, base)
        aligned = self.policy(name, "aligned", dataset, sft.sha256, base)
        policies = {"sft": sft.sha256, "aligned": aligned.sha256}
        if champion is not None:
            policies["champion"] = champion.tags["weights_sha256"]
        numbers = self._numbers(dataset, policies, {"sft": 0.4, "champion": 0.5, "aligned": quality})
        stable = {
            key: {
                field: value
                for field, value in record.to_json().items()
                if field not in ("uri", "base", "train_seconds")
            }
            for key, record in {"sft": sft, "aligned": aligned}.items()
        }
        page = self.folder / "made/report" / name
        page.mkdir(parents=True, exist_ok=True)
        (page / "report.json").write_text(json.dumps(numbers | {"provenance": {"Records and digests": stable}}))
        (page / "report.html").write_text("<p>report</p>")
        stored = self.store.put_folder(page, "report")
        report = EvaluationReport(stored.uri, stored.sha256, dataset.md5, policies, {}, [], "no difference")
        entry = register.run(register_config(), aligned, replace(report, **changes), dataset)
        return self.registry.find(f"tiny/{entry.version}")

    def _numbers(self, dataset: DatasetRef, policies: dict[str, str], quality: dict[str, float]) -> dict:
        test = load_split(self.workdir / "datasets" / dataset.md5.removesuffix(".dir"), "test")

        def responses(name: str) -> dict:
            # A little of each prompt's own, so that the paired differences have a variance.
            scores = [
                quality[name] + 0.02 * ((index * (3 if name == "aligned" else 7)) % 5) for index in range(len(test))
            ]
            ones = [1] * len(test)
            tuned = {"seed": 5, "temperature": 0.5, "num_tokens": ones, "num_characters": ones, "finished": ones}
            return {"tuned": tuned | {"scores": {"quality": scores}, "sets": {}}}

        return {
            "protocol": {"policies": policies, "dataset_md5": dataset.md5, "judges": {"quality": "c0de"}},
            "prompts": [{"id": row.id, "group": row.group, "cluster": row.group} for row in test],
            "responses": {name: responses(name) for name in policies},
            "likelihood": {"policies": {}, "characters": []},
        }


def config_of(stage: str) -> dict:
    step = {"aligned": "align"}.get(stage, stage)
    return {"step": step, "seed": 1, "code_sha256": "d" * 64, step: {"learning_rate": 0.5, "rounds": 3, "path": None}}


def register_config() -> dict:
    params = {"seed": 1, "sft": {"learning_rate": 0.5}}
    text = json.dumps([params], sort_keys=True)
    return {
        "seed": 1,
        "registry": {"name": "tiny", "alias": "challenger"},
        "params_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "params_json": text,
        "configs_json": json.dumps({"sft": config_of("sft"), "align": config_of("aligned")}),
    }


def write_keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """Write an ed25519 key pair as PEM; the same name gives the same key."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return private, public
