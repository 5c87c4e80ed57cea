"""How a script ends: exit codes survive, the failure file begins with what a person needs, signals reach the whole tree."""

import signal
import sys
from pathlib import Path

import pytest
from tests.script_mode import Running, run, run_tree, source, tree

from optml_toolkit.script_mode.failure import choose, explain, find_raised
from optml_toolkit.script_mode.processes import Ended
from optml_toolkit.script_mode.user_code import Kind, UserCode

# Prints `BEGUN`, then `told` at SIGTERM, works on for a moment and leaves with 7.
HANDLER = r"""
import os, signal, sys, time
def say(what):
    os.write(1, f"{what} {os.path.basename(sys.argv[0])}\n".encode())  # whole lines, though others write too
def told(number, frame):
    say("told")
    time.sleep(1.0)
    say("saved")
    sys.exit(7)
signal.signal(signal.SIGTERM, told)
say("BEGUN")
while True:
    time.sleep(0.05)
"""


def test_success_leaves_no_failure_file(tmp_path: Path) -> None:
    ran = run(tmp_path, {"train.py": "print('done')"})
    assert ran.exit_code == 0
    assert "done" in ran.log
    assert ran.failure == ""
    assert (ran.root / "output" / "success").exists()


def test_the_exception_comes_first_with_the_users_file_and_line(tmp_path: Path) -> None:
    files = {
        "train.py": "import lib.work\nlib.work.go()\n",
        "lib/work.py": "import json\ndef go():\n    json.loads('{')\n",
    }
    ran = run(tmp_path, files, hyperparameters={"lr": 0.1})
    assert ran.exit_code == 1
    assert ran.first_line.startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert ran.first_line.endswith("(lib/work.py, line 3)")
    assert "Command: " in ran.failure
    assert "train.py --lr 0.1\nExit code: 1" in ran.failure
    assert "optml_toolkit" not in ran.failure
    assert f'File "{ran.root}/code/train.py", line 2' in ran.log


def test_the_last_of_a_chain_of_exceptions_is_told(tmp_path: Path) -> None:
    code = """
        try:
            {}["missing"]
        except KeyError as error:
            raise RuntimeError("no such model") from error
    """
    assert run(tmp_path, {"train.py": code}).first_line == "RuntimeError: no such model (train.py, line 5)"


def test_an_exception_that_was_only_logged_is_not_why(tmp_path: Path) -> None:
    code = """
        import logging
        try:
            1 / 0
        except ZeroDivisionError:
            logging.exception("retrying")
        raise ValueError("really")
    """
    assert run(tmp_path, {"train.py": code}).first_line == "ValueError: really (train.py, line 7)"


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    ran = run(tmp_path, {"train.py": "x = 1\ny = = 2\n"})
    assert ran.exit_code == 1
    assert ran.first_line == "SyntaxError: invalid syntax (train.py, line 2)"


@pytest.mark.parametrize(("name", "content"), [("random.py", "SEED = 1\n"), ("queue.py", "def Queue(): pass\n")])
def test_a_module_that_hides_pythons_own_is_named(tmp_path: Path, name: str, content: str) -> None:
    code = "import tempfile, concurrent.futures\nconcurrent.futures.ThreadPoolExecutor()\n"
    ran = run(tmp_path, {"train.py": code, name: content})
    assert ran.exit_code == 1
    assert ran.first_line.startswith(f"{name} in your code hides Python's own module of that name, rename it: ")
    assert f"WARNING] {name} in your code hides" in ran.log


@pytest.mark.parametrize("code", ["import no_such_module_here", "import random\nrandom.go()"])
def test_a_module_that_hides_pythons_own_is_not_blamed_for_everything(tmp_path: Path, code: str) -> None:
    ran = run(
        tmp_path,
        {"train.py": code, "random.py": "def go():\n    raise ValueError('of my own')\n", "test/__init__.py": ""},
    )
    assert ran.exit_code == 1
    assert ran.first_line.startswith(("ModuleNotFoundError: ", "ValueError: of my own"))
    assert "test in your code" not in ran.log


@pytest.mark.parametrize("program", ["train.py", "run.sh"])
@pytest.mark.parametrize("code", [3, 77])
def test_an_exit_code_is_kept(tmp_path: Path, program: str, code: int) -> None:
    files = {"train.py": f"import sys; sys.exit({code})", "run.sh": f"exit {code}"}
    ran = run(tmp_path, files, program=program)
    assert ran.exit_code == code
    assert ran.first_line.startswith(f"{program} ended with exit code {code}")


def test_what_a_script_says_when_it_leaves_is_in_the_first_line(tmp_path: Path) -> None:
    code = "import argparse; argparse.ArgumentParser().parse_args()"
    ran = run(tmp_path, {"train.py": code}, hyperparameters={"epochs": 3})
    assert ran.exit_code == 2
    assert ran.first_line == "train.py ended with exit code 2: train.py: error: unrecognized arguments: --epochs 3"


@pytest.mark.parametrize(
    "chatter",
    [
        "import warnings; warnings.warn('this will change')",
        "import logging; logging.basicConfig(level=20); logging.info('epoch 3 of 10')",
        "import sys; print('epoch 1:  40%|####      | 4/10\\r', end='', file=sys.stderr)",
        "import sys; print('=' * 60, file=sys.stderr)",
    ],
    ids=["warning", "log", "progress bar", "rule"],
)
def test_what_a_script_says_all_the_time_is_not_told_as_why_it_left(tmp_path: Path, chatter: str) -> None:
    ran = run(tmp_path / "silent", {"train.py": f"import sys\n{chatter}\nprint('done 5 of 9')\nsys.exit(3)"})
    assert ran.first_line == "train.py ended with exit code 3"
    said = f"import sys\nprint('no rows left', file=sys.stderr)\n{chatter}\nsys.exit(3)"
    assert run(tmp_path / "said", {"train.py": said}).first_line == ("train.py ended with exit code 3: no rows left")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "train.py was killed (SIGKILL, exit code 137)"),
        (signal.SIGSEGV, "train.py was ended by SIGSEGV (exit code 139)"),
    ],
)
def test_a_script_that_a_signal_ends(tmp_path: Path, number: int, told: str) -> None:
    ran = run(tmp_path, {"train.py": f"import os; os.kill(os.getpid(), {number})"})
    assert ran.exit_code == 128 + number
    assert ran.first_line.removesuffix(" when memory ran out") == told  # it may have, beside this test


def test_a_failure_file_of_the_scripts_own_stays(tmp_path: Path) -> None:
    code = """
        import os
        open(os.path.join(os.environ["SM_OUTPUT_DIR"], "failure"), "w").write("my own words")
        raise ValueError("other")
    """
    ran = run(tmp_path, {"train.py": code})
    assert ran.exit_code == 1
    assert ran.failure == "my own words"


def test_a_tree_that_failed_before_can_be_run_again(tmp_path: Path) -> None:
    ran = run(tmp_path, {"train.py": "raise ValueError('first')"})
    assert ran.first_line.startswith("ValueError: first")
    (ran.root / "code" / "train.py").write_text("raise ValueError('second')\n")
    assert run_tree(ran.root).first_line.startswith("ValueError: second")
    (ran.root / "code" / "train.py").write_text("print('done')\n")
    assert run_tree(ran.root).failure == ""


def test_a_command_that_cannot_be_executed_is_named(tmp_path: Path) -> None:
    ran = run(tmp_path, {"run.sh": "#!/no/such/interpreter\n"}, program="run.sh")
    assert ran.exit_code == 1
    assert ran.first_line.startswith("run.sh cannot be run: No such file or directory")


def test_the_last_words_are_kept_whether_the_log_is_a_file_or_a_pipe(tmp_path: Path) -> None:
    files = {"train.py": "import sys\nprint('x' * 200_000, file=sys.stderr)\nraise ValueError('at the end')\n"}
    piped = run(tmp_path / "piped", files)
    assert piped.first_line == "ValueError: at the end (train.py, line 3)"
    assert "x" * 200_000 in piped.log
    source(tmp_path / "file" / "ml" / "code", files)
    root = tree(tmp_path / "file" / "ml", hyperparameters={"sagemaker_program": "train.py"})
    with Running(root, tmp_path / "log") as running:
        ran = running.ended()
    assert ran.first_line == "ValueError: at the end (train.py, line 3)"
    assert ran.log.count("x" * 200_000) == 1


# Signals.


def start(tmp_path: Path, files: dict[str, str], program: str = "train.py") -> Running:
    source(tmp_path / "ml" / "code", files)
    root = tree(tmp_path / "ml", hyperparameters={"sagemaker_program": program})
    return Running(root, tmp_path / "log")


def test_sigterm_reaches_the_handler_of_a_script_which_finishes_in_peace(tmp_path: Path) -> None:
    with start(tmp_path, {"train.py": HANDLER}) as running:
        running.wait_for("BEGUN")
        running.process.terminate()
        ran = running.ended()
    assert "saved train.py" in ran.log
    assert ran.log.count("told") == 1
    assert ran.exit_code == 7
    assert ran.failure == ""


def test_sigterm_reaches_a_script_below_a_shell_that_dies_of_it(tmp_path: Path) -> None:
    """The shell ends at once; the script still gets all the time it takes."""
    files = {"run.sh": f"{sys.executable} train.py\necho unreachable\n", "train.py": HANDLER}
    with start(tmp_path, files, program="run.sh") as running:
        running.wait_for("BEGUN")
        running.process.terminate()
        ran = running.ended()
    assert "saved train.py" in ran.log
    assert ran.log.count("told") == 1
    assert "unreachable" not in ran.log


def test_sigterm_reaches_programs_in_sessions_of_their_own_and_in_the_background(tmp_path: Path) -> None:
    files = {
        "run.sh": f"""
            trap 'echo told run.sh; wait; echo saved run.sh; exit 5' TERM
            {sys.executable} a.py &
            setsid {sys.executable} b.py &
            ( {sys.executable} c.py )&
            wait
        """,
        **dict.fromkeys(("a.py", "b.py", "c.py"), HANDLER),
    }
    with start(tmp_path, files, program="run.sh") as running:
        running.wait_for("BEGUN", times=3)
        running.process.terminate()
        ran = running.ended()
    for name in ("a.py", "b.py", "c.py", "run.sh"):
        assert ran.log.count(f"told {name}") == 1, ran.log
        assert f"saved {name}" in ran.log
    assert ran.exit_code == 5


def test_a_programs_own_workers_do_not_hear_what_it_hears(tmp_path: Path) -> None:
    """A data loader whose workers die would fail while the script saves."""
    code = """
        import multiprocessing, os, signal, sys, time
        def work(queue):
            signal.signal(signal.SIGTERM, lambda *_: print("a worker was told", flush=True))
            queue.put("up")
            while True:
                time.sleep(0.05)
        if __name__ == "__main__":
            for method in ("fork", "spawn"):
                context = multiprocessing.get_context(method)
                queue = context.Queue()
                context.Process(target=work, args=(queue,), daemon=True).start()
                queue.get()
            def told(*_):
                alive = [child.is_alive() for child in multiprocessing.active_children()]
                print("told", alive, flush=True)
                for child in multiprocessing.active_children():
                    child.kill()
                sys.exit(0)
            signal.signal(signal.SIGTERM, told)
            print("BEGUN", flush=True)
            while True:
                time.sleep(0.05)
    """
    with start(tmp_path, {"train.py": code}) as running:
        running.wait_for("BEGUN")
        running.process.terminate()
        ran = running.ended()
    assert "told [True, True]" in ran.log
    assert "a worker was told" not in ran.log
    assert ran.exit_code == 0


def test_what_outlives_a_stopped_program_is_told_too(tmp_path: Path) -> None:
    """The script dies of the signal; the worker that it left behind does not run on until the grace is over."""
    code = """
        import os, time
        if os.fork() == 0:
            while True:
                time.sleep(0.05)
        print("BEGUN", flush=True)
        time.sleep(60)
    """
    with start(tmp_path, {"train.py": code}) as running:
        running.wait_for("BEGUN")
        running.process.terminate()
        assert running.ended().exit_code == 143


def test_other_signals_are_passed_on_and_end_nothing(tmp_path: Path) -> None:
    code = HANDLER.replace(
        "signal.signal(signal.SIGTERM, told)", "signal.signal(signal.SIGUSR1, lambda *_: print('usr1', flush=True))"
    )
    with start(tmp_path, {"train.py": code}) as running:
        running.wait_for("BEGUN")
        running.process.send_signal(signal.SIGUSR1)
        running.wait_for("usr1")
        running.process.terminate()
        assert running.ended().exit_code == 143


def test_a_stop_before_the_script_has_begun_ends_at_once(tmp_path: Path) -> None:
    files = {
        "train.py": "print('never')",
        "requirements.txt": "./slow\n",
        "slow/setup.py": "import time\nprint(flush=True)\ntime.sleep(600)\n",
    }
    source(tmp_path / "ml" / "code", files)
    root = tree(tmp_path / "ml", hyperparameters={"sagemaker_program": "train.py"})
    cache = tmp_path / "cache"
    with Running(root, tmp_path / "log", SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY=str(cache)) as running:
        running.wait_for("Requirements: pip install")
        running.process.terminate()
        ran = running.ended()
    assert ran.exit_code == 143
    assert "never" not in ran.log
    assert ran.failure == ""
    assert [path for path in (cache / "environments").iterdir() if path.is_dir()] == []


# Reading what was printed.


def test_of_several_ranks_the_one_that_failed_by_itself_is_told_even_if_lines_are_mixed() -> None:
    said = """\
[rank1]: Traceback (most recent call last):
[rank0]: Traceback (most recent call last):
[rank1]:   File "/opt/ml/code/train.py", line 30, in <module>
[rank0]:   File "/opt/ml/code/train.py", line 9, in <module>
[rank1]:     loss.backward()
[rank0]:     raise ValueError("bad batch")
[rank1]: RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:2000
[rank0]: ValueError: bad batch
E1125 12:00:00 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: 1) local_rank: 0
Traceback (most recent call last):
  File "torchrun", line 1, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""
    found = choose(list(find_raised(said)), said, by_torchrun=True)
    assert found is not None
    assert (found.rank, found.text) == ("[rank0]:", "ValueError: bad batch")
    assert found.place(Path("/opt/ml/code")) == "train.py, line 9"


TORCHRUN_SAYS = """\
E1126 06:41:54.861000 3 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 3) local_rank: 1 (pid: 5)
Traceback (most recent call last):
  File "/site-packages/torch/distributed/run.py", line 1032, in <module>
    main()
  File "/site-packages/torch/distributed/launcher/api.py", line 383, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-26_06:41:54
  rank      : 1 (local_rank: 1)
  exitcode  : 3 (pid: 5)
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
"""


@pytest.mark.parametrize(
    ("said", "told"), [("", ""), ("the learning rate must be positive\n", ": the learning rate must be positive")]
)
def test_torchruns_own_report_is_not_what_the_script_said(said: str, told: str) -> None:
    ended = Ended(exit_code=1, said=said + TORCHRUN_SAYS, stopped=False)
    code = UserCode(folder=Path("/opt/ml/code"), program="train.py", kind=Kind.SCRIPT, shadowing=())
    text = explain(ended, code, ["torchrun", "train.py"], final_code=3, by_torchrun=True)
    assert (
        text
        == f"train.py ended with exit code 3 in rank 1{told}\n\nCommand: torchrun train.py\nExit code: 3\n\n"
        + (said.strip())
    )


def test_an_exception_group_is_an_exception(tmp_path: Path) -> None:
    code = "raise ExceptionGroup('two', [ValueError(1), TypeError(2)])"
    assert "ExceptionGroup: two (2 sub-exceptions)" in run(tmp_path, {"train.py": code}).first_line
