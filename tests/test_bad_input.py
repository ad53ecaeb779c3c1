"Every wrong call (tools/wrong_calls.py) is refused with one sentence, before training, and executes nothing"
import sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from wrong_calls import CALLS, message, tmp


@pytest.mark.parametrize('says, f', [pytest.param(s, f, id=f'{g}-{c}') for g, c, s, f in CALLS])
def test_refused(says, f):
    got = message(f)
    assert isinstance(got, str), f'not refused in our words: {got!r}'
    assert says in got
    assert len(got) < 400 and got.count('. ') <= 1   # one sentence
    assert not (tmp()/'executed').exists()


def test_there_are_enough(): assert len(CALLS) >= 60


def test_an_accepted_call_is_seen(): assert message(lambda: 3) is None
