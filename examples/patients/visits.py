"""Make visits.csv: several visits of each patient, who has a rare condition or not."""

import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
n_patients, n_visits = 300, 8
patient = np.repeat(np.arange(n_patients), n_visits)
ill = rng.random(n_patients) < 0.2
own = rng.normal(size=(n_patients, 4))  # what is peculiar to each patient, and would give the condition away
signs = own + ill[:, None] * [1.2, 1.0, 0.0, -0.8]
visits = signs[patient] + rng.normal(scale=0.7, size=(len(patient), 4))
table = pd.DataFrame(visits.round(3), columns=["pressure", "glucose", "pulse", "oxygen"])
table.insert(0, "patient", patient)
table["condition"] = np.where(ill[patient], "present", "absent")
table.to_csv("visits.csv", index=False)
