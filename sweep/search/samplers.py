"""Samplers that are seeded by the study's seed and the trial's number only, so that a study resumes exactly.

Each trial gets a new sampler with its own seed, so samplers have no state to keep between processes. They learn from
the trials in the storage.
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from sweep.search import build
from sweep.search.ranges import first_of
from sweep.search.settings import RANDOM_SAMPLER
from sweep.search.space import Configuration, Space
from sweep.storage.optuna_internals import as_sampler_sees
from sweep.utils.errors import ConfigError
from sweep.utils.seeds import derive_seed

_GRID = "optuna.samplers.GridSampler"
_BRUTE_FORCE = "optuna.samplers.BruteForceSampler"
_QMC = "optuna.samplers.QMCSampler"
_TPE = "optuna.samplers.TPESampler"
_MOST_REPEATS = 100  # attempts to find an untried point; a small space may have none left
_QMC_DIMENSIONS = 64  # fixed, since a scrambled point depends on the number of dimensions


def is_grid(node: Mapping[str, Any]) -> bool:
    """Return whether the sampler tries every configuration once."""
    return node.get("_target_") in (_GRID, _BRUTE_FORCE)


def is_shuffled(node: Mapping[str, Any]) -> bool:
    """Return whether the sampler tries every configuration once, in random order.

    Optuna's own BruteForceSampler is not called: it finds what is left by the parameters that each trial stores one
    after the other, and ours are stored together.
    """
    return node.get("_target_") == _BRUTE_FORCE


def is_uniform(node: Mapping[str, Any]) -> bool:
    """Return whether the sampler does not learn from other trials, and covers the space evenly."""
    return node.get("_target_") in (RANDOM_SAMPLER, _QMC)


def is_replayed(node: Mapping[str, Any], space: Space) -> bool:
    """Return whether the sampler draws what hydra-optuna-sweeper would draw for another application."""
    is_seeded = node["_target_"] == RANDOM_SAMPLER and node.get("seed") is not None
    return is_seeded and space.composer.application is not None and space.custom is None


def shuffled(space: Space, seed: int, known: Sequence[Mapping[str, Any]]) -> list[Configuration]:
    """List every configuration of a finite space once, in an order that depends on the seed.

    known: parameters of initial trials, perhaps incomplete. The first configuration that matches each of them goes to
    the front. One that has all of them is preferred to one that does not search some, as `when` says.
    """
    left = list(space.everything())
    random.Random(derive_seed(seed, "order")).shuffle(left)
    first = []
    for params in known:
        near = (c for c in left if all(c.params.get(key, value) == value for key, value in params.items()))
        match = next((c for c in left if params.items() <= c.params.items()), None) or next(near, None)
        if match is not None:
            left.remove(match)
            first.append(match)
    return first + left


def make_sampler(node: Mapping[str, Any], seed: int, number: int, space: Space) -> BaseSampler:
    """Make the sampler of one trial. A grid needs none.

    Args:
        node: the sampler's config.
        seed: of the study.
        number: of the trial.
        space: of the study.

    Raises:
        ConfigError: the sampler cannot be made.
    """
    target = node["_target_"]
    if is_replayed(node, space):
        return Replayed(int(node["seed"]), number, space)
    arguments = {**node, "seed": derive_seed(seed, f"trial/{number}") % 2**32}
    if target == _TPE and space.is_conditional and arguments.get("multivariate", True):
        arguments = {"group": True, **arguments}  # model parameters jointly that occur in the same trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = build.sampler(arguments)
    if target == _QMC:
        return QuasiRandom(number, seed, **{k: v for k, v in node.items() if k in ("qmc_type", "scramble")})
    return made


def draw(
    study: optuna.Study,
    trial: FrozenTrial,
    sampler: BaseSampler,
    space: Space,
    known: Mapping[str, Any],
    tried: Sequence[Mapping[str, Any]] = (),
) -> Configuration:
    """Sample a configuration that meets the study's conditions.

    Args:
        study: its trials are what the sampler learns from.
        trial: the trial to sample for. Parameters that an earlier attempt at it stored are kept.
        sampler: made for this trial.
        space: of the study.
        known: parameters that are fixed for this trial. Others are drawn again if `when` would leave out one of these.
        tried: parameters to avoid if others are found. The second point of a Sobol sequence, for example, is the middle
            of the space, where defaults often lie.

    Raises:
        ConfigError: no configuration meets the conditions.
    """
    settled = {**known, **trial.params}
    study = as_sampler_sees(study, trial)  # as Optuna's own `Trial` does
    sampler.before_trial(study, trial)
    together = sampler.infer_relative_search_space(study, trial)
    sampled: dict[str, Any] = {}

    def again() -> None:
        sampled.clear()
        sampled.update(sampler.sample_relative(study, trial, together))

    def suggest(name: str, distribution: BaseDistribution) -> Any:
        if name in settled:
            return settled[name]
        if distribution.single():
            return first_of(distribution)
        if name in sampled and together[name] == distribution:
            return sampled[name]
        return sampler.sample_independent(study, trial, name, distribution)

    again()
    configuration = space.accepted(suggest, again)
    for _ in range(_MOST_REPEATS):
        if known.items() <= configuration.params.items() and configuration.params not in tried:
            break
        again()
        configuration = space.accepted(suggest, again)
    return configuration


class Replayed(BaseSampler):
    """Draws what hydra-optuna-sweeper's random sampler draws with the same seed, for a trial of another application.

    That sampler has one generator for all trials. Its draws for earlier trials are repeated here, which takes less than
    0.1 ms each. Values that it would not draw, such as those of a further attempt, are drawn from the trial's own seed.
    """

    def __init__(self, seed: int, number: int, space: Space) -> None:
        """Draw all values of the trial.

        Args:
            seed: of the sampler.
            number: of the trial.
            space: of the study. Keys of the command line and of hydra.sweeper.params are drawn in their order.
        """
        self._further = RandomSampler(derive_seed(seed, f"trial/{number}") % 2**32)
        self._drawn = dict[str, Any]()
        ranges = {**space.groups, **space.swept}
        order = {key: ranges[key] for key in space.composer.prefixes if not ranges[key].single()}
        drawing, study, trial = RandomSampler(seed), optuna.create_study(), optuna.trial.create_trial(value=0.0)
        for _ in range(number + 1):
            self._drawn = {k: drawing.sample_independent(study, trial, k, d) for k, d in order.items()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value that was drawn; on a further call a new one."""
        name = param_name.partition("[")[0]
        if name in self._drawn:
            return self._drawn.pop(name)
        return self._further.sample_independent(study, trial, param_name, param_distribution)


class QuasiRandom(BaseSampler):
    """Gives a trial one point of a Sobol or Halton sequence. Parameters take its coordinates in the order of sampling.

    If the point breaks a condition, random points follow. Optuna's QMCSampler counts its points in the storage instead,
    so a worker that dies loses some.
    """

    def __init__(self, number: int, seed: int, qmc_type: str = "sobol", scramble: bool = False) -> None:
        """Compute the point.

        Args:
            number: of the trial, which is the point's place in the sequence, from 0.
            seed: of the study.
            qmc_type: sobol or halton.
            scramble: whether to randomise the sequence by the seed.

        Raises:
            ConfigError: `qmc_type` is unknown.
        """
        from scipy.stats import qmc

        if qmc_type not in ("sobol", "halton"):
            raise ConfigError("hydra.sweeper.sampler.qmc_type", f"'{qmc_type}' is unknown; choose sobol or halton")
        engine = qmc.Sobol if qmc_type == "sobol" else qmc.Halton
        points = engine(_QMC_DIMENSIONS, scramble=scramble, rng=seed)
        if number:
            points.fast_forward(number)
        self._point = points.random(1)[0].tolist()
        self._random = RandomSampler(derive_seed(seed, f"trial/{number}") % 2**32)
        self._attempts = 0
        self._n_asked = 0

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._attempts += 1  # called once for each attempt at a point
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self._attempts > 1:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        if self._n_asked == _QMC_DIMENSIONS:
            raise ConfigError(
                "hydra/sweeper/sampler", f"qmc takes at most {_QMC_DIMENSIONS} parameters; choose another"
            )
        self._n_asked += 1
        return _at(self._point[self._n_asked - 1], param_distribution)


def _at(u: float, distribution: BaseDistribution) -> Any:
    """Map `u` in [0, 1) to a value: the distribution's quantile at `u`."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(u * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, IntDistribution) and distribution.log:
        return min(high, int(low * ((high + 1) / low) ** u))
    if distribution.log:
        return low * (high / low) ** u
    if step is not None:
        return low + step * int(u * (round((high - low) / step) + 1))
    return low + u * (high - low)
