"""What the archivist answers, from the files of a store that compacts: every cut that is left."""

from __future__ import annotations

import io
import socket
import threading

import pytest

from ckptmesh import limits, queries
from ckptmesh.archive import Helper
from ckptmesh.archivist import Shelf, framed, messages, reply_to, serve
from ckptmesh.commands import pack_command
from ckptmesh.disk import Disk
from ckptmesh.errors import Compacted, Corrupt, FutureRevision
from ckptmesh.facts import SettingChanged
from ckptmesh.messages import At, Get, Hello, Request, Scan
from ckptmesh.protocol import decode_reply, encode_request
from ckptmesh.state import State
from ckptmesh.testing.disks import FaultyDisk
from tests.crash.stores import SMALL, START, Store, commit_of
from tests.crash.test_compaction_crashes import PLACE, compaction_of, fresh

COMMITS = 60
KEYS = tuple(f"orders/{n}" for n in range(5))


class Past:
    """A store with small segments, compactions between its commits, and a memory of 3 revisions."""

    def __init__(self, retain: float = 1e9) -> None:
        self.disk = FaultyDisk(fresh())
        self.store = Store(PLACE, self.disk, SMALL._replace(retain_seconds=retain)).serve()
        self.store.write([SettingChanged("history_revisions", 3)])
        for _ in range(COMMITS // 15):
            self.commit(15)
            self.compact()

    def commit(self, count: int) -> None:
        self.store.commit(count)

    def compact(self) -> None:
        compaction = compaction_of(self.store, self.disk)
        compaction.start()
        assert compaction.poll() is not None


def shelf(disk: Disk) -> Shelf:
    return Shelf(disk, PLACE)


def model_at(revision: int) -> State:
    """The state after this revision, that never was on a disk."""
    state = State(b"model")
    for taken in range(1, revision + 1):
        state.apply(commit_of(taken))
    return state


def values(rows: list[object]) -> list[tuple[str, int, int, bytes] | None]:
    return [None if row is None else (row.key, row.version.revision, row.version.time,
                                      row.version.value) for row in rows]


@pytest.mark.parametrize("order", ["up", "down", "mixed"])
def test_every_revision_and_every_time_gives_the_state_of_then(order: str) -> None:
    past = Past()
    revisions = {"up": range(COMMITS + 1), "down": range(COMMITS, -1, -1),
                 "mixed": [revision * 37 % 61 for revision in range(COMMITS + 1)]}[order]
    found = shelf(past.disk)
    for revision in revisions:
        model = model_at(revision)
        expected = queries.scan(model, Scan("orders", at=At(revision)), 0)
        for at in (At(revision), At(time=START + revision)):
            rows = found.answer(Scan("orders", at=at))
            assert (rows.revision, values(rows.found)) == (revision, values(expected.found))
            one = found.answer(Get(KEYS, at))
            assert values(one.found) == values(queries.get(model, Get(KEYS, At(revision)), 0).found)
        assert rows.time == (START + revision if revision else 0)


def test_pages_of_a_scan_and_neighbours_are_answered_without_reading_again() -> None:
    past = Past()
    found = shelf(past.disk)
    first = found.answer(Scan("orders", "", 2, At(20)))
    assert first.more
    calls = len(past.disk.calls)
    found.answer(Scan("orders", first.found[-1].key, 2, At(first.revision)))  # type: ignore[union-attr]
    for revision in (19, 18, 17):  # which the state at 20 still holds
        found.answer(Get(KEYS, At(revision)))
    found.answer(Get(KEYS, At(time=START + 18)))
    assert len(past.disk.calls) == calls
    found.answer(Get(KEYS, At(16)))
    assert len(past.disk.calls) > calls


def test_as_many_states_are_kept_as_the_limits_allow() -> None:
    past = Past()
    resident = 0
    found = Shelf(past.disk, PLACE, resident=lambda: resident)
    for revision in (10, 20, 30, 40):
        found.answer(Get(KEYS, At(revision)))
    assert [state.revision for state in found._states] == [20, 30, 40]
    found.answer(Get(KEYS, At(20)))
    found.answer(Get(KEYS, At(50)))
    assert [state.revision for state in found._states] == [40, 20, 50], "the one used longest ago"
    resident = limits.ARCHIVE_BYTES + 1
    found.answer(Get(KEYS, At(5)))
    assert [state.revision for state in found._states] == [5]


def test_below_what_is_kept_the_oldest_cut_is_named() -> None:
    past = Past(retain=0)
    for _ in range(2):
        past.commit(3)
        past.compact()
    found = shelf(past.disk)
    with pytest.raises(Compacted) as caught:
        found.answer(Get(KEYS, At(10)))
    oldest = caught.value.details["floor"]
    assert oldest == past.store.wal.manifest.snapshots[0].revision > 10
    with pytest.raises(Compacted):
        found.answer(Get(KEYS, At(oldest - 1)))
    with pytest.raises(Compacted):
        found.answer(Get(KEYS, At(time=START + oldest - 1)))
    rows = found.answer(Get(KEYS, At(oldest)))
    expected = queries.get(model_at(oldest), Get(KEYS, At(oldest)), 0)
    assert values(rows.found) == values(expected.found)
    with pytest.raises(FutureRevision):
        found.answer(Get(KEYS, At(10_000)))


def test_files_that_are_compacted_away_under_it_make_it_begin_again() -> None:
    past = Past(retain=0)
    past.commit(12)
    again = 0

    class Raced(FaultyDisk):
        """Between the manifest and the files that it names, the store compacts."""

        def open(self, path: str, write: bool = False) -> int:
            nonlocal again
            if path.endswith((".seg", ".snap")) and not again:
                again = 1
                past.compact()
                past.commit(1)
                past.compact()
            return super().open(path, write)

    gone = [entry.file for entry in past.store.wal.manifest.snapshots]
    revision = past.store.state.revision
    found = shelf(Raced(past.disk.inner)).answer(Get(KEYS, At(revision)))
    assert again
    assert not set(gone) <= {entry.file for entry in past.store.wal.manifest.snapshots}
    expected = queries.get(model_at(revision), Get(KEYS, At(revision)), 0)
    assert values(found.found) == values(expected.found)


def test_damage_is_told_and_never_read_over() -> None:
    past = Past()
    [*_, snapshot] = (entry for entry in past.store.wal.manifest.snapshots if entry.revision <= 31)
    for name in [f"{PLACE}/{snapshot.file}",
                 *(f"{PLACE}/{sealed.file}" for sealed in past.store.wal.manifest.sealed)]:
        data = past.disk.inner.names[name].data
        data[len(data) // 2] ^= 1
    with pytest.raises(Corrupt) as caught:
        shelf(past.disk).answer(Get(KEYS, At(31)))
    assert caught.value.details["file"].startswith(PLACE)


# --- questions and answers as bytes -----------------------------------------------------------


def question(number: int, revision: int) -> bytes:
    op, body = pack_command(Scan("orders", at=At(revision)))
    return encode_request(op, body, number=number, epoch=7)


def test_a_reply_echoes_its_question_and_an_error_is_a_reply() -> None:
    past = Past()
    found = shelf(past.disk)
    answers: list[bytes] = []
    serve(found, [question(5, 12), question(6, 99)], answers.append)
    (_, good), (_, refused) = map(decode_reply, answers)
    assert (good.number, good.epoch, good.result.revision) == (5, 7, 12)
    assert (refused.number, type(refused.error)) == (6, FutureRevision)
    for command in (Hello(), Get(KEYS)):
        asked = Request(b"", 8, 0, b"", 7, command)
        assert decode_reply(reply_to(found, asked))[1].error is not None


@pytest.mark.parametrize("chunk", [1, 3, 1_000])
def test_messages_are_told_apart_however_they_come(chunk: int) -> None:
    sent = [b"", b"a", b"x" * 999]
    stream = io.BytesIO(b"".join(map(framed, sent)) + b"\0\0\0\5cut")
    assert list(messages(lambda most: stream.read(min(most, chunk)))) == sent


class Ended:
    """A process without one."""

    pid, returncode = 1, 0

    def poll(self) -> int | None:
        return None

    def kill(self) -> None:
        pass

    def wait(self) -> int:
        return 0


def awaited(helper: Helper) -> bytes:
    while (found := helper.receive()) is None:
        pass
    return found


def test_questions_and_answers_larger_than_a_pipe_hold_nobody_up() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    helper = Helper(Ended(), ours)  # type: ignore[arg-type]
    large = bytes(5 * limits.MIB)
    helper.send(large)  # returns, though nobody reads yet
    assert helper.receive() is None

    def answer() -> None:
        for message in messages(theirs.recv):
            theirs.sendall(framed(message + b"!"))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    assert awaited(helper) == large + b"!"
    theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError, match="ended"):
        awaited(helper)
    helper.close()
    theirs.close()


def test_what_is_no_answer_is_not_taken_for_one() -> None:
    for sent in (b"\xff\xff\xff\xff", framed(b"one") + b"more"):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        helper = Helper(Ended(), ours)  # type: ignore[arg-type]
        theirs.sendall(sent)
        with pytest.raises(ValueError, match="no answer"):
            helper.receive()
        helper.close()
        theirs.close()


def test_the_state_that_answers_is_the_one_that_recovery_would_make() -> None:
    past = Past()
    assert shelf(past.disk).state(33).digest() == model_at(33).digest()
