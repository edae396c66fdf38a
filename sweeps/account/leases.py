"""Which driver holds which cells, for drivers on any machines that share one storage path.

Each driver keeps a file `drivers/NAME.json` under the storage path: who it is, which cells it holds, and a count that
it raises every HEARTBEAT_INTERVAL seconds. A lease whose count stands still for LEASE_TIMEOUT seconds has expired.
Clocks of different machines are never compared, and nothing is asked of the storage but that a file that was written
can be listed and read at once, so it works on NFS and in object stores too.

Two drivers that start together agree by Lamport's bakery: each writes what it wants, then reads what others want; one
that has decided wins, else the one with the smaller ticket.

A driver that was suspended finds out when it wakes: by its own clock its last heartbeat is older than the timeout, so
it looks whether its file is still there and still its own before it lets anything be written. Its trials, which other
machines may run, ask the same of the file before each checkpoint: see `require`.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from relvit.files import Location, write_atomic

HEARTBEAT_INTERVAL = 5.0  # seconds
LEASE_TIMEOUT = 30.0  # seconds without a heartbeat after which a driver counts as dead

_CHOOSING, _HOLDING = "choosing", "holding"


class LeaseLostError(RuntimeError):
    """Another driver has taken over what a trial works on."""


@dataclass(frozen=True)
class Lease:
    """One driver's file. ticket: Unix time at which it asked; replaced: names of the leases that it took over."""

    name: str
    who: str
    process: str
    ticket: float
    stage: str
    cells: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    beat: int = 0


class Hold:
    """What a driver holds while it runs. held: ids of its cells; others: for each cell that another driver holds, who;
    replaced: who held cells before and is dead."""

    def __init__(self, folder: Location, lease: Lease, lost: Callable[[], None]):
        self._folder, self._lease, self._on_lost = folder, lease, lost
        self.held: frozenset[str] = frozenset()
        self.others: dict[str, str] = {}
        self.replaced: list[str] = []
        self._lost = self._in_doubt = False
        self._confirmed: float | None = None  # by `now`, when the last heartbeat was begun that was written
        self._writing = threading.Lock()
        self._told = threading.Condition()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="lease")

    @property
    def name(self) -> str:
        """Of the lease, as `require` takes it."""
        return self._lease.name

    @property
    def is_lost(self) -> bool:
        """Whether another driver has taken over from this one, which must then write no more.

        After LEASE_TIMEOUT seconds without a heartbeat, as when this process was suspended, the answer waits for the
        next look at the storage. Where that fails nobody knows: see `may_not_write`.
        """
        with self._told:
            if self._is_stale() and not self._in_doubt:
                self._in_doubt = not self._told.wait_for(
                    lambda: self._lost or self._in_doubt or not self._is_stale(), 2 * HEARTBEAT_INTERVAL
                )
            return self._lost

    def may_not_write(self) -> bool:
        """As `is_lost`, to be asked before a write. Raises OSError while the storage does not tell, so that the write
        waits."""
        if self.is_lost:
            return True
        if self._is_stale():
            raise OSError(f"the storage has taken no heartbeat of this driver for {LEASE_TIMEOUT:g} s")
        return False

    def acquire(self) -> None:
        """Ask, decide, and give heartbeats from the first moment."""
        self._update()
        self._thread.start()
        others, dead = _decide(self._folder, self._lease)
        kept = tuple(cell for cell in self._lease.cells if cell not in others)
        if not self._update(stage=_HOLDING, cells=kept, replaced=tuple(lease.name for lease in dead)):
            return
        for lease in dead:
            _remove(self._folder, lease)
        self.held, self.others, self.replaced = frozenset(kept), others, [lease.who for lease in dead]

    def narrow(self, cells: Iterable[str]) -> None:
        """Let go of all but these of the held cells."""
        kept = frozenset(cells) & self.held
        self._update(cells=tuple(sorted(kept)))
        self.held = kept

    def release(self) -> None:
        """Let go."""
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()
        _remove(self._folder, self._lease)

    def _update(self, **changes: Any) -> bool:
        """Write the lease with a higher count. False, and nothing is written, if another driver has taken over."""
        with self._writing:
            if self._lost:
                return False
            begun = now()
            was_stale = self._is_stale()
            lost = self._is_replaced()
            if not lost:
                self._lease = replace(self._lease, beat=self._lease.beat + 1, **changes)
                _write(self._folder, self._lease)
                if was_stale:  # another driver may just have decided by the count that it had read
                    time.sleep(2 * _poll())
                    lost = self._is_replaced()
                # Suspended meanwhile, this process may have written again what another had removed.
                lost = lost or now() - begun > LEASE_TIMEOUT
            with self._told:
                self._lost, self._in_doubt = lost, False
                self._confirmed = begun
                self._told.notify_all()
        if lost:
            self._on_lost()
        return not lost

    def _is_replaced(self) -> bool:
        # Before the first heartbeat nobody has seen it.
        return self._confirmed is not None and _is_replaced(self._folder, self._lease.name)

    def _is_stale(self) -> bool:
        return self._confirmed is not None and now() - self._confirmed > LEASE_TIMEOUT

    def _live(self) -> None:
        while not self._done.wait(HEARTBEAT_INTERVAL):
            try:
                if not self._update():
                    return
            except OSError:  # the storage is away or full; others see no heartbeat until it is back
                with self._told:
                    self._in_doubt = True
                    self._told.notify_all()


@contextmanager
def hold(folder: Location, cells: Iterable[str], lost: Callable[[], None]) -> Iterator[Hold]:
    """Hold those of the cells that no living driver holds, for the length of the block.

    Waits up to LEASE_TIMEOUT seconds to tell a living driver from a dead one. `lost` is called, once and in another
    thread, if another driver took over because this one gave no heartbeat.
    """
    name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
    who = f"process {os.getpid()} on {platform.node()}"
    holding = Hold(folder, Lease(name, who, this_process(), time.time(), _CHOOSING, tuple(cells)), lost)
    try:
        holding.acquire()
        yield holding
    finally:
        holding.release()


def require(folder: Location, name: str) -> None:
    """Raise LeaseLostError if the driver with the lease `name` was replaced, or has let go. One that is suspended may
    not know. Raises OSError while the storage does not tell."""
    if _is_replaced(folder, name):
        raise LeaseLostError("another driver has taken over, because this trial's gave no heartbeat")


def _is_replaced(folder: Location, name: str) -> bool:
    try:
        (folder / f"{name}.json").read_bytes()
    except FileNotFoundError:
        return True
    return any(name in other.replaced for other in read(folder))


def read(folder: Location) -> list[Lease]:
    """All leases, living or not."""
    return [lease for lease in _leases(folder).values() if lease is not None]


def unreadable(folder: Location) -> list[Location]:
    """Files among the leases that are none."""
    return [path for path, lease in _leases(folder).items() if lease is None]


def _leases(folder: Location) -> dict[Location, Lease | None]:
    leases: dict[Location, Lease | None] = {}
    for path in folder.glob("*.json"):
        try:
            fields = json.loads(path.read_text())
            lease = Lease(**{**fields, "cells": tuple(fields["cells"]), "replaced": tuple(fields["replaced"])})
            texts = (lease.name, lease.who, lease.process, lease.stage, *lease.cells, *lease.replaced)
            numbers = (lease.ticket, lease.beat)
            valid = all(isinstance(each, str) for each in texts) and all(
                isinstance(each, (int, float)) for each in numbers
            )
            leases[path] = lease if valid else None
        except FileNotFoundError:  # let go since it was listed
            continue
        except (ValueError, KeyError, TypeError, IsADirectoryError):
            leases[path] = None
    return leases


def apparently_held(folder: Location) -> set[str]:
    """The cells in leases of which nothing says that they have expired: a look without waiting."""
    return {cell for lease in read(folder) if not _is_over(lease) for cell in lease.cells}


def _decide(folder: Location, mine: Lease) -> tuple[dict[str, str], list[Lease]]:
    """Who holds which of the wanted cells, and the dead leases that stood in the way."""
    wanted = set(mine.cells)
    seen: dict[str, _Seen] = {}
    while True:
        others: dict[str, str] = {}
        dead: list[Lease] = []
        undecided = False
        for lease in read(folder):
            if lease.name == mine.name or not wanted & set(lease.cells):
                continue
            sign = seen.setdefault(lease.name, _Seen(lease.beat))
            sign.look(lease.beat)
            goes_first = lease.stage == _HOLDING or (lease.ticket, lease.name) < (mine.ticket, mine.name)
            if _is_over(lease) or sign.silent_for >= LEASE_TIMEOUT:
                dead.append(lease)
            elif goes_first and (sign.alive or _is_awake(lease)):
                others |= {cell: lease.who for cell in lease.cells if cell in wanted}
            else:
                undecided = True  # it may be dead, or has to decide first what it leaves to this driver
        if not undecided:
            return others, dead
        time.sleep(_poll())


class _Seen:
    """When another driver's lease was last seen to change."""

    def __init__(self, beat: int):
        self._beat, self._at, self.alive = beat, time.monotonic(), False

    def look(self, beat: int) -> None:
        if beat != self._beat:
            self._beat, self._at, self.alive = beat, time.monotonic(), True

    @property
    def silent_for(self) -> float:
        return time.monotonic() - self._at


def this_process() -> str:
    """This process among all on this machine: its boot, its namespace, its number, when it began."""
    return _process_of(os.getpid())


def _process_of(pid: int) -> str:
    """Raises OSError where there is none."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}/{pid}/{_stat(pid)[19]}"


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on. Raises OSError where there is none."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _same_machine(lease: Lease) -> bool:
    return lease.process.rsplit("/", 2)[0] == this_process().rsplit("/", 2)[0]


def _runs_here(lease: Lease) -> bool:
    if not _same_machine(lease):
        return False
    try:
        return _process_of(_pid(lease)) == lease.process
    except OSError:
        return False


def _pid(lease: Lease) -> int:
    return int(lease.process.split("/")[-2])


def _is_awake(lease: Lease) -> bool:
    """A driver of this machine that runs need not be seen to give heartbeats, unless it is suspended."""
    try:
        return _runs_here(lease) and _stat(_pid(lease))[0] not in "Tt"
    except OSError:
        return False


def _is_over(lease: Lease) -> bool:
    """A driver of this machine whose process has ended need not be waited for."""
    return _same_machine(lease) and not _runs_here(lease)


def now() -> float:
    """Seconds by this machine's own clock, which also runs while the machine sleeps and which nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _poll() -> float:
    """Seconds between two looks of a driver that decides."""
    return HEARTBEAT_INTERVAL / 20


def _path(folder: Location, lease: Lease) -> Location:
    return folder / f"{lease.name}.json"


def _write(folder: Location, lease: Lease) -> None:
    write_atomic(_path(folder, lease), json.dumps(asdict(lease)).encode())


def _remove(folder: Location, lease: Lease) -> None:
    _path(folder, lease).unlink(missing_ok=True)
