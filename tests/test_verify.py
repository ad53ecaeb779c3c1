"The present code makes the records: one run of each main method on digits, digit by digit"
import importlib.util, json
from pathlib import Path
import pytest
from ekd_nb.core import library_versions
from ekd_nb.study.methods import MAIN_METHODS

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('verify', ROOT/'tools/verify.py')
verify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verify)


def test_the_present_code_makes_the_records_of_digits(tmp_path):
    record = json.loads((ROOT/'results/runs/digits-quick-plain-1-s0.json').read_text())
    other = {k: v for k, v in record['versions'].items() if k == 'torch' and library_versions()[k] != v}
    if other: pytest.skip(f'the records were made with {other}')
    found = verify.verify(MAIN_METHODS, 'digits', 'quick', 0, 'same', tmp_path)
    assert [name for name, *_, differ in found if differ] == [] and len(found) == len(MAIN_METHODS)


def test_a_digit_that_differs_is_seen():
    a = dict(test_accuracy=.5, nll=1., curves=dict(accuracy=[.1, .2]))
    assert verify.differences(a, a) == []
    assert verify.differences(a, a | dict(curves=dict(accuracy=[.1, .20001]))) == ['curves']
