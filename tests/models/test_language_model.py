"""What is read off a model and its tokenizer: padding, the length of the context, the end of a turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.families import random_policy, tokenizer
from tokenizers import AddedToken

from understudy.errors import ConfigError
from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel

PROMPTS, RESPONSES = [[5, 9, 12], [6]], [[8, 9, 10], [10]]
TURNS = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"


def with_template(template: str, words: Any = None) -> LanguageModel:
    words = words or tokenizer()
    words.chat_template = template
    return LanguageModel(random_policy("llama").model, words)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_padding_token_that_the_model_has_no_row_for_changes_nothing(family: str) -> None:
    plain = random_policy(family)
    words = tokenizer()
    words.add_special_tokens({"pad_token": "[PAD]"})
    policy = LanguageModel(plain.model, words)
    assert words.pad_token_id == policy.num_ids
    settings, batch = SamplingSettings(4, greedy=True), plain.batch(PROMPTS, RESPONSES)
    found, expected = (generate(each, PROMPTS, settings, torch.Generator(), 2) for each in (policy, plain))
    assert found.responses == expected.responses
    logp_BT = policy.response_logps(policy.batch(PROMPTS, RESPONSES))
    torch.testing.assert_close(logp_BT, plain.response_logps(batch))


def test_a_context_is_as_long_as_the_config_says_by_whatever_name() -> None:
    import transformers as hf

    words = tokenizer()
    words.model_max_length = 10**30
    assert LanguageModel(random_policy("mpt").model, words).context_tokens == 24
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 48, "vocab_size": len(words)}
    sight = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = hf.Gemma3Config(text_config=text, vision_config=sight | {"image_size": 28, "patch_size": 14})
    model = hf.AutoModelForCausalLM.from_config(shape)
    assert LanguageModel(model, words).context_tokens == 48


def test_an_end_of_turn_that_is_no_special_token_is_no_part_of_the_text() -> None:
    words = tokenizer()
    words.add_tokens([AddedToken("<turn_end>", special=False, normalized=False)])
    policy = with_template(TURNS + "<turn_end>{% endfor %}", words)
    ids = policy.encode_response("alpha beta")
    assert words.convert_ids_to_tokens(ids[-1]) == "<turn_end>"
    assert policy.decode(ids) == policy.decode(ids[:-1]) == "alpha beta"
    assert policy.decode(ids[-1:]) == policy.decode([]) == ""


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}<|user|>{{ message['content'] | upper }}<|end|>{% endfor %}",
        "{% for message in messages if message['role'] == 'user' %}<|user|>{{ message['content'] }}{% endfor %}",
        # As multimodal models' templates, which want a list of parts.
        "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_write_the_answer_as_it_is_is_refused(template: str) -> None:
    said = "does not write an answer as it is: of the answer 'understudy-marker' it makes .* Correct chat_template"
    with pytest.raises(ConfigError, match=said):
        with_template(template)


def test_a_template_may_end_a_turn_by_the_name_of_the_next_or_by_nothing() -> None:
    opened = TURNS + "{% endfor %}{% if not add_generation_prompt %}<|user|>{% endif %}"
    for template, end in ((opened, "<|user|>"), (TURNS + "{% endfor %}", "<|end|>")):
        policy = with_template(template)
        assert policy.tokenizer.convert_ids_to_tokens(policy.end_token_id) == end
