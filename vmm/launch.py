"""From what somebody asks for to a machine that can run, or to a reason why not.

    with launch(LaunchOptions(guest="linux", nets=("tap=tap0",))) as launched:
        launched.machine.run(2_000_000_000)

:class:`LaunchOptions` says everything in words and file names, as a command line does.  A guest's name
is short for its images, command line, disk and RAM (:func:`expanded`); the rest knows only files.
What decides the board:

    load         the snapshot: RAM size, seed, epoch, cards and disks are part of it
    replay       the log, which holds the configuration and names the images (``vmm.logbook``)
    otherwise    the options

With ``load``, images say what a reset loads; without them a reset ends the run.  Whatever was opened
is closed by :meth:`Launched.close`, and at once when something later fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vmm import logbook, recording
from vmm.backends import disk, net
from vmm.backends.console import Console
from vmm.backends.disk import DiskSpec
from vmm.boot.multiboot import Module
from vmm.boot.source import BootSectorBoot, BootSource, LinuxBoot, MultibootBoot, read_image
from vmm.cards import UNPLUGGED_WORD, Wrap, plugged
from vmm.config import EPOCH_2026_S, RAM_MIB_DEFAULT, DiskConfig, NetConfig, PcConfig, mac
from vmm.devices.block import SECTOR_BYTES, BlockBackend
from vmm.errors import ConfigError, ImageError, ReplayError, SnapshotError, StateError
from vmm.logbook import Hashed, Part
from vmm.machine import Backends, Machine, resume
from vmm.ram import Ram
from vmm.record import Image, Recorder
from vmm.replay import Replayer
from vmm.snapshot import Snapshot
from vmm.state import unpack

Say = Callable[[str], None]
Incoming = Callable[[int], Ram]
"""Makes so many MiB of RAM."""
WrapDisk = Callable[[int, BlockBackend], BlockBackend]
"""What is put around disk 0, 1, ...; who opened the disk closes it."""

NO_REBOOT = Part("option", "no-reboot")


@dataclass(frozen=True)
class LaunchOptions:
    """A machine in words.  At most one of ``guest``, ``kernel``, ``multiboot`` and ``boot_sector``."""

    guest: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    multiboot: str | None = None
    modules: tuple[str, ...] = ()
    """Each a file name, which may be followed by a blank and words for the kernel."""
    boot_sector: str | None = None
    append: str | None = None
    """The kernel's command line; with ``guest``, words that follow the guest's own."""
    load: str | None = None
    replay: str | None = None
    ram_mib: int | None = None
    seed: bytes | None = None
    epoch_s: int | None = None
    disks: tuple[DiskSpec | str, ...] = ()
    nets: tuple[str, ...] = ()
    """As ``vmm.backends.net`` writes them; for ``load`` the first cards of the snapshot."""
    pcaps: tuple[str, ...] = ()
    """Captures, of the first card, the second, ..."""
    paced: bool | None = None
    """None: exactly when a card leads somewhere, because its peers live in real time."""
    reboot: bool = True
    """False: a reset ends the run."""

    @property
    def boots(self) -> bool:
        """Is there something that a power-on or a reset loads?"""
        return any((self.guest, self.kernel, self.multiboot, self.boot_sector))

    @property
    def outside(self) -> bool:
        """Does a card lead somewhere?"""
        return any(spec not in net.UNPLUGGED for spec in self.nets)


class Launched:
    """A machine with everything that was opened for it."""

    def __init__(self, machine: Machine, options: LaunchOptions, opened: ExitStack) -> None:
        self.machine = machine
        self.options = options
        """With the guest's name replaced by what it is short for."""
        self.log: Replayer | None = None
        """What is being replayed."""
        self._opened = opened

    def images(self, hashed: Hashed = lambda count: None) -> list[Image]:
        """The digests of everything that the machine started with; reads whole files."""
        return [part.image(hashed) for part in parts(self.options)]

    def record(self, path: Path | str, hashed: Hashed = lambda count: None) -> Recorder:
        """Log the run from here on; only ``vmm.recording.finish`` ends the log whole."""
        recorder = recording.start(self.machine, path, self.images(hashed))
        self._opened.enter_context(recorder)
        return recorder

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def launch(
    options: LaunchOptions,
    consoles: Sequence[Console] = (),
    say: Say = lambda text: None,
    hashed: Hashed = lambda count: None,
    wrap: Wrap = lambda number, backend: backend,
    incoming: Incoming | None = None,
    wrap_disk: WrapDisk = lambda number, disk: disk,
) -> Launched:
    """The machine, powered on, loaded or about to replay; ``say`` hears of a guest being built.

    With ``incoming`` its state will come from another machine: nothing is loaded into the RAM that this
    makes.
    """
    _refuse_contradictions(options)
    opened = ExitStack()
    try:
        log = opened.enter_context(Replayer(options.replay)) if options.replay else None
        if log is not None:
            options = _as_logged(options, log)
        options = expanded(options, say)
        around = Around(consoles, wrap, wrap_disk)
        launched = Launched(_machine(options, log, around, incoming, opened), options, opened)
        if log is not None:
            launched.log = log
            logbook.require_images(log, launched.images(hashed))
            recording.follow(launched.machine, log)
    except BaseException:
        opened.close()
        raise
    return launched


def parts(options: LaunchOptions) -> list[Part]:
    """Everything besides the configuration that an expanded machine starts from, in a fixed order."""
    named = (
        ("snapshot", options.load),
        ("kernel", options.kernel),
        ("initrd", options.initrd),
        ("multiboot", options.multiboot),
        *(("module", module) for module in options.modules),
        ("boot-sector", options.boot_sector),
        *(("disk", _spec(each).path) for each in options.disks),
    )
    found = [Part(role, _absolute(value)) for role, value in named if value is not None]
    if options.append is not None:
        found.append(Part("append", options.append))
    return found if options.reboot else [*found, NO_REBOOT]


def expanded(options: LaunchOptions, say: Say = lambda text: None) -> LaunchOptions:
    """``options`` with a guest's name and other defaults replaced by what they stand for."""
    if options.guest is not None:
        options = _with_guest(options, options.guest, say)
    if options.boot_sector and not options.disks and not options.load:
        options = replace(options, disks=(DiskSpec(options.boot_sector, ide=True, overlay=True),))
    return replace(options, disks=tuple(_spec(each) for each in options.disks))


def _with_guest(options: LaunchOptions, name: str, say: Say) -> LaunchOptions:
    import vmm.guest  # loads apt, tar and more, which nothing else here needs

    built = vmm.guest.open(name).build(say)
    info, image = built.info, str(built.kernel)
    words = [word for word in (built.cmdline, options.append) if word]
    own_disks = (DiskSpec(str(built.disk), overlay=True),) if built.disk else ()
    fresh = options.load is None and options.replay is None
    default_nets = (UNPLUGGED_WORD,) if fresh and "net" in info.devices else ()
    return replace(
        options,
        guest=None,
        kernel=image if info.kind == "linux" else None,
        initrd=str(built.initrd) if built.initrd else None,
        multiboot=image if info.kind == "multiboot" else None,
        boot_sector=image if info.kind == "boot-sector" else None,
        append=None if info.kind == "boot-sector" else " ".join(words),
        ram_mib=options.ram_mib or (info.ram_mib if fresh else None),
        disks=options.disks or own_disks,
        nets=options.nets or default_nets,
    )


def _as_logged(options: LaunchOptions, log: Replayer) -> LaunchOptions:
    """What was not given again is what the log names.  Disks are never written by a replay."""
    by_role: dict[str, list[str]] = {}
    for part in logbook.parts_of(log):
        by_role.setdefault(part.role, []).append(part.value)

    def one(role: str) -> str | None:
        return by_role.get(role, [None])[0]

    if not options.boots:
        options = replace(
            options,
            kernel=one("kernel"),
            initrd=one("initrd"),
            multiboot=one("multiboot"),
            modules=tuple(by_role.get("module", ())),
            boot_sector=one("boot-sector"),
            append=one("append"),
        )
    return replace(
        options,
        load=options.load or one("snapshot"),
        disks=options.disks or tuple(DiskSpec(path) for path in by_role.get("disk", ())),
        reboot=NO_REBOOT.value not in by_role.get("option", ()),
    )


def _refuse_contradictions(options: LaunchOptions) -> None:
    """ConfigError for what cannot be meant."""
    kinds = ("guest", "kernel", "multiboot", "boot_sector")
    given = [kind for kind in kinds if getattr(options, kind) is not None]
    if len(given) > 1:
        raise ConfigError(f"{_words(given)}: a machine boots one thing; leave the others out")
    if not given and options.load is None and options.replay is None:
        raise ConfigError(f"nothing to boot: give one of {_words(kinds)}, load or replay")
    if options.initrd is not None and options.kernel is None:
        raise ConfigError("initrd belongs to kernel; give that, too")
    if options.modules and options.multiboot is None:
        raise ConfigError("module belongs to multiboot; give that, too")
    if options.append is not None and (not given or options.boot_sector is not None):
        raise ConfigError("append is a kernel's command line; there is no kernel here that would read it")
    source = "load" if options.load else "replay"
    fixed = [name for name in ("ram_mib", "seed", "epoch_s") if getattr(options, name) is not None]
    if fixed and (options.load or options.replay):
        raise ConfigError(f"{_words(fixed)}: decided by what is given with {source}; leave it out")
    if options.replay and (options.nets or options.pcaps):
        raise ConfigError("a replay hears its log, and no network: leave net and pcap out")


def _words(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", "-").removesuffix("-mib").removesuffix("-s") for name in names)


# Pieces of the machine


class Around(NamedTuple):
    """What whoever launches puts around the machine."""

    consoles: Sequence[Console]
    wrap: Wrap
    wrap_disk: WrapDisk


def _machine(
    options: LaunchOptions,
    log: Replayer | None,
    around: Around,
    incoming: Incoming | None,
    opened: ExitStack,
) -> Machine:
    """The machine, whose closing ``opened`` takes over, like that of all that is behind it."""
    boot = _boot(options)
    snapshot = opened.enter_context(Snapshot.open(options.load)) if options.load is not None else None
    known = _known_config(snapshot, log)
    media = [
        around.wrap_disk(number, medium)
        for number, medium in enumerate(_media(options, known, replaying=log is not None, opened=opened))
    ]
    clock = _LateClock()
    cards = plugged(options, known, clock, around.wrap, opened)
    paced = options.outside if options.paced is None else options.paced
    backends = Backends(cards, media, around.consoles)
    if incoming is not None:
        config = known or _new_config(options, boot, backends)
        machine = Machine(config, boot, backends, paced=paced, ram=incoming(config.ram_mib))
    elif snapshot is not None:
        machine = resume(snapshot, backends, boot=boot, paced=paced)
    else:
        config = known or _new_config(options, boot, backends)
        machine = Machine(config, boot, backends, paced=paced)
    clock.machine = opened.enter_context(machine)
    machine.restart_on_reset = options.reboot
    return machine


class _LateClock:
    """The virtual time of a machine that is made after its captures; they start when it does."""

    machine: Machine | None = None

    def __call__(self) -> int:
        assert self.machine is not None, "nothing passes a card before its machine runs"
        return self.machine.clock.now_ns


def _known_config(snapshot: Snapshot | None, log: Replayer | None) -> PcConfig | None:
    """The board, where a file decides it."""
    if snapshot is None:
        return None if log is None else logbook.config_of(log)
    try:
        config = unpack(PcConfig, snapshot.about.config)
    except StateError as exc:
        raise SnapshotError(
            f"snapshot {snapshot.name}: its configuration is not one of this build: {exc}"
        ) from None
    if log is not None and config != logbook.config_of(log):
        raise ReplayError(
            f"log {log.path}: not recorded from snapshot {snapshot.name}; load the one that it was"
        )
    return config


def _new_config(options: LaunchOptions, boot: BootSource | None, backends: Backends) -> PcConfig:
    pairs = zip(options.disks, backends.disks, strict=True)
    disks = [DiskConfig(medium.sectors, medium.read_only, _spec(each).ide) for each, medium in pairs]
    config = PcConfig(
        ram_mib=options.ram_mib or RAM_MIB_DEFAULT,
        epoch_s=EPOCH_2026_S if options.epoch_s is None else options.epoch_s,
        nets=[NetConfig(mac(number), backend.offloads) for number, backend in enumerate(backends.nets)],
        disks=disks,
        bios=boot is not None and boot.needs_bios,
    )
    if options.seed is not None:
        config.seed = options.seed
    return config


def _boot(options: LaunchOptions) -> BootSource | None:
    if options.kernel is not None:
        initrd = read_image(options.initrd) if options.initrd is not None else b""
        boot = LinuxBoot(read_image(options.kernel), initrd=initrd, name=options.kernel)
        return boot if options.append is None else replace(boot, command_line=options.append)
    if options.multiboot is not None:
        modules = tuple(Module(read_image(Part("module", each).path), each) for each in options.modules)
        kernel = read_image(options.multiboot)
        return MultibootBoot(kernel, options.append or "", modules, options.multiboot)
    if options.boot_sector is not None:
        return BootSectorBoot(_first_sector(options.boot_sector), options.boot_sector)
    return None


def _first_sector(path: str) -> bytes:
    """All of a boot disk that is loaded; the disk itself may be larger than the host's memory."""
    try:
        with Path(path).open("rb") as file:
            return file.read(SECTOR_BYTES)
    except OSError as exc:
        raise ImageError(f"{path}: {exc.strerror}") from None


def _media(
    options: LaunchOptions, known: PcConfig | None, *, replaying: bool, opened: ExitStack
) -> list[BlockBackend]:
    """The disks, opened.  A board that is already decided says which of them are read-only."""
    specs = [_spec(each) for each in options.disks]
    if known is not None:
        if len(specs) != len(known.disks):
            raise ConfigError(
                f"disks: {len(specs)} given, the machine has {len(known.disks)}: name the file of each, in"
                " their order, or the guest that brings them"
            )
        specs = [
            replace(
                spec, read_only=disk.read_only, overlay=(spec.overlay or replaying) and not disk.read_only
            )
            for spec, disk in zip(specs, known.disks, strict=True)
        ]
    media = []
    for spec in specs:
        medium = spec.open()
        opened.callback(medium.close)
        media.append(medium)
    return list(media)


def _spec(disk_or_text: DiskSpec | str) -> DiskSpec:
    return disk.parse(disk_or_text) if isinstance(disk_or_text, str) else disk_or_text


def _absolute(path: str) -> str:
    """So that a log can be replayed from another directory."""
    return str(Path(path).absolute())
