"""What all entry scripts share: how they end, and repeated `name=value` flags."""

import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from mtl.errors import ConfigError, MtlError


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and exit with its status: 0 for None, 2 for an error of the user's, 130 when interrupted."""
    try:
        status = main()
    except MtlError as error:
        sys.stderr.write(f"\n{error}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        status = 130
    sys.exit(status)


def pairs(flag: str, values: Iterable[str]) -> dict[str, str]:
    """The `name=value` arguments of a repeated flag, by name.

    Raises:
        ConfigError: one of them has no '=', or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{flag} takes name=value.", got=text)
        if name in found:
            raise ConfigError(f"{flag} names '{name}' twice.", got=f"{name}={found[name]} and {text}")
        found[name] = value
    return found
