"""Workers as processes: a busy interpreter, clocks that differ, signals, commands."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptmesh
from tests.cli.conftest import PROGRAM, environment, process
from tests.cluster import Cluster, wait_until
from tests.integration.test_frozen_holders import quiet_log_of

TTL = 1.0
BUSY = """
import ctypes, sys, ckptmesh
mesh = ckptmesh.connect(sys.argv[1])
with mesh.worker("orders", partitions=2, name="busy", ttl=float(sys.argv[2]), idle=0.05) as w:
    lost = None
    for part in w:
        if lost is None:
            lost = part.name
            part.commit("mine")
            # One call that keeps the interpreter's lock, as a C extension may.
            ctypes.PyDLL(None).usleep(int(2 * w._work._ttl * 1e6))
            print("woken", flush=True)
            sys.stdin.readline()
            try:
                part.commit("stale")
                print("accepted", flush=True)
            except ckptmesh.LeaseLost as error:
                print(error.message, flush=True)
            print(part.lost.is_set(), flush=True)
            sys.stdin.readline()
        else:
            part.commit("again")
            print("goes on", flush=True)
            w.drain()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("workers")) as found:
        yield found


@pytest.fixture
def mesh(cluster: Cluster) -> Iterator[ckptmesh.Client]:
    with ckptmesh.connect(cluster.url) as found:
        yield found


def python(script: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *args], env=environment(), text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_worker_whose_interpreter_is_busy_for_twice_its_ttl_is_refused_and_told_of_the_stall(
    cluster: Cluster
) -> None:
    child = python(BUSY, cluster.url, str(TTL))
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "woken\n"
        with ckptmesh.connect(cluster.url) as mesh:
            wait_until(lambda: not mesh.scan("orders/_lock"), what="the end of its leases")
            mesh.delete("orders/_workers/busy/_beat")  # the clock is logged while a TTL runs
            with mesh.lock("orders", wait=10):  # so that nothing else is written meanwhile
                before, revision = quiet_log_of(cluster), mesh.hello().revision
                assert child.stdin is not None
                print("go", file=child.stdin, flush=True)
                why = child.stdout.readline()
                assert "did not run its renewal for" in why
                assert float(why.split("renewal for ")[1].split()[0]) > TTL
                assert child.stdout.readline() == "True\n"
                assert mesh.hello().revision == revision
                assert quiet_log_of(cluster) == before, "not a byte"
                assert [each.value for each in mesh.scan("orders/partition")] == ["mine"]
        said, _ = child.communicate("go\n", timeout=30)
        assert said == "goes on\n"
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0


CLOCK = """
import sys, time
moved, now, now_ns = float(sys.argv[2]), time.time, time.time_ns
time.time = lambda: now() + moved
time.time_ns = lambda: now_ns() + int(moved * 1e9)
import ckptmesh
mesh = ckptmesh.connect(sys.argv[1])
with mesh.worker("clocks", partitions=4, name=sys.argv[3], ttl=2, idle=0.05) as w:
    w.run(lambda part: part.commit(part.value(0) + 1))
"""


def test_workers_whose_clocks_differ_by_days_share_and_take_over_all_the_same(
    cluster: Cluster
) -> None:
    children = [python(CLOCK, cluster.url, str(moved), name) for name, moved in
                (("early", -86_400), ("late", 3 * 86_400))]
    try:
        with ckptmesh.connect(cluster.url) as mesh:
            team = mesh.workers("clocks")
            wait_until(lambda: [len(each.partitions) for each in team] == [2, 2])
            wait_until(lambda: {each.state for each in team} == {"running"})
            ages = [mesh.hello().time / 1e6 - each.started.timestamp() for each in team]
            assert all(0 <= age < 60 for age in ages), "told in the store's time"
            children[1].kill()
            wait_until(lambda: team.list()[0].partitions == tuple(
                f"clocks/partition/{n}" for n in range(4)))
            before = {each.key: each.value for each in mesh.scan("clocks/partition")}
            wait_until(lambda: all(each.value > before[each.key]
                                   for each in mesh.scan("clocks/partition")))
            wait_until(lambda: [each.state for each in team] == ["running", "stale"])
            assert [each.name for each in team.free_stale()] == ["late"]
        children[0].terminate()
        assert children[0].wait(30) == 0, "SIGTERM ends it in order"
    finally:
        for child in children:
            child.kill()
            child.communicate()


async def share_by_tasks(url: str) -> None:
    async def work(name: str) -> int:
        turns = 0
        async with (await ckptmesh.connect_async(url) as mesh,
                    mesh.worker("tasks", partitions=6, name=name, idle=0.02) as worker):
            async for part in worker:
                await part.commit(await part.value(0) + 1)
                turns += 1
        return turns

    async with await ckptmesh.connect_async(url) as mesh:
        team, tasks = mesh.workers("tasks"), [asyncio.create_task(work(name)) for name in "abc"]
        while [len(each.partitions) for each in await team.list()] != [2, 2, 2]:
            await asyncio.sleep(0.01)
        await team.drain("a")
        turns = await tasks[0]
        while [len(each.partitions) for each in await team.list()] != [3, 3]:
            await asyncio.sleep(0.01)
        await team.drain("b")
        await team.drain("c")
        turns += await tasks[1] + await tasks[2]
        assert sum([each.value async for each in mesh.list("tasks")]) == turns


def test_workers_of_asyncio_share_a_mesh(cluster: Cluster) -> None:
    asyncio.run(asyncio.wait_for(share_by_tasks(cluster.url), 60))


APP = """
def work(part):
    part.commit(part.value(0) + 1)

def fails(part):
    raise ValueError("no feed today")
"""


@pytest.fixture(params=["file", "mesh"])
def url(request: pytest.FixtureRequest, tmp_path: Path, cluster: Cluster) -> str:
    return cluster.url if request.param == "mesh" else f"file:{tmp_path}/state"


def test_commands_and_functions_have_their_turns(url: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    script = ('test "$CKPTMESH_PARTITION" != us || exit 3; '
              'echo $((${CKPTMESH_CHECKPOINT:-0} + 1)) > "$CKPTMESH_NEXT_FILE"')
    env = environment(CKPTMESH_URL=url)

    def start(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PROGRAM, "worker", "start", "shop", "--partitions", "eu,us",
                               "--idle", "0s", *args], cwd=tmp_path, env=env, timeout=60,
                              capture_output=True, text=True)

    done = start("--turns", "4", "--json", "--", "sh", "-c", script)
    assert done.returncode == 3, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted((each["partition"], each["code"], each["committed"]) for each in said) == [
        ("eu", 0, True), ("eu", 0, True), ("us", 3, False), ("us", 3, False)]
    assert "us: exit code 3 is the command's" in done.stderr
    assert start("--", "/nowhere/at/all").returncode == 127
    assert start("--turns", "2", "--app", "shop:work").returncode == 0
    done = start("--app", "shop:fails")
    assert done.returncode == 1
    assert "ValueError: no feed today" in done.stderr
    assert "fault in ckptmesh" not in done.stderr
    wrong = [("--app", "shop:nothing"), ("--app", "nowhere:x"), ("--app", "shop"), (),
             ("--app", "shop:work", "--", "true")]
    for options in wrong if url.startswith("file") else []:
        assert start(*options).returncode == 2
    with ckptmesh.connect(url) as mesh:
        assert (mesh.value("shop/partition/eu"), mesh.value("shop/partition/us")) == (3, 1)
        runs = [each.value["result"] for each in mesh.scan("shop/partition/us/_runs")]
        assert runs[:2] == ["failed", "failed"]
        assert not mesh.scan("shop/_workers")


def test_a_worker_of_commands_is_listed_drained_and_stopped(
    cluster: Cluster, tmp_path: Path, mesh: ckptmesh.Client
) -> None:
    """Each command says that it has begun, and goes on when it is told: nothing is timed."""
    begun, go = tmp_path / "begun", tmp_path / "go"

    def start(name: str, script: str, ttl: str = "30s") -> subprocess.Popen[str]:
        begun.unlink(missing_ok=True)
        child = subprocess.Popen(
            [*PROGRAM, "worker", "start", "calls", "--partitions", "1", "--name", name, "--ttl",
             ttl, "--", "sh", "-c", script], env=environment(CKPTMESH_URL=cluster.url),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        wait_until(begun.exists, seconds=60)
        return child

    def tell(*args: str, code: int = 0) -> str:
        done = process("worker", *args, CKPTMESH_URL=cluster.url)
        assert done.returncode == code, done.stderr
        return done.stdout

    tell("drain", "calls", "nobody", code=3)
    tell("drain", "calls", code=2)
    with start("slow", 'touch begun; until test -e go; do sleep 0.05; done; '
                       'echo 1 > "$CKPTMESH_NEXT_FILE"') as child:
        assert tell("drain", "calls", "slow") == "draining slow\n"
        (found,) = [json.loads(line) for line in tell("list", "calls", "--json").splitlines()]
        assert (found["name"], found["state"], found["partitions"]) == (
            "slow", "draining", ["calls/partition/0"])
        go.touch()
        assert child.wait(60) == 0, child.communicate()
    assert mesh.value("calls/partition/0") == 1, "its turn was finished"
    with start("stuck", "touch begun; exec sleep 600", ttl="3s") as child:
        tell("stop", "calls", "--all", code=2)  # nobody can be asked
        assert tell("stop", "calls", "--all", "--yes") == "stopped stuck\n"
        assert child.wait(60) == 0, child.communicate()
    with start("mine", "trap 'exit 9' TERM; touch begun; while :; do sleep 0.1; done") as child:
        child.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)  # the first lets the turn end
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0, child.communicate()
    assert tell("list", "calls") == ""
