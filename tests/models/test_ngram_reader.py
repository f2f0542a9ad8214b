from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.families import random_policy
from safetensors.torch import load_file, save_file

from understudy.config import load_params
from understudy.errors import ConfigError, IntegrityError
from understudy.models.discriminator import load_discriminator
from understudy.models.language_model import TokenBatch
from understudy.models.ngram_reader import GAIN, LENGTH_GAIN, NGramReader, length_buckets

PROMPTS, RESPONSES = [[5, 6], [7], [5, 6]], [[8, 9, 8, 9, 10], [10], [9, 8, 9]]
PARAMS = Path(__file__).parents[2] / "params.yaml"


def _reader(orders: tuple[int, int] = (2, 3), dropout: float = 0.0) -> NGramReader:
    reader = NGramReader(num_outputs=2, orders=orders, num_buckets=4096, dropout=dropout)
    torch.manual_seed(0)
    torch.nn.init.normal_(reader.table.weight)
    return reader


def _ngram(response: list[int], end: int, order: int) -> tuple[int | None, ...]:
    """Tokens of the n-gram that ends at a token; None before the first."""
    return tuple(response[at] if at >= 0 else None for at in range(end - order + 1, end + 1))


def test_ngrams_that_are_equal_share_a_bucket_and_no_others() -> None:
    bucket_BTK = _reader().buckets(random_policy("llama").batch(PROMPTS, RESPONSES))
    assert bucket_BTK.shape == (3, 5, 2)
    found: dict[tuple[int | None, ...], set[int]] = {}
    for row, response in enumerate(RESPONSES):
        for end in range(len(response)):
            for at, order in enumerate((2, 3)):
                found.setdefault(_ngram(response, end, order), set()).add(int(bucket_BTK[row, end, at]))
    assert len(found[8, 9]) == 1 and len(found[None, 10]) == 1
    buckets = [bucket for shared in found.values() for bucket in shared]
    assert len(buckets) == len(set(buckets)) == len(found) == 14


@pytest.mark.parametrize(("buckets", "step"), [(1_000_003, 1), (262_144, 47_822), (4096, 1)])
def test_tokens_are_spread_over_the_buckets_whatever_their_distance(buckets: int, step: int) -> None:
    """Of 3,000 n-grams as many buckets are used as by chance, within five standard errors (once in 10^6 seeds)."""
    reader, num = NGramReader(1, (3, 5), buckets, dropout=0.0), 3000
    response_BT = torch.full((num, 5), 9)
    response_BT[:, 2] = torch.arange(num) * step % 151_936
    mask_BT = torch.ones_like(response_BT, dtype=torch.bool)
    bucket_BTK = reader.buckets(TokenBatch(response_BT, mask_BT.long(), response_BT, mask_BT))
    unused = (1 - 1 / buckets) ** num
    expected = buckets * (1 - unused)
    variance = buckets * unused * (1 - unused) + buckets * (buckets - 1) * ((1 - 2 / buckets) ** num - unused**2)
    for at in range(3):
        assert len(bucket_BTK[:, 4, at].unique()) > expected - 5 * max(1.0, variance) ** 0.5


def test_the_output_is_the_mean_weight_of_the_ngrams_so_far_whoever_else_is_in_the_batch() -> None:
    reader, policy = _reader(), random_policy("llama")
    torch.nn.init.constant_(reader.bias, 0.25)
    batch = policy.batch(PROMPTS, RESPONSES)
    whole, bucket_BTK = reader(batch), reader.buckets(batch)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for end in range(len(response)):
            seen = bucket_BTK[row, : end + 1].flatten()
            expected = GAIN * reader.table.weight[seen].mean(dim=0) + 0.25
            torch.testing.assert_close(whole[row, end], expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(reader(policy.batch([prompt], [response]))[0], whole[row, : len(response)])


def test_with_lengths_a_weight_of_the_number_of_tokens_so_far_joins_and_comes_back_from_disk(tmp_path: Path) -> None:
    policy, torch_seed = random_policy("llama"), 3
    reader = NGramReader(2, (2, 3), 4096, dropout=0.0, lengths=True)
    batch = policy.batch(PROMPTS, RESPONSES)
    assert reader.lengths is not None and float(reader(batch).detach().abs().max()) == 0
    torch.manual_seed(torch_seed)
    torch.nn.init.normal_(reader.lengths.weight)
    whole = reader(batch)
    for row, response in enumerate(RESPONSES):
        for end in range(len(response)):
            expected = LENGTH_GAIN * reader.lengths.weight[length_buckets(torch.ones(1, end + 1).bool())[0, end]]
            torch.testing.assert_close(whole[row, end], expected)
    reader.save(tmp_path, {"level": "sequence"})
    assert torch.equal(load_discriminator(tmp_path, policy)(batch), whole)


def test_lengths_share_a_bucket_when_they_are_within_15_percent() -> None:
    number_T = length_buckets(torch.ones(1, 9000, dtype=torch.bool))[0].tolist()
    assert number_T[:6] == [0, 5, 8, 10, 12, 13] and number_T == sorted(number_T) and number_T[-1] == 63
    for bucket in range(15, 63):  # from eight tokens on
        members = [length for length, found in enumerate(number_T, 1) if found == bucket]
        assert 1 <= members[-1] / members[0] < 1.15


def test_it_tells_responses_apart_by_the_parts_that_only_one_side_writes() -> None:
    reader, policy = NGramReader(1, (2, 3), 4096, dropout=0.1), random_policy("llama")
    generator = torch.Generator().manual_seed(1)
    # Both write the same tokens as often; the expert never puts 9 after 8.
    expert = [[8, 10, 9, 10][: 2 + int(torch.randint(3, (), generator=generator))] for _ in range(40)]
    other = [[8, 9, 10, 10][: 2 + int(torch.randint(3, (), generator=generator))] for _ in range(40)]
    assert float(reader(policy.batch([[5]], [expert[0]])).detach().abs().max()) == 0
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-4)
    for _ in range(40):
        logit_high, logit_low = (reader(policy.batch([[5]] * 40, some))[:, -1, 0] for some in (expert, other))
        loss = torch.nn.functional.softplus(-logit_high).mean() + torch.nn.functional.softplus(logit_low).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reader.eval()
    for unknown in ([11, 12], [11, 12, 13, 14, 15, 16]):
        batch = policy.batch([[7]] * 2, [[8, 10, *unknown], [8, 9, *unknown]])
        high, low = reader(batch)[:, -1, 0].detach().tolist()
        assert high > 0 > low


def test_dropout_is_that_of_the_whole_batch_whoever_runs_the_rows() -> None:
    reader, batch = _reader(dropout=0.5).train(), random_policy("llama").batch(PROMPTS, RESPONSES)
    torch.manual_seed(1)
    whole = reader(batch)
    assert not torch.allclose(whole, reader(batch))
    for rows in (slice(0, 1), slice(1, 3)):
        torch.manual_seed(1)
        torch.testing.assert_close(reader(batch.part(rows)), whole[rows])


def test_it_comes_back_from_its_folder_and_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    policy = random_policy("llama")
    _reader().save(tmp_path, {"level": "sequence"})
    batch = policy.batch(PROMPTS, RESPONSES)
    assert torch.equal(load_discriminator(tmp_path, policy)(batch), _reader()(batch))
    tensors = load_file(tmp_path / "ngrams.safetensors")
    save_file(tensors | {"table.weight": torch.zeros(64, 2)}, tmp_path / "ngrams.safetensors")
    with pytest.raises(IntegrityError, match=r"does not fit description.json: table.weight. Run the align step again"):
        load_discriminator(tmp_path, policy)


def test_orders_that_fall_are_refused() -> None:
    with pytest.raises(ConfigError, match="ngram_orders go from 8 down to 4 tokens; give the smaller number first"):
        load_params(PARAMS, ["align.discriminator.ngram_orders=[8, 4]"])
