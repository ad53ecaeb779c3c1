"A small version of `make faults`: runs killed and resumed, damaged files, the machine's own faults"
import os, sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
if not hasattr(os, 'fork'): pytest.skip('needs fork', allow_module_level=True)
import faults


def test_killed_and_resumed(): assert faults.kill_trials(3, seed=1) == (3, 3)
def test_damage(): assert faults.damage_trials(36, seed=1) == (36, 36)
def test_payloads():
    held, n = faults.payload_trials()
    assert held == n >= 5


@pytest.mark.parametrize('f', faults.MACHINE)
def test_machine(f, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    f(tmp_path)


def test_the_trials_notice(tmp_path):
    "A reader that believes anything is caught"
    assert faults.read(lambda: 1/0).__class__ is ZeroDivisionError
    assert faults.wait(faults.in_child(lambda: 1/0)) == 'failed'
    assert faults.wait(faults.in_child(lambda: os.kill(os.getpid(), 9))) == 'killed'
    assert faults.wait(faults.in_child(lambda: faults.time.sleep(9)), timeout=.2) == 'hung'
