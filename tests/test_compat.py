"Every row of the compatibility matrix (tools/compat.py) works"
import sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import ROWS, run_row


@pytest.mark.parametrize('f', [pytest.param(f, id=f'{g}-{n}') for g, n, f in ROWS])
def test_works(f):
    got = run_row(f)
    if got.startswith('not installed'): pytest.skip(got)
    assert got == 'ok'


def test_a_failing_row_is_seen():
    def f(): raise ValueError('a\nb')
    assert run_row(f) == 'ValueError: a'
