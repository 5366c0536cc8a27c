import numpy as np
import pandas as pd

print(pd.DataFrame({"a": np.arange(50), "b": np.linspace(0, 1, 50)}).describe())
