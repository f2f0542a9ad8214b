"""A version walks back to its raw source, and a byte that was changed anywhere on the way is found."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import sys

import pytest
from support.lineages import COMMIT, World, write_keys

from understudy import cli
from understudy.errors import ConfigError, IntegrityError
from understudy.platform.lineage import provenance, signing
from understudy.platform.lineage.artifacts import CopiedArtifacts
from understudy.platform.lineage.walk import walk


def clean_environment(patch) -> None:
    for name in list(os.environ):
        if name.startswith(("UNDERSTUDY_", "MLFLOW_", "AWS_", "DVC_")):
            patch.delenv(name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One signed version, registered by the register step itself."""
    made = World(tmp_path_factory.mktemp("world"))
    private, _ = write_keys(made.folder)
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        patch.setenv("UNDERSTUDY_WORKDIR", str(made.workdir))
        patch.setenv("UNDERSTUDY_RUN_ID", "run-1")
        patch.setenv("UNDERSTUDY_GIT_COMMIT", COMMIT)
        patch.setenv("UNDERSTUDY_SIGNING_KEY", str(private))
        made.version = made.register("first")
    return made


@pytest.fixture(autouse=True)
def trusting(world, monkeypatch):
    clean_environment(monkeypatch)
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", str(world.folder / "key.pub"))


@pytest.fixture(scope="module")
def copies(world):
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        assert call("verify", "tiny@challenger", "--workdir", world.workdir, "--copy", world.folder / "copies") == 0
    return world.folder / "copies"


def call(*arguments) -> int:
    command = ["model", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["understudy", *command])
        return cli.call(command)


def test_the_tree_names_every_link(world, capsys):
    assert call("verify", "tiny@challenger", "--workdir", world.workdir, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    links = {}

    def flatten(node, above=""):
        path = f"{above}/{node['kind']}"
        links[path] = node["status"]
        for child in node["children"]:
            flatten(child, path)

    flatten(found["tree"])
    assert found["verified"] and links == {
        "/model": "ok",
        "/model/lineage": "ok",
        "/model/signature": "ok",
        "/model/policy": "ok",
        "/model/policy/config": "ok",
        "/model/policy/dataset": "ok",
        "/model/policy/dataset/source": "ok",
        "/model/policy/policy": "ok",
        "/model/policy/policy/config": "ok",
        "/model/policy/policy/base": "ok",
        "/model/report": "ok",
        "/model/params": "ok",
        "/model/code": "noted",
    }
    assert call("verify", "tiny@challenger", "--workdir", world.workdir) == 0
    shown = capsys.readouterr().out
    assert "✓ policy aligned" in shown and "tiny/1 verifies." in shown and COMMIT[:12] in shown


def test_copies_verify_without_registry_store_and_network(copies, world, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "elsewhere"
    shutil.copytree(copies, moved)
    hidden = world.folder.rename(world.folder.with_name("hidden"))
    try:
        monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", str(hidden / "key.pub"))
        assert call("verify", "--artifacts", moved, "--strict") == 0
    finally:
        hidden.rename(world.folder)
    assert "tiny/1 verifies." in capsys.readouterr().out


def test_100_random_flips_are_100_found(copies, tmp_path):
    """Half of them anywhere, half with each file as likely as any other, so that small files are met too."""
    generator = random.Random(0)
    files = sorted(path for path in copies.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    missed, kinds = [], set()
    for number in range(100):
        (path,) = generator.choices(files, weights=sizes) if number % 2 else [generator.choice(files)]
        whole = path.read_bytes()
        at = generator.randrange(len(whole))
        bit = 1 << generator.randrange(8)
        path.chmod(0o644)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        kinds.add(path.relative_to(copies).parts[0])
        if not is_found(copies, tmp_path / str(number)):
            missed.append((path.relative_to(copies), at, bit))
        path.write_bytes(whole)
    assert missed == []
    assert kinds == {
        "version.json", "registered", "lineage", "policy", "base", "report", "provenance", "dvc", "source",
    }  # fmt: skip
    assert not is_found(copies, tmp_path / "whole")


def is_found(copies, scratch) -> bool:
    scratch.mkdir()
    try:
        return bool(walk(CopiedArtifacts(copies, scratch)).damaged)
    except (IntegrityError, ConfigError):
        return True


def test_a_missing_or_added_file_is_found(copies, tmp_path):
    for path in sorted(path for path in copies.rglob("*") if path.is_file()):
        aside = path.rename(tmp_path / "aside")
        # A source may be gone (--strict says so), and a base's manifest follows from its files.
        kind = path.relative_to(copies).parts[0]
        may_be_gone = kind == "source" or (kind == "base" and path.name == "manifest.json")
        assert is_found(copies, tmp_path / f"{path.name}-{path.parent.name}") != may_be_gone, path
        aside.rename(path)
    added = next((copies / "policy").iterdir()) / "more.json"
    added.write_text("{}")
    assert is_found(copies, tmp_path / "added")
    added.unlink()


@pytest.mark.parametrize(
    "tag", ["metrics", "dataset_md5", "git_dirty", "registered_sha256", "lineage_sha256", "weights_sha256"]
)
def test_a_tag_that_was_changed_in_the_registry_is_found(world, tag, capsys):
    client = world.registry.client
    before = client.get_model_version("tiny", "1").tags[tag]
    client.set_model_version_tag("tiny", "1", tag, "0" + before[1:] if before[0] != "0" else "1" + before[1:])
    try:
        assert call("verify", "tiny@challenger", "--workdir", world.workdir) == 1
    finally:
        client.set_model_version_tag("tiny", "1", tag, before)
    assert "tiny/1 does not verify" in capsys.readouterr().err


def test_a_signature_that_was_taken_away_is_refused_when_strict(world, monkeypatch, capsys):
    client = world.registry.client
    tags = client.get_model_version("tiny", "1").tags
    for name in ("provenance_uri", "provenance_sha256"):
        client.delete_model_version_tag("tiny", "1", name)
    try:
        assert call("verify", "tiny@challenger", "--workdir", world.workdir) == 0
        assert call("verify", "tiny@challenger", "--workdir", world.workdir, "--strict") == 1
        assert "(signature provenance)" in capsys.readouterr().err
        monkeypatch.delenv("UNDERSTUDY_TRUSTED_KEYS")
        assert call("verify", "tiny@challenger", "--workdir", world.workdir, "--strict") == 0
    finally:
        for name in ("provenance_uri", "provenance_sha256"):
            client.set_model_version_tag("tiny", "1", name, tags[name])


def test_damage_names_the_file_and_both_digests(world, capsys):
    (file,) = world.workdir.glob(f"store/policy/{world.version.tags['weights_sha256']}/model.safetensors")
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(b"\0" + whole[1:])
    try:
        assert call("verify", "tiny@challenger", "--workdir", world.workdir, "--json") == 1
    finally:
        file.write_bytes(whole)
    said = capsys.readouterr()
    assert "(policy aligned)" in said.err
    (policy,) = [child for child in json.loads(said.out)["tree"]["children"] if child["kind"] == "policy"]
    assert "model.safetensors has sha256" in policy["detail"] and "its manifest names" in policy["detail"]


def test_a_source_that_is_gone_is_told_and_refused_when_strict(world, capsys):
    source = world.folder / "p.jsonl"
    aside = source.rename(world.folder / "gone")
    try:
        assert call("verify", "tiny@challenger", "--workdir", world.workdir) == 0
        assert "1 not kept here could not be checked" in capsys.readouterr().out
        assert call("verify", "tiny@challenger", "--workdir", world.workdir, "--strict") == 1
    finally:
        aside.rename(source)


def test_the_provenance_is_an_in_toto_statement_in_a_dsse_envelope(world, capsys):
    assert call("provenance", "tiny@challenger", "--workdir", world.workdir) == 0
    envelope = json.loads(capsys.readouterr().out)
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    assert statement["subject"][0] == {"name": "tiny", "digest": {"sha256": world.version.tags["weights_sha256"]}}
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"seed": 1, "sft": {"learning_rate": 0.5}}
    assert [item["name"] for item in definition["resolvedDependencies"]] == [
        "policy:sft", "base", "dataset", "source", "code",
    ]  # fmt: skip
    assert definition["resolvedDependencies"][4]["digest"] == {"gitCommit": COMMIT}
    assert statement["predicate"]["runDetails"]["metadata"]["invocationId"] == "run-1"


def test_the_provenance_as_json_says_of_what_it_is_and_whether_it_is_signed(world, tmp_path, capsys):
    assert call("provenance", "tiny@challenger", "--workdir", world.workdir) == 0
    envelope = json.loads(capsys.readouterr().out)
    file = tmp_path / "provenance.json"
    for more, output in (((), None), (("--output", file), str(file))):
        assert call("provenance", "tiny@challenger", "--workdir", world.workdir, "--json", *more) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {"model": "tiny/1", "signed": True, "output": output, "provenance": envelope}
    assert json.loads(file.read_text()) == envelope


def test_the_signature_follows_the_specification(tmp_path, monkeypatch):
    """DSSE's own example: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md."""
    monkeypatch.setattr(signing, "PAYLOAD_TYPE", "http://example.com/HelloWorld")
    assert signing._authenticated(b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_another_key_or_another_payload_does_not_verify(world, copies, tmp_path, monkeypatch, capsys):
    _, stranger = write_keys(tmp_path, "stranger")
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", str(stranger))
    assert call("verify", "tiny@challenger", "--workdir", world.workdir) == 1
    assert "None of the 1 trusted keys" in capsys.readouterr().out
    # Signed by the right key, about something else.
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", str(world.folder / "key.pub"))
    monkeypatch.setenv("UNDERSTUDY_SIGNING_KEY", str(world.folder / "key.pem"))
    key = signing.signing_key()
    envelope = json.dumps(signing.sign(b"{}", key)).encode()
    assert signing.verify(envelope, signing.trusted_keys())[0] == b"{}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "payload", lambda *arguments: b"{}!")
        assert call("verify", "tiny@challenger", "--workdir", world.workdir) == 1
    assert "What was signed is about another version" in " ".join(capsys.readouterr().out.split())


def test_keys_of_another_kind_are_refused(tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    key = generate_private_key(SECP256R1())
    path = tmp_path / "ec.pem"
    path.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    monkeypatch.setenv("UNDERSTUDY_SIGNING_KEY", str(path))
    with pytest.raises(ConfigError, match="holds another kind of key; expected ed25519"):
        signing.signing_key()
    path.write_text("secret words")
    with pytest.raises(ConfigError, match="holds no usable private key") as caught:
        signing.signing_key()
    assert "secret words" not in str(caught.value)


def test_keys_come_as_text_too_as_a_pods_secrets_do(tmp_path, monkeypatch):
    (private, public), (_, stranger) = write_keys(tmp_path), write_keys(tmp_path, "stranger")
    monkeypatch.setenv("UNDERSTUDY_SIGNING_KEY", private.read_text())
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", stranger.read_text() + public.read_text())
    envelope = json.dumps(signing.sign(b"{}", signing.signing_key())).encode()
    assert len(signing.trusted_keys()) == 2
    assert signing.verify(envelope, signing.trusted_keys()) == (b"{}", signing.key_id(signing.trusted_keys()[1]))
    cut = private.read_text()[:60]
    for name, read in (("SIGNING_KEY", signing.signing_key), ("TRUSTED_KEYS", signing.trusted_keys)):
        monkeypatch.setenv(f"UNDERSTUDY_{name}", cut)
        with pytest.raises(ConfigError, match="the variable holds no") as caught:
            read()
        assert cut[30:55] not in str(caught.value)
