#!/usr/bin/env bash
# What wants a GPU: the attention kernels are right, SFT and DPO at 1.2 and 1.5 billion parameters against TRL, a
# distillation step against TRL and Liger, and captured signals against the teacher's own pass.
#
#     bench/gpu.sh                                    everything
#     BENCH_QUICK=1 bench/gpu.sh                      each question within eight minutes
#     BENCH_DEVICE=cpu BENCH_TINY=1 bench/gpu.sh      the script itself, where there is no GPU
#
# Rows go to bench/results, then docs/benchmarks.md is written anew. BENCH_PYTHON and BENCH_PEER_PYTHON name environments
# that are there already; without them `make` sets up .venv and .venv-peers, pinned by the constraints files.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${BENCH_PYTHON:-}" ]; then
    make .venv/run
    BENCH_PYTHON=.venv/bin/python
fi
if [ -z "${BENCH_PEER_PYTHON:-}" ]; then
    make peers
fi

export BENCH_DEVICE="${BENCH_DEVICE:-cuda}"
if [ "$BENCH_DEVICE" = cuda ]; then
    if ! "$BENCH_PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "bench/gpu.sh: torch sees no CUDA device here; nothing was measured"
        exit 0
    fi
fi

options=(--profile)
signals=(--profile --device "$BENCH_DEVICE")
if [ -n "${BENCH_TINY:-}" ]; then
    signals+=(--rounds 1)
    capture=(--shape tiny --vocabularies 32000)
    cached=(--teachers tiny)
else
    options+=(--record)
    signals+=(--record)
    capture=()
    cached=()
fi
if [ -n "${BENCH_QUICK:-}${BENCH_TINY:-}" ]; then
    options+=(--quick)
fi

printf '\n== attention kernels\n'
"$BENCH_PYTHON" bench/gpu_attention.py --device "$BENCH_DEVICE"

for model in 1b 1.5b; do
    for question in sft dpo; do
        printf '\n== %s, %s\n' "$question" "$model"
        "$BENCH_PYTHON" "bench/$question.py" --model "$model" "${options[@]}"
    done
done

printf '\n== distill\n'
"$BENCH_PYTHON" bench/distill.py "${options[@]}"
printf '\n== capture\n'
"$BENCH_PYTHON" bench/capture.py "${signals[@]}" "${capture[@]}"
printf '\n== cached\n'
"$BENCH_PYTHON" bench/cached.py "${signals[@]}" "${cached[@]}"

if [ -z "${BENCH_TINY:-}" ]; then
    "$BENCH_PYTHON" bench/table.py
fi
