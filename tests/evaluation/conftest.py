"""Policies that are random functions of the reference, so that evaluation is tested without a model."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from understudy.config import EvaluationConfig
from understudy.data.demonstrations import Demonstration
from understudy.evaluation.evaluate import evaluate
from understudy.evaluation.result import Sample

MODULES = ["copy", "file", "template", "service", "user", "apt", "lineinfile", "cron", "git", "unarchive"]


class FakeModels:
    """Corrupts each word of the reference with a probability that is the policy's error rate times temperature."""

    def __init__(self, errors: dict[str, float]) -> None:
        self.errors = errors
        self.calls: list[tuple[str, str, int]] = []

    def sample(self, policy, demonstrations, decoding, seed):
        self.calls.append((policy, decoding.name, seed))
        generator = np.random.default_rng([seed, int(hashlib.sha256(policy.encode()).hexdigest()[:8], 16)])
        rate = self.errors[policy] * (0.6 if decoding.greedy else decoding.temperature)
        samples = []
        for row in demonstrations:
            words = row.response.split(" ")
            broken = generator.random(len(words)) < rate
            words = ["oops" if bad and word.strip() else word for word, bad in zip(words, broken, strict=True)]
            length = len(words) + 1
            samples.append(Sample(" ".join(words), length, bool(generator.random() > rate), tuple(range(length))))
        return samples

    def expert_logps(self, policy, demonstrations):
        counts = np.asarray([len(row.response.split()) + 1.0 for row in demonstrations])
        return -counts * (1 + self.errors[policy]), counts

    def sample_logps(self, policy, demonstrations, samples):
        return [np.full(sample.num_tokens, -1 - self.errors[policy]) for sample in samples]


class NoOops:
    name = "no_oops"

    def scores(self, prompts, responses, references):
        return np.asarray([float("oops" not in response) for response in responses])


def make_demonstrations(num_rows: int, start: int = 0) -> list[Demonstration]:
    generator = np.random.default_rng(start)
    rows = []
    for index in range(start, start + num_rows):
        module = MODULES[int(generator.integers(len(MODULES)))]
        lines = [f"- name: Task {index}", f"  ansible.builtin.{module}:"]
        lines += [f"    option_{int(generator.integers(9))}: {int(generator.integers(99))}" for _ in range(4)]
        response = "\n".join(lines)
        prompt = f"Ensure that {module} {index} is configured"
        rows.append(
            Demonstration(str(index), f"g{index // 2}", ({"role": "user", "content": prompt},), prompt, response)
        )
    return rows


def make_config(**changes) -> EvaluationConfig:
    values = {
        "max_prompts": 80,
        "max_response_tokens": 64,
        "temperatures": (0.3, 0.7),
        "judges": ({"name": "no_oops", "kind": "callable", "target": "x.py:f"},),
        "tuning_judge": "no_oops",
        "confidence": 0.95,
        "samples_shown": 5,
    }
    return EvaluationConfig.model_validate(values | changes)


@pytest.fixture(scope="session")
def fakes():
    """The builders above, as one namespace."""
    return namespace()


def namespace():
    """Return the builders above."""

    class Fakes:
        Models, Judge = FakeModels, NoOops
        demonstrations, config = staticmethod(make_demonstrations), staticmethod(make_config)

        @staticmethod
        def result(errors=None, judged=True, num_test=80, **changes):
            errors = errors or {"base": 0.9, "sft": 0.04, "aligned": 0.04, "sft_longer": 0.04}
            return evaluate(
                make_config(**changes),
                seed=7,
                policies=list(errors),
                models=FakeModels(errors),
                test=make_demonstrations(num_test),
                validation=make_demonstrations(40, start=1000),
                judges=[NoOops()] if judged else [],
                brief={"base": 10},
            )

    return Fakes
