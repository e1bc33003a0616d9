"""Make days.csv: the demand of each hour, with what is known the day before."""

import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
time = pd.date_range("2024-01-01", periods=24 * 250, freq="h")
hour, weekday = time.hour.to_numpy(), time.day_of_week.to_numpy()
level = 50 + 20 * np.sin(2 * np.pi * (hour - 8) / 24) + 8 * (weekday < 5)
spread = 2 + 6 * (hour > 16)  # evenings are harder to predict
demand = level + spread * rng.standard_t(5, len(time))
table = pd.DataFrame({"time": time, "sin": np.sin(2 * np.pi * hour / 24), "cos": np.cos(2 * np.pi * hour / 24)})
table["workday"], table["evening"] = (weekday < 5) * 1, (hour > 16) * 1
table["day_before"], table["demand"] = np.roll(demand, 24).round(2), demand.round(2)
table.iloc[24:].to_csv("days.csv", index=False)
