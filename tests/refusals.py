"""The refusal of bad input by code that is called in this process."""

from collections.abc import Callable
from typing import Any

import pytest

from sweep import ConfigError


def refusal(make: Callable[[], Any]) -> ConfigError:
    """The one line with which `make` refuses its input."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return caught.value
