# Run in the function with the requirement humanize: the layer's own pip has installed it.
import humanize

assert humanize.intword(10**6) == "1.0 million"
print("installed humanize", humanize.__version__)
