"""What `report` and `top` ask the history of energy with: the history itself, prices and CO2, and whole quarters."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal

from libvirt_rapl import paths
from libvirt_rapl.config import Config
from libvirt_rapl.daemon.history_socket import open_remote
from libvirt_rapl.energy import factors
from libvirt_rapl.energy.extract import History, OlderError, open_ledger
from libvirt_rapl.energy.history import QUARTER
from libvirt_rapl.energy.ledger_content import DamagedError
from libvirt_rapl.energy.report import Factors
from libvirt_rapl.errors import VirtRaplError


@contextmanager
def open_history(config: Config) -> Iterator[History]:
    """Open the ledger, or if only virt-rapld may, ask that. Raises VirtRaplError."""
    path = config.state_directory / paths.LEDGER
    try:
        with ExitStack() as stack:
            try:
                history: History = stack.enter_context(open_ledger(path))
            except PermissionError:
                history = stack.enter_context(open_remote(config.run_directory / paths.HISTORY_SOCKET))
            yield history
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise VirtRaplError(
            f"there is no ledger {path}, or no virt-rapld that reads it", "systemctl start virt-rapld"
        ) from error
    except PermissionError as error:
        raise VirtRaplError(f"may not read {path}", "run it as root, or as a member of the group virt-rapl") from error
    except (OSError, DamagedError) as error:
        hint = "systemctl restart virt-rapld" if isinstance(error, OlderError) else "journalctl -u virt-rapld"
        raise VirtRaplError(f"cannot read {path}: {error}", hint) from error


def configured_factors(config: Config) -> Factors:
    """Return what a kilowatt hour costs and stands for. Raises VirtRaplError if a file of prices cannot be used."""
    return Factors(
        price=factors.price(config.tariff) if config.tariff else None,
        currency=config.tariff.currency if config.tariff else "",
        grams=factors.grams(config.carbon) if config.carbon else None,
        pue=Decimal(str(config.pue)),
    )


def round_down(instant: float) -> int:
    """Return the beginning of the quarter of an hour that an instant is in."""
    return int(instant // QUARTER) * QUARTER


def round_up(instant: float) -> int:
    """Return the end of the quarter of an hour that ends at or after an instant."""
    return -int(-instant // QUARTER) * QUARTER
