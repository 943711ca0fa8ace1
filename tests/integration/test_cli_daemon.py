"""A worker as a daemon: leaving the terminal, pidfiles, log files of its own and of its children, its user."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Shell, Terminal, environment
from tests.running import Workshop
from tests.support import eventually

SOURCE = """
@app.task(name="shop.add")
def add(x, y):
    return x + y

@app.task(name="shop.who")
def who():
    print("said by a task")
    mask = os.umask(0)
    os.umask(mask)
    return [os.getpid(), os.getppid(), os.getuid(), mask, os.getcwd(), sys.executable]
"""


class Daemons(Workshop):
    """A workshop whose workers are started by ``--detach`` and known by their pidfiles."""

    def command(self, *arguments: str, code: int = 0, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return Shell(self.directory)(*before, "-A", self.project.name, "worker", *arguments, code=code)

    def pid(self, pidfile: str = "w.pid") -> int:
        return int((self.directory / pidfile).read_text())

    def gone(self, pid: int) -> None:
        eventually(lambda: not Path(f"/proc/{pid}").exists(), 20.0)

    def close(self) -> None:
        for path in self.directory.rglob("*.pid"):
            # Only what still holds its pidfile: a number that was left behind may be another's by now.
            pid = int(path.read_text())
            if Path(f"/proc/{pid}").exists() and self.project.name in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
                self.gone(pid)
        super().close()


@pytest.fixture
def shop(broker_url: str) -> Iterator[Daemons]:
    # Not below pytest's own directory, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="amqptasks-daemon-") as name:
        os.chmod(name, 0o777)
        with Daemons(Path(name), broker_url, SOURCE) as made:
            yield made


def test_a_worker_goes_to_the_background_and_comes_to_its_end(shop: Daemons) -> None:
    # Given a worker that was detached
    done = shop.command("-D", "-c", "1", "-n", "w@host", "--pidfile", "%n.pid", "-f", "%n.log", "-l", "INFO")
    # Then the terminal has seen how it starts, and has its prompt back
    pid, log = shop.pid(), shop.directory / "w.log"
    assert ".> transport:" in done.stdout
    assert done.stdout.splitlines()[-1] == f"w@host runs in the background, process {pid}, log {log}"
    assert done.stderr == ""
    # And it is a process without terminal and with nothing of the shell's, in a session that it does not lead
    assert os.getsid(pid) not in (pid, os.getsid(0))
    descriptors = {each.name: os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    assert (descriptors["0"], descriptors["1"], descriptors["2"]) == ("/dev/null", str(log), str(log))
    # When a task is sent / Then it runs there
    _child, parent, *_ = shop.tasks.who.delay().get(timeout=20)
    assert parent == pid
    assert "said by a task" in log.read_text() and "shop.who" in log.read_text()
    # When it is told to stop / Then it does, and takes its pidfile along
    os.kill(pid, signal.SIGTERM)
    shop.gone(pid)
    assert not (shop.directory / "w.pid").exists()
    assert "warm shutdown" in log.read_text()


def test_hup_starts_a_worker_anew_after_what_runs(shop: Daemons) -> None:
    # Given a worker in the background, started with an order to purge, that runs a task
    log = shop.directory / "w.log"
    shop.command("-D", "-c", "1", "--purge", "--pidfile", "w.pid", "-f", "w.log", "-l", "INFO")
    pid = shop.pid()
    child, parent, *_ = shop.tasks.who.delay().get(timeout=20)
    # When it is told to hang up, and a message comes meanwhile / Then it is the same process with new children
    os.kill(pid, signal.SIGHUP)
    result = shop.tasks.who.delay()
    eventually(lambda: log.read_text().count(" ready.") == 2, 30)
    new_child, new_parent, *_ = result.get(timeout=20)
    assert (parent, new_parent, shop.pid()) == (pid, pid, pid) and new_child != child
    assert "SIGHUP: warm shutdown" in log.read_text()
    # And again, until it is told to stop
    os.kill(pid, signal.SIGHUP)
    eventually(lambda: log.read_text().count(" ready.") == 3, 30)
    os.kill(pid, signal.SIGTERM)
    shop.gone(pid)
    assert not (shop.directory / "w.pid").exists()


@pytest.mark.parametrize("nohup", [False, True])
def test_the_end_of_a_terminal_ends_its_worker_unless_by_nohup(shop: Daemons, nohup: bool) -> None:
    # Given a worker in a terminal / When that is closed
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        terminal = Terminal(shop.directory, "-A", shop.project.name, "worker", "-c", "1")
    finally:
        signal.signal(signal.SIGHUP, before)
    with terminal:
        terminal.expect("ready.")
        terminal.process.send_signal(signal.SIGHUP)
        if nohup:
            # Then it does not care, if that is how it was started
            assert shop.tasks.who.delay().get(timeout=20)[1] == terminal.process.pid
            terminal.process.send_signal(signal.SIGTERM)
        # Else it ends as if it were told to, and does not begin again
        assert terminal.process.wait(20) == 0


def test_what_is_wrong_at_the_start_is_told_in_the_terminal(shop: Daemons) -> None:
    (shop.directory / "broken.py").write_text("1 / 0")
    for arguments, word in (
        (["-I", "broken"], "broken.py:1"), (["-c", "many"], "worker_concurrency"), (["-f", "/nowhere/x"], "/nowhere/x"),
    ):  # fmt: skip
        done = shop.command("-D", "--pidfile", "w.pid", *arguments, code=1 if "broken" in arguments else 2)
        (said,) = done.stderr.splitlines()
        assert said.startswith("Error: ") and word in said
        assert not (shop.directory / "w.pid").exists()


def test_a_worker_without_a_log_is_warned_of(shop: Daemons) -> None:
    done = shop.command("-D", "-P", "solo", "--pidfile", "w.pid")
    assert "Warning: --detach without --logfile" in done.stderr
    assert done.stdout.splitlines()[-1].endswith("log nowhere")


# -- pidfiles


def test_a_pidfile_admits_one_worker_at_a_time(shop: Daemons) -> None:
    shop.command("-D", "-P", "solo", "--pidfile", "w.pid", "-f", "w.log")
    pid = shop.pid()
    for arguments in ([], ["-D"]):
        done = shop.command("--pidfile", "w.pid", *arguments, code=1)
        (said,) = done.stderr.splitlines()
        assert f"belongs to a process that runs ({pid})" in said and "w.pid" in said
    # And the first has lost nothing of it
    assert shop.pid() == pid
    assert shop.tasks.add.delay(1, 1).get(timeout=20) == 2


@pytest.mark.parametrize("left_behind", ["{pid of a dead process}\n", "{pid of a living process}\n", "rubbish", "\n"])
def test_a_pidfile_that_was_left_behind_is_taken_over(shop: Daemons, left_behind: str) -> None:
    # Given a pidfile of a worker that was killed, whose number may since have been given to another process
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(20)
    text = left_behind.replace("{pid of a dead process}", str(dead.pid)).replace("{pid of a living process}", "1")
    (shop.directory / "w.pid").write_text(text)
    # When another is started / Then it takes the file over and says so
    done = shop.command("-D", "-P", "solo", "--pidfile", "w.pid", "-f", "w.log")
    assert (f"took over the pidfile {shop.directory}/w.pid of process {text.strip()}" in done.stderr) is bool(
        text.strip()
    )
    assert shop.tasks.who.delay().get(timeout=20)[0] == shop.pid()


def test_a_killed_worker_s_pidfile_does_not_keep_the_next_one_out(shop: Daemons) -> None:
    shop.command("-D", "-c", "1", "--pidfile", "w.pid", "-f", "w.log")
    first = shop.pid()
    os.kill(first, signal.SIGKILL)
    shop.gone(first)
    # Its children may live on for a second: they do not hold the file
    shop.command("-D", "-c", "1", "--pidfile", "w.pid", "-f", "w.log")
    assert shop.pid() != first


# -- log files


def test_each_child_has_a_log_file_of_its_own(shop: Daemons) -> None:
    shop.command(
        "-D", "-c", "2", "-n", "w@host.example.org", "--pidfile", "w.pid", "-f", "%n-%h-%d-%i%I.log", "-l", "INFO"
    )
    stem = shop.directory / "w-host.example.org-example.org"
    assert [shop.tasks.add.delay(n, 1).get(timeout=20) for n in range(3)] == [1, 2, 3]
    parent, children = Path(f"{stem}-0.log"), [Path(f"{stem}-{n}-{n}.log") for n in (1, 2)]

    def look() -> None:
        assert sum(each.read_text().count("succeeded") for each in children) == 3

    eventually(look)
    assert parent.read_text().count("received") == 3 and "succeeded" not in parent.read_text()
    assert "received" not in "".join(each.read_text() for each in children)


def test_a_log_that_is_rotated_goes_on_in_a_new_file(shop: Daemons) -> None:
    shop.command("-D", "-c", "1", "--pidfile", "w.pid", "-f", "w.log", "-l", "INFO")
    log = shop.directory / "w.log"
    eventually(lambda: "ready." in log.read_text())
    log.rename(shop.directory / "w.log.1")
    assert shop.tasks.add.delay(1, 1).get(timeout=20) == 2
    eventually(lambda: log.exists() and "received" in log.read_text() and "succeeded" in log.read_text())


# -- where and as whom


def test_umask_workdir_and_executable(shop: Daemons) -> None:
    # Given a directory, a mask, and another Python, which is this one under another name
    where = shop.directory / "below"
    where.mkdir()
    (where / f"{shop.project.name}.py").write_bytes((shop.directory / f"{shop.project.name}.py").read_bytes())
    python = shop.directory / "other-python"
    python.write_text(f'#!/bin/sh\necho "other python $@" >&2\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    # When a worker is started with them, by paths that are relative
    done = shop.command(
        "-D", "-P", "solo", "--executable", "../other-python", "--pidfile", "w.pid", "-f", "w.log", "--umask", "027",
        before=("--workdir", "below"),
    )  # fmt: skip
    # Then it was run by that Python, once, and its files are in that directory, with that mask
    assert done.stderr.count("other python -m amqptasks --workdir below -A") == 1
    assert "--executable" not in done.stderr
    pid = shop.pid("below/w.pid")
    *_, mask, directory, _python = shop.tasks.who.delay().get(timeout=20)
    assert (mask, directory) == (0o027, str(where))
    assert stat.S_IMODE((where / "w.log").stat().st_mode) == 0o640
    os.kill(pid, signal.SIGTERM)
    shop.gone(pid)


def test_a_worker_gives_up_its_rights_or_says_why_it_cannot(shop: Daemons) -> None:
    nobody = pwd.getpwnam("nobody")
    arguments = ["-D", "-P", "solo", "--uid", "nobody", "--pidfile", "w.pid", "-f", "w.log"]
    if os.geteuid() != 0:
        assert "only root" in shop.command("--uid", "root", code=2).stderr
        # But who one is already, one may be
        shop.command("-D", "-P", "solo", "--uid", str(os.getuid()), "--pidfile", "w.pid", "-f", "w.log")
        return
    if not _may_read(nobody, sys.executable, os.__file__):
        # A Python in root's own directory
        (said,) = shop.command(*arguments, code=1).stderr.splitlines()
        assert "nobody may not read" in said
        return
    shop.command(*arguments)
    assert shop.tasks.who.delay().get(timeout=20)[2] == nobody.pw_uid
    assert (shop.directory / "w.log").stat().st_uid == nobody.pw_uid
    os.kill(shop.pid(), signal.SIGTERM)
    shop.gone(shop.pid())


@pytest.mark.parametrize(
    ("uid", "gid", "by_root"),
    [
        ("nobody", None, lambda user, _group: (user.pw_uid, user.pw_gid)),
        ("nobody", "daemon", lambda user, group: (user.pw_uid, group.gr_gid)),
        ("12345", "54321", lambda _user, _group: (12345, 54321)),
        (None, "daemon", lambda _user, group: (0, group.gr_gid)),
    ],
)
def test_the_rights_are_gone_for_good(tmp_path: Path, uid: str | None, gid: str | None, by_root: object) -> None:
    if os.geteuid() != 0:
        uid, gid = "root", None
    program = f"""
        import os
        from amqptasks.cli.common import CliError
        from amqptasks.cli.daemon import Owner
        try:
            Owner({uid!r}, {gid!r}).take_over()
        except CliError as error:
            print(error)
        print(*os.getresuid(), *os.getresgid())
        try:
            os.setuid(0)
            print("root")
        except PermissionError:
            print("no way back")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment(), capture_output=True, text=True, timeout=50
    )
    assert done.stderr == ""
    said = done.stdout.splitlines()
    if os.geteuid() != 0:
        assert "only root" in said[0] and said[-1] == "no way back"
        return
    user, group = by_root(pwd.getpwnam("nobody"), grp.getgrnam("daemon"))  # type: ignore[operator]
    assert said[-2] == " ".join(map(str, (user, user, user, group, group, group)))
    assert said[-1] == ("root" if user == 0 else "no way back")


def _may_read(user: pwd.struct_passwd, *paths: str) -> bool:
    """Whether a user may read files, tried as that user."""
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        os._exit(0 if all(os.access(each, os.R_OK) for each in paths) else 1)
    return os.waitpid(pid, 0)[1] == 0
