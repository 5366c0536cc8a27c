import io

import matplotlib.pyplot as plt

figure, axes = plt.subplots()
axes.plot([1, 2, 3], label="a")
axes.set_title("a")
axes.legend()
figure.savefig(io.BytesIO(), format="png")
plt.close("all")
