"""Where a policy comes from: a new small model, a Hugging Face folder or name, or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from understudy.config import LoraConfig, ModelConfig, OwnTrunkConfig, ScratchConfig
from understudy.errors import ConfigError
from understudy.models.batching_check import refuse_unless_batched_as_alone
from understudy.models.language_model import LanguageModel

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


def create_policy(config: ModelConfig, training_texts: Iterable[str], seed: int) -> LanguageModel:
    """Return the policy that SFT starts from.

    Args:
        config: the `model` section.
        training_texts: texts of the training split; read only when a tokenizer is trained.
        seed: of the initial weights.

    Raises:
        ConfigError: the folder, name or file cannot be loaded, with what was tried and the remedy, or holds a model
            that computes something else in a batch.
    """
    if config.init == "scratch":
        assert config.scratch is not None
        tokenizer = train_tokenizer(training_texts, config.scratch)
        policy = LanguageModel(_scratch_model(config.scratch, tokenizer, seed), tokenizer)
    else:
        policy = _load_pretrained(config)
    if config.lora is not None:
        policy = with_lora(policy, config.lora, seed)
    return policy


def load_policy(folder: Path | str) -> LanguageModel:
    """Load a policy that an earlier step wrote, or a local Hugging Face folder.

    Weights are float32; lower precision is a matter of autocast in the loops.

    Raises:
        ConfigError: the folder cannot be loaded, or holds a model that computes something else in a batch.
    """
    return _from_pretrained(str(folder))


def train_tokenizer(texts: Iterable[str], config: ScratchConfig) -> Any:
    """Train a byte-level BPE tokenizer with a chat template; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=SPECIAL_TOKENS[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=config.context_tokens,
        clean_up_tokenization_spaces=False,
    )


def with_lora(policy: LanguageModel, config: LoraConfig, seed: int) -> LanguageModel:
    """Return the policy with low-rank adapters; only they are trained.

    Raises:
        ConfigError: they would stand on a weight that embedding and output layer share.
    """
    import peft

    torch.manual_seed(seed)
    targets = config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules)
    adapters = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    ties = policy.unwrapped.get_input_embeddings().weight is policy.unwrapped.get_output_embeddings().weight
    adapted = LanguageModel(peft.get_peft_model(policy.model, adapters), policy.tokenizer)
    if ties:
        _refuse_adapted_ties(adapted.unwrapped)
    return adapted


def _refuse_adapted_ties(model: Any) -> None:
    """Refuse adapters that merging would fold into a weight that another layer, which has none of them, reads too."""
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    named = {module: name.rpartition(".")[2] for name, module in model.named_modules() if module in tied}
    if not (wrong := " and ".join(named[module] for module in tied if hasattr(module, "base_layer"))):
        return
    raise ConfigError(
        f"model.lora.target_modules puts adapters on {wrong}, but {' and '.join(named.values())} share one weight in "
        f"this model ({model.config.model_type}), so what is saved would not be what was trained; leave {wrong} out, "
        "as all-linear does, or name a model with tie_word_embeddings=false."
    )


def _scratch_model(config: ScratchConfig, tokenizer: Any, seed: int) -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    shape = _llama_config(config, config.num_kv_heads, len(tokenizer), config.context_tokens, tokenizer)
    return LlamaForCausalLM(shape)


def create_backbone(config: OwnTrunkConfig, layout: LanguageModel) -> Any:
    """A new decoder without an output layer, for the tokens of `layout`; weights by torch's global generator."""
    from transformers import LlamaModel

    return LlamaModel(_llama_config(config, config.num_heads, layout.num_ids, layout.context_tokens, layout.tokenizer))


def _llama_config(
    config: ScratchConfig | OwnTrunkConfig, num_kv_heads: int, num_ids: int, context_tokens: int, tokenizer: Any
) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=num_ids,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _load_pretrained(config: ModelConfig) -> LanguageModel:
    assert config.path is not None
    return _from_pretrained(
        config.path,
        **({"gguf_file": config.gguf_file} if config.gguf_file else {}),
        **({"revision": config.revision} if config.revision else {}),
    )


def _from_pretrained(path: str, **arguments: Any) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments["trust_remote_code"] = False  # left open, transformers asks whoever sits at the terminal
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **arguments)
        kind = _unpacked() if "gguf_file" in arguments else {"use_safetensors": True}
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **kind, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"model {path!r} comes with code of its own, and such code is never run. Name a model whose "
                "architecture transformers has itself."
            ) from error
        raise ConfigError(
            f"model {path!r} cannot be loaded as a causal language model: {error}. "
            "Name a folder with config.json, safetensors weights and a tokenizer, or a model in the local cache."
        ) from error
    if "gguf_file" in arguments:
        _forget_quantization(model)
    policy = LanguageModel(model, tokenizer)
    refuse_unless_batched_as_alone(policy)
    return policy


def _unpacked() -> dict[str, Any]:
    """Options that turn the blocks of a GGUF file into plain weights, which can be trained."""
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


def _forget_quantization(model: Any) -> None:
    """Let transformers train and save plain weights that came from a GGUF file as what they are."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
