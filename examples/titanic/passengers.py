"""Make passengers.csv: who survived a shipwreck, drawn from rules that resemble those of a famous one."""

import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
n = 3000
sex = rng.choice(["male", "female"], n, p=[0.65, 0.35])
pclass = rng.choice([1, 2, 3], n, p=[0.25, 0.2, 0.55])
age = np.clip(rng.gamma(6, 5, n), 0.5, 80)
fare = np.exp(rng.normal(5 - pclass, 0.5, n))
port = rng.choice(["Southampton", "Cherbourg", "Queenstown"], n, p=[0.7, 0.2, 0.1])
logit = 2.6 * (sex == "female") * (pclass < 3) + 1.5 * (sex == "female") + 2.5 * (age < 10) - 0.7 * pclass
table = pd.DataFrame({"id": range(n), "name": [f"Passenger {i}" for i in range(n)], "pclass": pclass, "sex": sex})
table["age"] = np.where(rng.random(n) < 0.2, np.nan, age.round(1))
table["fare"], table["port"] = fare.round(2), port
table["survived"] = np.where(rng.random(n) < 1 / (1 + np.exp(-logit)), "yes", "no")
table.to_csv("passengers.csv", index=False)
