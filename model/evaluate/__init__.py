"""What a checkpoint can do: questions asked of it, answers scored, and the results as Parquet.

`task.py` says what a task is; each task is a module beside it, and its name is the module's.
"""
