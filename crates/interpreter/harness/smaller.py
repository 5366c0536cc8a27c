"""Makes an image smaller, in the order of what is lost by it: colours, then sharp edges, then size.

Pillow does it, in the kernel: no other process decodes what the code has made. It comes with matplotlib, and is imported
only when an image is too large."""

import io
import math

# A larger image is brought to this first: the rest would take long, and much of the code's memory.
_MAX_SIDE = 4096
# Below this nothing can be seen any more.
_MIN_SIDE = 160
# How far an image may be from its likeness in 256 colours, as the root mean square of 0 to 255: plots are nearer than
# this, photographs are not.
_PALETTE_ERROR = 6
_JPEG_QUALITY = 80
# Where there are more it takes seconds to choose among them: 65,536 take 0.4.
_MANY_COLOURS = 1 << 16
# Up to this many pixels it takes no time to look for the smallest PNG.
_FEW_PIXELS = 3 << 20


def smaller(mime_type, data, most, colourful):
    """The image in at most `most` bytes, with the colours that it has if that takes at most `colourful`: its type, its bytes
    or None, and what was done to it, None when nothing was."""
    try:
        found = _found(data, most, colourful)
    except Exception as error:
        found = mime_type, None, f"left out ({type(error).__name__} when it was made smaller)"
    if len(data) <= most and (found[1] is None or len(found[1]) >= len(data)):
        return mime_type, data, None
    return found


def _found(data, most, colourful):
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        original = image.size
        if max(original) > _MAX_SIDE:
            image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        whole = scaled = _on_white(Image, image)
    while True:
        size = "" if scaled.size == original else "from {}x{} to {}x{}".format(*original, *scaled.size)
        # The first finds the colours that the image has, the second fewer that lie near, which takes less room.
        for method, bytes_allowed in ((Image.Quantize.MAXCOVERAGE, min(colourful, most)), (Image.Quantize.FASTOCTREE, most)):
            few_colours = _with_few_colours(Image, scaled, method)
            if few_colours is not None and len(few_colours) <= bytes_allowed:
                return "image/png", few_colours, size or "to 256 colours"
        photograph = _saved(scaled, "JPEG", quality=_JPEG_QUALITY, optimize=True)
        if len(photograph) <= most:
            return "image/jpeg", photograph, size or "to JPEG"
        least = min(len(photograph), len(few_colours or photograph))
        factor = min(0.95 * math.sqrt(most / least), 0.9)
        width, height = (max(1, int(side * factor)) for side in scaled.size)
        if max(width, height) < _MIN_SIDE:
            return None, None, "left out"
        scaled = whole.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)


def _on_white(Image, image):
    """Without transparency, which half of the formats don't have."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _with_few_colours(Image, image, method):
    """As a PNG of 256 colours, or None when it can be seen that they are not all."""
    from PIL import ImageChops, ImageStat

    if method == Image.Quantize.MAXCOVERAGE and image.getcolors(_MANY_COLOURS) is None:
        return None
    likeness = image.quantize(256, method, dither=Image.Dither.NONE)
    error = ImageStat.Stat(ImageChops.difference(image, likeness.convert("RGB"))).rms
    if max(error) > _PALETTE_ERROR:
        return None
    return _saved(likeness, "PNG", optimize=image.width * image.height <= _FEW_PIXELS)


def _saved(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()
