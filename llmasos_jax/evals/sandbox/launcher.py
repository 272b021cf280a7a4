"""Builds the walls, then runs one program inside them. A script: standard library, Linux only.

Run by its path, in a process of its own (`sandbox.run`): it changes its namespaces, which a process
with threads must not. Reads a JSON object on standard input, writes one on standard output:
`refused` with what this platform lacks, or how the program ended. The program prints into a file.

    launcher    new namespaces: mounts, network, processes, IPC, host name (and users, if not root)
     +- pid 1   waits; as it ends the kernel kills whatever else is left in its namespace
         +- program   limits, another user, no new privileges, system calls filtered

Nothing is tried half: a wall that cannot be built is an answer, and no program starts.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import time

NAMESPACES = 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000
NEW_USER = 0x10000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD = 2, -100
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
SYS_MOUNT_SETATTR = 442  # the same on every machine
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
FOLDER = "/box"
INSIDE_ID = 65534  # what a user without rights calls himself in his own namespace
FIRST_UID = 0x70000000  # users that no machine has; each program is another one

# System calls that a program has no business with: by machine, its AUDIT_ARCH and their numbers.
# socket, bind, connect, ptrace, process_vm_readv and _writev, mount, umount2, pivot_root, unshare,
# setns, bpf, perf_event_open, keyctl, add_key, request_key, userfaultfd, io_uring_setup,
# open_by_handle_at, kexec_load, init_module, mount_setattr, move_mount, open_tree, fsopen, fsmount,
# syslog, pidfd_getfd. And what holds memory that no address space is charged for: shmget, shmat,
# semget, msgget, mq_open, memfd_create, memfd_secret.
DENIED = {
    "x86_64": (
        0xC000003E,
        (41, 49, 42, 101, 310, 311, 165, 166, 155, 272, 308, 321, 298, 250, 248, 249, 323, 425)
        + (304, 246, 175, 442, 429, 428, 430, 432, 103, 438)
        + (29, 30, 64, 68, 240, 319, 447),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 200, 203, 117, 270, 271, 40, 39, 41, 97, 268, 280, 241, 219, 217, 218, 282, 425)
        + (265, 104, 105, 442, 429, 428, 430, 432, 116, 438)
        + (194, 196, 190, 186, 180, 279, 447),
    ),
}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
ALL_NEW = NAMESPACES | NEW_USER | 0x02000000
EPERM, ENOSYS = 1, 38
LIBC = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):  # noqa: N818, an answer, no error
    """This platform lacks a wall."""


def check(result: int, what: str) -> None:
    """Raises Refused if a system call failed."""
    if result != 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mounts a file system, or shows a folder at another place."""
    names = (source.encode(), target.encode(), kind and kind.encode())
    check(LIBC.mount(*names, ctypes.c_ulong(flags), options.encode()), f"mount {target}")


def lock(target: str) -> None:
    """Makes a mount read-only, without devices and set-user programs."""
    attributes = struct.pack("QQQQ", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
    args = (SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), 0, attributes, len(attributes))
    check(LIBC.syscall(*args), f"read-only {target}")


def enter_namespaces(is_root: bool) -> None:
    """No network but a loopback that is down, no other processes, mounts of its own."""
    uid, gid = os.getuid(), os.getgid()
    flags = NAMESPACES | (0 if is_root else NEW_USER)
    check(LIBC.unshare(flags), "unshare (namespaces" + (")" if is_root else " for users)"))
    if not is_root:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{INSIDE_ID} {uid} 1"),
            ("gid_map", f"{INSIDE_ID} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def build_root(spec: dict, uid: int, gid: int) -> None:
    """A root with Python and the system's libraries to read, and one folder to write."""
    root = spec["root"]
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    shown = ["/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", *spec["readable"]]
    for path in dict.fromkeys(shown):
        if not os.path.lexists(path):
            continue
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):  # /lib is usr/lib
            os.symlink(os.readlink(path), target)
            continue
        show(path, target)
    os.makedirs(f"{root}/dev")
    for name in ("null", "zero", "urandom"):
        open(f"{root}/dev/{name}", "w").close()
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    os.makedirs(f"{root}/tmp", mode=0o755)
    os.makedirs(root + FOLDER)
    size = f"size={spec['disk']},nr_inodes=4096,mode=700"
    mount("tmpfs", root + FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, size)
    with open(f"{root}{FOLDER}/program.py", "wb") as file:
        file.write(spec["code"].encode("utf-8", "surrogatepass"))  # what is no text is no Python
    for path in (root + FOLDER, f"{root}{FOLDER}/program.py"):
        os.chown(path, uid, gid)
    lock(root)
    os.chdir(root)
    check(LIBC.pivot_root(b".", b"."), "pivot_root")
    check(LIBC.umount2(b".", MNT_DETACH), "umount2")
    os.chdir(FOLDER)


def show(path: str, target: str) -> None:
    """Lets a folder or file of the host be seen, read-only."""
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        open(target, "w").close()
    mount(path, target, None, MS_BIND)
    lock(target)


def set_limits(spec: dict, is_root: bool) -> None:
    """The kernel's limits, soft and hard."""
    seconds = max(1, round(spec["seconds"]) + 1)
    # A user namespace counts the two processes outside of the program as well.
    processes = spec["processes"] + (0 if is_root else 2)
    for name, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, spec["memory"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, spec["file_size"]),
        (resource.RLIMIT_NOFILE, spec["files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))


def filter_calls() -> None:
    """Denies `DENIED`, new namespaces, and calls of another machine's numbering (seccomp)."""
    arch, denied = DENIED[platform.machine()]
    load = lambda offset: struct.pack("HBBI", 0x20, 0, 0, offset)
    give = lambda value: struct.pack("HBBI", 0x06, 0, 0, value)
    # (code, value, steps if true, steps if false); 0x15 is equal, 0x35 at least, 0x45 any bit set.
    jump = lambda code, value, yes, no: struct.pack("HBBI", code, yes, no, value)
    error = lambda number: give(0x00050000 | number)
    program = [load(4), jump(0x15, arch, 1, 0), give(0x80000000), load(0)]
    program += [jump(0x35, 0x40000000, 0, 1), error(EPERM)]  # x32
    program += [jump(0x15, CLONE3, 0, 1), error(ENOSYS)]  # its flags are out of a filter's sight
    for number in denied:
        program += [jump(0x15, number, 0, 1), error(EPERM)]
    program += [jump(0x15, CLONE[platform.machine()], 0, 3), load(16)]
    program += [jump(0x45, ALL_NEW, 0, 1), error(EPERM), give(0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    check(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(head), 0, 0), "seccomp")


def become(spec: dict, uid: int, gid: int, is_root: bool) -> None:
    """Turns this process into the program. Returns only by raising."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    null = os.open("/dev/null", os.O_RDONLY)
    set_limits(spec, is_root)
    if is_root:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getuid() == 0:
            raise Refused("setresuid: still root")
    check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    filter_calls()
    for source, target in ((null, 0), (spec["output"], 1), (spec["output"], 2)):
        os.dup2(source, target)
    os.set_inheritable(spec["output"], False)  # like all others, so exec closes them
    words = [spec["python"], "-S", "-s", "-B", "-P", "-X", "utf8", "program.py"]
    names = {"HOME": FOLDER, "TMPDIR": FOLDER, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    os.execve(spec["python"], words, names)


def first_process(spec: dict, uid: int, gid: int, is_root: bool) -> int:
    """Process 1: starts the program and waits. Gives its wait status, or raises Refused."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    ready, told = os.pipe()  # closed by exec; else it says why there was none
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)
            become(spec, uid, gid, is_root)
        except BaseException as error:
            os.write(told, str(error).encode()[:500])
        os._exit(120)
    os.close(told)
    why = b""
    while piece := os.read(ready, 1000):
        why += piece
    if why:
        raise Refused(why.decode())
    while True:
        pid, status = os.wait()
        if pid == child:
            return status


def launch(spec: dict) -> dict:
    """Builds the walls and runs the program; gives how it ended."""
    if platform.machine() not in DENIED or sys.platform != "linux":
        raise Refused(f"{sys.platform} on {platform.machine()} has no filter of system calls here")
    is_root = os.geteuid() == 0
    uid = gid = FIRST_UID + os.getpid() if is_root else INSIDE_ID
    start = time.monotonic()
    enter_namespaces(is_root)
    os.umask(0o022)
    build_root(spec, uid, gid)
    ready, told = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(ready)
        try:
            found = {"status": first_process(spec, uid, gid, is_root)}
        except BaseException as error:
            found = {"refused": str(error)}
        os.write(told, json.dumps(found).encode())
        os._exit(0)
    os.close(told)
    found: dict = {"timed_out": True}
    if wait_until(first, start + spec["seconds"]):
        text = os.read(ready, 4000)
        found = json.loads(text) if text else {"refused": "process 1 ended without a word"}
    return {**found, "seconds": round(time.monotonic() - start, 3)}


def wait_until(pid: int, deadline: float) -> bool:
    """Whether a process ended by itself; past the deadline it is killed, and all under it."""
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


if __name__ == "__main__":
    try:
        answer = launch(json.load(sys.stdin))
    except (Refused, OSError) as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer))
