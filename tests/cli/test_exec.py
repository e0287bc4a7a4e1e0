"""`ckptmesh exec` and `ckptmesh lock`, as real processes, with a directory and a running store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh.features.executing import RUNS
from ckptmesh.limits import EXEC_LINES, EXEC_RUNS, EXEC_VARIABLE
from tests.cli.conftest import PROGRAM, CommandLine, environment, process
from tests.cluster import Cluster, wait_until

Done = subprocess.CompletedProcess[str]
NEXT = 'echo $((${CKPTMESH_CHECKPOINT:-0} + 1)) > "$CKPTMESH_NEXT_FILE"'


@pytest.fixture(params=["directory", "served"])
def url(request: pytest.FixtureRequest) -> str:
    line = request.getfixturevalue(request.param)
    assert isinstance(line, CommandLine)
    return line.environ["CKPTMESH_URL"]


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A pipeline of the test's own: the running store is shared."""
    return f"x{zlib.crc32(request.node.nodeid.encode())}"


class Runner:
    """Calls `exec` for one pipeline."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    def __call__(self, *args: str, code: int = 0) -> Done:
        done = process("exec", "--pipeline", self.key, *args, CKPTMESH_URL=self.url)
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr
        return done

    def sh(self, script: str, *options: str, code: int = 0) -> Done:
        return self(*options, "--", "sh", "-c", script, code=code)

    @property
    def value(self) -> Any:
        with ckptmesh.connect(self.url) as mesh:
            return mesh.value(self.key)

    @property
    def runs(self) -> list[dict[str, Any]]:
        with ckptmesh.connect(self.url) as mesh:
            return [each.value for each in mesh.list(f"{self.key}/{RUNS}")]

    @contextmanager
    def begun(self, script: str, *options: str, ready: Path) -> Iterator[subprocess.Popen[str]]:
        """An `exec` whose script has made the file `ready`."""
        child = subprocess.Popen(
            [*PROGRAM, "exec", "--pipeline", self.key, *options, "--", "sh", "-c", script],
            env=environment(CKPTMESH_URL=self.url), stderr=subprocess.PIPE, text=True)
        try:
            wait_until(ready.exists, what="the command begins")
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.communicate()


@pytest.fixture
def run(url: str, key: str) -> Runner:
    return Runner(url, key)


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def pid_in(file: Path) -> Callable[[], bool]:
    return lambda: file.exists() and file.read_text().endswith("\n")


def test_a_command_goes_on_from_what_the_one_before_has_left(run: Runner) -> None:
    shown = run.sh('printf "[%s]" "$CKPTMESH_CHECKPOINT"; cat "$CKPTMESH_CHECKPOINT_FILE"; ' + NEXT)
    assert shown.stdout == "[]"
    assert shown.stderr == ""
    run.sh(NEXT)
    shown = run.sh('echo "$CKPTMESH_CHECKPOINT $(cat "$CKPTMESH_CHECKPOINT_FILE")"')
    assert shown.stdout == "2 2\n"
    assert run.value == 2, "without a next file the value is kept"
    assert [(each["result"], each["committed"]) for each in run.runs] == [
        ("ok", True), ("ok", True), ("ok", False)]


@pytest.mark.parametrize(("written", "value"), [
    ('{"a": [1, {"$bytes": "aGk="}]}', {"a": [1, b"hi"]}), ("two words", "two words"),
    ('""', ""), ("null", None)])
def test_a_next_file_is_json_if_it_parses_else_text(run: Runner, written: str, value: object
                                                    ) -> None:
    run.sh(f"echo '{written}' > \"$CKPTMESH_NEXT_FILE\"")
    assert run.value == value
    again = run.sh('cp "$CKPTMESH_CHECKPOINT_FILE" "$CKPTMESH_NEXT_FILE"; '
                   'printf %s "$CKPTMESH_CHECKPOINT"').stdout
    assert run.value == value, "what is handed out can be handed back"
    assert again == (json.dumps(value) if not isinstance(value, dict) else written)


def test_a_failure_is_recorded_with_the_end_of_stderr_and_changes_nothing(run: Runner) -> None:
    run.sh(NEXT)
    done = run.sh(NEXT + "; for i in $(seq 50); do echo line $i >&2; done; exit 7", code=7)
    assert done.stderr.startswith("line 1\nline 2\n"), "stderr is passed through, all of it"
    assert done.stderr.endswith("ckptmesh: exit code 7 is the command's\n")
    assert run.value == 1
    assert run.runs[-1]["result"] == "failed"
    assert run.runs[-1]["code"] == 7
    assert run.runs[-1]["error"].splitlines() == [f"line {n}" for n in range(51 - EXEC_LINES, 51)]


@pytest.mark.parametrize(("left", "told"), [
    (": >", "is empty"), ("printf '\\377' >", "not UTF-8"), ("echo 1e999 >", "beyond"),
    ("mkdir", "cannot be read")])
def test_what_cannot_be_the_next_checkpoint_is_refused_and_never_0(
    run: Runner, left: str, told: str
) -> None:
    run.sh(NEXT)
    done = run.sh(f'{left} "$CKPTMESH_NEXT_FILE"', code=4)
    assert told in done.stderr
    assert "exit code 4 is ckptmesh's" in done.stderr
    assert run.value == 1
    assert run.runs[-1]["error"].startswith("not committed: ")


def test_who_commits_meanwhile_without_the_lock_is_not_overwritten(
    run: Runner, tmp_path: Path
) -> None:
    program = " ".join(PROGRAM)
    done = run.sh(f"{program} state set {run.key} 40 && " + NEXT, code=4)
    assert "exit code 4 is ckptmesh's" in done.stderr
    assert run.value == 40


def test_a_long_checkpoint_is_in_the_file_only(run: Runner) -> None:
    with ckptmesh.connect(run.url) as mesh:
        mesh.commit(run.key, "x" * EXEC_VARIABLE)
    done = run.sh('echo "${CKPTMESH_CHECKPOINT-unset}"; wc -c < "$CKPTMESH_CHECKPOINT_FILE"')
    assert done.stdout.split() == ["unset", str(EXEC_VARIABLE + 2)]
    assert "too long for a variable" in done.stderr


def test_the_runs_that_are_kept_are_bounded(run: Runner) -> None:
    with ckptmesh.connect(run.url) as mesh:
        for number in range(EXEC_RUNS + 5):
            mesh.commit(f"{run.key}/{RUNS}/2020-01-{number:02}", {"result": "ok", "n": number})
    run.sh(NEXT)
    assert len(run.runs) == EXEC_RUNS
    assert [each.get("n") for each in run.runs] == [*range(6, EXEC_RUNS + 5), None]


def test_commands_that_cannot_be_started_end_as_in_a_shell(run: Runner, tmp_path: Path) -> None:
    assert "exit code 127 is ckptmesh's" in run("no-such-command", code=127).stderr
    assert "exit code 126 is ckptmesh's" in run(str(tmp_path), code=126).stderr
    assert [each["code"] for each in run.runs] == [127, 126]
    run(code=2)


def test_a_command_that_a_signal_ended_is_128_and_its_number(run: Runner) -> None:
    assert "exit code 137 is the command's" in run.sh("kill -9 $$", code=137).stderr
    assert run.runs[-1]["code"] == 137


def test_a_command_out_of_time_is_ended_with_all_that_it_started(run: Runner, tmp_path: Path
                                                                 ) -> None:
    file = tmp_path / "pid"
    done = run.sh(f"sleep 100 & echo $! > {file}; {NEXT}; wait", "--timeout", "1s", code=124)
    assert "exit code 124 is ckptmesh's" in done.stderr
    assert gone(int(file.read_text()))
    assert run.value is None
    assert run.runs[-1]["result"] == "timeout"


def test_signals_are_passed_on_and_the_command_may_end_as_it_wants(run: Runner, tmp_path: Path
                                                                   ) -> None:
    ready = tmp_path / "ready"
    script = f"trap '{NEXT}; exit 0' TERM; touch {ready}; while :; do sleep 0.05; done"
    with run.begun(script, ready=ready) as child:
        child.terminate()
        assert child.wait(20) == 0
    assert run.value == 1
    ready.unlink()
    with run.begun(f"touch {ready}; sleep 100", ready=ready) as child:
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 128 + signal.SIGINT
    assert run.value == 1


def test_a_held_lock_is_4_and_waiting_for_it_helps(run: Runner, tmp_path: Path) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"
    with run.begun(f"touch {ready}; until [ -e {go} ]; do sleep 0.05; done; {NEXT}",
                   ready=ready) as child:
        refused = run.sh(NEXT, code=4)
        assert f":{child.pid} holds or awaits" in refused.stderr
        assert "the command was not started; exit code 4 is ckptmesh's" in refused.stderr
        assert process("exec", "--pipeline", f"{run.key}/part", "true",
                       CKPTMESH_URL=run.url).returncode == 4, "a part of it is held as well"
        (listed,) = locks(run)
        assert (listed["state"], listed["mode"]) == ("held", "exclusive")
        with subprocess.Popen([*PROGRAM, "exec", "--pipeline", run.key, "--wait", "30s", "--",
                               "sh", "-c", NEXT], env=environment(CKPTMESH_URL=run.url)) as second:
            wait_until(lambda: [each["state"] for each in locks(run)] == ["held", "waiting"])
            go.touch()
            assert child.wait(20) == 0
            assert second.wait(20) == 0
    assert run.value == 2
    assert locks(run) == []


def test_many_at_once_run_one_after_the_other(run: Runner, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    script = f"mkdir {inside} && sleep 0.05 && {NEXT} && rmdir {inside}"
    jobs = [subprocess.Popen([*PROGRAM, "exec", "--pipeline", run.key, "--wait", "60s", "--",
                              "sh", "-c", script], env=environment(CKPTMESH_URL=run.url))
            for _ in range(6)]
    try:
        assert [job.wait(90) for job in jobs] == [0] * 6, "mkdir fails where another is inside"
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    assert run.value == 6


def test_a_signal_while_it_waits_leaves_no_ticket(run: Runner, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with run.begun(f"touch {ready}; sleep 100", ready=ready) as child:
        second = subprocess.Popen([*PROGRAM, "exec", "--pipeline", run.key, "--wait", "60s", "--",
                                   "true"],
                                  env=environment(CKPTMESH_URL=run.url), stderr=subprocess.PIPE)
        try:
            wait_until(lambda: len(locks(run)) == 2)
            second.terminate()
            _, told = second.communicate(timeout=20)
        finally:
            second.kill()
            second.wait()
        assert second.returncode == 128 + signal.SIGTERM
        assert b"exit code 143 is ckptmesh's" in told
        assert len(locks(run)) == 1
        child.terminate()
        child.wait(20)


def locks(run: Runner) -> list[dict[str, Any]]:
    done = process("lock", "list", run.key, "--json", CKPTMESH_URL=run.url)
    assert done.returncode == 0, done
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_lock_that_an_operator_ends_lets_nothing_be_committed(run: Runner, tmp_path: Path
                                                                ) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"
    script = f"{NEXT}; touch {ready}; until [ -e {go} ]; do sleep 0.05; done"
    with run.begun(script, "--ttl", "60s", ready=ready) as child:
        holder = locks(run)[0]["holder"]
        release = ("lock", "release", run.key, "--holder", holder)
        there = {"CKPTMESH_URL": run.url}
        assert process(*release, **there).returncode == 2, "without --force"
        assert process(*release, "--force", **there).returncode == 2, "nobody to ask"
        assert process("lock", "release", run.key, "--holder", "nobody:1", "--force", "--yes",
                       **there).returncode == 3
        done = process(*release, "--force", "--yes", **there)
        assert done.returncode == 0, done
        assert "what it commits under it is refused" in done.stderr
        go.touch()
        _, told = child.communicate(timeout=30)
        assert child.returncode == 4
        assert "exit code 4 is ckptmesh's" in told
    assert run.value is None
    assert [each["result"] for each in run.runs] == ["failed"]


def test_a_lost_lock_ends_the_command(served: CommandLine, key: str, tmp_path: Path) -> None:
    run = Runner(served.environ["CKPTMESH_URL"], key)
    ready = tmp_path / "pid"
    with run.begun(f"{NEXT}; echo $$ > {ready}; exec sleep 100", "--ttl", "900ms",
                   ready=ready) as child:
        (ticket,) = locks(run)
        done = process("lock", "release", run.key, "--ticket", ticket["ticket"], "--force", "--yes",
                       CKPTMESH_URL=run.url)
        assert done.returncode == 0
        _, told = child.communicate(timeout=30)
        assert child.returncode == 4
        assert "the lock was lost while the command ran" in told
        assert gone(int(ready.read_text()))
    assert run.value is None
    assert run.runs[-1]["result"] == "lost"


def test_in_a_directory_a_lock_ends_with_exec_and_its_command_and_not_before(
    directory: CommandLine, key: str, tmp_path: Path
) -> None:
    run = Runner(directory.environ["CKPTMESH_URL"], key)
    ready = tmp_path / "pid"
    with run.begun(f"echo $$ > {ready}; exec sleep 100", ready=ready) as child:
        wait_until(pid_in(ready))
        command = int(ready.read_text())
        child.kill()
        child.wait()
        try:
            assert locks(run)[0]["state"] == "held", "its command is still at work"
            run.sh(NEXT, code=4)
        finally:
            os.kill(command, signal.SIGKILL)
        wait_until(lambda: gone(command))
        assert locks(run)[0]["state"] == "dead"
        run.sh(NEXT)
    assert run.value == 1
    assert locks(run) == []
    assert not list((tmp_path / "state" / "run").iterdir())


def test_a_store_that_is_away_is_5_and_nothing_is_started(key: str) -> None:
    away = process("exec", "--pipeline", key, "true", CKPTMESH_URL="tcp://127.0.0.1:9",
                   CKPTMESH_TIMEOUT="300ms")
    assert away.returncode == 5
    assert "the command was not started; exit code 5 is ckptmesh's" in away.stderr


def test_what_is_wrong_with_the_place_is_told_before_anything_is_started(
    key: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    began = tmp_path / "began"
    for name, url in ((key, f"file:{tmp_path}/other"), ("_mine", f"file:{tmp_path}/state"),
                      (key, "nonsense")):
        done = process("exec", "--pipeline", name, "touch", str(began), CKPTMESH_URL=url)
        assert done.returncode == 2, done
        assert "Traceback" not in done.stderr
    assert not began.exists()
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["file"]


def test_a_directory_with_tickets_can_be_served_and_they_end_there_by_their_time(
    directory: CommandLine, key: str, tmp_path: Path
) -> None:
    run = Runner(directory.environ["CKPTMESH_URL"], key)
    ready, go = tmp_path / "ready", tmp_path / "go"
    script = f"{NEXT}; touch {ready}; until [ -e {go} ]; do sleep 0.05; done"
    with run.begun(script, "--ttl", "1s", ready=ready) as child:
        (tmp_path / "data").symlink_to(tmp_path / "state")
        with Cluster(tmp_path) as cluster:
            served = Runner(cluster.url, key)
            served.sh("echo 40 > \"$CKPTMESH_NEXT_FILE\"", "--wait", "30s")
            cluster.stop(cluster.store)
        go.touch()
        _, told = child.communicate(timeout=30)
        assert child.returncode == 4, told
    assert run.value == 40


def test_a_lock_is_held_for_a_command_without_a_checkpoint(run: Runner) -> None:
    there = {"CKPTMESH_URL": run.url}
    ask = f"{' '.join(PROGRAM)} lock list {run.key} --json"
    done = process("lock", "acquire", run.key, "--shared", "--", "sh", "-c",
                   f'{ask}; echo "${{CKPTMESH_NEXT_FILE-unset}}"; exit 5', **there)
    assert done.returncode == 5
    held, unset = done.stdout.splitlines()
    assert json.loads(held)["mode"] == "shared"
    assert unset == "unset"
    assert done.stderr.endswith("exit code 5 is the command's\n")
    assert run.runs == []
    table = process("lock", "list", run.key, **there)
    assert (table.returncode, table.stdout) == (0, "")


