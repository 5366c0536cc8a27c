"""Uses every package of the layer, in a cell of the interpreter itself: `make layer.test` runs it on the packaged layer."""

import csv
import datetime
import io
import os
import sqlite3
import ssl
import warnings
import zoneinfo

import httpx
import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pydantic
import requests
import scipy.integrate
import scipy.optimize
import scipy.sparse.linalg
import scipy.stats
import seaborn as sns
import sklearn.cluster
import sklearn.datasets
import sklearn.ensemble
import sklearn.model_selection
import sklearn.svm

warnings.simplefilter("error", ResourceWarning)
random = np.random.default_rng(1)

# Linear algebra: both BLAS libraries, which compaction has rewritten.
matrix = random.normal(size=(200, 200))
assert np.allclose(matrix @ np.linalg.solve(matrix, np.ones(200)), 1)
left, values, right = np.linalg.svd(matrix)
assert np.allclose(left * values @ right, matrix)
symmetric = scipy.sparse.csr_matrix(matrix + matrix.T)
assert scipy.sparse.linalg.eigsh(symmetric, k=3)[0].shape == (3,)

# Curves, programs, equations, tests.
x = np.linspace(0, 4, 50)
fitted, _ = scipy.optimize.curve_fit(lambda x, a, b: a * np.exp(-b * x), x, 2.5 * np.exp(-1.3 * x))
assert np.allclose(fitted, [2.5, 1.3])
assert scipy.optimize.linprog([-1, -2], A_ub=[[1, 1]], b_ub=[4]).success
assert scipy.optimize.milp(c=[-1], integrality=[1], bounds=scipy.optimize.Bounds(0, 3.5)).x == 3
assert np.isclose(scipy.integrate.solve_ivp(lambda t, y: -y, (0, 1), [1.0], rtol=1e-8).y[0, -1], np.exp(-1))
assert scipy.stats.ttest_ind([1, 2, 3], [7, 8, 9]).pvalue < 0.05

# Learning.
features, labels = sklearn.datasets.load_iris(return_X_y=True)
for model in (sklearn.ensemble.RandomForestClassifier(n_estimators=20), sklearn.svm.SVC()):
    assert sklearn.model_selection.cross_val_score(model, features, labels, cv=3).mean() > 0.8
assert len(set(sklearn.cluster.KMeans(3, n_init=2).fit_predict(features))) == 3
assert sklearn.ensemble.HistGradientBoostingClassifier(max_iter=10).fit(features, labels).score(features, labels) > 0.9

# Tables, times, files.
frame = pd.DataFrame({"when": pd.date_range("2026-03-28", periods=48, freq="h", tz="Europe/Berlin"), "value": range(48)})
assert frame["when"].dt.tz_convert("America/New_York").iloc[0].hour == 19
assert frame.set_index("when").resample("D").sum().shape[0] >= 2
frame.to_csv("table.csv", index=False)
again = pd.read_csv("table.csv", parse_dates=["when"])
assert again["value"].tolist() == frame["value"].tolist()
assert frame.pivot_table(index=frame["value"] % 2, values="value").shape == (2, 1)
assert "<table" in frame.head(2).style.to_html() + frame.head(2).to_html()
assert zoneinfo.ZoneInfo("Asia/Tokyo").utcoffset(datetime.datetime(2026, 1, 1)) == datetime.timedelta(hours=9)
assert list(csv.reader(io.StringIO("a,b"))) == [["a", "b"]]

try:  # made of assertions, which libraries otherwise lose
    pd.testing.assert_frame_equal(frame, frame.set_flags(allows_duplicate_labels=False))
except AssertionError:
    pass
else:
    raise RuntimeError("pandas.testing does not check any more")

# Pictures.
figure, axes = plt.subplots()
sns.scatterplot(data=frame, x="value", y="value", ax=axes).set_title("grüße $x^2$")
for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("jpg", b"\xff\xd8"), ("webp", b"RIFF")):
    figure.savefig("picture." + kind)
    with open("picture." + kind, "rb") as file:
        assert file.read(5).startswith(start), kind
plt.close(figure)

# The rest.
assert ssl.create_default_context().get_ca_certs() and os.path.exists(requests.certs.where())
assert str(httpx.URL("https://example.com/a?b=c").params) == "b=c"
with sqlite3.connect(":memory:") as database:
    assert database.execute("select sqlite_version()").fetchone()
assert jinja2.Template("{{ a + 1 }}").render(a=1) == "2"


class Point(pydantic.BaseModel):
    x: int


assert Point.model_validate_json('{"x": "3"}').x == 3
print("every package works")
