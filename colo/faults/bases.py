"""What kinds of faults have in common: a trigger, a target, how long they last, and the rules for that."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from colo.faults.errors import FaultError, shown
from colo.faults.fields import U64_MAX, Whole, check, infos
from colo.faults.triggers import U64, Intermittent, Name, Ns, Part, Persistence, Trigger

Mask = Annotated[int, Whole(1, U64_MAX, "the bits that change")]
Operation = Literal["set0", "set1", "toggle", "overwrite"]


class Base(Part, frozen=True, kw_only=True, tag_field="kind"):
    """What every fault has."""

    when: Trigger
    target: Name = ""
    persistence: Persistence = "transient"

    def __post_init__(self) -> None:
        check(self)
        self.rule()

    def rule(self) -> None:
        """What the types cannot say; raises :class:`FaultError`."""

    def _never(self, *words: str) -> None:
        """Refuse a persistence that this kind has not."""
        word = self.persistence if isinstance(self.persistence, str) else "intermittent"
        if word in words:
            others = " or ".join(w for w in ("transient", "intermittent", "permanent") if w not in words)
            raise FaultError(
                ("persistence",), repr(word), f"{others} for this kind", "it cannot last so long"
            )


class Bits(Base, frozen=True, kw_only=True):
    """``set0`` and ``set1`` the bits of ``mask``, ``toggle`` them, or ``overwrite`` them with ``value``'s."""

    operation: Operation = "toggle"
    mask: Mask
    value: U64 = 0

    def rule(self) -> None:
        if self.value and self.operation != "overwrite":
            raise FaultError(
                ("value",), hex(self.value), f"no value with {self.operation!r}", "only overwrite has one"
            )
        if self.value & ~self.mask:
            outside = f"bits within the mask {self.mask:#x}"
            raise FaultError(("value",), hex(self.value), outside, "bits outside the mask do not change")
        if self.operation == "toggle" and self.persistence == "permanent":
            advice = "a stuck bit is set0, set1 or overwrite"
            raise FaultError(("persistence",), "'permanent'", "something else with 'toggle'", advice)

    def apply(self, old: int) -> int:
        """What becomes of these bits."""
        match self.operation:
            case "set0":
                return old & ~self.mask
            case "set1":
                return old | self.mask
            case "toggle":
                return old ^ self.mask
        return old & ~self.mask | self.value


class Lasting(Base, frozen=True, kw_only=True):
    """A fault that is a condition: it lasts ``for_ns``, or to the end when it is permanent."""

    for_ns: Ns = 0

    lasts: ClassVar[bool] = True

    def rule(self) -> None:
        if self.persistence == "permanent" and self.for_ns:
            raise FaultError(("for_ns",), str(self.for_ns), "none with 'permanent'", "leave one of them out")
        if self.lasts and self.persistence != "permanent" and not self.for_ns:
            raise FaultError(("for_ns",), "none", "how long it lasts", 'or persistence = "permanent"')
        if isinstance(self.persistence, Intermittent) and self.for_ns > self.persistence.period_ns:
            expected = f"at most the period, {self.persistence.period_ns}"
            raise FaultError(("for_ns",), str(self.for_ns), expected, "it would begin again before it ends")


class Effect(Lasting, frozen=True, kw_only=True):
    """A fault of something outside the processor; each ``effect`` has parameters of its own."""

    effect: str

    uses: ClassVar[dict[str, frozenset[str]]] = {}
    """By effect, the parameters that mean something."""
    conditions: ClassVar[frozenset[str]] = frozenset()
    """Effects that last; the others happen to frames or requests, and may be counted by ``times``."""
    needs: ClassVar[dict[str, str]] = {}
    """By effect, the parameter without which it is nothing."""

    @property
    def lasts(self) -> bool:  # type: ignore[override]
        return self.effect in self.conditions

    def rule(self) -> None:
        super().rule()
        own = frozenset[str]().union(*self.uses.values())
        for info in infos(type(self)):
            value: Any = getattr(self, info.name)
            if info.name in own - self.uses[self.effect] and value != info.default:
                users = ", ".join(name for name, used in self.uses.items() if info.name in used)
                expected = f"no {info.name} with the effect {self.effect!r}"
                raise FaultError((info.name,), shown(value), expected, f"it belongs to {users}")
        needed = self.needs.get(self.effect)
        if needed is not None and not getattr(self, needed):
            raise FaultError((needed,), "none", f"{needed} with the effect {self.effect!r}", "say how much")
        times = getattr(self, "times", 0)
        if times and (self.for_ns or self.persistence == "permanent"):
            raise FaultError(("times",), str(times), "either a count or a duration", "leave one of them out")
