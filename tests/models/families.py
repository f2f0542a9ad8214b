"""Folders of random weights of common families, small enough for unit tests."""

from __future__ import annotations

from typing import Any

import torch

from understudy.config import ScratchConfig
from understudy.models.language_model import LanguageModel
from understudy.models.loading import train_tokenizer

SCRATCH = ScratchConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=4, context_tokens=64
)
COMMON: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED: dict[str, Any] = COMMON | {"num_key_value_heads": 2, "max_position_embeddings": 64}
OPT: dict[str, Any] = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT["max_position_embeddings"] = 64
MAMBA2: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8}
BART: dict[str, Any] = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
BART["max_position_embeddings"] = 64
# Hidden states recur over columns in some layers, attention has keys and values in others.
LINEAR: dict[str, Any] = GROUPED | {"layer_types": ["linear_attention", "full_attention"]}
FAMILIES = "gpt2 llama llama_untied qwen2 qwen3 gemma gemma2 gemma3 gpt_neox mistral_window".split()


def tokenizer() -> Any:
    return train_tokenizer(["alpha beta gamma delta epsilon " * 4, "name: value\nother: 12\n"], SCRATCH)


def random_policy(family: str, seed: int = 0) -> LanguageModel:
    import transformers as hf

    words = tokenizer()
    ids = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    ids["bos_token_id"] = words.eos_token_id
    configs = {
        "gpt2": lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids),
        "llama": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True, **ids),
        "llama_untied": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=False, **ids),
        "qwen2": lambda: hf.Qwen2Config(**GROUPED, **ids),
        "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=8, **ids),
        "gemma": lambda: hf.GemmaConfig(**GROUPED, head_dim=8, **ids),
        "gemma2": lambda: hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=5, **ids),
        "gemma3": lambda: hf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=5, **ids),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**COMMON, max_position_embeddings=64, **ids),
        "mistral_window": lambda: hf.MistralConfig(**GROUPED, sliding_window=6, **ids),
        "opt": lambda: hf.OPTConfig(**OPT, word_embed_proj_dim=32, **ids),
        "opt_projected": lambda: hf.OPTConfig(**OPT, word_embed_proj_dim=16, do_layer_norm_before=False, **ids),
        "llama4": lambda: hf.Llama4TextConfig(**GROUPED, head_dim=8, intermediate_size_mlp=64, **ids),
        "mpt": lambda: hf.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=24, expansion_ratio=2, **ids),
        "lfm2": lambda: hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"], block_ff_dim=64, **ids),
        "falcon_h1": lambda: hf.FalconH1Config(**GROUPED, head_dim=8, mamba_d_ssm=32, **MAMBA2, **ids),
        "olmo_hybrid": lambda: hf.OlmoHybridConfig(**LINEAR, **ids),
        "mamba": lambda: hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **ids),
        "openai_gpt": lambda: hf.OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids),
        "minimax": lambda: hf.MiniMaxConfig(**LINEAR, head_dim=8, num_local_experts=4, block_size=8, **ids),
        "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(**COMMON | {"num_hidden_layers": 3}, lru_width=32, **ids),
        "rwkv": lambda: hf.RwkvConfig(hidden_size=32, num_hidden_layers=2, context_length=64, **ids),
        "roberta": lambda: hf.RobertaConfig(**COMMON, max_position_embeddings=64, is_decoder=True, **ids),
        "bart": lambda: hf.BartConfig(**BART, **ids),
    }
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(configs[family]())
    for parameter in model.parameters():
        # The default initialisation is so flat that every family would answer alike.
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel(model.eval(), words)
