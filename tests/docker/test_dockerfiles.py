"""The Dockerfiles: hadolint, and the rules that it does not know."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
FORBIDDEN_IN_FINAL = re.compile(r"\b(gcc|g\+\+|build-essential|cmake|-dev|pip install|curl|wget|git)\b")
TARGETS = {"steps.Dockerfile": ["steps"], "train.Dockerfile": ["train", "train-vllm"]}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return (instruction, rest) with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word
    ]


def stages(text: str) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Return stage name → (what it starts from, its instructions)."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] = []
    for word, rest in instructions(text):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = []
            found[name] = (base, current)
        else:
            current.append((word, rest))
    return found


def problems(text: str, targets: list[str]) -> list[str]:
    """Return what is wrong with a Dockerfile as text; each rule is broken once below."""
    found = []
    every = stages(text)
    for word, rest in instructions(text):
        if word == "ARG" and "_IMAGE=" in rest and not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", rest):
            found.append(f"{rest}: not a tag with a digest")
        if word == "ADD":
            found.append("ADD: use COPY")
        if word in ("ARG", "ENV") and re.search(r"(TOKEN|PASSWORD|SECRET|_KEY)\w*=\S", rest):
            found.append(f"{rest}: a secret in the image's history")
    for target in targets:
        chain, name = [], target
        while name in every:
            chain = every[name][1] + chain
            name = every[name][0]
        if not name.startswith("${"):
            found.append(f"{target}: starts from {name}, not from an argument with a digest")
        words = dict(chain)
        if words.get("USER") != "10001:10001":
            found.append(f"{target}: runs as {words.get('USER', 'root')}")
        after_user = [word for word, _ in chain[[word for word, _ in chain].index("USER") :]] if "USER" in words else []
        if "RUN" in after_user:
            found.append(f"{target}: runs something after USER")
        for word, rest in chain:
            if word == "RUN" and FORBIDDEN_IN_FINAL.search(rest):
                found.append(f"{target}: the final stage has {FORBIDDEN_IN_FINAL.search(rest)[0]}")  # type: ignore[index]
            if word == "RUN" and "apt-get install" in rest and "rm -rf /var/lib/apt/lists" not in rest:
                found.append(f"{target}: leaves apt's lists")
            if word == "COPY" and not rest.startswith("--from="):
                found.append(f"{target}: copies from the context past the builder")
        labels = " ".join(rest for word, rest in chain if word == "LABEL")
        for label in ("title", "licenses", "version", "revision", "source"):
            if f"org.opencontainers.image.{label}=" not in labels:
                found.append(f"{target}: no label {label}")
        environment = " ".join(rest for word, rest in chain if word == "ENV")
        for variable in ("UNDERSTUDY_WORKDIR", "HOME", "TMPDIR", "HF_HOME", "MPLCONFIGDIR", "DVC_SITE_CACHE_DIR"):
            if f"{variable}=/var/understudy" not in environment:
                found.append(f"{target}: {variable} is not below /var/understudy")
        revisions = [rest for word, rest in chain if word == "ARG" and rest.partition("=")[0] == "REVISION"]
        if revisions != ["REVISION=unknown"] or "UNDERSTUDY_GIT_COMMIT=${REVISION}" not in environment.split():
            found.append(f"{target}: does not know its commit")
        if not any("/usr/share/sbom" in rest for word, rest in chain if word == "COPY"):
            found.append(f"{target}: no SBOM")
        if words.get("ENTRYPOINT") != '["understudy"]' or words.get("CMD") != '["--help"]':
            found.append(f"{target}: does not show its help by default")
    for word, rest in instructions(text):
        if word == "RUN" and "pip" in rest and "--requirement" in rest and "--constraint constraints.txt" not in rest:
            found.append("pip installs without constraints.txt")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_dockerfile_keeps_the_rules(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8"), TARGETS[path.name]) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_is_content(path: Path) -> None:
    tool = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert tool is not None, "hadolint is not installed; `make test` installs it with the development packages"
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("USER 10001:10001\n", "", "runs as root"),
        ("USER 10001:10001", "USER root", "runs as root"),
        ("@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b", "", "not a tag with a digest"),
        ("FROM ${PYTHON_IMAGE} AS steps", "FROM python:3.11 AS steps", "not from an argument"),
        ("      --constraint constraints.txt --requirement", "      --requirement", "without constraints.txt"),
        ("COPY --from=sbom /sbom /usr/share/sbom\n", "", "no SBOM"),
        ("COPY --from=builder /app /app", "COPY . /app", "past the builder"),
        ("RUN dpkg-query", "RUN pip install x && dpkg-query", "the final stage has pip install"),
        ("    TMPDIR=/var/understudy \\\n", "", "TMPDIR is not below"),
        ("ENV PATH", "ENV HF_TOKEN=abc\nENV PATH", "a secret in the image's history"),
        ("org.opencontainers.image.revision", "revision", "no label revision"),
        ("WORKDIR /app\n", "WORKDIR /app\nADD https://example.com/x /x\n", "ADD: use COPY"),
        ("    UNDERSTUDY_GIT_COMMIT=${REVISION} \\\n", "", "does not know its commit"),
        ("ARG REVISION=unknown\n", "", "does not know its commit"),
        ('CMD ["--help"]', 'CMD ["run"]', "does not show its help"),
        ("USER 10001:10001\n", "USER 10001:10001\nRUN true\n", "runs something after USER"),
    ],
)
def test_each_rule_is_caught(old: str, new: str, message: str) -> None:
    text = (ROOT / "docker" / "steps.Dockerfile").read_text(encoding="utf-8")
    assert old in text
    assert any(message in problem for problem in problems(text.replace(old, new), ["steps"]))


def test_context_is_an_allow_list_that_holds_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert {"pyproject.toml", "constraints.txt", "gate.yaml"} <= allowed
    assert {"understudy", "components", "pipelines", "examples"} <= allowed
    assert not {name for name in allowed if name.startswith((".git", ".understudy", ".venv"))}


def test_build_script_is_valid_and_says_what_is_missing(tmp_path: Path) -> None:
    script = ROOT / "docker" / "build.sh"
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", str(script)]).returncode == 0
    for name in ("dirname", "sed", "git", "cat"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run([bash, str(script)], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 5
    assert "install buildah or podman" in done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the build script, and a builder that writes down what it is told."""
    folder = tmp_path / "checkout"
    (folder / "docker").mkdir(parents=True)
    for name in ("docker/build.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    builder = tmp_path / "builder"
    builder.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
    builder.chmod(0o755)
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def told_revision(checkout: Path) -> str:
    """Run the build script; return the REVISION that it gives to the builder."""
    calls = checkout.parent / "calls"
    calls.unlink(missing_ok=True)
    environment = {**os.environ, "BUILDER": str(checkout.parent / "builder")}
    subprocess.run([str(checkout / "docker/build.sh"), "steps"], env=environment, check=True, capture_output=True)
    (revision,) = re.findall(r"--build-arg REVISION=(\S+)", calls.read_text())
    return str(revision)


def test_the_build_tells_the_commit_and_whether_the_context_differs_from_it(checkout: Path) -> None:
    assert told_revision(checkout) == "unknown"
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    assert told_revision(checkout) == commit
    (checkout / "new.py").touch()
    assert told_revision(checkout) == f"{commit}-dirty"
    (checkout / "new.py").unlink()
    (checkout / "pyproject.toml").open("a").write("# changed\n")
    assert told_revision(checkout) == f"{commit}-dirty"


def test_the_build_does_not_tell_the_commit_of_a_repository_around_it(checkout: Path) -> None:
    (checkout.parent / ".gitignore").write_text("checkout\n")
    git(checkout.parent, "init", "--quiet")
    git(checkout.parent, "add", ".gitignore")
    git(checkout.parent, "commit", "--quiet", "-m", "another project")
    assert told_revision(checkout) == "unknown"
