"""Conformance checks for what you add to sweep: a training function, a data option, a packed rule, or a trial.

Call them from your own tests. Each raises an AssertionError that says what is wrong:

    def test_my_training(tmp_path):
        sweep.testing.check_training_function(mypkg.train, tmp_path)
"""

from sweep.testing.data import check_data_option as check_data_option
from sweep.testing.rules import check_packed_rule as check_packed_rule
from sweep.testing.training import check_training_function as check_training_function
from sweep.testing.trial import TrialInMemory as TrialInMemory
from sweep.testing.trial import check_trial as check_trial

__all__ = ["TrialInMemory", "check_data_option", "check_packed_rule", "check_training_function", "check_trial"]
