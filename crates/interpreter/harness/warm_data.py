import numpy as np
import numpy.random
import pandas as pd

frame = pd.DataFrame({"a": np.arange(20), "b": np.linspace(0, 1, 20), "c": list("abcde") * 4})
repr(frame.describe())
repr(frame.groupby("c").mean(numeric_only=True))
repr(frame.head())
frame.to_csv()
pd.to_datetime(["2026-01-01", "2026-01-02"])
np.random.seed(1)
