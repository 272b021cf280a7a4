"""The sandbox: what a hostile program tries, and what pass@k counts.

Programs run under limits far below what would hurt this machine were a wall missing.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.sandbox import launcher, run
from llmasos_jax.evals.sandbox.limits import MIB, Limits
from llmasos_jax.evals.sandbox.passk import Problem, pass_at_k, read_problems, score_code
from llmasos_jax.evals.sandbox.run import run_python

LIMITS = Limits(seconds=5, memory=256 * MIB, processes=4, file_size=MIB, disk=2 * MIB)


def test_a_program_runs_and_says_what_it_prints() -> None:
    code = "import os, math; print(math.pi, os.getcwd(), os.getuid()); open('a', 'w').write('x')"
    found = run_python(code, LIMITS)
    words = found.output.split()
    assert found.status == 0 and words[:2] == ["3.141592653589793", "/box"]
    assert int(words[2]) not in (0, os.getuid())
    assert run_python("raise SystemExit(3)", LIMITS).status == 3
    assert "ZeroDivisionError" in run_python("1 / 0", LIMITS).output


def test_a_fork_bomb_ends() -> None:
    code = """
import os, time
made = 0
try:
    for _ in range(50):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError as error:
    print(made, type(error).__name__)
"""
    start = time.monotonic()
    found = run_python(code, LIMITS)
    assert found.output.split() == ["3", "BlockingIOError"]
    assert time.monotonic() - start < 5  # nobody waits for the three that sleep
    # A real one: bounded by the limit of processes and by the time.
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    endless = run_python(bomb, replace(LIMITS, seconds=1))
    assert endless.timed_out
    assert not _processes_above(launcher.FIRST_UID)


def _processes_above(uid: int) -> list[int]:
    """Processes of users that only the sandbox makes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if uid <= entry.stat().st_uid < uid + 2**23:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_ten_gigabytes_are_not_given() -> None:
    found = run_python("x = bytearray(10 * 2**30)\nprint('had them')", LIMITS)
    assert found.status == 1 and found.output.strip().endswith("MemoryError")


def test_no_memory_is_had_that_no_limit_counts() -> None:
    """A page each: shared segments and files without a name outlive what maps them."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
calls = (libc.shmget, 0, 4096, 0o1600), (libc.semget, 0, 1, 0o1600), (libc.msgget, 0, 0o1600)
found = [(call(*words), ctypes.get_errno()) for call, *words in calls]
try:
    os.memfd_create("x")
except OSError as error:
    found.append((-1, error.errno))
print(found)
"""
    assert run_python(code, LIMITS).output.strip() == str([(-1, 1)] * 4)


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('in')"
        found = run_python(code, LIMITS)
    assert found.status == 1 and "PermissionError" in found.output
    assert run_python("import socket; socket.socket(socket.AF_UNIX)", LIMITS).status == 1


def test_nothing_is_written_outside_of_its_folder(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    paths = [str(tmp_path / "x"), "/tmp/llmasos-x", "/x", "/usr/x", "/dev/shm/x", "/var/tmp/x"]
    code = f"""
for path in {paths}:
    try:
        open(path, "w").write("x")
        print("wrote", path)
    except OSError:
        pass
import os
print(sorted(os.listdir("/")), os.path.exists("/proc/self"), os.path.exists("/etc/passwd"))
"""
    found = run_python(code, LIMITS)
    assert found.status == 0 and "wrote" not in found.output
    assert found.output.rstrip().endswith("False False")
    assert not list(tmp_path.iterdir()) and not os.path.exists("/tmp/llmasos-x")


def test_files_folder_and_output_are_bounded() -> None:
    one = run_python("open('a', 'wb').write(bytes(2**21))", LIMITS)
    assert one.status != 0 and "File too large" in one.output
    many = "for i in range(9): open(str(i), 'wb').write(bytes(2**19))"
    assert "No space left" in run_python(many, LIMITS).output
    loud = run_python("while True: print('x' * 1000)", LIMITS)
    assert loud.status not in (0, None) and len(loud.output) <= 64 * 1024
    assert (
        "Too many open files"
        in run_python("k = [open('a', 'w') for _ in range(99)]", LIMITS).output
    )


def test_no_privileges_and_no_namespaces_of_its_own() -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print([libc.unshare(0x10000000), libc.unshare(0x40000000), libc.ptrace(0, 0, 0, 0)])
try:
    os.setuid(0)
    print("root")
except OSError:
    print("no")
"""
    assert run_python(code, LIMITS).output.split("\n")[:2] == ["[-1, -1, -1]", "no"]


def test_a_sleeper_is_stopped_at_its_time() -> None:
    start = time.monotonic()
    found = run_python("import time; time.sleep(100)", Limits(seconds=1))
    assert found.timed_out and found.status is None
    assert time.monotonic() - start < 10


def test_without_a_wall_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the launcher refuses, the code is not run some other way."""
    monkeypatch.setattr(run, "_launch", lambda *_: {"refused": "unshare: not permitted"})
    with pytest.raises(EvaluationError, match=r"unshare: not permitted.*was not run"):
        run_python("print(1)")
    with pytest.raises(EvaluationError, match=r"limits.memory=0"):
        Limits(memory=0)


def test_a_user_without_rights_has_the_same_walls() -> None:
    """As an ordinary user: the walls stand in a user namespace, or nothing runs."""
    system = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if os.getuid() != 0 or system is None:
        pytest.skip("becomes another user first, with a Python that every user can read")
    # What is in the launcher alone: the package's own Python may be in a folder of root's.
    code = f"""
import json, os, subprocess, sys, tempfile
os.setgroups([]); os.setgid(65533); os.setuid(65533)
with tempfile.TemporaryDirectory() as root, tempfile.TemporaryFile() as out:
    spec = {asdict(LIMITS)!r}
    spec |= {{"code": "import os; print(os.getuid(), os.listdir()); " + {_TRIES!r}, "root": root}}
    spec |= {{"readable": [sys.base_prefix], "python": os.path.realpath(sys.executable)}}
    spec["output"] = out.fileno()
    words = [sys.executable, "-I", "-S", "-B", {launcher.__file__!r}]
    done = subprocess.run(words, input=json.dumps(spec).encode(), pass_fds=[out.fileno()],
                          capture_output=True)
    out.seek(0)
    print(json.dumps([json.loads(done.stdout), out.read().decode()]))
"""
    done = subprocess.run([system, "-c", code], capture_output=True, text=True, check=True)
    answer, output = json.loads(done.stdout)
    if "refused" in answer:  # then nothing was run
        assert "unshare" in answer["refused"] and not output
    else:
        assert output.split("\n")[:2] == ["65534 ['program.py']", "PermissionError OSError 3"]


_TRIES = """
import socket
found = []
for attempt in (socket.socket, lambda: open("/tmp/x", "w")):
    try:
        attempt()
        found.append("done")
    except OSError as error:
        found.append("OSError" if error.errno == 30 else type(error).__name__)
made = 0
try:
    while made < 9:
        if os.fork() == 0:
            import time; time.sleep(9)
        made += 1
except OSError:
    print(*found, made)
"""


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    for passed in range(6):
        right = [i < passed for i in range(5)]
        for k in (1, 2, 5):
            share = np.mean([any(chosen) for chosen in combinations(right, k)])
            assert pass_at_k(5, passed, k) == pytest.approx(share, abs=1e-12)
    with pytest.raises(EvaluationError, match="k=6"):
        pass_at_k(5, 1, 6)


def test_samples_are_scored_and_early_exits_do_not_pass(tmp_path: Path) -> None:
    row = (
        '{"task_id": "add", "prompt": "def add(a, b):\\n", "entry_point": "add", '
        '"test": "def check(f):\\n    assert f(2, 3) == 5\\n"}'
    )
    (tmp_path / "p.jsonl").write_text(row + "\n")
    problems = read_problems(tmp_path / "p.jsonl")
    assert problems["add"] == Problem(
        "add", "def add(a, b):\n", "def check(f):\n    assert f(2, 3) == 5\n", "add"
    )
    samples = ["    return a + b", "    return a - b", "    raise SystemExit(0)", "    return 5 5"]
    samples += ["    print(a, end='')\n    return a + b", "    return '\ud800'"]
    found = score_code(problems, {"add": samples}, (1, 2), limits=LIMITS)
    assert found.passed["add"] == (True, False, False, False, True, False)
    assert found.estimates == pytest.approx({1: 2 / 6, 2: 1 - 6 / 15})
    assert found.trouble["add"][1] == "AssertionError"
    assert found.trouble["add"][3].startswith("SyntaxError")
    (tmp_path / "p.jsonl").write_text('{"task_id": 1}')
    with pytest.raises(EvaluationError, match="line 1"):
        read_problems(tmp_path / "p.jsonl")
    with pytest.raises(EvaluationError, match="differ"):
        score_code(problems, {}, (1,))
