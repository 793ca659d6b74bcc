"""At most one node wins a generation, whatever happens to it or to the arbiter meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from colo import arbiter
from colo.arbiter import NAME_MAX, Arbiter, FileArbiter, ManualArbiter
from colo.errors import ArbiterError

ROOT = Path(__file__).parents[2]


def ask(arbiter: Arbiter, generation: int = 1, node: str = "a", pair: str = "redis") -> bool:
    return asyncio.run(arbiter.claim(pair, generation, node))


def claims(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


class BreaksOnce:
    """A call that fails the first time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._real = getattr(os, name)
        self.calls = 0
        monkeypatch.setattr(os, name, self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise OSError(5, os.strerror(5))
        return self._real(*arguments)


class TestFile:
    def test_the_first_wins_and_the_second_loses_and_neither_changes_its_mind(self, tmp_path: Path) -> None:
        first, second = FileArbiter(str(tmp_path)), FileArbiter(str(tmp_path))
        assert [ask(first, node="a"), ask(second, node="b")] == [True, False]
        assert [ask(second, node="b"), ask(first, node="a")] == [False, True]
        assert claims(tmp_path) == {"redis.1"}

    def test_generations_and_pairs_are_apart(self, tmp_path: Path) -> None:
        first, second = FileArbiter(str(tmp_path)), FileArbiter(str(tmp_path))
        assert ask(first, 1)
        assert ask(second, 2, "b")
        assert ask(second, 1, "b", pair="other")
        assert claims(tmp_path) == {"redis.1", "redis.2", "other.1"}

    def test_two_nodes_of_one_name_are_two(self, tmp_path: Path) -> None:
        """``--name`` has a default, which both may have been left with."""
        first, second = FileArbiter(str(tmp_path)), FileArbiter(str(tmp_path))
        assert [ask(first, node="node"), ask(second, node="node")] == [True, False]

    def test_a_claim_says_who_has_it(self, tmp_path: Path) -> None:
        ask(FileArbiter(str(tmp_path)), node="alpha")
        assert (tmp_path / "redis.1").read_text().split()[0] == "alpha"

    def test_a_loser_under_another_user_can_read_that_it_lost(self, tmp_path: Path) -> None:
        ask(FileArbiter(str(tmp_path)))
        assert (tmp_path / "redis.1").stat().st_mode & 0o777 == 0o644

    def test_many_at_once_have_one_winner(self, tmp_path: Path) -> None:
        """Threads of one process and two processes, over many generations."""
        generations, script = (
            40,
            "import sys; from tests.protocol.test_arbiter import race; race(*sys.argv[1:])",
        )
        command = [sys.executable, "-c", script, str(tmp_path), str(generations)]
        others = [
            subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, text=True) for name in "pq"
        ]
        won: dict[str, list[int]] = {}

        def here(name: str) -> None:
            mine = FileArbiter(str(tmp_path))
            won[name] = [each for each in range(generations) if ask(mine, each, name)]

        threads = [threading.Thread(target=here, args=(name,)) for name in "rst"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, other in zip("pq", others, strict=True):
            won[name] = [int(word) for word in other.communicate()[0].split()]
            assert other.returncode == 0
        assert sorted(itertools.chain(*won.values())) == list(range(generations)), won

    @pytest.mark.parametrize("call", ["write", "fsync", "link", "fchmod"])
    def test_a_failure_is_no_answer_and_asking_again_is_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        mine, other = FileArbiter(str(tmp_path)), FileArbiter(str(tmp_path))
        broken = BreaksOnce(monkeypatch, call)
        with pytest.raises(ArbiterError, match="Input/output error: expected a directory that this node may"):
            ask(mine)
        assert broken.calls == 1
        assert ask(mine)
        assert not ask(other, node="b")
        assert claims(tmp_path) == {"redis.1"}, "nothing is left of the attempt that failed"

    def test_a_claim_is_on_the_disk_before_it_counts_also_the_second_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The directory's fsync failed, the link stands: won only once a later one succeeded."""
        mine, synced = FileArbiter(str(tmp_path)), []
        real = os.fsync

        def fsync(fd: int) -> None:
            is_directory = Path(f"/proc/self/fd/{fd}").resolve() == tmp_path
            if is_directory:
                synced.append(fd)
                if len(synced) == 1:
                    raise OSError(5, os.strerror(5))
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(ArbiterError):
            ask(mine)
        assert claims(tmp_path) == {"redis.1"}
        assert ask(mine)
        assert len(synced) == 2

    def test_a_directory_that_is_not_there_is_no_answer(self, tmp_path: Path) -> None:
        mine = FileArbiter(str(tmp_path / "missing"))
        with pytest.raises(ArbiterError, match="No such file or directory"):
            ask(mine)
        (tmp_path / "missing").mkdir()
        assert ask(mine)

    def test_whatever_stands_in_a_claim_belongs_to_another(self, tmp_path: Path) -> None:
        for generation, content in enumerate((b"", b"a", b"\xff\xfe", b"a\n" * 1000)):
            (tmp_path / f"redis.{generation}").write_bytes(content)
            assert not ask(FileArbiter(str(tmp_path)), generation)

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../a", "a/b", ".a", "a b", "ä", "a" * (NAME_MAX + 1), "a\n"]
    )
    def test_a_name_that_is_no_file_name_is_refused(self, tmp_path: Path, name: str) -> None:
        mine = FileArbiter(str(tmp_path))
        with pytest.raises(ArbiterError, match="is no name: expected letters"):
            ask(mine, pair=name)
        with pytest.raises(ArbiterError, match="is no name: expected letters"):
            ask(mine, node=name)
        assert not claims(tmp_path)

    def test_a_persons_word_does_not_win(self, tmp_path: Path) -> None:
        first, second = FileArbiter(str(tmp_path)), FileArbiter(str(tmp_path))
        second.command()
        assert ask(first)
        second.command()
        assert not ask(second, node="b")


class TestManual:
    def test_nobody_wins_unless_told(self) -> None:
        with pytest.raises(ArbiterError, match="see whether it still runs, and then tell the node"):
            ask(ManualArbiter())

    def test_who_was_told_wins_and_asking_again_is_harmless(self) -> None:
        mine = ManualArbiter()
        mine.command()
        assert [ask(mine), ask(mine)] == [True, True]

    def test_a_word_about_an_earlier_peer_says_nothing_of_the_next(self) -> None:
        mine = ManualArbiter()
        mine.command()
        mine.forget()
        with pytest.raises(ArbiterError):
            ask(mine)


class TestNames:
    def test_every_kind_can_be_named(self, tmp_path: Path) -> None:
        assert arbiter.parse("manual").spec == "manual"
        assert arbiter.parse(f"file:{tmp_path}").spec == f"file:{tmp_path}"

    @pytest.mark.parametrize("spec", ["", "file", "file:", "manual:x", "etcd:host", "File:/x"])
    def test_anything_else_is_refused(self, spec: str) -> None:
        with pytest.raises(ArbiterError, match="arbiter"):
            arbiter.parse(spec)


def race(directory: str, generations: str, name: str) -> None:
    """In another process: claim one generation after the other, and print which were won."""
    mine = FileArbiter(directory)
    print(*(each for each in range(int(generations)) if ask(mine, each, name)))
