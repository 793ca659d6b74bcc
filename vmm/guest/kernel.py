"""A distribution's kernel and the modules a guest wants of it.

The modules' own ``.modinfo`` sections are the source of truth (kernel documentation,
kbuild/modules.rst): ``depends=`` gives the load order, ``alias=`` the devices a module drives.  From
them come the two files modprobe(8) reads, so a guest loads what its hardware asks for and nothing
else.  (A package carries no modules.dep: depmod makes it when a kernel is installed.)

Modules are stored decompressed: unpacking .xz or .zst would be the guest's work at every boot.

Left out: soft dependencies (``softdep=``) and install commands; nothing in virtio has any.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile

from vmm.errors import GuestBuildError
from vmm.guest.debs import Packages, decompressed
from vmm.guest.tree import Kind, Tree

MODULE_ENDINGS = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


@dataclass(frozen=True, slots=True)
class Module:
    """One loadable module: decompressed image, its place below /lib/modules/<release>, its modinfo."""

    name: str
    place: str
    image: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image and where its modules are."""

    release: str
    image: bytes
    packages: Packages

    def install_modules(self, wanted: Iterable[str], into: Tree) -> list[str]:
        """Put modules, what they depend on, modules.dep and modules.alias into a guest's root."""
        modules = self._closure(wanted)
        base = f"usr/lib/modules/{self.release}"
        for module in modules.values():
            into.add_file(f"{base}/{module.place}", module.image)
        into.add_file(f"{base}/modules.dep", modules_dep(modules).encode())
        into.add_file(f"{base}/modules.alias", modules_alias(modules).encode())
        return list(modules)

    def _closure(self, wanted: Iterable[str]) -> dict[str, Module]:
        """Modules by name, each after those it depends on.  Built-in ones need nothing."""
        places, builtin = self._places(), self._builtin()
        done: dict[str, Module] = {}

        def visit(name: str, needed_by: str) -> None:
            if name in done or (name in builtin and name not in places):
                return
            if name not in places:
                raise GuestBuildError(
                    f"kernel {self.release} has no module {name}, wanted by {needed_by}: "
                    "not built in either; choose another kernel package in the recipe"
                )
            module = read_module(name, places[name], self.packages.tree)
            for dependency in module.depends:
                visit(dependency, name)
            done[name] = module

        for name in wanted:
            visit(name, "the recipe")
        return done

    def _places(self) -> dict[str, str]:
        """Module name to path in the packages."""
        prefix = f"usr/lib/modules/{self.release}/"
        return {
            module_name(path): path
            for path, node in self.packages.tree.items()
            if node.kind is Kind.FILE and path.startswith(prefix) and path.endswith(MODULE_ENDINGS)
        }

    def _builtin(self) -> frozenset[str]:
        path = f"usr/lib/modules/{self.release}/modules.builtin"
        if path not in self.packages.tree:
            return frozenset()
        return frozenset(module_name(line) for line in self.packages.tree[path].data.decode().split())


def find_kernel(packages: Packages, metapackage: str) -> Kernel:
    """The kernel that ``metapackage`` stands for, with the packages it depends on unpacked."""
    packages.add([metapackage])
    for _ in range(2):  # metapackage -> image -> modules (Ubuntu keeps those apart)
        known = list(packages.versions)
        packages.add([d for name in known for d in packages.depends(name) if _is_kernel_package(d)])
    for path, node in packages.tree.items():
        if path.startswith("boot/vmlinuz-"):
            return Kernel(path.removeprefix("boot/vmlinuz-"), node.data, packages)
    raise GuestBuildError(
        f"package {metapackage} led to no /boot/vmlinuz-*: found {', '.join(packages.versions)}"
    )


def _is_kernel_package(name: str) -> bool:
    return name.startswith(("linux-image-", "linux-modules-")) and "unsigned" not in name


def wanted_of_kernel(path: str) -> bool:
    """The files of kernel packages worth keeping in memory."""
    return path.startswith("boot/vmlinuz-") or (
        path.startswith("usr/lib/modules/") and path.endswith((*MODULE_ENDINGS, "modules.builtin"))
    )


def module_name(path: str) -> str:
    """``kernel/drivers/char/hw_random/virtio-rng.ko.xz`` -> ``virtio_rng``, as the kernel names it."""
    return posixpath.basename(path).split(".ko", 1)[0].replace("-", "_")


def read_module(name: str, path: str, tree: Tree) -> Module:
    """The module at ``path``, decompressed, its modinfo read."""
    image = decompressed(path, tree[path].data).read()
    section = ELFFile(io.BytesIO(image)).get_section_by_name(".modinfo")
    info = (
        [entry.decode().partition("=") for entry in section.data().split(b"\0") if entry] if section else []
    )
    depends = next((value for key, _, value in info if key == "depends"), "")
    return Module(
        name,
        path.split("/", 4)[4].split(".ko", 1)[0] + ".ko",
        image,
        tuple(d.replace("-", "_") for d in depends.split(",") if d),
        tuple(value for key, _, value in info if key == "alias"),
    )


def modules_dep(modules: dict[str, Module]) -> str:
    """modules.dep(5): every module with all it needs, nearest first, as depmod writes it."""

    def needs(name: str) -> list[str]:
        order: dict[str, None] = {}
        for dependency in modules[name].depends if name in modules else ():
            if dependency in modules:
                order |= dict.fromkeys([dependency]) | dict.fromkeys(needs(dependency))
        return list(order)

    lines = []
    for name, module in sorted(modules.items()):
        ordered = sorted(needs(name), key=list(modules).index, reverse=True)
        lines.append(" ".join([f"{module.place}:", *(modules[n].place for n in ordered)]))
    return "\n".join(lines) + "\n"


def modules_alias(modules: dict[str, Module]) -> str:
    """The device patterns each module claims."""
    return "".join(
        f"alias {pattern} {name}\n" for name, module in sorted(modules.items()) for pattern in module.aliases
    )
