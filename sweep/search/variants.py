"""Composing a choice of options from a similar one: the result is Hydra's, but files are not read again.

Hydra composes in two steps. First it makes a list of files in the order of merging, and then it merges them. If an
option's file has no defaults list, choosing that option changes only one entry of the list. So one list serves all
choices of such options. The files of Hydra's own config are left out of the list, since a trial does not need them.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from sweep.config.overrides import hydras_own

Kind = tuple[tuple[str, ...], ...]  # of a choice of options; choices of one kind differ only in their files' values


class _Files(CachingConfigRepository):
    """The options' files. Each is read once, and its node `hydra` is removed.

    `load_config` returns copies, since composing modifies them. of_hydra: paths of files that had a node `hydra`.
    """

    def __init__(self, delegate: CachingConfigRepository) -> None:
        super().__init__(delegate.delegate)
        self._pickled: dict[str, bytes] = {}
        self.of_hydra: set[str] = set()

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._pickled:
            file = self.delegate.load_config(config_path=config_path)
            if file is not None and isinstance(file.config, DictConfig) and "hydra" in file.config:
                file.config.pop("hydra")
                self.of_hydra.add(config_path)
            self._pickled[config_path] = pickle.dumps(file)
        return pickle.loads(self._pickled[config_path])


@dataclass
class _Template:
    """How the choices of one kind are composed.

    Attributes:
        files: the files to merge, in this order.
        places: the index in `files` of each group's option.
        overrides: of values, applied after merging.
    """

    files: list[ResultDefault]
    places: dict[str, int]
    overrides: list[Override]


@dataclass
class Variants:
    """Composes choices of options that are similar to one that Hydra has composed.

    Attributes:
        loader: Hydra's.
        master: the sweep's own config.
        fixed: overrides that all choices share.
    """

    loader: ConfigLoaderImpl
    master: DictConfig
    fixed: Sequence[str]
    _templates: dict[Kind, _Template | None] = field(default_factory=dict)
    _files: _Files | None = None

    def kind(self, groups: Mapping[str, str]) -> Kind:
        """Return the kind of a choice. Choices of the same kind can be composed from one template."""
        return tuple(self._kind_of(*choice) for choice in groups.items())

    def composed(self, groups: Mapping[str, str], overrides: Sequence[str]) -> DictConfig | None:
        """Compose a choice, without Hydra's own node. Return None if only Hydra can compose it.

        Args:
            groups: the option of each group.
            overrides: all overrides of the choice, including those that choose the options.
        """
        kind = self.kind(groups)
        if kind not in self._templates:
            self._templates[kind] = self._template(groups, overrides)
        template = self._templates[kind]
        if template is None:
            return None
        files = list(template.files)
        for group, place in template.places.items():
            files[place] = replace(files[place], config_path=f"{group}/{groups[group]}")
        try:
            config = self.loader._compose_config_from_defaults_list(files, self._repository())
            OmegaConf.set_struct(config, True)
            self.loader._apply_overrides_to_config(template.overrides, config)
        except Exception:  # Hydra composes it again and reports the error
            return None
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        OmegaConf.set_struct(config, False)
        return config

    def _kind_of(self, group: str, option: str) -> tuple[str, ...]:
        """Return the kind of one option: (group, package) if its file has only values, else three texts of its own."""
        try:
            file = self._repository().load_config(f"{group}/{option}")
        except Exception:
            return group, option, ""
        package = "" if file is None else str(file.header["package"])
        if file is None or not isinstance(file.config, DictConfig) or "/" in option or "_name_" in package:
            return group, option, ""
        touches_hydra = f"{group}/{option}" in self._repository().of_hydra or "hydra" in package
        is_plain = all(default.is_self() for default in file.defaults_list or [])
        return (group, package) if is_plain and not touches_hydra else (group, option, "")

    def _repository(self) -> _Files:
        """Return the files, which are found once."""
        if self._files is None:
            overrides = [*hydras_own(self.master), *self.fixed]
            name = self.master.hydra.job.config_name
            _, repository = self.loader._parse_overrides_and_create_caching_repo(name, overrides)
            self._files = _Files(repository)
        return self._files

    def _template(self, groups: Mapping[str, str], overrides: Sequence[str]) -> _Template | None:
        """Make the template of a choice's kind; None if it depends on more than the options' values."""
        parsed = OverridesParser.create().parse_overrides([*hydras_own(self.master), *overrides])
        name, repository = self.master.hydra.job.config_name, self._repository()
        found = create_defaults_list(repository, name, parsed, prepend_hydra=True, skip_missing=False)
        files = [file for file in found.defaults if not _is_hydras(file)]
        if any(map(_is_open, self._defaults_of(files))):
            return None
        choices, places = found.overrides.known_choices, dict[str, int]()
        for group in groups:
            path = f"{group}/{choices.get(group)}"
            at = [n for n, file in enumerate(files) if file.config_path == path]
            if len(at) != 1:
                return None
            if len(self._kind_of(group, str(choices.get(group)))) == 2:
                places[group] = at[0]
        return _Template(files, places, [o for o in found.config_overrides if not o.is_hydra_override()])

    def _defaults_of(self, files: Sequence[ResultDefault]) -> list[InputDefault]:
        loaded = [self._repository().load_config(str(file.config_path)) for file in files]
        return [default for file in loaded if file is not None for default in file.defaults_list or []]


def _is_hydras(file: ResultDefault) -> bool:
    return str(file.config_path).startswith("hydra/")


def _is_open(default: InputDefault) -> bool:
    """Return whether an entry of a defaults list names a file by an interpolation, such as of another choice."""
    return "${" in str(vars(default))
