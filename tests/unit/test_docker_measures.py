"""What a container's shell says of its cgroup, and how it is cut out of the output."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from executors.base import Usage
from executors.docker.measures import READ, FiguresCut, Used, from_stats, parse, say_at_end, sum_up

NONCE = "0123456789abcdef" * 2
FIGURES = "cpuacct/cpuacct.usage 3000000000;cpuacct/cpuacct.usage_user 2000000000;memory/memory.max_usage_in_bytes 4096;"
USED = Used(cpu_user_s=2.0, cpu_system_s=1.0, peak_bytes=4096)
SAID = f"{NONCE}={FIGURES}\n".encode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (FIGURES, USED),
        ("cpu.stat usage_usec 3000000;cpu.stat user_usec 2000000;cpu.stat nr_periods 0;memory.peak 4096;", USED),
        ("cpu.stat usage_usec 1000000;", Used(cpu_user_s=0.0, cpu_system_s=1.0, peak_bytes=None)),
        ("memory.peak 4096;", None),
        ("cpuacct/cpuacct.usage -1;", None),
        ("cpuacct/cpuacct.usage 99999999999999999999999;", None),
        ("", None),
        ("\0;;= ;", None),
    ],
)
def test_what_cgroups_say(text: str, found: Used | None) -> None:
    assert parse(text) == found


@pytest.mark.parametrize("size", [*range(1, 40), len(SAID), len(SAID) + 12])
def test_figures_are_cut_out_however_they_come(size: int) -> None:
    output = b"some\nno end"
    whole = output + SAID + b"behind"
    cut = FiguresCut(NONCE)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    got = b"".join(cut.feed(1, piece) if cut.concern(piece) else piece for piece in pieces)
    assert got + cut.rest() == output + b"behind"
    assert cut.used == USED


@pytest.mark.parametrize("output", [b"ends like it: 0123456789abcdef", NONCE.encode(), NONCE.encode() + b"=" + b"1" * 5000])
def test_output_that_looks_like_them_stays(output: bytes) -> None:
    cut = FiguresCut(NONCE)
    assert cut.feed(1, output) + cut.rest() == output
    assert cut.feed(2, SAID) == SAID, "they come on the standard output only"
    assert cut.used is None


@pytest.mark.parametrize("shell", ["bash", "dash", "busybox sh"])
@pytest.mark.parametrize(
    ("end", "status"), [("exit 0", 0), ("exit 3", 3), ("(exit 4)\nexit 0", 4), ("(kill -TERM $$; sleep 9)\nexit 0", 1)]
)
def test_a_shell_says_them_at_its_end(shell: str, end: str, status: int) -> None:
    """With the status that it has anyway, and nothing on its standard error."""
    assert shutil.which(shell.split()[0])
    program = f"{say_at_end(NONCE)}trap 'exit 1' TERM\nset -e\nprintf out\n{end}\n"
    ran = subprocess.run([*shell.split(), "-c", program], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (status, b"")
    cut = FiguresCut(NONCE)
    assert cut.feed(1, ran.stdout) == b"out"


@pytest.mark.parametrize("shell", ["bash", "dash", "busybox sh"])
def test_reading_needs_no_program(shell: str) -> None:
    program = shutil.which(shell.split()[0])
    assert program
    command = [program, *shell.split()[1:], "-euc", READ]
    ran = subprocess.run(command, env={"PATH": "/none"}, capture_output=True, text=True, check=True)
    assert ran.stderr == ""


def test_statistics_of_an_engine() -> None:
    cpu = {"total_usage": 3_000_000_000, "usage_in_usermode": 2_000_000_000}
    assert from_stats({"cpu_stats": {"cpu_usage": cpu}, "memory_stats": {"max_usage": 4096, "usage": 1}}) == USED
    assert from_stats({"cpu_stats": {"cpu_usage": cpu}, "memory_stats": {"usage": 4096}}) == USED
    assert from_stats({"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}}) is None


def test_processors_add_up_and_the_largest_memory_counts() -> None:
    other = Used(cpu_user_s=1.0, cpu_system_s=0.5, peak_bytes=None)
    assert sum_up([USED, other]) == Usage(cpu_user_s=3.0, cpu_system_s=1.5, max_rss_bytes=4096, peak_of="container")
    assert sum_up([]) is None
