"""What Pairs writes opens in TRL as it is: texts and messages, DPO and reward models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from factory.verify.check import columns
from tests.engine.build import build, make
from tests.prefer.samples import source

MESSAGES = pa.list_(pa.struct([("role", pa.large_string()), ("content", pa.large_string())]))


@pytest.fixture(params=["texts", "messages"])
def pairs(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A dataset of 16 pairs, as the library `datasets` reads its Parquet files."""
    import datasets

    rows = []
    for n in range(16):
        asked = f"What is {n} + 1?"
        prompt = [{"role": "user", "content": asked}] if request.param == "messages" else asked
        for k, text in enumerate((f" It is {n + 1}.", f" It is {n}, or so.")):
            verdict = {"verdict": k == 0, "verdict_score": float(k == 0), "verdict_confidence": 1.0}
            rows.append({"id": f"{n}-{k}", "prompt": prompt, "response": text, "sample": k, **verdict})
    types = {"prompt": MESSAGES if request.param == "messages" else pa.large_string(), "response": pa.large_string()}
    read = source(tmp_path / "samples", rows, {**types, "sample": pa.int32(), **columns("verdict")})
    built = build(make(read, {"use": "pairs.Pairs"}), tmp_path / "runs")
    assert built.counts["rows_made"] == 16
    files = f"{built.folder}/rows/*.parquet"
    return datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hf"), split="train")


def test_dpo_and_reward_trainers_take_it_unchanged(pairs, checkpoint, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    common: dict[str, Any] = {
        **{"output_dir": str(tmp_path / "out"), "max_steps": 2, "per_device_train_batch_size": 4, "report_to": []},
        **{"use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1},
    }
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    dpo = DPOTrainer(model=model, args=DPOConfig(**common), train_dataset=pairs, processing_class=tokenizer)
    dpo.train()
    assert any("rewards/margins" in one for one in dpo.state.log_history)
    scorer = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    reward = RewardTrainer(model=scorer, args=RewardConfig(**common), train_dataset=pairs, processing_class=tokenizer)
    assert len(reward.train_dataset) == 16
    reward.train()
    assert any("accuracy" in one for one in reward.state.log_history)
