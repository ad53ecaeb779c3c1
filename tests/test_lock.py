"constraints.txt (tools/lock.py) holds what settings.ini asks for, and nothing that belongs to one machine"
import re, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
import lock


def test_every_direct_requirement_is_pinned_and_met(): assert lock.missing() == []


def test_nothing_of_one_machine():
    text, names = lock.PATH.read_text(), set(lock.read())
    assert not re.search(r'://|@|^-', text, re.M) and '+' not in text
    assert not any(n.startswith(lock.CUDA) for n in names) and not names & {'ekd-nb', 'pip', 'setuptools'}


def test_a_missing_or_old_one_is_noticed(monkeypatch):
    pins = lock.read()
    monkeypatch.setattr(lock, 'read', lambda: {k: v for k, v in pins.items() if k != 'joblib'} | {'fastai': '2.7.19'})
    assert lock.missing() == ['fastai>=2.8', 'joblib'] and lock.main(['--check'])
