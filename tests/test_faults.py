"A small version of `make faults`: runs killed and resumed, damaged files, the machine's own faults"
import os, subprocess, sys
from pathlib import Path
import pytest
TOOLS = Path(__file__).resolve().parents[1]/'tools'
sys.path.insert(0, str(TOOLS))
if not hasattr(os, 'fork'): pytest.skip('needs fork', allow_module_level=True)
import faults


def run_fresh(code, cwd):
    "Run in an interpreter of its own: the trials fork, which PyTorch forbids once autograd has threads"
    code = f'import sys; sys.path.insert(0, {str(TOOLS)!r}); import faults; {code}'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_killed_and_resumed(tmp_path): run_fresh('assert faults.kill_trials(3, seed=1) == (3, 3)', tmp_path)
def test_damage(): assert faults.damage_trials(36, seed=1) == (36, 36)
def test_payloads():
    held, n = faults.payload_trials()
    assert held == n >= 5


@pytest.mark.parametrize('name', [f.__name__ for f in faults.MACHINE])
def test_machine(name, tmp_path): run_fresh(f'faults.{name}(faults.Path({str(tmp_path)!r}))', tmp_path)


def test_the_trials_notice(tmp_path):
    "A reader that believes anything is caught"
    assert faults.read(lambda: 1/0).__class__ is ZeroDivisionError
    assert faults.wait(faults.in_child(lambda: 1/0)) == 'failed'
    assert faults.wait(faults.in_child(lambda: os.kill(os.getpid(), 9))) == 'killed'
    assert faults.wait(faults.in_child(lambda: faults.time.sleep(9)), timeout=.2) == 'hung'
