#!/usr/bin/env bash
# The whole journey, each command shown before it runs: real text → shards → funnel → query; then the closed loop
# (recipes/loop.sh): a base model → rejection sampling → SFT → pairs → DPO → GRPO, and what each stage gained.
# FAST=1: smaller, in two minutes, with conditions that must hold.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
runs="${FACTORY_RUNS:-runs${FAST:+/fast}}"
export FACTORY_RUNS="$runs"
begun=$SECONDS
small=()
[ "${FAST:-}" != 1 ] || small=(--set 'packages=["pydantic", "fsspec"]' --set stdlib=false)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '\033[1m$ %s\033[0m\n' "$*"; "$@"; }

say "Real text becomes shards: the documentation and source of the Python packages installed here"
run factory run recipes/quickstart.toml "${small[@]}"

say "The shards are plain Parquet: one query"
run factory sql "select package, kind, count(*) as documents, sum(length(text)) as characters from quickstart group by all order by 4 desc limit 10"

recipes/loop.sh

say "What lies where, after $(((SECONDS - begun) / 60)) min $(((SECONDS - begun) % 60)) s"
cat <<END
  $runs/accuracy/accuracy.png        held-out accuracy by stage, beside the controls
  $runs/length/extrapolation.png     lengths beyond the trained one: plain RoPE, YaRN, dual chunk attention
  $runs/NAME@VERSION/rows/*.parquet  the datasets: open them with DuckDB, Polars, datasets, TRL
  $runs/NAME@VERSION/dropped/        what was dropped, with the step, the reason, the verdict
  $runs/train/NAME/checkpoint/hf     the models: AutoModelForCausalLM.from_pretrained
  $runs/train/NAME/recipe.json       what fed them, back to the first corpus
Try next (with .venv/bin on the PATH: source .venv/bin/activate${FACTORY_RUNS:+; export FACTORY_RUNS=$runs}):
  factory sql "select reason, count(*) from quickstart_dropped group by 1"
  factory sql "select kind, reason, count(*) from math_corpus_dropped group by 1, 2"
  factory sql "select prompt, response, verdict_reason from math_sft_dropped where reason = 'wrong' limit 5"
  factory sql "select prompt, chosen, rejected, margin from math_pairs limit 3"
  factory show math_pairs                               how far the critics agree
  python -m model.generate $runs/train/math_grpo/checkpoint/hf "Ann has 12 pens. Ann gets 7 more. How many pens does Ann have?
"
END
