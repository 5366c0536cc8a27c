"""Tells what the harness reads of each message and what it sends, for the test beside this. From its source where it
reads, and from its own modules at work where it can be asked. Gets, and gives, one JSON document."""

import ast
import json
import os
import sys
from importlib.machinery import ModuleSpec

told = json.load(sys.stdin)
sources = told["sources"]


class Finder:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in sources else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(sources[module.__name__], f"<harness {module.__name__}>", "exec"), module.__dict__)


sys.meta_path.insert(0, Finder())
import harness_cage as cage
import harness_cell as cell
import harness_channel as channel
import harness_figures as figures
import harness_kernel as kernel
import harness_root as root
import harness_streams as streams
import harness_zygote as zygote

# Those that are given messages.
READERS = ("bootstrap", "command", "harness_zygote", "harness_cage", "harness_namespaces", "harness_kernel", "harness_channel")
SENDERS = {"_message": [], "_announce": ["number"], "_send_with_handle": ["number"]}


def words_of(node):
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def reads():
    """Each name that is read as a message, with the fields that are read of it; and what one is compared with."""
    fields, words = {}, {}
    for reader in READERS:
        for node in ast.walk(ast.parse(told["others"].get(reader) or sources[reader])):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.ctx, ast.Load):
                if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                    fields.setdefault(node.value.id, set()).add(node.slice.value)
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Subscript):
                words.setdefault(ast.unparse(node.left), set()).update(word for other in node.comparators for word in words_of(other))
    packages = kernel._use_packages.__code__
    fields["packages"] = set(packages.co_varnames[: packages.co_argcount]) - {"stack"}
    return sorted_sets(fields), sorted_sets(words)


def sends():
    """Each kind of message to the supervisor, with the fields it has."""
    kinds = {}
    for node in ast.walk(ast.parse(sources["harness_zygote"])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SENDERS:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    named = [keyword.arg for keyword in node.keywords]
                    kinds.setdefault(argument.value, set()).update(named + SENDERS[node.func.id])
    return sorted_sets(kinds)


def layers():
    """The words for which an outcome is told: of dicts called `held`, whether written whole or one by one."""
    words = set()
    for name in ("harness_zygote", "harness_cage"):
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "held":
                words.update(words_of(node.slice))
            if isinstance(node, (ast.AugAssign, ast.Assign)) and "held" in ast.unparse(getattr(node, "target", None) or node.targets[0]):
                words.update(word for part in ast.walk(node.value) if isinstance(part, ast.Dict) for key in part.keys for word in words_of(key))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("_hold", "get"):
                if "held" in ast.unparse(node.func) or node.func.attr == "_hold":
                    words.update(words_of(node.args[0]))
    return sorted(words)


def frames():
    """Each kind by its name, as the channel writes one of it, and whether anything sends it."""
    kinds = {name: value for name, value in vars(channel).items() if type(value) is bytes and len(value) == 1}
    used = set()
    for source in sources.values():
        used |= {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return {name: {"bytes": written(kind), "is_sent": name in used} for name, kind in kinds.items()}


def written(kind):
    read, write = os.pipe()
    sender = channel.Channel(write)
    sender.send(kind, b"ab")
    sender.close()
    with os.fdopen(read, "rb") as file:
        return file.read().hex()


class Figures:
    """That have more to say than is taken."""

    def send_value(self, value):
        pass

    def show_all(self, final):
        pass

    def notes(self):
        return ["\x01" * 3000] * 1000


def reports():
    """What is said of cells of each kind, as frames."""
    codes = ("1 + 1", "1 / 0", "raise SystemExit(3)", "x = (", "result = '\\udc80' * 100_000", "raise ValueError('\\x01' * 100_000)")
    each = [cell.run_cell(code, cell.new_main_module(), Figures(), None) for code in codes]
    # The longest: where the policy refuses what the code has caught.
    each.append({key: value for report in each for key, value in report.items()})
    each.append(cell.finish_process())
    return [frame_of_report(report) for report in each]


def frame_of_report(report):
    """Through a file: a pipe holds less than the longest."""
    fd = os.memfd_create("report")
    channel.Channel(fd).send_json(channel.REPORT, report)
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "rb") as file:
        return file.read().hex()


def job():
    """The fields of a job, as the channel receives it."""
    read, write = os.pipe()
    os.write(write, bytes(told["job"]))
    return channel.Channel(read).receive()


def parents_of_mounts():
    """Where what each kernel mounts for itself lies."""
    return sorted({os.path.dirname(path) for path in (root.WORK, root.TEMPORARY, root.SHARED_MEMORY)})


def sorted_sets(sets):
    return {name: sorted(values) for name, values in sets.items()}


fields, words = reads()
json.dump(
    {
        "reads": fields,
        "words": words,
        "sends": sends(),
        "layers": layers(),
        "frames": frames(),
        "reports": reports(),
        "job": job(),
        "parents_of_mounts": parents_of_mounts(),
        "constants": {
            "SHARED_SIZE": streams.SHARED_SIZE,
            "SHARED_HEADER": streams._HEADER,
            "FRAME_HEADER": channel._HEADER.size,
            "HARNESS_FAULT": kernel.HARNESS_FAULT,
            "MAX_IMAGES": figures.MAX_IMAGES,
            "DESCRIPTORS_OF_A_KERNEL": zygote._DESCRIPTORS_OF_A_KERNEL,
        },
        "max_image_bytes": figures.MAX_IMAGE_BYTES,
        "max_text": cell.MAX_TRACEBACK,
    },
    sys.stdout,
)
