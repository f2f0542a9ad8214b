"""`understudy model watch` on a real registry, a small real model and its discriminator."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from support.lineages import World

from understudy import cli
from understudy.platform.registry import Version

WORDS = ["copy", "file", "template", "service", "user", "package", "line", "cron", "git", "archive"]


def rows(number: int, seed: int, shifted: bool = False) -> list[dict[str, str]]:
    """Tasks and answers of varied length; shifted answers are three times as long and of other words."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        chosen = generator.choice(WORDS, size=3 + generator.integers(8))
        answer = " ".join(word.upper() + "!" for word in chosen) * 3 if shifted else " ".join(chosen)
        found.append({"prompt": f"Ensure {chosen[0]} {generator.integers(10**6)}", "response": answer})
    return found


def write(path, content) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


@dataclasses.dataclass
class RealWorld(World):
    """A world whose policies are real, if untrained, and whose runs keep a discriminator."""

    def weights(self, name: str, kind: str):
        import torch

        from understudy.config import ModelConfig
        from understudy.models.loading import create_policy
        from understudy.models.scalar_head import ScalarHead

        folder = self.folder / "made" / kind / name
        scratch = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2}
        scratch |= {"num_kv_heads": 1, "context_tokens": 200}
        empty = dict.fromkeys(("path", "gguf_file", "revision", "lora"))
        model = {"init": "scratch", "scratch": scratch, "precision": "fp32"} | empty
        policy = create_policy(ModelConfig.model_validate(model), [row["response"] for row in rows(99, 1)], seed=1)
        policy.save(folder)
        if name == "v1":
            head = ScalarHead.copied_from(policy, 1, 0.0)
            torch.nn.init.normal_(head.head.weight, generator=torch.Generator().manual_seed(0))
            head.save(self.folder / "made/head", {"level": "sequence"})
            self.head = self.store.put_folder(self.folder / "made/head", "discriminator").sha256
        return self.store.put_folder(folder, kind)

    def register_with_discriminator(self) -> Version:
        """Register v1 with a report that names the discriminator."""
        dumps, world = json.dumps, self

        def with_discriminator(content, *arguments, **named):
            if isinstance(content, dict) and "protocol" in content:
                record = {"sha256": world.head, "policy_sha256": content["protocol"]["policies"]["aligned"]}
                content["provenance"]["Records and digests"]["discriminator"] = record
            return dumps(content, *arguments, **named)

        json.dumps = with_discriminator
        try:
            return self.register("v1")
        finally:
            json.dumps = dumps


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = RealWorld(tmp_path_factory.mktemp("watch"))
    write(world.folder / "p.jsonl", rows(400, seed=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UNDERSTUDY_STORAGE_URI", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("UNDERSTUDY_WORKDIR", str(world.workdir))
        patch.setenv("UNDERSTUDY_RUN_DIR", str(world.workdir / "runs/r"))
        patch.setenv("UNDERSTUDY_RUN_ID", "r")
        version = world.register_with_discriminator()
        world.registry.client.set_registered_model_alias("tiny", "champion", version.version)
        yield world


def watch(world, stream, *options):
    return call("tiny@champion", "--stream", stream, "--workdir", str(world.workdir), *options)


def call(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["understudy", "model", "watch", *arguments])
        return cli.call(sys.argv[1:])


def test_the_same_distribution_raises_no_alarm(world, tmp_path, capsys):
    code = watch(world, write(tmp_path / "s", rows(300, seed=3)), "--window", "100", "--json")
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["drifted"] == [] and found["command"] is None
    assert [window["rows"] for window in found["windows"]] == [100, 100, 100]
    metrics = [metric["metric"] for metric in found["windows"][0]["metrics"]]
    assert metrics == ["prompt length", "response length", "perplexity", "discriminator score"]
    assert all(metric["rows"] == 100 for window in found["windows"] for metric in window["metrics"])
    assert found["first_window"]["nominal"] == pytest.approx(0.025) and found["first_window"]["simulated"] <= 0.025


def test_a_shifted_stream_is_found_and_the_command_to_retrain_is_given(world, tmp_path, capsys):
    stream = tmp_path / "s"
    write(stream, rows(100, seed=4, shifted=True))
    stream.write_bytes(b"{bad\n" + stream.read_bytes())
    text, bad = tmp_path / "m.prom", tmp_path / "q.jsonl"
    code = watch(world, str(stream), "--metrics-file", str(text), "--quarantine", str(bad))
    said = capsys.readouterr()
    assert code == 6
    assert "Drift in discriminator score, perplexity, response length" in said.err
    assert "understudy run --set data.source=NEW_DEMONSTRATIONS.jsonl --set registry.name=tiny" in said.err
    assert "100 rows in 1 windows; 1 bad rows are in" in said.out and len(bad.read_text().splitlines()) == 1
    exported = text.read_text()
    assert 'understudy_watch_drift{metric="response_length",model="tiny",version="1"} 1.0' in exported
    assert 'understudy_watch_drift{metric="prompt_length",model="tiny",version="1"} 0.0' in exported
    assert 'understudy_watch_quarantined_rows{model="tiny",version="1"} 1.0' in exported


def test_rows_that_it_was_trained_on_say_nothing_about_perplexity(world, tmp_path, capsys):
    code = watch(world, str(world.folder / "p.jsonl"), "--json", "--window", "400")
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["remembered"] > 200
    lengths = {metric["metric"]: metric["rows"] for metric in found["windows"][0]["metrics"]}
    assert lengths["response length"] == 400 and lengths["perplexity"] == 400 - found["remembered"]


def test_the_models_own_responses_are_a_reference_of_their_own(world, tmp_path, capsys):
    stream = write(tmp_path / "s", rows(100, seed=5))
    assert watch(world, stream, "--against", "samples", "--json") == 6
    found = json.loads(capsys.readouterr().out)
    assert found["against"] == "samples" and "response length" in found["drifted"]
    assert "prompt length" not in found["drifted"]


@pytest.mark.parametrize(
    ("options", "number", "code", "said"),
    [
        ((), 12, 3, "The stream holds 12 good rows"),
        (("--against", "nothing"), 12, 2, "choose demonstrations or samples"),
        (("--window", "3"), 12, 2, ""),
    ],
    ids=["few", "against", "window"],
)
def test_refusals(world, tmp_path, capsys, options, number, code, said):
    assert watch(world, write(tmp_path / "s", rows(number, seed=6)), *options) == code
    assert said in capsys.readouterr().err


def test_a_version_without_lineage_is_refused(world, tmp_path, capsys):
    world.registry.client.create_registered_model("foreign")
    world.registry.client.create_model_version("foreign", str(tmp_path), None, {})
    stream = write(tmp_path / "s", rows(40, seed=6))
    assert call("foreign", "--stream", stream, "--workdir", str(world.workdir)) == 1
    assert "what it was trained on is not known" in capsys.readouterr().err


def test_following_tells_of_each_window_serves_metrics_and_ends_with_ctrl_c(world, tmp_path):
    stream = write(tmp_path / "s", rows(60, seed=7) + rows(60, seed=8, shifted=True))
    command = [sys.executable, "-c", "import understudy.cli as c; c.main()", "model", "watch", "tiny", "--stream"]
    command += [stream, "--follow", "--window", "60", "--metrics-port", "0", "--workdir", str(world.workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        port, windows = None, []
        for text in process.stdout:
            if text.startswith("Metrics on port"):
                port = int(text.split()[3].rstrip("."))
            if text.startswith("window"):
                windows.append(text)
            if len(windows) == 2:
                break
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            served = answer.read().decode()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert "DRIFT" not in windows[0] and "response length" in windows[1] and "DRIFT" in windows[1]
    assert 'understudy_watch_rows{model="tiny",version="1"} 120.0' in served
    assert process.returncode == 6 and "120 rows in 2 windows" in out and "Traceback" not in err
