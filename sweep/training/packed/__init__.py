"""Many trials of one structure in one vectorised pass (`torch.func.vmap`). Each gets the values of sequential training.

In: members, each with its own weights, optimizer settings and batches. Out: the same losses and weights that
`TrainingLoop` gives (float64: within 1e-9 over 200 updates).
"""
