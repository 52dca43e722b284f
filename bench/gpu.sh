#!/usr/bin/env bash
# What wants a GPU: the attention kernels are right, and SFT and DPO at 1.2 and 1.5 billion parameters against TRL.
#
#     bench/gpu.sh             everything; about an hour on one large GPU
#     BENCH_QUICK=1 bench/gpu.sh        each question within eight minutes
#     BENCH_DEVICE=cpu BENCH_TINY=1 bench/gpu.sh     the script itself, where there is no GPU
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

if [ "${BENCH_DEVICE:-cuda}" = cuda ]; then
    export BENCH_DEVICE=cuda
    if ! "$BENCH_PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "bench/gpu.sh: torch sees no CUDA device here; nothing was measured"
        exit 0
    fi
fi

options=(--profile)
if [ -n "${BENCH_QUICK:-}${BENCH_TINY:-}" ]; then
    options+=(--quick)
fi
if [ -z "${BENCH_TINY:-}" ]; then
    options+=(--record)
fi

printf '\n== attention kernels\n'
"$BENCH_PYTHON" bench/gpu_attention.py

for model in 1b 1.5b; do
    for question in sft dpo; do
        printf '\n== %s, %s\n' "$question" "$model"
        "$BENCH_PYTHON" "bench/$question.py" --model "$model" "${options[@]}" | tee /dev/stderr | tail -n 1 | "$BENCH_PYTHON" -c '
import json, sys
row = json.loads(sys.stdin.readline())
share = row["utilisation"]["share_of_peak"]
told = ", ".join(f"{value:.2f} times {name}" for name, value in row["ratios"].items())
print(f"== {told}; {share:.1%} of the measured peak")'
    done
done

if [ -z "${BENCH_TINY:-}" ]; then
    "$BENCH_PYTHON" bench/table.py
fi
