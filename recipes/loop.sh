#!/usr/bin/env bash
# The closed loop: the factory feeds a model, the model feeds the factory, and held-out accuracy is measured at each stage.
#
#     recipes/loop.sh             needs the dataset of recipes/quickstart.toml in FACTORY_RUNS (default runs)
#     SEED=1 recipes/loop.sh      other problems, other weights, other samples
#     FAST=1 recipes/loop.sh      smaller numbers, fewer problems: two minutes, with conditions that must hold
#     NUMBERS="until=0.2 steps=8" FAST=1 recipes/loop.sh      some of its numbers (below) set otherwise
#
# Killed at any moment, the same command goes on where it stopped. What runs beside the rest writes to FACTORY_RUNS/logs.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
runs="${FACTORY_RUNS:-runs}"
export FACTORY_RUNS="$runs" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
seed="${SEED:-0}"
version=2026.11.20

if [ "${FAST:-}" = 1 ]; then
    top=9 most=2 corpus=10_000 test=3000 samples=1000 pairs=500 prompts=250 until=0.35 anneal=81_920 steps=12 batch=128 fast=true draws=4 epochs=5
    shape=(model.hidden_size=64 model.intermediate_size=176 model.num_attention_heads=2 model.num_key_value_heads=1)
    hold="sft>=base+0.10, sft>unverified, dpo>=sft-0.03, grpo>=dpo-0.05"
else
    top=29 most=3 corpus=40_000 test=2000 samples=1500 pairs=2000 prompts=2000 until=0.6 anneal=122_880 steps=60 batch=256 fast=false draws=2 epochs=3
    shape=()
    hold=""
fi
eval "${NUMBERS:-}"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '\033[1m$ %s\033[0m\n' "$*"; "$@"; }
mkdir -p "$runs/logs"
# One at a time, and none while a job that a killed one left behind still runs: all that is started here holds the lock.
exec 9>"$runs/logs/lock"
flock --nonblock 9 || { say "Waiting for what another run in $runs still does"; flock 9; }
# beside NAME COMMAND…: starts it beside the rest; join NAME waits for it and shows how it ended.
declare -A jobs
beside() {
    local log="$runs/logs/$1.log"
    printf '\033[1m%s runs beside the rest: %s\033[0m\n' "$1" "$log"
    "${@:2}" >"$log" 2>&1 &
    jobs[$1]=$!
}
join() { wait "${jobs[$1]}" && tail -n "${2:-1}" "$runs/logs/$1.log" || { cat "$runs/logs/$1.log"; exit 1; }; }
# A job is a command, or a shell with one in it, which would go on without it.
trap 'for job in $(jobs -p); do kill $(cat "/proc/$job/task/$job/children") "$job"; done 2>/dev/null' EXIT
# last RUN [STAGE]: the last step of a training, or of one of its stages.
last() { python -c 'import sys, pyarrow.parquet as pq
rows = pq.read_table(sys.argv[1]).to_pylist()
print(max(row["step"] for row in rows if row.get("stage") == (sys.argv[2] or None)))' "$runs/train/$1/metrics.parquet" "${2:-}"; }
problems() { run factory run "recipes/$1.toml" --set top=$top --set steps=$most "${@:2}"; }
data() { echo "$runs/$1@$version"; }
model() { echo "$runs/train/$1/checkpoint/hf"; }
train() { run python -m model.train "recipes/train/$1.toml" "out=$runs/train/${2:-$1}" "train.seed=$seed" "${@:3}"; }

say "Word problems: a corpus with mistakes and garbage in it, and what a filter can see of them"
problems math_corpus --set count=$corpus --set seed="$seed"
run factory run recipes/math_tokens.toml
run factory run recipes/text_tokens.toml --set tokenizer="$(data math_tokens)/tokenizer"
problems math_problems --name math_validation --set split=validation --set count=2000

say "A base model learns from real text and problems, short sequences first"
beside math_test problems math_problems --name math_test --set split=test --set count=$test --workers 1
beside length python -m model.evaluate.extrapolation "out=$runs/length" fast=$fast
train math_base math_base "data.sets.problems=$(data math_tokens)" "data.sets.text=$(data text_tokens)" \
    "probe.data=$(data math_validation)" stage.128.until=$until stage.256.tokens=$anneal "${shape[@]}"
join length 12
join math_test

# The first control: as many steps on the same documents, none of which was taken out.
noisy_base() {
    problems math_corpus_noisy --set count=$corpus --set seed="$seed" --workers 1
    factory run recipes/text_tokens.toml --name noisy_tokens --set corpus=math_corpus_noisy@$version \
        --set tokenizer="$(data math_tokens)/tokenizer" --workers 1
    train math_base noisy_base "data.sets.problems=$(data noisy_tokens)" "data.sets.text=$(data text_tokens)" probe.data= \
        probe.reward= "${shape[@]}" "stage.128.tokens=$(($(last math_base 128) * 1024))" stage.128.until=0.0 stage.256.tokens=$anneal
}
[ "${FAST:-}" = 1 ] || beside noisy_base noisy_base

say "Rejection sampling: eight answers to each problem, the right ones are kept, and SFT on them"
problems math_sft --set model="$(model math_base)" --set count=$samples --set seed="1$seed"
train math_sft math_sft "data=$(data math_sft)" "model.start=$(model math_base)" train.epochs=$epochs

# The second control: as many samples of the same model, which nobody verified.
unverified_sft() {
    problems math_sft_unverified --set model="$(model math_base)" --set count=$samples --set seed="1$seed" --workers 1
    train math_sft unverified_sft "data=$(data math_sft_unverified)" "model.start=$(model math_base)" \
        "train.steps=$(last math_sft)"
}
beside unverified_sft unverified_sft

say "Preference pairs by the votes of two verifiers, and DPO"
problems math_pairs --set model="$(model math_sft)" --set count=$pairs --set seed="2$seed"
train math_dpo math_dpo "data=$(data math_pairs)" "model.start=$(model math_sft)" "model.base=$(model math_base)"

say "GRPO on the problems whose rewards vary most"
problems grpo_prompts --set model="$(model math_dpo)" --set count=$prompts --set seed="3$seed"
train math_grpo math_grpo "data=$(data grpo_prompts)" "model.start=$(model math_dpo)" train.steps=$steps train.batch_size=$batch

say "Held-out accuracy by stage, at temperature 1"
join unverified_sft
noisy=()
[ "${FAST:-}" = 1 ] || { join noisy_base; noisy=("noisy=$(model noisy_base)"); }
run python -m model.evaluate.compare "base=$(model math_base)" "${noisy[@]}" "sft=$(model math_sft)" \
    "unverified=$(model unverified_sft)" "dpo=$(model math_dpo)" "grpo=$(model math_grpo)" "controls=${noisy:+noisy,}unverified" \
    "data=$(data math_test)" verifier=mathematics:correct 'columns={answer = "gold"}' max_new_tokens=40 samples=$draws \
    "out=$runs/accuracy" ${hold:+"assert=$hold"}
