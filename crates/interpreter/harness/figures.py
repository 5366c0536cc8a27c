"""Matplotlib figures become images, at plt.show() and at the end of a cell, each once and in order.

All images of an answer share a budget, and how many will follow is not known when one is shown: each may take a share of
what is left. What is within its share stays as it is."""

import io
import os
import sys

from harness_channel import IMAGE
from harness_smaller import smaller
from harness_values import value_text

# Matplotlib's configuration as it comes with the tree.
_PREBUILT = os.environ.get("MPLCONFIGDIR", "")
MAX_IMAGE_BYTES = 5 << 20
MAX_IMAGES = 32
# What an image may take however little is left for the others: a plain plot can still be read at this size.
_FLOOR_BYTES = 12 << 10
# An image stays as it is within an eighth of what is left, and one that was made smaller may take a third; the first one,
# which is often the only one, half. Where it is known that no more will come, those that are left share all.
_UNTOUCHED_PART = 8
_SMALLER_PART = 3
_FIRST_PART = 2
# One of many has all its colours only if it takes no more than this of what is left.
_COLOURFUL_PART = 12


class Figures:
    def __init__(self, output):
        self._output = output
        self.begin(0)

    def begin(self, budget):
        """Another cell comes, whose images may take `budget` bytes."""
        self.budget = budget
        self.warnings = []
        self._shown = self._sent = self._sent_bytes = 0
        self._changed = {}

    def watch(self):
        """Patches pyplot now, or as soon as the code imports it."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            self._patch(pyplot)
        else:
            sys.meta_path.insert(0, _PyplotFinder(self._patch))

    def show_all(self, final=False):
        """Sends every open figure and closes it. `final`: nothing will follow, and one that can't be drawn costs no other."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        numbers = pyplot.get_fignums()
        for index, number in enumerate(numbers):
            figure = pyplot.figure(number)
            try:
                self._send_figure(figure, len(numbers) - index, final)
            except BaseException as error:
                if not final:
                    raise
                self.failed(error, f"figure {number}")
            finally:
                pyplot.close(figure)

    def failed(self, error, what="an image"):
        self.warnings.append(f"{what} could not be made: {type(error).__name__}: {value_text(error, as_repr=False)}")

    def send_value(self, value):
        """Sends the picture of a last value that has one, as PIL images do."""
        for name, mime_type in (("_repr_png_", "image/png"), ("_repr_jpeg_", "image/jpeg")):
            method = getattr(type(value), name, None)
            if method is not None:
                data = method(value)
                if isinstance(data, bytes):
                    pyplot = sys.modules.get("matplotlib.pyplot")
                    self._send(mime_type, data, 1 + len(pyplot.get_fignums() if pyplot else ()), final=True)
                    return

    def _patch(self, pyplot):
        from matplotlib.figure import Figure

        def show(*_args, **_kwargs):
            self.show_all()

        def show_one(figure, *_args, **_kwargs):
            self._send_figure(figure)
            pyplot.close(figure)

        show.__doc__, show_one.__doc__ = pyplot.show.__doc__, Figure.show.__doc__
        pyplot.show, Figure.show = show, show_one

    def notes(self):
        """What did not come as it is, for the answer's warnings."""
        if not self._changed:
            return self.warnings
        changes = ", ".join(f"{_named(numbers)} {how}" for how, numbers in self._changed.items())
        limit = f"All images of an answer may take {self.budget:,} bytes (MAX_IMAGES_BYTES)"
        return [*self.warnings, f"images were changed: {changes}. {limit}; a lower dpi or figsize keeps more of them as they are"]

    def _send_figure(self, figure, waiting=1, final=False):
        data = io.BytesIO()
        figure.savefig(data, format="png")
        self._send("image/png", data.getvalue(), waiting, final)

    def _send(self, mime_type, data, waiting=1, final=False):
        """`waiting`: how many images are known to come, with this one; `final`: and that no more will."""
        self._shown += 1
        if self._sent >= MAX_IMAGES:
            note = f"more than {MAX_IMAGES} images: the rest were left out"
            if note not in self.warnings:
                self.warnings.append(note)
            return
        left = self.budget - self._sent_bytes
        floor = min(left, _FLOOR_BYTES)

        def share(part):
            return min(max(left // (waiting if final else max(part, waiting + 1)), floor), MAX_IMAGE_BYTES)

        untouched, most = share(_UNTOUCHED_PART), share(_SMALLER_PART if self._sent else _FIRST_PART)
        colourful = share(_COLOURFUL_PART) if self._sent else most
        if len(data) > untouched:
            size = len(data)
            mime_type, data, how = smaller(mime_type, data, most, colourful)
            if how is not None:
                self._changed.setdefault(how, []).append((self._shown, size))
            if data is None:
                return
        self._sent += 1
        self._sent_bytes += len(data)
        self._output.finish()
        self._output.channel.send(IMAGE, mime_type.encode() + b"\0" + data)


def _named(images):
    """Their places among all that were shown, and their sizes as they were."""
    runs = []
    for number, _ in images:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    places = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
    most = f"{max(size for _, size in images):,} bytes"
    return f"image {places} ({most})" if len(images) == 1 else f"images {places} (up to {most})"


def use_own_configuration(directory):
    """Gives matplotlib a directory it may write to, with the prebuilt font cache in it."""
    try:
        os.makedirs(directory, exist_ok=True)
        for name in os.listdir(_PREBUILT):
            try:
                os.symlink(os.path.join(_PREBUILT, name), os.path.join(directory, name))
            except FileExistsError:  # an earlier holder's
                pass
    except OSError:  # matplotlib then says so itself and builds its own
        return
    os.environ["MPLCONFIGDIR"] = directory


class _PyplotFinder:
    """Waits for a cell to import matplotlib: readies it, and runs a hook once pyplot is there."""

    def __init__(self, hook):
        self._hook = hook

    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib":
            use_own_configuration(os.path.join(os.environ["TMPDIR"], ".matplotlib"))
        if name != "matplotlib.pyplot":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            self._hook(module)

        spec.loader.exec_module = exec_module
        return spec
