"""A scalar (or a few) per response token on a language model's backbone: discriminator, reward model, value.

Shapes: B sequences, T response columns, H hidden width, n outputs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from understudy.errors import ConfigError, IntegrityError
from understudy.models.language_model import LanguageModel, TokenBatch
from understudy.models.packed_decoder import reading
from understudy.models.packing import Packed
from understudy.models.refused_writes import refused_as_os_error


class ScalarHead(nn.Module):
    """Backbone, dropout and a linear head that starts at zero, so that nothing is preferred at first.

    The output at a response position has read the prompt and the response up to and including that token.
    """

    def __init__(self, backbone: nn.Module, layout: LanguageModel, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        # What sharding asks a model for: the layers that are gathered one at a time.
        self._no_split_modules = getattr(backbone, "_no_split_modules", None)
        self.dropout = nn.Dropout(dropout)
        hidden_size = backbone.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
        self.head = nn.Linear(hidden_size, num_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # In a list so that the policy is not registered as a part of this module.
        self._layout = [layout]
        self._adapted: list[Any] = []

    @classmethod
    def copied_from(cls, policy: LanguageModel, num_outputs: int, dropout: float) -> ScalarHead:
        """A head on an own, trainable copy of the policy's backbone.

        Raises:
            ConfigError: the model has no backbone that can be taken out.
        """
        _refuse_without_trunk(policy)
        if hasattr(policy.model, "merge_and_unload"):
            # `base_model` of a model with adapters is their wrapper; the copy starts with them folded in.
            backbone = copy.deepcopy(policy.model).merge_and_unload().requires_grad_(True).base_model
        else:
            backbone = copy.deepcopy(policy.model.base_model)
        return cls(cast(nn.Module, backbone), policy, num_outputs, dropout)

    @classmethod
    def shared_with(cls, reference: LanguageModel, rank: int, num_outputs: int, dropout: float) -> ScalarHead:
        """A head on the frozen reference's backbone with its own low-rank adapters: one trunk in memory.

        From now on the reference must be read inside `reference.without_adapters()`.

        Raises:
            ConfigError: the model has no backbone that can be taken out.
        """
        import peft

        _refuse_without_trunk(reference)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(reference.model, config)
        reference.model = adapted
        module = cls(cast(nn.Module, adapted.get_base_model().base_model), reference, num_outputs, dropout)
        module._adapted = [adapted]
        return module

    def forward(self, batch: TokenBatch, before: bool = False) -> Tensor:
        """Outputs at each response token, float32, shape (B, T, n).

        With `before`, the output of the column before each token: it has read the state in which that token is chosen.
        """
        if batch.packed is not None:
            hidden_BTH = self._packed_hidden(batch, batch.packed, before)
            return cast(Tensor, self.head(dropped(self.dropout, hidden_BTH, batch)).float())
        arguments = self._layout[0].forward_arguments(batch.attention_BS)
        hidden_BSH = self.backbone(input_ids=batch.ids_BS, use_cache=False, **arguments).last_hidden_state
        first = batch.prompt_columns - int(before)
        hidden_BTH = hidden_BSH[:, first : first + batch.response_BT.shape[1]]
        # As in the packed layout, where padding does not exist.
        hidden_BTH = hidden_BTH.masked_fill(~batch.mask_BT[..., None], 0.0)
        return cast(Tensor, self.head(dropped(self.dropout, hidden_BTH, batch)).float())

    def _packed_hidden(self, batch: TokenBatch, packed: Packed, before: bool) -> Tensor:
        with reading(packed, self.backbone) as arguments:
            hidden_NH = self.backbone(**arguments, use_cache=False).last_hidden_state[0]
        hidden_MH = hidden_NH.index_select(0, packed.before_M if before else packed.token_M)
        return packed.unpack(hidden_MH, batch.response_BT)

    def save(self, folder: Path, description: dict[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
        """Write config.json, model.safetensors (adapters merged) and description.json.

        Args:
            folder: to write to, created.
            description: what the outputs mean.
            weights: the whole weights by name, where this module holds only shards of them.
        """
        backbone: Any = self.backbone
        if self._adapted:
            backbone = copy.deepcopy(self._adapted[0]).merge_and_unload().base_model
        named = {f"backbone.{name}": value for name, value in backbone.named_parameters()}
        named |= {f"head.{name}": value for name, value in self.head.named_parameters()}
        described = {"num_outputs": self.head.out_features, **description}
        write_described(folder, "model.safetensors", named, described, weights)
        backbone.config.save_pretrained(folder)


def _refuse_without_trunk(policy: LanguageModel) -> None:
    """Refuse a model whose `base_model` does not end in hidden states as wide as its config says."""
    model, config = policy.unwrapped, policy.unwrapped.config
    if model.base_model is not model and policy.hidden_size == config.get_text_config().hidden_size:
        return
    raise ConfigError(
        f"a head needs the trunk of the policy, and of a model of type {config.model_type!r} transformers does not "
        "give it apart from the output layer and at its config's hidden_size. For a discriminator set "
        "align.discriminator.init to shared_trunk, ngrams or own; for a value network or a judge name another model."
    )


def write_described(
    folder: Path,
    file: str,
    own: Mapping[str, Tensor],
    described: Mapping[str, Any],
    whole: Mapping[str, Tensor] | None,
) -> None:
    """Write weights and description.json into a folder, which is created.

    Args:
        folder: to write to.
        file: of the weights.
        own: the module's weights by name.
        described: what description.json says.
        whole: the whole weights by name, where the module holds only shards of its own.

    Raises:
        OSError: the disk refuses the write.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: (whole or own)[name] for name in own}
    with refused_as_os_error(folder / file):
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / file)
    (folder / "description.json").write_text(json.dumps(described, indent=1, sort_keys=True), encoding="utf-8")


def load_weights(module: nn.Module, folder: Path, file: str, described_by: str) -> None:
    """Load weights into a module that was built as another file of the folder says.

    Raises:
        IntegrityError: a weight is missing, unknown or of another shape.
    """
    from safetensors.torch import load_file

    weights = load_file(folder / file)
    here = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if wrong := sorted(name for name in here | found if here.get(name) != found.get(name)):
        raise IntegrityError(
            f"{folder}: {file} does not fit {described_by}: {', '.join(wrong[:3])}. Run the align step again."
        )
    module.load_state_dict(weights)


def dropped(dropout: nn.Dropout, hidden_BTH: Tensor, batch: TokenBatch) -> Tensor:
    """Dropout drawn for the whole batch, so that it does not depend on who runs which of its rows."""
    if not dropout.training or dropout.p == 0:
        return hidden_BTH
    num_rows, first = batch.num_whole or batch.num_rows, batch.first_row
    factor_BTH: Tensor = dropout(hidden_BTH.new_ones(num_rows, *hidden_BTH.shape[1:]))
    return hidden_BTH * factor_BTH[first : first + batch.num_rows]


def load_scalar_head(folder: Path, layout: LanguageModel) -> ScalarHead:
    """Load what `save` wrote from a copied backbone.

    Raises:
        IntegrityError: the weights do not fit the configuration.
    """
    from transformers import AutoConfig, AutoModel

    description = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    from_config: Any = AutoModel.from_config
    backbone = from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), dtype=torch.float32)
    module = ScalarHead(backbone, layout, description["num_outputs"], dropout=0.0)
    load_weights(module, folder, "model.safetensors", "config.json")
    return module
