"""How the losses of K tasks become one: a balancer maps replicated statistics of the tasks to one weight for each.

Balancers never communicate and never see the model: whoever fills `TaskStats` (mtl/balancing/signals) reduces first,
so the weights are equal on every rank by construction. One method a file. `METHODS` is the registry; it holds
addresses rather than classes, so that a name can be checked without torch, and a user's own `module:Class` is loaded
the same way.
"""

from collections.abc import Iterable

from mtl.errors import ConfigError


def registry(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The addresses, `module:Class`, by name.

    Raises:
        ConfigError: a name that is there twice.
    """
    made: dict[str, str] = {}
    for name, address in entries:
        if name in made:
            raise ConfigError(f"Two balancing methods are called '{name}'.", got=f"{made[name]} and {address}")
        made[name] = address
    return made


METHODS = registry(
    (
        ("static", "mtl.balancing.static:Static"),
        ("uw", "mtl.balancing.uw:UW"),
        ("dwa", "mtl.balancing.dwa:DWA"),
        ("rlw", "mtl.balancing.rlw:RLW"),
        ("gls", "mtl.balancing.gls:GLS"),
        ("si", "mtl.balancing.si:SI"),
        ("imtl-l", "mtl.balancing.imtl_l:IMTLL"),
        ("stch", "mtl.balancing.stch:STCH"),
        ("famo", "mtl.balancing.famo:FAMO"),
        ("gradnorm", "mtl.balancing.gradnorm:GradNorm"),
        ("mgda", "mtl.balancing.mgda:MGDA"),
        ("pcgrad", "mtl.balancing.pcgrad:PCGrad"),
        ("gradvac", "mtl.balancing.gradvac:GradVac"),
        ("cagrad", "mtl.balancing.cagrad:CAGrad"),
        ("imtl-g", "mtl.balancing.imtl_g:IMTLG"),
        ("nash-mtl", "mtl.balancing.nash_mtl:NashMTL"),
        ("aligned-mtl", "mtl.balancing.aligned_mtl:AlignedMTL"),
        ("fairgrad", "mtl.balancing.fairgrad:FairGrad"),
        ("upgrad", "mtl.balancing.upgrad:UPGrad"),
        ("norm", "mtl.balancing.norm:Norm"),
    )
)


def address(method: str) -> str:
    """Where the method lives: `module:Class`.

    Raises:
        ConfigError: neither a name of the registry nor an address.
    """
    if ":" in method:
        return method
    if method not in METHODS:
        raise ConfigError(
            f"There is no balancing method '{method}'.",
            got=method,
            expected=f"module:Class of your own, or one of {', '.join(METHODS)}",
            do="set --balancing.method; docs/balancing.md says what each of them does",
        )
    return METHODS[method]
