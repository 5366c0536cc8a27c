"""Matplotlib figures become images, at plt.show() and at the end of a cell, each once and in order."""

import io
import os
import sys

from harness_channel import IMAGE

MAX_IMAGE_BYTES = 5 << 20
MAX_IMAGES = 32


class Figures:
    def __init__(self, output):
        self._output = output
        self.warnings = []
        self.count = 0

    def watch(self):
        """Patches pyplot now, or as soon as the code imports it."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            self._patch(pyplot)
        else:
            sys.meta_path.insert(0, _PyplotFinder(self._patch))

    def show_all(self):
        """Sends every open figure and closes it."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        for number in pyplot.get_fignums():
            figure = pyplot.figure(number)
            try:
                self._send_figure(figure)
            finally:
                pyplot.close(figure)

    def send_value(self, value):
        """Sends the picture of a last value that has one, as PIL images do."""
        for name, mime_type in (("_repr_png_", "image/png"), ("_repr_jpeg_", "image/jpeg")):
            method = getattr(type(value), name, None)
            if method is not None:
                data = method(value)
                if isinstance(data, bytes):
                    self._send(mime_type, data)
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

    def _send_figure(self, figure):
        data = io.BytesIO()
        figure.savefig(data, format="png")
        self._send("image/png", data.getvalue())

    def _send(self, mime_type, data):
        if self.count >= MAX_IMAGES:
            note = f"more than {MAX_IMAGES} images: the rest were left out"
            if note not in self.warnings:
                self.warnings.append(note)
            return
        if len(data) > MAX_IMAGE_BYTES:
            self.warnings.append(f"an image of {len(data):,} bytes was left out: the limit is {MAX_IMAGE_BYTES:,}")
            return
        self.count += 1
        self._output.finish()
        self._output.channel.send(IMAGE, mime_type.encode() + b"\0" + data)


def use_own_configuration(directory):
    """Gives matplotlib a directory it may write to, with the prebuilt font cache in it."""
    prebuilt = os.environ["MPLCONFIGDIR"]
    try:
        os.makedirs(directory, exist_ok=True)
        for name in os.listdir(prebuilt):
            os.symlink(os.path.join(prebuilt, name), os.path.join(directory, name))
    except OSError:  # matplotlib then says so itself and builds its own
        return
    os.environ["MPLCONFIGDIR"] = directory


class _PyplotFinder:
    """Waits for a cell to import matplotlib: readies it, and runs a hook once pyplot is there."""

    def __init__(self, hook):
        self._hook = hook

    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib":
            use_own_configuration(os.path.join(os.environ["HOME"], ".matplotlib"))
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
