"""Optuna's log is silent as long as any study of the program runs, and then as it was."""

import optuna

from sweep.storage.quiet import quiet_optuna


def test_studies_of_two_threads_that_end_in_any_order_leave_the_log_as_it_was() -> None:
    own, one, other = optuna.logging.get_verbosity(), quiet_optuna(), quiet_optuna()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    other.__exit__(None, None, None)
    assert optuna.logging.get_verbosity() == own
