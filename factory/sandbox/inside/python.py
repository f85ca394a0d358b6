"""Run a Python program in this interpreter as `python file arguments` would, in a process that was forked for it."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from types import CodeType, ModuleType


def warm(modules: list[str], sources: list[tuple[str, str]]) -> None:
    """Import what programs use and run once what the interpreter makes at first use: forked processes share it."""
    for name in modules:
        __import__(name)
    for name, text in sources:
        module = sys.modules[name] = ModuleType(name)
        exec(compile(text, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    heard, sys.stderr = sys.stderr, io.StringIO()
    try:
        exec(compile("def f(x: int) -> list:\n  return [k for k in range(x)]\nassert f(0), 'x'", "warm", "exec"), {})
    except AssertionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr = heard
    gc.collect()
    gc.freeze()
    gc.disable()


def run(command: list[str]) -> int:
    """Run a file with its arguments, or the text behind `-c`; the exit code. Its threads are waited for."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(__builtins__=sys.modules["builtins"], __annotations__={})
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        sys.path.insert(0, "")
    else:
        sys.argv = list(command)
        path = os.path.abspath(command[0])
        sys.path.insert(0, os.path.dirname(path))
        main.__dict__.update(__file__=path, __cached__=None)
    gc.enable()
    code = _guarded(lambda: exec(_compiled(command), main.__dict__))
    if threads := sys.modules.get("threading"):  # imported by the program: what it does after a fork costs each
        code = _guarded(threads._shutdown) or code
    code = _guarded(atexit._run_exitfuncs) or code
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream and not stream.closed:
                stream.flush()
        except OSError:  # closed by its reader: Python's own code for this
            code = code or 120
    return code


def _compiled(command: list[str]) -> CodeType:
    if command[0] == "-c":
        return compile(command[1], "<string>", "exec", dont_inherit=True)
    path = os.path.abspath(command[0])
    with open(path, "rb") as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


def _guarded(work: object) -> int:
    """What `work` ends with: 0, the code of its SystemExit, or 1 and its traceback on the standard error."""
    try:
        work()  # type: ignore[operator]
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == _compiled.__code__.co_filename:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 1
    return 0
