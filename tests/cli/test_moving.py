"""`ckptmesh migrate`, and what `ckptmesh state` does with many checkpoints at once."""

from __future__ import annotations

import enum
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh import values
from ckptmesh.api import Steps
from ckptmesh.features.sharing import BEAT, folder_of
from ckptmesh.messages import Put, Transact
from tests.cli.conftest import PROGRAM, CommandLine, environment


@pytest.fixture
def mesh(directory: CommandLine) -> CommandLine:
    """A directory with three checkpoints."""
    directory("state", "set", "orders", '{"offset": 42}', "--position", "42")
    directory("state", "set", "orders/eu", "1")
    directory("state", "set", "other", "text")
    return directory


class E(enum.Enum):
    """Known to this file alone."""

    A = 1


def url(tmp_path: Path, name: str) -> str:
    return f"file:{tmp_path}/{name}"


def documents(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


# --- export and import ------------------------------------------------------------------------


def test_an_export_goes_to_stdout_or_into_a_file(mesh: CommandLine, tmp_path: Path) -> None:
    done = mesh("state", "export")
    assert [line.get("key") for line in documents(done.stdout)] == [
        None, "orders", "orders/eu", "other", None]
    assert done.stderr == "3 checkpoints as of revision 3\n"
    file = tmp_path / "x.jsonl.gz"
    assert mesh.out("state", "export", "orders", "--to", str(file)) == (
        "2 checkpoints as of revision 3")
    lines = documents(gzip.decompress(file.read_bytes()).decode())
    assert (lines[0]["prefix"], lines[-1]["end"]) == ("orders", 2)
    told = json.loads(mesh.out("state", "export", "--to", str(file), "--json", "--at", "1"))
    assert (told["keys"], told["revision"], told["file"]) == (1, 1, str(file))
    assert mesh("state", "export", "--format", "gzip").stdout_bytes[:2] == b"\x1f\x8b"


def test_where_there_is_no_store_nothing_is_exported(tmp_path: Path) -> None:
    line = CommandLine(url(tmp_path, "typo"))
    target = tmp_path / "x.jsonl"
    assert "there is no store" in line("state", "export", "--to", str(target), code=3).stderr
    assert list(tmp_path.iterdir()) == []


def test_what_was_exported_is_imported_elsewhere(mesh: CommandLine, tmp_path: Path) -> None:
    other = CommandLine(url(tmp_path, "other"))
    file = str(tmp_path / "x.jsonl")
    mesh("state", "export", "--to", file)
    assert other.out("state", "import", "--from", file, "--dry-run") == (
        "3 checkpoints: 3 new; nothing was written (--dry-run)")
    assert other.out("state", "import", "--from", file) == "3 checkpoints: 3 new"
    assert other.out("state", "digest") == mesh.out("state", "digest")
    other("state", "set", "orders", "7")
    refused = other("state", "import", "--from", file, code=4)
    assert "1 of 3 keys stand there with something else, first 'orders'" in refused.stderr
    assert other.out("state", "import", "--from", file, "--on-conflict", "skip") == (
        "3 checkpoints: 2 there already, 1 left as they were")
    assert "--yes" in other("state", "import", "--from", file, "--on-conflict", "replace",
                            code=2).stderr
    told = json.loads(other.out("state", "import", "--from", file, "--on-conflict", "replace",
                                "--yes", "--json"))
    assert (told["replaced"], told["same"], told["dry_run"]) == (1, 2, False)
    assert other.out("state", "digest") == mesh.out("state", "digest")


def test_an_import_reads_a_pipe_and_puts_it_onto_a_prefix(
    mesh: CommandLine, tmp_path: Path
) -> None:
    export = mesh("state", "export", "orders", "--format", "gzip").stdout_bytes
    done = subprocess.run(
        [*PROGRAM, "state", "import", "--onto", "copy", "--url", url(tmp_path, "other")],
        env=environment(), input=export, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"2 checkpoints: 2 new\n"
    other = CommandLine(url(tmp_path, "other"))
    assert [each["key"] for each in documents(other.out("state", "list", "--json"))] == [
        "copy/orders", "copy/orders/eu"]


def test_a_damaged_export_is_told_by_its_line_and_leaves_nothing(
    mesh: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "x.jsonl"
    mesh("state", "export", "--to", str(file))
    other = CommandLine(url(tmp_path, "other"))
    good = file.read_bytes()
    changed = good.replace(b'"offset":42', b'"offset":43', 1)
    for damage, text in ((changed, "line 2: its sum is wrong"),
                         (good[:-9], "line 5: the line ends early"),
                         (good[:good.rindex(b'{"end')], "line 5: its end is missing"),
                         (b"", "line 1: it is empty")):
        file.write_bytes(damage)
        done = other("state", "import", "--from", str(file), code=6)
        assert text in done.stderr
    file.write_bytes(good.replace(b'"version":1', b'"version":2', 1))
    assert "an export of version 2; this release reads up to 1" in other(
        "state", "import", "--from", str(file), code=1).stderr
    assert other.out("state", "list", "--json") == ""


# --- migrate ----------------------------------------------------------------------------------


def test_a_store_is_migrated_into_another_and_verified(
    mesh: CommandLine, served: CommandLine, tmp_path: Path
) -> None:
    here, there = mesh.environ["CKPTMESH_URL"], url(tmp_path, "new")
    line = CommandLine()
    assert line.out("migrate", here, there, "--dry-run") == (
        "3 checkpoints: 3 new; nothing was written (--dry-run)")
    assert not (tmp_path / "new").exists()
    assert line.out("migrate", here, there) == (
        "3 checkpoints: 3 new; 3 keys compared, digests equal")
    told = json.loads(line.out("migrate", here, there, "--json"))
    assert (told["same"], told["verified"]) == (3, 3)
    assert told["sha256"] == mesh.out("state", "digest")
    CommandLine(there)("state", "set", "zz", "1")
    assert "not empty: it holds 'zz'" in line("migrate", here, there, code=4).stderr
    assert "--yes" in line("migrate", here, there, "--replace", code=2).stderr
    line("migrate", here, there, "--replace", "--yes")
    assert "same store" in line("migrate", served.environ["CKPTMESH_URL"],
                                served.environ["CKPTMESH_URL"], code=2).stderr
    assert "there is no store" in line("migrate", url(tmp_path, "typo"), there, code=3).stderr


def test_a_directory_moves_to_a_mesh_and_back(
    mesh: CommandLine, served: CommandLine, tmp_path: Path
) -> None:
    line = CommandLine()
    mesh("state", "set", "moved/a", "1")
    line("migrate", mesh.environ["CKPTMESH_URL"], served.environ["CKPTMESH_URL"], "--prefix",
         "moved", "--replace", "--yes")
    back = url(tmp_path, "back")
    line("migrate", served.environ["CKPTMESH_URL"], back, "--prefix", "moved")
    assert CommandLine(back).out("state", "digest") == mesh.out("state", "digest", "moved")


# --- diff -------------------------------------------------------------------------------------


def test_a_difference_is_shown_and_told_by_the_exit_code(
    mesh: CommandLine, tmp_path: Path
) -> None:
    file = str(tmp_path / "x.jsonl")
    mesh("state", "export", "--to", file)
    assert mesh("state", "diff", file).stderr == "nothing differs\n"
    mesh("state", "set", "orders", '{"offset": 43}', "--position", "43")
    mesh("state", "set", "new", "1")
    mesh("state", "delete", "other", "--yes")
    for before in (file, "3"):
        done = mesh("state", "diff", before, code=1)
        assert [line.split() for line in done.stdout.splitlines()] == [
            ["CHANGE", "KEY", "BEFORE", "AFTER"], ["added", "new", "1"],
            ["changed", "orders", '{"offset":', "42}", "at", "42", '{"offset":', "43}", "at", "43"],
            ["removed", "other", '"text"']]
        assert done.stderr == "1 added, 1 removed, 1 changed\n"
    lines = documents(mesh("state", "diff", "3", "now", "--prefix", "orders", "--json",
                           code=1).stdout)
    assert [(each["change"], each["key"]) for each in lines] == [("changed", "orders")]
    mesh("state", "diff", "3", "3")
    assert "there is no savepoint 'x'" in mesh("state", "diff", "x", code=3).stderr
    mesh("snapshot", "pin", "here")
    mesh("state", "diff", "here")
    assert "there is no file" in mesh("state", "diff", f"{tmp_path}/no", code=2).stderr


def test_two_stores_are_compared(mesh: CommandLine, tmp_path: Path) -> None:
    here, there = mesh.environ["CKPTMESH_URL"], url(tmp_path, "new")
    CommandLine()("migrate", here, there)
    mesh("state", "diff", here, there)
    CommandLine(there)("state", "set", "orders/eu", "2")
    assert documents(mesh("state", "diff", here, there, "--json", code=1).stdout) == [
        {"change": "changed", "key": "orders/eu",
         "before": {"value": 1, "revision": 2, "position": None, "head": None},
         "after": {"value": 2, "revision": 2, "position": None, "head": None}}]


# --- update -----------------------------------------------------------------------------------


def test_fields_are_changed_and_all_else_stays(mesh: CommandLine) -> None:
    mesh("state", "set", "orders", '{"offset": 42, "error": "x"}', "--position", "42", "--ttl",
         "1h")
    assert mesh.out("state", "update", "orders", "status=done", "count:=3", 'tags:=["a"]',
                    "--remove", "error") == "orders@5"
    found = json.loads(mesh.out("state", "get", "orders", "--json"))
    assert found["value"] == {"offset": 42, "status": "done", "count": 3, "tags": ["a"]}
    assert found["position"] == 42
    assert found["expires_at"] is not None
    mesh("state", "update", "orders", "url=a=b:=c")
    assert json.loads(mesh.out("state", "get", "orders"))["url"] == "a=b:=c"


@pytest.mark.parametrize(("args", "code", "text"), [
    (["nobody", "a=1"], 3, "there is no nobody"),
    (["other", "a=1"], 2, "other holds no map but a string"),
    (["orders"], 2, "change which field?"),
    (["orders", "a"], 2, "'a' is no change of a field"),
    (["orders", "a:=b"], 2, "'b' is no JSON"),
    (["orders", "a=1", "--remove", "a"], 2, "both set and removed"),
])
def test_a_wrong_update_changes_nothing(
    mesh: CommandLine, args: list[str], code: int, text: str
) -> None:
    before = mesh.out("state", "digest")
    assert text in mesh("state", "update", *args, code=code).stderr
    assert mesh.out("state", "digest") == before


def test_an_update_makes_a_map_when_told(mesh: CommandLine) -> None:
    mesh("state", "update", "fresh", "a:=1", "--create")
    assert mesh.out("state", "get", "fresh") == '{"a": 1}'


def test_an_update_never_bends_what_the_command_line_does_not_know(
    mesh: CommandLine, tmp_path: Path
) -> None:
    script = ("import ckptmesh, enum\nE = enum.Enum('E', 'A')\n"
              "with ckptmesh.connect() as mesh: mesh.commit('job', {'state': E.A})")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60,
                   env=environment(CKPTMESH_URL=mesh.environ["CKPTMESH_URL"]))
    assert "does not know" in mesh("state", "update", "job", "a=1", code=2).stderr
    there = url(tmp_path, "new")
    CommandLine()("migrate", mesh.environ["CKPTMESH_URL"], there)
    with ckptmesh.connect(there) as found:
        (packed,) = [each.value.data for each in found.scan("job", packed=True)]
    assert packed == b"\x81\xa5state" + values.pack(E.A), "kept as it was"


# --- cleanup ----------------------------------------------------------------------------------


def test_a_cleanup_shows_what_goes_and_asks(mesh: CommandLine) -> None:
    for day in range(4):
        mesh("state", "set", f"daily/{day}", str(day))
    done = mesh("state", "cleanup", "daily", "--keep", "2", "--dry-run")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["KEY", "daily/0", "daily/1"]
    assert done.stderr == "would delete 2 checkpoints\n"
    assert "add --yes" in mesh("state", "cleanup", "daily", "--keep", "2", code=2).stderr
    assert mesh("state", "cleanup", "daily", "--older-than", "1h", "--yes").stderr == (
        "nothing to delete among 4 checkpoints\n")
    done = mesh("state", "cleanup", "daily", "--keep", "2", "--yes", "--json")
    assert [each["key"] for each in documents(done.stdout)] == ["daily/0", "daily/1"]
    assert done.stderr == "deleted 2 checkpoints\n"
    assert mesh.out("state", "digest", "daily") != mesh.out("state", "digest")
    assert "what is to go?" in mesh("state", "cleanup", "daily", code=2).stderr


def test_a_cleanup_frees_stale_workers(mesh: CommandLine) -> None:
    args = ("state", "cleanup", "orders", "--stale-workers")
    assert mesh(*args, "--yes").stderr == "nothing to delete\n"
    beat = f"{folder_of('orders')}/gone/{BEAT}"  # what one leaves whose lease has ended
    mesh("state", "set", beat, '{"ttl": 0.001, "host": "h", "pid": 7}')
    done = mesh(*args, "--dry-run")
    assert done.stdout.splitlines()[1].split() == ["gone", "stale"]
    assert done.stderr == "would delete what 1 stale worker left\n"
    mesh("state", "get", beat)
    assert mesh(*args, "--yes").stderr == "freed gone\n"
    mesh("state", "get", beat, code=3)


# --- validate and repair ----------------------------------------------------------------------


def spoil(where: str, key: str) -> None:
    """Commit bytes that are no value, as a client in another language might."""
    def steps() -> Steps[object]:
        return (yield Transact((), (Put(key, b"\xc1"),)))

    with ckptmesh.connect(where) as found:
        found._run(steps(), None)


def test_a_checkpoint_that_cannot_be_read_is_found_and_its_last_good_version_saved(
    mesh: CommandLine, tmp_path: Path
) -> None:
    assert mesh("state", "validate").stderr == "3 checkpoints as of revision 3: all good\n"
    spoil(mesh.environ["CKPTMESH_URL"], "orders")
    done = mesh("state", "validate", code=6)
    assert done.stdout.splitlines()[1].split()[:3] == ["orders", "4", "unreadable"]
    assert "ckptmesh state repair orders --to NEW_KEY" in done.stderr
    assert "'orders' at revision 4" in mesh("state", "export", "--to", f"{tmp_path}/x",
                                            code=6).stderr
    done = mesh("state", "repair", "orders", "--to", "saved", "--dry-run")
    assert [line.split() for line in done.stdout.splitlines()][2][:4] == [
        "after", "saved,", "from", "orders@1"]
    told = json.loads(mesh.out("state", "repair", "orders", "--to", "saved", "--json"))
    assert told["after"]["value"] == {"offset": 42}
    assert told["before"]["value"] == {"$packed": "wQ=="}
    assert mesh.out("state", "get", "saved") == '{"offset": 42}'
    mesh("state", "repair", "orders", "--to", "saved", code=4)
    mesh("state", "repair", "orders@1", "--to", "again")
    assert mesh.out("state", "get", "again") == '{"offset": 42}'


def test_what_is_not_there_is_told_by_its_name(directory: CommandLine, tmp_path: Path) -> None:
    directory("state", "set", "orders", "1")
    assert "there is no nobody" in directory("state", "repair", "nobody", "--to", "x",
                                             code=3).stderr
    nowhere = f"{tmp_path}/nowhere/x.jsonl"
    assert f"{nowhere}: No such file" in directory("state", "export", "--to", nowhere,
                                                   code=1).stderr
    result = directory("migrate", f"file:{tmp_path}/none", f"file:{tmp_path}/target", code=3)
    assert "state set" not in result.stderr, "there is nothing to begin with here"
    assert "ckptmesh contract delete orders" in directory("contract", "set", "orders",
                                                          code=2).stderr
