"""From a recipe to the files a Linux guest boots from: kernel, initramfs, perhaps a disk.

The recipe is data (vmm.guest.manifest.Recipe); this is its interpreter, one function a step, in the
order a reader would do it by hand.  The kernel image is the distribution's, untouched.

    kernels, modules   ->  kernel, /usr/lib/modules
    packages, take     ->  programs with their libraries
    compile            ->  static programs of our own
    files, fill, ...   ->  scripts and configuration
    all of it          ->  initrd (cpio), or disk (ext4) with a small initrd that finds it
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from vmm.errors import GuestBuildError
from vmm.guest import ext4, initramfs
from vmm.guest.apt import Apt, Progress
from vmm.guest.debs import Packages
from vmm.guest.kernel import Kernel, find_kernel, wanted_of_kernel
from vmm.guest.manifest import Compile, Copy, GuestInfo, Recipe
from vmm.guest.tree import Tree

BUILDER_VERSION = 1
"""Raised when the same recipe and packages would give another result: part of every build's key."""

BUSYBOX = "usr/bin/busybox"

UNWANTED = ("usr/share/", "usr/include/", "var/")
"""Below these a package keeps what no guest runs; not held in memory."""

COMPILE_LIMIT_S = 120
"""One small C file takes a second; a minute means that the machine is in trouble."""


class LinuxBuild:
    """One run of a recipe.  ``packages`` says afterwards what went into it."""

    def __init__(self, info: GuestInfo, guests: Path, apt: Apt, progress: Progress) -> None:
        assert info.recipe is not None
        self._recipe: Recipe = info.recipe
        self._guests = guests
        self._apt = apt
        self._progress = progress
        self._software = Packages(apt, lambda name: not name.startswith(UNWANTED))
        self._kernel_packages = Packages(apt, wanted_of_kernel)

    @property
    def packages(self) -> dict[str, dict[str, str]]:
        """Every package used: its version and the digest of its file."""
        used: dict[str, dict[str, str]] = {}
        for group in (self._kernel_packages, self._software):
            for name, version in group.versions.items():
                with group.digest_inputs[name].open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                used[name] = {"version": version, "sha256": digest}
        return dict(sorted(used.items()))

    def run(self, out: Path) -> None:
        """Write ``kernel``, ``initrd`` and, if the recipe wants one, ``disk`` into ``out``."""
        kernel = self._kernel()
        (out / "kernel").write_bytes(kernel.image)
        root = self._root()
        if not self._recipe.disk_mib:
            kernel.install_modules(self._recipe.modules, root)
            initrd = root
        else:
            initrd = self._disk_finder(kernel)
            self._progress(f"making an ext4 disk of {self._recipe.disk_mib} MiB")
            ext4.build(root, out / "disk", self._recipe.disk_mib)
        self._progress(f"writing the initramfs ({len(initrd)} files)")
        (out / "initrd").write_bytes(initramfs.write(initrd))

    def _kernel(self) -> Kernel:
        self._progress("finding the kernel")
        kernel = find_kernel(self._kernel_packages, self._apt.first_known(self._recipe.kernels))
        self._progress(f"kernel {kernel.release}")
        return kernel

    def _root(self) -> Tree:
        """The guest's root directory, without modules."""
        recipe, root = self._recipe, skeleton()
        self._software.add([self._chosen(each) for each in recipe.packages])
        self._install_busybox(root)
        for path in recipe.take:
            self._progress(f"taking {path}")
            for each in self._software.below(path) if path.endswith("/") else [path]:
                self._software.install(each, root)
        for source in recipe.compile:
            self._progress(f"compiling {source.source}")
            root.add_file(source.to, compiled(self._guests / source.source, source), 0o755)
        self._copy(recipe.files, root)
        for fill in recipe.fill:
            root.add_file(fill.to, filler(fill.size))
        for directory in recipe.directories:
            root.add_directory(directory)
        for name, target in recipe.links.items():
            root.add_link(name, target)
        return root

    def _chosen(self, package: str) -> str:
        """The package of a recipe's line, which may name alternatives."""
        names = package.replace(" ", "").split("|")
        return self._apt.first_known(names) if len(names) > 1 else names[0]

    def _disk_finder(self, kernel: Kernel) -> Tree:
        """The root of an initramfs that loads the drivers and goes on to the disk."""
        root = skeleton()
        self._install_busybox(root)
        self._copy(self._recipe.initramfs_files, root)
        kernel.install_modules(self._recipe.modules, root)
        return root

    def _copy(self, files: tuple[Copy, ...], root: Tree) -> None:
        for file in files:
            root.add_file(file.to, source_bytes(self._guests / file.source), file.mode)

    def _install_busybox(self, root: Tree) -> None:
        """BusyBox and a link for each of its commands; those of a real package replace theirs."""
        self._software.install(BUSYBOX, root)
        for name in busybox_commands(root[BUSYBOX].data):
            if name != "busybox":
                root.add_link(f"usr/bin/{name}", "busybox")


def skeleton() -> Tree:
    """The directories and the one device node that any root has before init has mounted anything."""
    root = Tree()
    root.add_merged_usr()
    for directory in ("dev", "proc", "sys", "run", "tmp", "etc", "mnt", "root", "var/log"):
        root.add_directory(directory, 0o1777 if directory == "tmp" else 0o755)
    root.add_character_device("dev/console", 5, 1)  # the kernel opens it for init (devices.txt)
    return root


def busybox_commands(program: bytes) -> list[str]:
    """What ``busybox --list`` says: the static program of the package is run here, once."""
    with tempfile.TemporaryDirectory(prefix="busybox-") as directory:
        path = Path(directory) / "busybox"
        path.write_bytes(program)
        path.chmod(0o700)
        try:
            done = subprocess.run([path, "--list"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise GuestBuildError(f"busybox of the package cannot be run here: {error}") from None
    return [name for name in done.stdout.split() if "/" not in name]


def compiled(path: Path, source: Compile) -> bytes:
    """The static program gcc makes of one C file; the same bytes for the same compiler."""
    gcc = shutil.which("gcc") or shutil.which("cc")
    if gcc is None:
        raise GuestBuildError(
            f"{source.source}: no C compiler: this guest runs a program of our own "
            "(apt install gcc libc6-dev), or choose a guest made of packages only: redis, nginx, linux"
        )
    with tempfile.TemporaryDirectory(prefix="compile-") as directory:
        out = Path(directory) / "program"
        flags = [
            "-std=c11",
            "-O2",
            "-static",
            "-s",
            "-Wl,--build-id=none",
            f"-ffile-prefix-map={path.parent}=.",
        ]
        command = [gcc, *flags, "-o", str(out), str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=COMPILE_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise GuestBuildError(f"{source.source}: {gcc}: no end after {COMPILE_LIMIT_S} s") from None
        if done.returncode:
            last = "\n".join(done.stderr.splitlines()[-5:])
            raise GuestBuildError(f"{source.source}: {gcc} failed (is libc6-dev there?):\n{last}")
        return out.read_bytes()


def source_bytes(path: Path) -> bytes:
    """A file of guests/; its absence is a damaged installation, and said so."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise GuestBuildError(
            f"{path}: {error.strerror}; the installation is incomplete, install it again"
        ) from None


def filler(size: int) -> bytes:
    """``size`` bytes of lower-case letters in order, ending with a newline."""
    return (bytes(range(ord("a"), ord("z") + 1)) * (size // 26 + 1))[: size - 1] + b"\n"
