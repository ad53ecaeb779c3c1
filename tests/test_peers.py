"What other libraries offer, beside ours (tools/peers.py): our column is run, theirs leaves nothing out"
import inspect, sys
from pathlib import Path
import pytest
from torch import nn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from compat import ROWS as COMPAT
from peers import MISSING, NO, ROWS, YES, ours, why

TESTED = {f for _, _, f in COMPAT}   # by test_compat.py
RUN = [pytest.param(o, id=n) for _, n, *_, o in ROWS if callable(o) and o not in TESTED]


@pytest.mark.parametrize('f', RUN)
def test_works(f):
    got = ours(f)
    if got.startswith('not installed'): pytest.skip(got)
    assert got == YES


def test_rows():
    names = [n for _, n, *_ in ROWS]
    assert len(set(names)) == len(names)
    for _, n, f, t, _, o in ROWS: assert {f, t} <= {YES, NO} and (YES in (f, t) or callable(o)), n


def test_what_is_missing_has_a_reason_of_its_own():
    reasons = [o for *_, o in ROWS if not callable(o)]
    assert len(set(reasons)) == len(reasons) == 9 and all(o.startswith(f'{MISSING}: ') and len(o) > 50 for o in reasons)


def test_missing_and_wrong_are_seen():
    def f(): raise ValueError('no')
    assert ours(why('x')) == 'missing: x' and ours(f) == 'ValueError: no'


def test_no_loss_of_torchdistill_is_left_out():
    mid = pytest.importorskip('torchdistill.losses.mid_level')
    theirs = {n for n, c in vars(mid).items() if inspect.isclass(c) and issubclass(c, nn.Module) and n.endswith('Loss')
              and c.__module__ == mid.__name__}
    named = {c for *_, classes, _ in ROWS for c in classes}
    assert theirs - named == {'RegularizationLoss'} and named <= theirs   # that one is no comparison
