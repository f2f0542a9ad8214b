"""The whole story on real servers (MLflow on PostgreSQL, S3, Git): from the first champion to the rollback.

Versions 1 to 3 are decided by the pipeline's last step, as in a schedule's runs; the repository is cloned from its
address and pushed back to, as a pod does it. Version 2 comes from `understudy run`; the others from the same steps
called in this process, which saves their starts, their MLflow runs and the longer SFT, and changes nothing about
promotion. People promote versions 4 to 6 and roll back by command line, those that race in processes of their own.

Better and worse are real: the expert's text gets likelier with more epochs of SFT, and the gate asks for that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.champions import PINS, SCHEDULE, git, pin, write_repository
from support.lineages import COMMIT, write_keys
from support.tiny import ROOT, run_command, tiny_params

from understudy import cli
from understudy.platform.promotion.decisions import read_decisions
from understudy.platform.promotion.places import S3Place
from understudy.platform.registry import Registry
from understudy.records import RegistryEntry

MODEL = "story"
CHAMPION = "k8s/apps/staging/champion.yaml"
GATE = {
    "confidence": 0.95, "power": 0.8, "minimum_groups": 8, "max_undecided": 0.05,
    "primaries_needed": "all", "no_champion": "accept",
    "primary": [{"metric": "nll", "minimum_improvement": 0.05, "detect": 0.2}],
    "guards": [{"metric": "judge:tiny", "decoding": "greedy", "margin": 0.3}],
    "provenance": {"allow_dirty_code": False, "require_signature": True},
}  # fmt: skip
WEAK, GOOD = ["sft.epochs=1"], ["sft.epochs=3", "sft.learning_rate=0.01"]
BEST = ["sft.epochs=10", "sft.learning_rate=0.01"]


class Story:
    """A project that trains on a bucket's demonstrations, its registry, and the repository it is deployed from."""

    def __init__(self, folder: Path, s3: Any, bucket: str, mlflow_uri: str) -> None:
        self.folder, self.s3, self.bucket, self.mlflow_uri = folder, s3, bucket, mlflow_uri
        self.workdir, self.remote, self.clone = folder / "work", folder / "remote.git", folder / "clone"
        source = str(ROOT / "examples/tiny/demonstrations.jsonl")
        s3.client().upload_file(source, bucket, "demonstrations/rows.jsonl")
        made = write_repository(folder / "made")
        git(folder, "clone", "--quiet", "--bare", str(made), str(self.remote))
        git(folder, "clone", "--quiet", str(self.remote), str(self.clone))
        for key, value in {"user.name": "Ann", "user.email": "ann@localhost"}.items():
            git(self.clone, "config", key, value)
        self.gate = folder / "gate.yaml"
        self.gate.write_text(yaml.safe_dump(GATE))
        private, public = write_keys(folder)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("UNDERSTUDY_", "MLFLOW_"))},
            **s3.environment,
            "UNDERSTUDY_WORKDIR": str(self.workdir),
            "UNDERSTUDY_STORAGE_URI": f"s3://{bucket}/store",
            "UNDERSTUDY_DVC_REMOTE": f"s3://{bucket}/dvc",
            "UNDERSTUDY_DEVICE": "cpu",
            "UNDERSTUDY_THREADS": "1",
            "UNDERSTUDY_GIT_COMMIT": COMMIT,
            "UNDERSTUDY_SIGNING_KEY": str(private),
            "UNDERSTUDY_TRUSTED_KEYS": str(public),
            "MLFLOW_TRACKING_URI": mlflow_uri,
            "MLFLOW_EXPERIMENT_NAME": bucket,
            "NO_COLOR": "1",
        }
        self.settings = [
            f"data.source=s3://{bucket}/demonstrations", f"registry.name={MODEL}", "evaluation.max_prompts=100",
            "evaluation.max_response_tokens=6",
            f"storage.uri=s3://{bucket}/store", f"storage.dvc_remote=s3://{bucket}/dvc", f"tracking.uri={mlflow_uri}",
            f"storage.endpoint_url={s3.endpoint}", f"tracking.experiment={bucket}",
        ]  # fmt: skip

    def scheduled(self, *overrides: str) -> dict[str, Any]:
        """Run the pipeline with a last step that decides; return its word and the registered version."""
        command = run_command(self.workdir, *self.settings, *self.promotion, *overrides, options=("--json",))
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads(done.stdout)
        told = result["records"]["promote"]["promotion"]
        assert told["version"] == result["records"]["register"]["entry"]["version"]
        assert json.loads((Path(result["run_dir"]) / "outcome.json").read_text())["promotion"] == told
        return dict(told)

    def decided(self, *overrides: str) -> dict[str, Any]:
        """The same in this process: train, register, and let the last step decide."""
        from pipelines.arguments import arguments
        from understudy.platform.steps import from_kfp, promote

        (entry,) = self.trained(overrides[-1], sft=list(overrides[:-1]))
        given = arguments(tiny_params(*self.settings, *self.promotion))["promote_config"]
        return promote.run(from_kfp(given), entry).to_json()

    @property
    def promotion(self) -> list[str]:
        return ["promotion.enabled=true", f"promotion.gate={self.gate}", f"promotion.gitops=file://{self.remote}"]

    def trained(self, *variants: str, sft: list[str]) -> list[RegistryEntry]:
        """Register one version per variant of align, on the same SFT; each is evaluated against the champion now."""
        from pipelines.arguments import arguments
        from understudy.platform.steps import align, champion, evaluate, from_kfp, ingest, register
        from understudy.platform.steps import sft as sft_step
        from understudy.records import PolicyRef

        entries, dataset, warm = [], None, None
        for variant in variants:
            given = from_kfp(arguments(tiny_params(*self.settings, *sft, variant)))
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("MLFLOW_TRACKING_URI")
                dataset = dataset or ingest.run(given["ingest_config"])
                warm = warm or sft_step.run(given["sft_config"], dataset)
                aligned, judge = align.run(given["align_config"], dataset, warm)
            policies = {"sft": warm, "aligned": aligned}
            if text := champion.run(given["champion_config"], aligned):
                policies["champion"] = PolicyRef.from_json(json.loads(text))
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("MLFLOW_TRACKING_URI")
                report = evaluate.run(given["evaluate_config"], dataset, policies, judge)
            entries.append(register.run(given["register_config"], aligned, report, dataset))
        return entries

    def call(self, *arguments: str) -> int:
        """Call a command of `understudy model` here."""
        return cli.call(["model", *arguments, "--workdir", str(self.workdir)])

    def promotion_of(self, version: str) -> tuple[str, ...]:
        deployed = ("--gitops", str(self.clone), "--push", "origin")
        return ("promote", f"{MODEL}/{version}", "--gate", str(self.gate), *deployed)

    def promote_beside(self, version: str) -> subprocess.Popen[str]:
        line = [
            sys.executable,
            "-m",
            "understudy",
            "model",
            *self.promotion_of(version),
            "--workdir",
            str(self.workdir),
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, env=self.environment, cwd=ROOT, **pipes)

    def state(self) -> dict[str, Any]:
        """What anyone sees: aliases, the deployed content, and the whole tree of the repository."""
        manifest = yaml.safe_load(git(self.remote, "show", f"main:{CHAMPION}"))
        notes = manifest["metadata"]["annotations"]
        found = Registry(self.mlflow_uri, self.workdir).client.get_registered_model(MODEL).aliases
        return {
            "champion": found.get("champion"),
            "previous": found.get("previous"),
            "served": (notes["understudy.dev/version"], notes["serving.kserve.io/stop"]),
            "uri": manifest["spec"]["predictor"]["model"]["storageUri"],
            "tree": git(self.remote, "rev-parse", "main^{tree}"),
        }

    def uri(self, version: str) -> str:
        return Registry(self.mlflow_uri, self.workdir).find(f"{MODEL}/{version}").tags["weights_uri"]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, error = process.communicate(timeout=200)
    return process.returncode, out + error


@pytest.mark.slow
@pytest.mark.e2e
def test_from_the_first_champion_to_the_rollback(s3_server, s3_bucket, mlflow_uri, tmp_path, monkeypatch, capsys):
    story = Story(tmp_path, s3_server, s3_bucket, mlflow_uri)
    for name, value in story.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["understudy", "model"])

    first = story.decided(*WEAK, "align.learning_rate=0.00005")
    assert (first["outcome"], first["champion"], first["previous"]) == ("promoted", "1", None)
    assert first["commit"] == git(story.remote, "rev-parse", "main")
    assert story.state()["uri"] == story.uri("1") and story.uri("1").startswith(f"s3://{s3_bucket}/store/policy/")

    second = story.scheduled(*GOOD)
    assert (second["outcome"], second["champion"], second["previous"]) == ("promoted", "2", "1")
    after_second = story.state()
    assert after_second["served"] == ("2", "false") and after_second["uri"] == story.uri("2")

    third = story.decided(*GOOD, "align.learning_rate=0.00001")
    assert (third["outcome"], third["verdict"], third["version"]) == ("refused", "fail", "3")
    assert "story/3 is not promoted: the gate's verdict is fail" in third["reason"] and "nll" in third["reason"]
    assert (third["champion"], third["commit"]) == ("2", None) and story.state() == after_second

    # A person moves the schedule on; then two versions, both better than the champion, are promoted at once.
    git(story.clone, "pull", "--quiet")
    pin(story.clone, PINS["2"])
    git(story.clone, "push", "--quiet")
    challengers = story.trained("align.learning_rate=0.00002", "align.learning_rate=0.00003", sft=BEST)
    assert [entry.version for entry in challengers] == ["4", "5"]
    both = {version: story.promote_beside(version) for version in ("4", "5")}
    said = {version: ended(process) for version, process in both.items()}
    winner, loser = sorted(said, key=lambda version: said[version][0])
    assert (said[winner][0], said[loser][0]) == (0, 4), said
    assert f"it was compared with champion {digest(story, '2')}" in said[loser][1]
    assert f"the champion is now version {winner}" in said[loser][1]
    after_race = story.state()
    assert (after_race["champion"], after_race["previous"]) == (winner, "2")
    assert after_race["uri"] == story.uri(winner) and PINS["2"] in git(story.remote, "show", f"main:{SCHEDULE}")

    # Version 6 was changed in the bucket after its registration: no numbers and no person promote it.
    (sixth,) = story.trained("align.learning_rate=0.00004", sft=[*BEST[1:], "sft.epochs=30"])
    assert sixth.version == "6"
    key = f"store/policy/{Path(story.uri('6')).name}/model.safetensors"
    body = bytearray(s3_server.client().get_object(Bucket=s3_bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    s3_server.client().put_object(Bucket=s3_bucket, Key=key, Body=bytes(body))
    capsys.readouterr()
    assert story.call(*story.promotion_of("6"), "--approve", "I insist.") == 4
    assert "- integrity: policy aligned: s3://" in capsys.readouterr().err and story.state() == after_race

    deployed = ("--gitops", str(story.clone), "--push", "origin", "--reason", "Version 4 or 5 was too much.")
    assert story.call("rollback", MODEL, *deployed) == 0
    assert story.state() == after_second

    told = git(story.remote, "log", "--reverse", "--format=%s", "main").splitlines()
    assert told == [
        "Cluster state",
        "Promote story none -> 1",
        "Promote story 1 -> 2",
        f"Retrain with {PINS['2']}",
        f"Promote story 2 -> {winner}",
        f"Roll back story {winner} -> 2",
    ]
    decisions = read_decisions(S3Place(f"s3://{s3_bucket}/store/promotion/{MODEL}"))
    assert [(item.transition.kind, item.transition.state_after.champion) for item in decisions] == [
        ("promote", "1"), ("promote", "2"), ("promote", winner), ("rollback", "2"),
    ]  # fmt: skip
    bodies = git(story.remote, "log", "--reverse", "--format=%B", "main")
    for item in decisions:
        assert f"Decision-Record: {item.number} sha256:{item.sha256}" in bodies
    evidence = decisions[1].transition.evidence
    (rule,) = [rule for rule in evidence["decision"]["rules"] if rule["kind"] == "primary"]
    assert rule["verdict"] == "pass" and rule["low"] > 0.05 and evidence["signed_by"]
    assert story.call("verify", f"{MODEL}@champion") == 0 and f"{MODEL}/2 verifies." in capsys.readouterr().out


def digest(story: Story, version: str) -> str:
    return Registry(story.mlflow_uri, story.workdir).find(f"{MODEL}/{version}").tags["weights_sha256"][:12]
