"""A Hugging Face causal language model as a policy, with one token layout for training and sampling.

Shapes: B sequences, P prompt columns, T response columns, S = P + T, V vocabulary.
Layout of a batch: prompts end at column P (padded on the left), responses start there (padded on the right),
so that response logits are the contiguous columns P-1 … S-2 for every architecture.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jinja2 import TemplateError
from torch import Tensor

from understudy.errors import ConfigError
from understudy.models.architecture import CONTEXT_FIELDS, is_plain_decoder
from understudy.models.logps import answering_logps, chosen_logps, head_logps
from understudy.models.packed_decoder import reading
from understudy.models.packing import Packed, pack
from understudy.models.refused_writes import refused_as_os_error
from understudy.models.text_encoder import TextEncoder

Message = dict[str, str]


@dataclass(frozen=True)
class Seen:
    """What a frozen model saw in responses, float32, zero where masked.

    Attributes:
        hidden_BUH: last hidden states from the prompt's last token to the response's last, U = T + 1.
        logp_BT: log-probability of each response token.
    """

    hidden_BUH: Tensor
    logp_BT: Tensor

    def part(self, rows: slice) -> Seen:
        """Some consecutive rows."""
        return Seen(self.hidden_BUH[rows], self.logp_BT[rows])


@dataclass(frozen=True)
class TokenBatch:
    """Prompts and responses in the common layout; `mask_BT` marks response tokens, EOS included.

    Attributes:
        ids_BS: prompt and response ids.
        attention_BS: 1 where a column is not padding.
        response_BT: response ids.
        mask_BT: response tokens.
        first_row: where these rows begin in the batch that they are a part of.
        num_whole: rows of that batch; None: these are all.
        packed: the same tokens without padding, where the model can read them so.
        seen: what a frozen model saw in them (`LanguageModel.read`), where that is known already.
    """

    ids_BS: Tensor
    attention_BS: Tensor
    response_BT: Tensor
    mask_BT: Tensor
    first_row: int = 0
    num_whole: int | None = None
    packed: Packed | None = None
    seen: Seen | None = None

    @property
    def num_rows(self) -> int:
        """Sequences, B."""
        return self.ids_BS.shape[0]

    def part(self, rows: slice) -> TokenBatch:
        """Some consecutive rows, padded as in the whole."""
        if rows == slice(0, self.num_rows):
            return self
        columns = (self.ids_BS[rows], self.attention_BS[rows], self.response_BT[rows], self.mask_BT[rows])
        seen = self.seen and self.seen.part(rows)
        return TokenBatch(*columns, self.first_row + rows.start, self.num_whole or self.num_rows, seen=seen)

    @property
    def prompt_columns(self) -> int:
        """Columns before the first response token, P."""
        return self.ids_BS.shape[1] - self.response_BT.shape[1]

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_BS.sum())


class LanguageModel:
    """A causal LM with its tokenizer, and how prompts, responses and the end of a response are written.

    Args:
        model: a Hugging Face causal LM (or its peft wrapper).
        tokenizer: its tokenizer; must have an EOS token. That is the padding, too, which is always masked by position,
            never by id; a tokenizer's own padding token may be missing, or have no embedding in the model.

    Raises:
        ConfigError: the tokenizer has no EOS, without which stopping can neither be learned nor sampled, or its chat
            template fails or does not write the assistant's words as they are.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "The tokenizer has no EOS token, so the end of a response cannot be learned. "
                "Set eos_token in its tokenizer_config.json to the token that ends a turn."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.end_token_id: int = _end_of_turn_id(tokenizer)
        self.pad_token_id = int(tokenizer.eos_token_id)
        self.context_tokens = _context_tokens(model, tokenizer)
        parameters = inspect.signature(_inner(model).forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        # Log-probabilities are made from the head's weights: one with adapters of its own must be called.
        self.packs = (
            self._takes_logits_to_keep
            and is_plain_decoder(_inner(model), self.context_tokens)
            and type(_inner(model).get_output_embeddings()) is torch.nn.Linear
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast("torch.device", next(self.model.parameters()).device)

    @cached_property
    def _text(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.end_token_id)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the response begins, by the chat template if there is one.

        Raises:
            UnencodableText: the template refuses it, or it names a control token that cannot be written as plain text.
        """
        if self.tokenizer.chat_template:
            return self._text.chat(messages, add_generation_prompt=True)
        text = "\n\n".join(message["content"] for message in messages) + "\n"
        return self._text.text(text, self.tokenizer.bos_token or "")

    def encode_response(self, response: str) -> list[int]:
        """Token ids of a response, the end token last and nowhere else.

        Raises:
            UnencodableText: it names a control token that cannot be written as plain text.
        """
        return [*self._text.text(response), self.end_token_id]

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of response ids; the end token, which need not be special, and special tokens are left out."""
        ids = list(response_ids)
        if ids[-1:] == [self.end_token_id]:
            ids.pop()
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def batch(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> TokenBatch:
        """Lay out prompts and responses on the model's device."""
        num_prompt = max(len(ids) for ids in prompts)
        num_response = max(len(ids) for ids in responses)
        shape = (len(prompts), num_prompt + num_response)
        ids_BS = torch.full(shape, self.pad_token_id, dtype=torch.long)
        attention_BS = torch.zeros(shape, dtype=torch.long)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            start, end = num_prompt - len(prompt), num_prompt + len(response)
            ids_BS[row, start:end] = torch.tensor([*prompt, *response], dtype=torch.long)
            attention_BS[row, start:end] = 1
        ids_BS, attention_BS = ids_BS.to(self.device), attention_BS.to(self.device)
        packs = self.packs and all(prompts) and all(responses)
        return TokenBatch(
            ids_BS,
            attention_BS,
            ids_BS[:, num_prompt:],
            attention_BS[:, num_prompt:].bool(),
            packed=pack(prompts, responses, self.device) if packs else None,
        )

    def forward_arguments(self, attention_BS: Tensor) -> dict[str, Tensor]:
        """Attention mask, and positions counted from the first real token where the model takes them."""
        arguments = {"attention_mask": attention_BS}
        if self._takes_positions:
            arguments["position_ids"] = (attention_BS.cumsum(-1) - 1).clamp(min=0)
        return arguments

    def keep_arguments(self, columns: Tensor | int) -> dict[str, Any]:
        """Ask for logits of some columns only, where the model can."""
        return {"logits_to_keep": columns} if self._takes_logits_to_keep else {}

    def response_logits(self, batch: TokenBatch, module: Any = None) -> Tensor:
        """Next-token logits at each response position, float32, shape (B, T, V).

        Args:
            batch: prompts and responses.
            module: call this instead of `self.model`, for example its distributed wrapper.
        """
        return self._logits(batch, batch.response_BT.shape[1], module)

    def _logits(self, batch: TokenBatch, num_columns: int, module: Any = None) -> Tensor:
        """Logits of some columns from the prompt's last token on, float32, shape (B, num_columns, V)."""
        first = batch.prompt_columns - 1
        columns = torch.arange(first, first + num_columns, device=batch.ids_BS.device)
        logits = (module or self.model)(
            input_ids=batch.ids_BS,
            use_cache=False,
            **self.forward_arguments(batch.attention_BS),
            **self.keep_arguments(columns),
        ).logits
        if logits.shape[1] != num_columns:
            logits = logits[:, first : first + num_columns]
        return cast(Tensor, logits.float())

    def response_logps(self, batch: TokenBatch, module: Any = None) -> Tensor:
        """Log-probability of each response token, zero where masked, shape (B, T)."""
        if batch.packed is None:
            return token_logps(self.response_logits(batch, module), batch)
        packed, caller = batch.packed, module if module is not None else self.model
        id_M = packed.ids_N[packed.token_M]
        with reading(packed, self.unwrapped) as arguments:
            inner = self.unwrapped
            head = inner.get_output_embeddings()
            # Distributed wrappers and sharded weights must be called as a whole.
            if caller is self.model and not hasattr(head.weight, "full_tensor"):
                hidden_NH = inner.base_model(**arguments, use_cache=False).last_hidden_state[0]
                logp_M = head_logps(hidden_NH.index_select(0, packed.before_M), head.weight, head.bias, id_M)
            else:
                with answering_logps(head, id_M):
                    answer = caller(**arguments, use_cache=False, **self.keep_arguments(packed.before_M))
                logp_M = answer.logits[0, :, 0].float()
        return packed.unpack(logp_M, batch.response_BT)

    @property
    def unwrapped(self) -> Any:
        """The Hugging Face model itself, its adapters in place, without the wrapper that put them there."""
        return _inner(self.model)

    @property
    def num_ids(self) -> int:
        """Token ids that the model can read and write; the tokenizer may have fewer."""
        return int(self.unwrapped.get_input_embeddings().weight.shape[0])

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden states, which the output layer reads, H."""
        return int(self.unwrapped.get_output_embeddings().weight.shape[1])

    @torch.no_grad()
    def read(self, batch: TokenBatch) -> Seen:
        """What the model without its adapters sees in the responses."""
        training = self.model.training
        self.model.eval()
        try:
            with self.without_adapters():
                hidden_BUH, logp_BT = (
                    self._read(batch) if batch.packed is None else self._read_packed(batch.packed, batch)
                )
        finally:
            self.model.train(training)
        mask_BU = torch.nn.functional.pad(batch.mask_BT, (1, 0), value=True)
        # Float32, because the penalty is computed from the log-probability.
        return Seen(
            hidden_BUH.float().masked_fill(~mask_BU[..., None], 0.0), logp_BT.float().masked_fill(~batch.mask_BT, 0.0)
        )

    def _read(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        # What the output layer reads is the one hidden state that is wanted: asking for them all would keep every
        # layer's, and not every model calls its backbone as a whole.
        head = self.unwrapped.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        num_columns = batch.response_BT.shape[1] + 1
        try:
            logits_BUV = self._logits(batch, num_columns)
        finally:
            hook.remove()
        # The last column's logits are nobody's: cutting them off would copy all others.
        id_BU = torch.nn.functional.pad(batch.response_BT, (0, 1))
        return found[0][:, -num_columns:], chosen_logps(logits_BUV, id_BU)[:, :-1]

    def _read_packed(self, packed: Packed, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        with reading(packed, self.unwrapped) as arguments:
            hidden_NH = self.unwrapped.base_model(**arguments, use_cache=False).last_hidden_state[0]
        before_MH = hidden_NH.index_select(0, packed.before_M)
        head = self.unwrapped.get_output_embeddings()
        logp_M = head_logps(before_MH, head.weight, head.bias, packed.ids_N[packed.token_M])
        before_BTH, after_BTH, logp_BT = (
            packed.unpack(value, batch.response_BT)
            for value in (before_MH, hidden_NH.index_select(0, packed.token_M), logp_M)
        )
        return torch.cat([before_BTH[:, :1], after_BTH], dim=1), logp_BT

    def without_adapters(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the model is the frozen one that its adapters were added to."""
        if hasattr(self.model, "disable_adapter"):
            return cast("contextlib.AbstractContextManager[None]", self.model.disable_adapter())
        return contextlib.nullcontext()

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a plain Hugging Face folder (safetensors); adapters are merged into the weights.

        Args:
            folder: to write to.
            weights: the whole weights by name, where the model holds only shards of them.

        Raises:
            OSError: the disk refuses the write.
        """
        model = self.model
        if hasattr(model, "merge_and_unload"):
            # A copy, so that a run can go on training after it saved.
            model = copy.deepcopy(model).merge_and_unload()
        self._save(model, folder, **({"state_dict": dict(weights)} if weights else {}))

    def save_unadapted(self, folder: Path) -> None:
        """Write the model without its adapters, as a plain Hugging Face folder; OSError as `save`."""
        self._save(_unadapted(self.model), folder)

    def _save(self, model: Any, folder: Path, **arguments: Any) -> None:
        with refused_as_os_error(folder):
            model.save_pretrained(folder, safe_serialization=True, **arguments)
        self.tokenizer.save_pretrained(folder)


def _unadapted(model: Any) -> Any:
    """The model that adapters were added to, as it was; a copy where there are any."""
    return copy.deepcopy(model).unload() if hasattr(model, "merge_and_unload") else model


def token_logps(logits_BTV: Tensor, batch: TokenBatch) -> Tensor:
    """Log-probability of each response token under logits, zero where masked, shape (B, T)."""
    return chosen_logps(logits_BTV, batch.response_BT).masked_fill(~batch.mask_BT, 0.0)


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _context_tokens(model: Any, tokenizer: Any) -> int:
    config = _inner(model).config.get_text_config()
    limits = [getattr(config, name, None) for name in CONTEXT_FIELDS]
    limits.append(tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None)
    return min([int(limit) for limit in limits if limit], default=2048)


def _end_of_turn_id(tokenizer: Any) -> int:
    """The special token that the chat template writes after an assistant turn, else EOS.

    A template that does not write the turn's words as they are is refused, not taken to end by EOS: the model was not
    trained to end so, and a template that leaves out the answer, as one for lists of parts, leaves out the prompt too.

    Raises:
        ConfigError: the template fails, or writes other words.
    """
    eos = int(tokenizer.eos_token_id)
    if not tokenizer.chat_template:
        return eos
    marker = "understudy-marker"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": marker}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        raise ConfigError(
            f"The tokenizer's chat template cannot write a user's turn and its answer: {error}. Correct chat_template "
            "in the model's folder, or name a model whose template can."
        ) from error
    _, written, end = text.rpartition(marker)
    if not written:
        raise ConfigError(
            f"The tokenizer's chat template does not write an answer as it is: of the answer {marker!r} it makes "
            f"{text!r}. Correct chat_template in the model's folder, or take it out: then prompts are plain text and "
            "responses end by EOS."
        )
    after = tokenizer(end.lstrip(), add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    return int(after[0]) if after and after[0] in special else eos
