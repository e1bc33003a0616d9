"""Make messages.csv: counts of words in messages, each of which may have several tags."""

import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
n, n_words, tags = 2000, 40, ["billing", "delivery", "praise", "urgent"]
has = rng.random((n, len(tags))) < [0.3, 0.4, 0.2, 0.15]
has[:, 3] |= has[:, 0] & has[:, 1] & (rng.random(n) < 0.5)  # tags depend on each other
words = rng.gamma(0.3, 1.0, size=(len(tags), n_words))  # how often each word occurs with each tag
counts = rng.poisson(0.2 + has @ words)
table = pd.DataFrame(counts, columns=[f"word{i}" for i in range(n_words)])
pd.concat([table, pd.DataFrame(has * 1, columns=tags)], axis=1).to_csv("messages.csv", index=False)
