"""Several workers from scripts, from standard input and from notebooks: a sentence, or it works; never the script once per process."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from oche.bench import spawning

TESTS = Path(__file__).parents[2]
BENCH = """
import sys
sys.path.insert(0, {tests!r})
print("hello", flush=True)
from oche.bench import Matrix, run_bench
from oche.errors import UserError
from reference.small_bench import ToyTable, pretend
matrix = Matrix(methods=("darts",), spaces=("toy",), budgets=("smoke",), seeds=1, evaluate="table", table="toys", metrics=("digits/test",),
                select="digits/valid", baselines=())
"""
RUN = "result = run_bench(matrix, {out!r}, workers=2, table=ToyTable(), work={work})\nprint(len(result.finished), 'trials')\n"
OWN = """
def mine(trial, folder):
    return pretend(trial, folder)
"""


def script(folder: Path, work: str = "pretend", guard: bool = False) -> str:
    run = RUN.format(out=str(folder / "bench"), work=work)
    if guard:
        run = 'if __name__ == "__main__":\n' + "".join(f"    {line}\n" for line in run.splitlines())
    return BENCH.format(tests=str(TESTS)) + OWN + run


def ran(code: str, folder: Path, stdin: bool = False) -> tuple[str, str]:
    """What a process that runs the code prints."""
    file = folder / "script.py"
    file.write_text(code)
    where = "-" if stdin else str(file)
    done = subprocess.run(
        [sys.executable, where], input=code if stdin else "", capture_output=True, text=True, check=False, cwd=folder
    )
    return done.stdout, done.stderr


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_once_and_not_run_again(tmp_path: Path) -> None:
    out, err = ran(script(tmp_path), tmp_path)
    assert out == "hello\n"
    line = err.strip().splitlines()[-1]
    assert 'put that call below `if __name__ == "__main__":`' in line
    call = 1 + next(n for n, text in enumerate(script(tmp_path).splitlines()) if "run_bench(matrix" in text)
    assert f"line {call} starts the bench" in line
    assert not (tmp_path / "bench").exists()


@pytest.mark.slow
@pytest.mark.parametrize("work", ["pretend", "mine"])
def test_a_script_with_a_guard_works(work: str, tmp_path: Path) -> None:
    out, err = ran(script(tmp_path, work, guard=True), tmp_path)
    assert out.endswith("2 trials\n"), err


@pytest.mark.slow
def test_standard_input_works_like_a_notebook(tmp_path: Path) -> None:
    """There is no script to run again; the processes need only what can be imported."""
    out, err = ran(script(tmp_path), tmp_path, stdin=True)
    assert out == "hello\n2 trials\n", err


@pytest.mark.slow
def test_what_a_notebook_defines_cannot_be_sent(tmp_path: Path) -> None:
    out, err = ran(script(tmp_path, "mine"), tmp_path, stdin=True)
    assert out == "hello\n"
    assert "mine is defined in a notebook or on standard input" in err.strip().splitlines()[-1]


def test_what_cannot_be_pickled_is_a_sentence() -> None:
    with pytest.raises(spawning.UserError, match=r"cannot be sent to another process .*workers=1"):
        spawning.check_spawning(lambda: None)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (2, "found = unguarded()"),
        (3, "if 1:\n    found = unguarded()"),
        (5, 'if __name__ == "__main__":\n    pass\nelse:\n    found = unguarded()\nif __name__ == "other":\n    pass'),
        (4, "def main():\n    return unguarded()\nfound = main()"),
        (None, 'if __name__ == "__main__":\n    found = unguarded()'),
        (None, 'def main():\n    return unguarded()\nif "__main__" == __name__:\n    found = main()'),
        (None, "import multiprocessing as m\nif m.parent_process() is None:\n    found = unguarded()"),
    ],
)
def test_a_guard_is_an_if_around_the_call(line: int | None, text: str, tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(f"from oche.bench.spawning import unguarded\n{text}\n")
    if "else" in text:  # what stands below `else` does run in new processes
        file.write_text(file.read_text().replace('"__main__"', '"other"', 1))
    assert runpy.run_path(str(file), run_name="__main__")["found"] == line


def test_this_process_is_guarded() -> None:
    assert spawning.unguarded() is None
