#!/usr/bin/env bash
# The whole journey, each command shown before it runs: real text → shards → funnel → query → tokens → a trained model.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export FACTORY_RUNS="${FACTORY_RUNS:-runs}"
tokens="quickstart_tokens@2026.11.20"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { say "$ $*"; "$@"; }

say "1. Real text becomes shards: the documentation and source of the Python packages installed here"
run factory run recipes/quickstart.toml

say "2. The shards are plain Parquet: one query"
run factory sql "select package, kind, count(*) as documents, sum(length(text)) as characters from quickstart group by all order by 4 desc limit 10"

say "3. Text becomes token sequences, with a tokenizer trained on it"
run factory run recipes/quickstart_tokens.toml

say "4. A small transformer learns from them"
run python -m model.train recipes/train/dense_tiny.toml "data=$FACTORY_RUNS/$tokens" "$@"

say "What lies where"
cat <<END
  $FACTORY_RUNS/quickstart@2026.11.20/rows/*.parquet      the text: open it with DuckDB, Polars, datasets
  $FACTORY_RUNS/quickstart@2026.11.20/dropped/*.parquet   what was dropped, with the step and the reason
  $FACTORY_RUNS/$tokens/rows/*.parquet    token sequences;  …/tokenizer: for transformers
  $FACTORY_RUNS/train/dense_tiny/loss.png                 the loss curve
  $FACTORY_RUNS/train/dense_tiny/checkpoint/hf            the model: AutoModelForCausalLM.from_pretrained
Try next:
  factory inspect quickstart                            see what each filter dropped
  factory sql "select reason, count(*) from quickstart_dropped group by 1"
  factory run recipes/text_en.toml --set glob='YOUR/*.jsonl'
(in this folder, with .venv/bin on the PATH: source .venv/bin/activate)
END
