"""Runs one cell with Jupyter's semantics: the last expression is the value, top-level await works, tracebacks show the
submitted lines and none of ours."""

import ast
import atexit
import builtins
import gc
import inspect
import io
import linecache
import os
import resource
import stat
import sys
import threading
import traceback
import types

from harness_policy_rules import PolicyDenied
from harness_values import plain, value_text

_NAME = "<cell>"
MAX_TRACEBACK = 64_000
MAX_NOTES = 30
REPORT_ROOM_BYTES = 16 << 20
_FILES = frozenset((io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom))
_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_NO_SHARED_MEMORY = (
    "Pools, queues and locks of multiprocessing need /dev/shm, which is not there, as in AWS Lambda. Use threads"
    " (concurrent.futures.ThreadPoolExecutor), or multiprocessing.Process with a Pipe."
)


_current = _NAME  # what the code that runs is called in tracebacks


def _is_cell(filename):
    return filename == _NAME or filename.startswith("<cell-")


def new_main_module():
    """A fresh `__main__`, so that pickling, dataclasses and typing find what the cell defines."""
    module = types.ModuleType("__main__")
    module.__builtins__ = builtins  # the real ones: ours is a copy
    sys.modules["__main__"] = module
    return module.__dict__


def run_cell(code, namespace, figures, output, policy=None, number=1):
    """Runs `code` and gives what the supervisor needs to know: value, error, exit code, warnings. `number`: which cell of its
    kernel it is."""
    global _current
    _current = _NAME if number == 1 else f"<cell-{number}>"
    report = {}
    try:
        value = _execute(code, namespace, policy)
        if value is not None:
            namespace["_"] = value
            report["value"] = value_text(value, as_repr=True)
            _guarded(figures, lambda: figures.send_value(value))
        elif namespace.get("result") is not None:
            report["value"] = value_text(namespace["result"], as_repr=False)
    except SystemExit as stop:
        report["exit"] = _exit_code(stop)
    except MemoryError as error:
        _make_room(error, namespace)
        report["error"] = describe(error)
    except BaseException as error:
        report["error"] = describe(error)
    _guarded(figures, lambda: figures.show_all(final=True))
    if policy is not None and policy.refusal() is not None:
        report["error"] = describe(policy.refusal())  # also where the cell has caught it
    report["warnings"] = _bounded_notes(figures.notes())
    return report


def _bounded_notes(notes):
    """A report that is longer than the supervisor takes would be none."""
    more = len(notes) - MAX_NOTES
    told = [plain(note, 1000) for note in notes[:MAX_NOTES]]
    return told if more <= 0 else [*told, f"{more} more notes of this kind were left out"]


def finish_process():
    """What the interpreter does at its end: waits for threads, then runs atexit handlers. Gives an error's report."""
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
    except SystemExit as stop:
        return {"exit": _exit_code(stop)}
    except BaseException as error:
        return {"error": describe(error)}
    return {}


def flush_files():
    """Another thing that the interpreter does at its end: what was written to files that are still open reaches them. Only
    plain files, where nothing waits for a reader."""
    for file in gc.get_objects():
        if type(file) in _FILES:
            try:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    file.flush()
            except (OSError, ValueError):  # full, closed, or without a descriptor
                pass


def _execute(code, namespace, policy):
    # As the compiler counts them: `str.splitlines` also parts at form feeds and at U+2028.
    lines = io.StringIO(code, newline=None).readlines()
    linecache.cache[_current] = (len(code), None, lines, _current)
    tree = compile(code, _current, "exec", ast.PyCF_ONLY_AST | _FLAGS, dont_inherit=True)
    if policy is not None:
        policy.check(tree)
        policy.confine(namespace, tree)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not _is_quiet(tree.body[-1], lines):
        last = ast.Expression(tree.body.pop().value)
    body = compile(tree, _current, "exec", _FLAGS, dont_inherit=True)
    last = last and compile(last, _current, "eval", _FLAGS, dont_inherit=True)
    if not (body.co_flags | (last.co_flags if last else 0)) & inspect.CO_COROUTINE:
        eval(body, namespace)
        return eval(last, namespace) if last else None
    import asyncio

    return asyncio.run(_in_one_loop(body, last, namespace))


def _is_quiet(last, lines):
    """Whether the cell's last expression is followed by a semicolon: a comment may hold one, or come behind it."""
    rest = lines[last.end_lineno - 1].encode()[last.end_col_offset :].decode() + "".join(lines[last.end_lineno :])
    return rest.lstrip(" \t\f\\\n").startswith(";")


async def _in_one_loop(body, last, namespace):
    """The whole cell inside one event loop: a task made above is awaited below."""
    for part in (body, last):
        value = eval(part, namespace) if part else None
        if part and part.co_flags & inspect.CO_COROUTINE:
            value = await value
    return value


def _guarded(figures, action):
    try:
        action()
    except BaseException as error:
        figures.failed(error)


def _make_room(error, namespace):
    """Memory is full: gives back what the cell holds, so that there is some to say so."""
    limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    namespace.clear()
    traceback.clear_frames(error.__traceback__)


def _exit_code(stop):
    """The code `sys.exit` would give the process; a message goes to stderr, as Python does it."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(value_text(stop.code, as_repr=False), file=sys.stderr)
    return 1


def describe(error):
    """An exception as type, message, traceback and line of the submitted code."""
    kind = type(error).__name__
    try:
        _explain(error)
        _trim(error, set())
        last = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _current]
        line = last[-1].lineno if last else error.lineno if isinstance(error, SyntaxError) and error.filename == _current else None
        # Deep recursion is shown by the formatter's own "repeated" lines.
        text = "".join(traceback.format_exception(error))
        column = None
        if isinstance(error, PolicyDenied):
            line, column = (error.line, error.column) if error.line is not None else (line, last[-1].colno + 1 if last else None)
        message = value_text(error, as_repr=False, limit=4000)
    except BaseException as trouble:
        text, line, column, message = f"{kind} (its traceback could not be shown: {type(trouble).__name__})\n", None, None, ""
    return {
        "code": _code(error),
        "type": plain(kind, 200),
        "message": message,
        "traceback": plain(text, MAX_TRACEBACK),
        "line": line,
        "column": column,
    }


def _explain(error):
    """Says what a library does not: why something of the system is not there."""
    if isinstance(error, OSError) and not os.access("/dev/shm", os.W_OK):
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.filename.endswith("multiprocessing/synchronize.py") for frame in frames):
            error.add_note(_NO_SHARED_MEMORY)


def _code(error):
    """By the classes themselves: the cell may have others of these names."""
    if isinstance(error, PolicyDenied):
        return "policy_denied"
    return "memory_limit" if isinstance(error, MemoryError) else "python_error"


def _trim(error, seen):
    """Cuts our frames off the exception and off everything it grew from."""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = _without_harness(error.__traceback__)
        for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            _trim(inner, seen)
        if error.__cause__ is not None:
            _trim(error.__cause__, seen)
        error = error.__context__


def _without_harness(trace):
    """The traceback from the first line of the cell on, with every frame of ours left out."""
    frames = []
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if _is_cell(name) and frames and not any(_is_cell(frame.tb_frame.f_code.co_filename) for frame in frames):
            frames.clear()
        if not name.startswith("<harness "):
            frames.append(trace)
        trace = trace.tb_next
    kept = None
    for trace in reversed(frames):
        kept = types.TracebackType(kept, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)
    return kept
