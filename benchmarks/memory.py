"""Peak memory of a run on a large table, against a loop written by hand; whole processes, one after the other:

    python benchmarks/memory.py                    # 2 million rows, 30 columns, CSV
    python benchmarks/memory.py --format parquet
    python benchmarks/memory.py --table mine.csv   # a table of numbers with a column y

The loop reads the file with pandas (CSV at once as float32), makes float32 arrays, divides and normalises them, and
trains the same model for an epoch. The peak is the largest resident set of the process, as the kernel counts it.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

_BY_HAND = """
import sys
import numpy as np
import pandas as pd
import torch
from torch import nn

path, batch_size = sys.argv[1], int(sys.argv[2])
frame = pd.read_csv(path, dtype=np.float32) if path.endswith(".csv") else pd.read_parquet(path)
y = frame.pop("y").to_numpy(np.float32)[:, None]
x = frame.to_numpy(np.float32)
del frame
order = np.random.default_rng(0).permutation(len(x))
n_train, n_val = int(0.7 * len(x)), int(0.15 * len(x))
train, val, test = np.split(order, [n_train, n_train + n_val])
x_mean, x_std, y_mean, y_std = x[train].mean(0), x[train].std(0), y[train].mean(0), y[train].std(0)
x -= x_mean
x /= x_std
y = (y - y_mean) / y_std
parts = {name: (torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
         for name, rows in (("train", train), ("val", val), ("test", test))}
del x, y
n_inputs = parts["train"][0].shape[1]
model = nn.Sequential(nn.Linear(n_inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer, loss_fn = torch.optim.Adam(model.parameters()), nn.MSELoss()
for rows in torch.randperm(len(train)).split(batch_size):
    loss = loss_fn(model(parts["train"][0][rows]), parts["train"][1][rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.inference_mode():
    for name in ("val", "test"):
        x, y = parts[name]
        losses = [loss_fn(model(a), b).item() * len(a) for a, b in zip(x.split(batch_size), y.split(batch_size))]
        print(name, sum(losses) / len(x))
"""


def write_table(path: Path, n_rows: int, n_columns: int) -> None:
    """Write the columns x0, x1, ... and y, with six digits each."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    first = True
    frames = []
    for start in range(0, n_rows, 100_000):
        x = rng.normal(size=(min(100_000, n_rows - start), n_columns)).round(5)
        frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(n_columns)])
        frame["y"] = (np.sin(x[:, 0]) + x[:, 1] * x[:, 2] + rng.normal(scale=0.1, size=len(x))).round(5)
        if path.suffix == ".csv":
            frame.to_csv(path, index=False, mode="w" if first else "a", header=first)
        else:
            frames.append(frame)
        first = False
    if frames:
        pd.concat(frames).to_parquet(path)


def peak_mib(command: list[str]) -> float:
    """Run a command. Return the peak of its resident set in MiB. Raises SystemExit if it fails."""
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)[:200]}")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Make the table, run both in turn and print their peaks and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--table", type=Path, default=None, help="an existing table, instead of making one")
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.table or folder / f"table.{arguments.format}"
        if arguments.table is None:
            write_table(path, arguments.rows, arguments.columns)
        size = str(arguments.batch_size)
        by_hand = [sys.executable, "-c", _BY_HAND, str(path), size]
        ours = [
            *(sys.executable, "-m", "sweep.run", "data=table", f"data.path={path}", "data.target=y", "tracking=off"),
            *("trainer.epochs=1", f"trainer.batch_size={size}", "scheduler=constant", f"output_dir={folder}/outputs"),
        ]
        for _ in range(arguments.repeats):
            hand, sweep = peak_mib(by_hand), peak_mib(ours)
            print(f"by hand {hand:.0f} MiB  sweep {sweep:.0f} MiB  ratio {sweep / hand:.2f}")


if __name__ == "__main__":
    main()
