"""The model room: transformers in Qwen2's form, trained on the token shards that the factory makes.

Read in this order: config, transformer, data, pretrain, checkpoint, generate, train (the command line).
"""

import os

# Threads that wait asleep: on cores that others use too, threads that spin made training 2.3 times slower. It must be
# set before torch loads its thread library.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
