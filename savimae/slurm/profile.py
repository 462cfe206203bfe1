"""A site's settings for Slurm, written once: an INI file of option names and values.

    [all]
    account = lab
    partition = cpu
    setup =
        module load python/3.11
        source ~/venvs/savimae/bin/activate

    [train]
    nodes = 4
    time = 2-00:00:00

A section of a kind of job wins over [all], the command line over both. `setup` and `sbatch` hold
one line each, or several, indented.
"""

from __future__ import annotations

import configparser
import dataclasses
import os
from collections.abc import Collection, Mapping

from savimae.slurm.script import KINDS
from savimae.system.errors import UsageError, one_line, shown

VARIABLE = "SAVIMAE_SLURM_PROFILE"
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Profile:
    """The settings of a file; none if there is no file."""

    path: str = ""
    sections: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def find(self, kind: str, key: str) -> tuple[str, str] | None:
        """The value of `key` for jobs of `kind`, and where it stands; None if nowhere."""
        for section in (kind, ALL):
            if key in self.sections.get(section, {}):
                return self.sections[section][key], f"{shown(self.path)}: [{section}] {key}"
        return None


def read_profile(path: str | None, keys: Collection[str]) -> Profile:
    """The profile at `path`, else the one that $SAVIMAE_SLURM_PROFILE names, else the user's own.

    Args:
        keys: what may stand in it.

    Raises:
        UsageError: a file that is named but not there, or that holds anything unknown.
    """
    path = path or os.environ.get(VARIABLE)
    if path is None:
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        path = os.path.join(config, "savimae", "slurm.ini")
        if not os.path.exists(path):
            return Profile()
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = one_line(error) if isinstance(error, OSError) else "not an INI file in UTF-8"
        raise UsageError(
            f"{shown(path)}: {reason}; a profile has [sections] with `option = value` lines"
        ) from error
    for section in parser.sections():
        if section not in (ALL, *KINDS):
            raise UsageError(
                f"{shown(path)}: [{shown(section)}] is not one of {', '.join((ALL, *KINDS))}"
            )
        unknown = sorted(set(parser[section]) - set(keys))
        if unknown:
            raise UsageError(
                f"{shown(path)}: [{section}] {shown(unknown[0])} is not one of "
                f"{', '.join(sorted(keys))}"
            )
    return Profile(path, {name: dict(parser[name]) for name in parser.sections()})
