"""The model room: transformers in Qwen2's form, trained on the token shards that the factory makes.

Read in this order: config, transformer, data, pretrain, checkpoint, generate, train (the command line).
"""
