"""Every bound in one place, each with its unit and its reason.

Rule 1: a limit is told in the error that enforces it.
Rule 2: the client checks before a request travels; the store checks again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ckptmesh.errors import InvalidKey, TooLarge

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
SECOND = 1_000_000  # every time in the store is an integer count of microseconds

KEY_BYTES = 512  # UTF-8; a key is a name, and one fits in a directory entry or an index page
VALUE_BYTES = 8 * MIB  # a checkpoint is a place, not a data set; one page of a reply holds it
VALUE_DEPTH = 64  # levels of containers in one value; bounds recursion here and in every reader
VALUE_ITEMS = 1_000_000  # items in one value, keys included; 1 byte each can be 100 in memory
TRANSACTION_MUTATIONS = 4_096  # one frame, one sync; more than this is a load, not a transaction
TRANSACTION_CONDITIONS = 4_096  # one for each mutation
COMMIT_MANY = 1_024  # commits in one request: as many as one client may have in flight
SOURCES = 256  # (key, revision) pairs of provenance on one commit
REQUEST_BYTES = 16 * MIB  # one batch of a request must fit a log segment with room to spare
REQUEST_ITEMS = 400_000  # elements of its arrays: 8 to 100 bytes each in memory, 1 on the wire
SOCKET_BYTES = 17 * MIB  # MAXMSGSIZE: above REQUEST_BYTES, so that the store can say why it refuses
REPLY_BYTES = 8 * MIB  # a page; a reply over MAXMSGSIZE would cut the store's link to the broker
GET_KEYS = 4_096  # keys of one cut
SCAN_LIMIT = 10_000  # rows of one page
SINCE_LIMIT = 10_000  # revisions of one page

BUNDLE_REQUESTS = 256  # transactions that travel in one message …
BUNDLE_BYTES = 1 * MIB  # … and how large a client makes it: a batch holds several

IN_FLIGHT_REQUESTS = 1_024  # per session: what the store may have to remember for one client
IN_FLIGHT_BYTES = 64 * MIB  # per session, held back by the client
SESSIONS = 100_000  # opened sessions; the idlest is evicted beyond that
SESSION_IDLE = 3_600 * SECOND  # after this without a commit a session is evicted
LEASES = 100_000  # leases held at once, in all
INTERVAL_CLAIMS = 10_000  # of one set of intervals at once: each change writes all of them
CURSOR_IDS = 1_000_000  # rows that a cursor remembers: 260 bytes each in a client's memory, or more
SESSION_NAME_BYTES = 256  # "host:pid:program", for people

BATCH_REQUESTS = 1_024  # drained before one sync
BATCH_BYTES = 16 * MIB  # likewise; with one request of REQUEST_BYTES on top a frame is < 34 MiB
EXPIRIES = 1_024  # of keys, leases and sessions, recorded in one batch: a mass expiry (of all idle
# sessions an hour after a restart, say) delays nobody for long, and fits its frame
ANSWER_BYTES = 16 * MIB  # answers of one batch to one client; more pages are asked for again …
BATCH_ANSWER_BYTES = 64 * MIB  # … and to all: packing these takes half a second

TTL_MAX = 100 * 365 * 86_400 * SECOND  # a century; beyond it a TTL is a mistake in units
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**64 - 1  # what msgpack can carry
POSITION_MIN, POSITION_MAX = -(2**63), 2**63 - 1  # signed, so that other languages can hold it

HISTORY_REVISIONS = 100_000  # default: events kept in memory for time travel and watches
HISTORY_BYTES = 256 * MIB  # default: their keys and values
HISTORY_VERSIONS = 8  # default: versions of a key kept for display beyond the floor
RETAIN_SECONDS = 7 * 86_400  # default: how long segments stay on disk for restores
RETAIN_BYTES = 4 * GIB  # default: and how many bytes of them; the smaller wins, and is told

ARCHIVE_QUESTIONS = 64  # reads below the floor that wait at once: one is answered after the other
ARCHIVE_QUESTION_BYTES = 16 * MIB  # and bytes of them
ARCHIVE_TIME = 600 * SECOND  # for one of them: reading `RETAIN_BYTES` of log takes less
ARCHIVE_FORGET = 30 * SECOND  # without a copy of it, nobody waits for a question any more
ARCHIVE_IDLE = 60.0  # seconds without a question until the process that reads the past ends
ARCHIVE_STATES = 3  # states of the past that it keeps for the next question …
ARCHIVE_BYTES = 1 * GIB  # … and its memory up to which it keeps more than the one it makes

SAVEPOINTS = 1_000  # each keeps a snapshot of the whole state, and its line in the manifest
SAVEPOINT_NAME = 128  # bytes
SAVEPOINT_REASON = 1 * KIB  # bytes

SEGMENT_BYTES = 64 * MIB  # a served store's segment; zero-filling one takes about 150 ms
EMBEDDED_SEGMENT_BYTES = 4 * MIB  # an embedded store's: made in passing by short-lived processes
SECTOR = 512  # frames are padded to this, so that a torn sector holds one frame only
SPACE_WATERMARK = 128 * MIB  # plus 1.25 times the last snapshot: what compaction needs to make room

CLOCK_RESERVE = 10 * SECOND  # how far ahead of its use time is logged while TTLs exist
CLOCK_JUMP = 7 * 86_400 * SECOND  # a start this far ahead of the log needs --accept-clock
STALL = 100_000  # a pause of the store longer than this (microseconds) moves lease deadlines
HEARTBEAT = 1.0  # seconds between two heartbeats on the publication path
HEARTBEAT_LOST = 3.0  # seconds without one until a watcher takes a new socket
HEARTBEAT_PIPELINES = 1_000  # pipelines named in a heartbeat before it says "many"
PUBLICATION_BYTES = 64 * KIB  # publications that share a frame: a watcher's queue counts frames
PUBLICATION_GAP = 0.010  # seconds in which publications gather under load: as long as a few commits
PUBLICATION_FEW = 12  # publications in such a time up to which each leaves at once: those who take
# turns, as holders of a lock do, wait for each of them, and make no more
EXEC_RUNS = 20  # runs of a command under `exec` that are kept: the last weeks of a nightly one
EXEC_LINES = 20  # last lines of its stderr in the record of a run that failed: a traceback's end …
EXEC_TAIL = 4 * KIB  # … and how many bytes of them
EXEC_VARIABLE = 64 * KIB  # of JSON in an environment variable; Linux refuses 128 KiB, and all of
# the environment with the arguments has its bound too. What is longer is in the file only
RUN_OUTPUT = 1 * MIB  # default: packed, of a stage's output that is kept in the store; what is
# larger goes by reference: it is handed from store to client with each resume
RUN_ERRORS = 50  # of a run that are kept, the newest: the record is written with each commit …
RUN_EVENTS = 100  # … and so are the events of its life
RUN_TEXT = 1_000  # characters of one message in a record
RUN_STAGES = 256  # of one pipeline: each stands in the record of a run
RUN_DELAY = 3_600.0  # seconds between two attempts of a stage, at most
RUN_LOOK = 1.0  # seconds between two looks at whether somebody has asked a run to stop, and between
# two commits of what a stage reports
DEBUG_KEYS = 100_000  # looked at, unless all are asked for, where each costs time or a round trip
DEBUG_CONSUMERS = 1_000  # of one checkpoint that are told
DEBUG_FINDINGS = 1_000  # of one report that are told, the rest counted: nobody reads more
DEBUG_GROUPS = 1_000  # kinds of errors, and names of stages, in the figures of a pipeline
DEBUG_LANES = 12  # attempts in one picture, the last ones: a page of them
EXPORT_LINE = 16 * MIB  # of an export; a value of VALUE_BYTES in base64 has 11 MiB …
EXPORT_READABLE = 1 * MIB  # … and one up to this is readable JSON, of six times its size at most …
EXPORT_BATCH = 1_000  # … checkpoints read, compared and written at a time …
EXPORT_BATCH_BYTES = 4 * MIB  # … and about how many bytes of them: a transaction of 16 MiB holds it
CLEANUP_KEYS = 100_000  # of one plan, which is in memory: some 30 MiB; the rest is planned again
SUBSCRIPTIONS = 200_000  # hwm of the XSUB/XPUB pair: forwarded subscriptions beyond it are lost
MERGE_MEMBERS = 10_000  # default: members of a merged set, keys of a merged map; each merge reads
# and writes all of them
MERGE_DIGITS = 100  # of an exact sum of decimals
WATCH_UNDONE = 100_000  # events that a named watch gives out before one is done: 200 bytes each
WATCH_IDLE = 10_000  # revisions of others after which its place goes on though nothing came for it:
# a tenth of what memory holds
WORKER_TRACES = 86_400  # seconds that the last beat of a worker is kept: for whoever asks next day
REWIND_KEYS = 4_000  # changed by one rewind: one transaction, with a record for each pipeline
CONTRACTS = 1_000  # of one store: all are told at once, and stand in its snapshot's first row
CONTRACT_HISTORY = 10_000  # versions of a key that a contract may keep for display
PARTITIONS = 65_536  # of one pipeline; each has a key, and all are listed at once
PAUSE_MAX = 1.0  # seconds that a writer waits at most after losing to others: with a thousand of
# them, and a millisecond for a commit, one attempt at a time is under way
QUEUE = 10_000  # hwm of request paths, messages a peer
PUBLISH_QUEUE = 10_000  # hwm of publication paths, messages a subscriber

# Python's str.isprintable() would refuse spaces of other scripts; only these can break a terminal,
# a log line or a topic.
_FORBIDDEN = frozenset(map(chr, [*range(0x20), 0x7F, *range(0x80, 0xA0), 0x2028, 0x2029]))
# Keys of printable ASCII, most of all, are found good in one step.
_ORDINARY = re.compile(r"(?!_)[ -.0-~]+(?:/[ -.0-~]+)*").fullmatch

_SAVEPOINT = re.compile(rf"[A-Za-z][A-Za-z0-9._-]{{0,{SAVEPOINT_NAME - 1}}}").fullmatch

_GOOD = 16_384  # keys that are known to be good: most are asked for over and over
_good: set[str] = set()


def check_key(key: str) -> None:
    """Refuse what cannot be a key.

    A key is UTF-8 of 1 to `KEY_BYTES` bytes; `/` separates segments; no segment is empty, no
    character is a control character. A first segment that begins with `_` is reserved for
    topics of the publication path.

    Raises `InvalidKey`, or `TooLarge` when only its length is wrong.
    """
    if type(key) is str and len(key) <= KEY_BYTES and _ORDINARY(key):
        return
    if not isinstance(key, str):
        # Not shown: the repr of a hostile deep nest would be a RecursionError.
        raise InvalidKey(f"a key is a string, not {type(key).__name__}")
    if not key:
        raise InvalidKey("a key has at least one character", key=key)
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey(f"key {key!r:.80} is not valid UTF-8 text", key=repr(key)[:80]) from None
    if size > KEY_BYTES:
        raise TooLarge(
            f"key {key[:40]!r}… has {size} bytes; the limit is {KEY_BYTES}",
            size=size, limit=KEY_BYTES,
        )
    if not _FORBIDDEN.isdisjoint(key):
        raise InvalidKey(f"key {key!r} holds a control character", key=key)
    if key[0] == "/" or key[-1] == "/" or "//" in key:
        raise InvalidKey(f"key {key!r} has an empty segment: write a/b, not /a, a/ or a//b",
                         key=key)
    if key[0] == "_":
        raise InvalidKey(f"key {key!r}: a first segment that begins with '_' is reserved",
                         hint="begin the key with another character", key=key)


def check_keys(keys: Sequence[str]) -> None:
    """Refuse the first of many that cannot be a key. Raises as `check_key`."""
    try:
        if _good.issuperset(keys):
            return
        if max(map(len, keys), default=0) <= KEY_BYTES and None not in map(_ORDINARY, keys):
            if len(_good) + len(keys) > _GOOD:
                _good.clear()
            _good.update(keys[:_GOOD])
            return
    except TypeError:  # one of them is no string
        pass
    for key in keys:
        check_key(key)


def check_prefix(prefix: str) -> None:
    """Refuse what cannot be a prefix: the empty string (everything) or a key. Raises as it does."""
    if prefix != "":
        check_key(prefix)


def check_savepoint(name: str) -> None:
    """Refuse what cannot be a savepoint's name: a letter, then letters, digits, `-`, `_` and `.`,
    up to `SAVEPOINT_NAME` of them. So it is never taken for a revision or a time. Raises
    `InvalidKey`."""
    if not isinstance(name, str) or not _SAVEPOINT(name):
        raise InvalidKey(
            f"{name!r:.140} cannot name a savepoint",
            hint="a letter, then letters, digits, '-', '_' or '.': before-migration")


def check_value(value: bytes) -> None:
    """Refuse a packed value over `VALUE_BYTES`. Raises `TooLarge`."""
    if len(value) > VALUE_BYTES:
        raise TooLarge(
            f"the value has {len(value):,} bytes packed; the limit is {VALUE_BYTES:,}",
            hint="keep the data elsewhere and commit its address",
            size=len(value), limit=VALUE_BYTES,
        )


def pipeline_of(key: str) -> str:
    """The first segment of a key: the pipeline that it belongs to."""
    head, _, _ = key.partition("/")
    return head


def pipelines_of(keys: Iterable[str]) -> list[str]:
    """The pipeline of each of many keys."""
    return [key.partition("/")[0] for key in keys]


def under(prefix: str, key: str) -> bool:
    """Whether a prefix selects a key: whole segments, so `orders` never selects `orders2`."""
    return not prefix or key == prefix or (
        key.startswith(prefix) and key[len(prefix)] == "/"
    )
