"""Text that people wrote as token ids: control tokens come from the layout of a conversation, never from such text.

A text may well name "<|end|>": a question about chat formats does, and so does who wants to forge a turn. Its ids are
then those of the characters. Ids of text without the name of any added token are what the tokenizer gives by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from understudy.errors import UnencodableText


class TextEncoder:
    """Encodes texts and conversations by one tokenizer.

    Args:
        tokenizer: of any Hugging Face model.
        end_token_id: what ends a response, if not EOS; it need not be a special token.
    """

    def __init__(self, tokenizer: Any, end_token_id: int | None = None) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, end_token_id}
        special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special), *ends}
        # Ordinary text may give an unknown or a padding token, and neither ends or begins anything.
        self._control_ids = special - ({tokenizer.unk_token_id, tokenizer.pad_token_id} - ends)
        # Longest first, so that an error names the whole token; some models add runs of line breaks as tokens.
        names = sorted({token.content for token in added.values() if token.content.strip()}, key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def text(self, text: str, begin: str = "") -> list[int]:
        """Ids of a text, after those of the control token `begin`, if any.

        Raises:
            UnencodableText: the tokenizer has no other ids for a control token that is named in the text.
        """
        if self._added.search(text) is None:
            ids = self._ids(begin + text)
        else:
            ids = [*self._ids(begin), *self._ids(text, split_special_tokens=True)]
        if control := self._control_ids.intersection(ids[len(self._ids(begin)) :]):
            raise _as_control_token(self._tokenizer.convert_ids_to_tokens(min(control)))
        return ids

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> list[int]:
        """Ids of a conversation as the tokenizer's chat template writes it.

        Raises:
            UnencodableText: the template refuses the conversation, or as for a text.
        """
        apply = self._tokenizer.apply_chat_template
        conversation = [dict(message) for message in messages]
        named = next(filter(None, (self._added.search(message["content"]) for message in messages)), None)
        try:
            if named is None:
                text = apply(conversation, add_generation_prompt=add_generation_prompt, tokenize=False)
                return self._ids(text)
            arguments = {"sanitize_control_tokens": True, "return_dict": False}
            return list(apply(conversation, add_generation_prompt=add_generation_prompt, **arguments))
        except TemplateError as error:
            raise UnencodableText(f"the chat template refuses the conversation: {error}") from error
        except ValueError as error:
            if named is None:
                raise
            raise _as_control_token(named[0]) from error

    def _ids(self, text: str, **arguments: Any) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, **arguments)["input_ids"]) if text else []


def _as_control_token(token: str) -> UnencodableText:
    return UnencodableText(f"contains the control token {token!r}, which this tokenizer cannot write as plain text")
