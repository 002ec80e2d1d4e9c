"""The configuration: /etc/virt-rapl/virt-rapl.yaml, then conf.d/*.yaml beside it in the order of their names."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from libvirt_rapl import libraries, paths
from libvirt_rapl.choices import Backend, EnergySource, KeepHistory, Model, OnFailure, Via
from libvirt_rapl.config_key import Key
from libvirt_rapl.errors import VirtRaplError, WrongPartError
from libvirt_rapl.labels import EXPECTED as EXPECTED_LABELS
from libvirt_rapl.labels import WELL_KNOWN, Labels
from libvirt_rapl.selection import EXPECTED as EXPECTED_DOMAINS
from libvirt_rapl.selection import KINDS, LISTS, Selection

if TYPE_CHECKING:
    from libvirt_rapl.config_file import Setting
    from libvirt_rapl.tariff import Carbon, Tariff

DEFAULT_PATH = Path("/", paths.CONFIGURATION)
Off = Literal[False]
"""As YAML reads `off`."""
MOST_DAYS = 36500
"""Of history by quarters of an hour, or by the hour."""


def _key(default: object, key: Key) -> Any:  # noqa: ANN401  a field, of the type that its key has in Config
    return field(default=default, metadata={"key": key})


def _choice(default: str, choice: object, text: str) -> Any:  # noqa: ANN401
    words: tuple[str, ...] = get_args(choice)
    return _key(default, Key(f"one of {', '.join(words)}", lambda it: it if it in words else None, text, words))


def _number(least: float, most: float) -> Callable[[object], float | None]:
    def parse(written: object) -> float | None:
        if isinstance(written, bool) or not isinstance(written, int | float):
            return None
        return float(written) if least <= written <= most else None

    return parse


def _seconds(default: float, least: float, most: float, text: str) -> Any:  # noqa: ANN401
    return _key(default, Key(f"seconds from {least:g} to {most:g}", _number(least, most), text))


def _directory(default: str, text: str) -> Any:  # noqa: ANN401
    def parse(written: object) -> Path | None:
        """Return the path; None if it may be a directory of the system: the hook changes the mode of its own."""
        path = Path(written) if isinstance(written, str) else Path()
        plain = path.root == "/" and ".." not in path.parts and str(written).isprintable()
        return path if plain and len(path.parts) > 2 else None  # the root is the first part

    return _key(Path("/", default), Key(f"a directory of its own, such as /{default}", parse, text))


def _keep_history(written: object) -> KeepHistory | None:
    if written is False:  # YAML's `off`
        return KeepHistory(on=False)
    if not isinstance(written, dict) or not written.keys() <= set(KeepHistory._fields[1:]):
        return None
    for name, days in written.items():
        if type(days) is not int or not 1 <= days <= MOST_DAYS:
            raise WrongPartError([name], f"expected days from 1 to {MOST_DAYS}")
    keep = KeepHistory(**written)
    if keep.quarter_hours > keep.hours:
        raise WrongPartError(["quarter_hours"], f"expected no more days than for hours, which are {keep.hours}")
    return keep


def _parse_tariff(written: object) -> "Tariff | Off":
    from libvirt_rapl.tariff import parse_tariff  # here, so that the hook does not wait for it

    return written is not False and parse_tariff(written)


def _parse_carbon(written: object) -> "Carbon | Off":
    from libvirt_rapl.tariff import parse_carbon

    return written is not False and parse_carbon(written)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that an operator can choose: the keys of the file. An absent key keeps the default."""

    helper: Backend = _choice(
        "native",
        Backend,
        """
        Which program answers QEMU's questions for energy, one process for each domain: native (virt-rapl's own, with
        which the guest counts what its domain is charged, whatever QEMU's own arithmetic would make of it) or qemu
        (qemu-vmsr-helper, which passes the energy of the package through).
        """,
    )
    on_failure: OnFailure = _choice(
        "degrade",
        OnFailure,
        """
        What to do when a domain's meter cannot be set up: degrade (the domain starts without RAPL, `virt-rapl status`
        and the log say why) or refuse (it does not start).
        """,
    )
    source: EnergySource = _choice(
        "auto", EnergySource, "Where to read energy: auto (powercap where it has zones, else MSR), powercap or msr."
    )
    model: Model = _choice(
        "capacity",
        Model,
        """
        How the host shares the energy of its zones out to domains. (What a guest reads of itself is always QEMU's
        capacity.)
        - capacity: by the share of all the time the CPUs have. Guest and host agree; unused time is idle.
        - active: by the share of the time the CPUs were busy. Domains and the host's own work share all of it.
        - baseline: idle power is set apart, the rest is shared as in active. Idle power is the lowest that a zone has
          shown since the ledger was begun: until the host has been quiet once, domains are charged too little.
        """,
    )
    run_directory: Path = _directory(
        paths.RUN_DIRECTORY,
        """
        Where the sockets of helpers and the records of the hook are, a directory of its own below /run. The wrapper and
        QEMU open files in it, so every user may search it. virt-rapl's units and the rules for AppArmor and SELinux are
        made for this directory: with another, virt-rapld does not start until a drop-in names it (RuntimeDirectory=).
        """,
    )
    state_directory: Path = _directory(
        paths.STATE_DIRECTORY,
        """
        Where virt-rapld keeps its ledger of energy, a directory of its own. Its unit is made for this directory: in
        another, virt-rapld cannot keep totals until a drop-in names it (ReadWritePaths=).
        """,
    )
    history: KeepHistory = _key(
        KeepHistory(),
        Key(
            "off, or days for quarter_hours and hours",
            _keep_history,
            """
            How long virt-rapld keeps the history of energy, for `virt-rapl report`: by quarters of an hour, then by the
            hour, both in days; what is older is by the day, for ever. Or off: what is used then is in no report.
                history: {quarter_hours: 35, hours: 400}
            or
                history: off
            """,
            KeepHistory._fields[1:],
            "{quarter_hours: 35, hours: 400}",
        ),
    )
    interval: float = _seconds(1.0, 0.1, 60, "Seconds between two samples of virt-rapld.")
    hook_deadline: float = _seconds(
        5.0,
        1,
        10,
        """
        The most seconds that the hook may take for one operation of libvirt on a domain; libvirt waits for it. A domain
        whose helper does not answer by then is treated as on_failure says. `virt-rapl events` shows how long it took.
        """,
    )
    domains: Selection = _key(
        Selection(),
        Key(
            EXPECTED_DOMAINS,
            Selection.parse,
            f"""
            Domains that get a meter without `virt-rapl enable`, including those that do not exist yet. virt-rapld
            enables them for their next start and repairs what edits and clones break; a restore or an incoming
            migration does it at once. A list of names, shell patterns of names, UUIDs, titles (patterns, too), elements
            directly under `<metadata>`, and patterns of what is at a place in it, which is written as under `labels`;
            or two such lists, include and exclude. By default no domain is chosen. virt-rapld reads this when it
            starts, and needs a right for it that is commented out in /{paths.POLKIT_RULE}.
            Domains that name no emulator need neither, where `virt-rapl install --default-emulator` was run: the hook
            gives them their meter at each start.
                domains: ['*']
            or
                domains:
                  include: [web*, 2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819, title: 'Shop *', metadata: http://example.com/shop tenant]
                  exclude: [web-test]
            or
                domains:
                  - nova.flavor: m1.green
                  - nova.project: Shop *
                  - http://example.com/shop tenant@tier: gold
            """,  # noqa: E501  as one writes it
            (*LISTS, *KINDS),
            "[]",
        ),
    )
    via: Via = _choice(
        "auto",
        Via,
        """
        How guests get their energy, where `virt-rapl enable --via` does not say it: by registers, which QEMU gives on
        Intel hosts, from 9.1 on and to domains whose number of vCPUs is fixed; by the channel, a virtio-serial port
        that every domain of QEMU can have (docs/channel.md); both; or auto, registers where this host's QEMU gives them
        to the domain, else the channel. virt-rapld reads this when it starts.
        """,
    )
    labels: Labels = _key(
        Labels(),
        Key(
            EXPECTED_LABELS,
            Labels.parse,
            """
            What is known of each domain beside name and title, for Prometheus: labels, and where their values are in a
            domain's `<metadata>`. `nova.project`, `nova.project_id` and `nova.flavor` are what OpenStack's nova writes
            there. Any other place is a namespace and a path of elements in it, whose text is the value, or an attribute
            of the last one. A domain that has nothing there has no such label. virt-rapld reads this when it starts.
                labels:
                  project: nova.project
                  flavor: nova.flavor
                  tenant: http://example.com/shop tenant/name
                  tier: http://example.com/shop tenant@tier
            """,
            tuple(WELL_KNOWN),
            "{}",
        ),
    )
    tariff: "Tariff | Off" = _key(
        False,
        Key(
            "off, or a currency with a price, windows or a csv",
            _parse_tariff,
            """
            What a kilowatt hour costs, for `virt-rapl report`: a price, and others in windows of the week, which may
            cross midnight (days: those on which a window begins), in a time zone (default: the machine's). Or a CSV
            file of time,price. Or off: reports have no costs.

            A row of the file is valid until the next one. But where the distance to that is more than 1.12 times the
            longer of the distances before and after it, rows are missing: the row is valid for that longer distance,
            and the rest stays empty. Where the longer one is more than 25 hours, as in a list of price changes, each
            row is valid until the next. The last row is valid as long as the one before it; a single row from then on.
                tariff:
                  currency: EUR
                  price: 0.31
                  time_zone: Europe/Berlin
                  windows:
                    - {days: mon-fri, from: 22:00, to: 06:00, price: 0.22}
                    - {days: [sat, sun], from: 06:00, to: 22:00, price: 0.25}
            or
                tariff: {currency: EUR, csv: /etc/virt-rapl/prices.csv}
            """,
            default="off",
        ),
    )
    carbon: "Carbon | Off" = _key(
        False,
        Key(
            "off, or grams_per_kwh or a csv, and a source",
            _parse_carbon,
            """
            The grams of CO2 equivalent of a kilowatt hour, for `virt-rapl report`, and who says so; or a CSV file of
            time,grams, whose rows are valid as those of `tariff`. Or off: reports do not have them.
                carbon: {grams_per_kwh: 363, source: Umweltbundesamt 2024}
            or
                carbon: {csv: /etc/virt-rapl/carbon.csv, source: Electricity Maps}
            """,
            default="off",
        ),
    )
    pue: float = _key(
        1.0,
        Key(
            "a number from 1 to 10",
            _number(1, 10),
            """
            Power usage effectiveness: for each kilowatt hour of the machines, the data center uses so many. Costs and
            CO2 in `virt-rapl report` are multiplied by it; energies are not.
            """,
        ),
    )


KEYS: dict[str, Key] = {each.name: each.metadata["key"] for each in fields(Config)}


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read the configuration; return the defaults if the file does not exist.

    Raises VirtRaplError when a file cannot be read, can be written by users other than root and ours, is not YAML, or
    holds an unknown key or a wrong value.
    """
    settings, mistakes = read(path)
    if mistakes:
        raise mistakes[0]
    return Config(**{key: setting.value for key, setting in settings.items()})


def stated_policy(path: Path = DEFAULT_PATH) -> OnFailure:
    """Return `on_failure`, if it can be read in a configuration that load() rejects; else its default."""
    settings, _ = read(path)
    stated: OnFailure = settings["on_failure"].value if "on_failure" in settings else Config.on_failure
    return stated


def read(path: Path = DEFAULT_PATH) -> tuple[dict[str, "Setting"], list[VirtRaplError]]:
    """Return the files' valid settings, and all mistakes in them, in the order of the files."""
    libraries.find()
    from libvirt_rapl import config_file  # here, so that a start, which remembers, does not wait for YAML

    return config_file.read(path, KEYS)
