"""Many trials of one structure in one vectorised pass (`torch.func.vmap`), each as it would train by itself.

In: members with weights, optimizer settings and batches of their own. Out: the same losses and weights that
`TrainingLoop` gives (float64: within 1e-9 over 200 updates).
"""
