"What nbs/results/reliability.ipynb shows: the tools count right, and the stored records are sealed"
import json, os, sys
from pathlib import Path
import pytest
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import versions
from ekd_nb.core import digest_matches


def stored(folder): return sorted((ROOT/'results'/folder).glob('*.json'))


@pytest.mark.parametrize('path',
                         [pytest.param(p, id=p.stem) for f in ('faults', 'distributed', 'versions') for p in stored(f)])
def test_sealed(path):
    r = json.loads(path.read_text())
    assert digest_matches(r) and r['schema'] == 1 and r['commit'] and r['started'] and r['versions']['torch']


def test_there_is_a_full_run():
    full = [r for r in map(lambda p: json.loads(p.read_text()), stored('faults')) if len(r['kills']) >= 20
            and sum(d['number'] for d in r['damage']) >= 200]
    assert full and stored('distributed') and any(p.stem == 'torch-2.11' for p in stored('versions'))


def test_faults_are_recorded(tmp_path):
    if not hasattr(os, 'fork'): pytest.skip('needs fork')
    import faults
    from test_faults import run_fresh
    args = ['--kills', '1', '--damage', '6', '--out', str(tmp_path)]
    run_fresh(f'faults.MACHINE = (faults.unwritable,); assert not faults.main({args})', ROOT)
    r = json.loads(next(tmp_path.glob('*.json')).read_text())
    assert (digest_matches(r) and len(r['kills']) == 1 and
            r['machine'] == [dict(kind='unwritable', what=faults.unwritable.__doc__, held=True)])
    assert sum(d['number'] for d in r['damage']) == 6 and {d['end'] for d in r['damage']} <= {'noticed', 'harmless'}
    assert all(held == n for held, n in r['held'].values())


def test_tests_are_counted(tmp_path):
    (tmp_path/'t.xml').write_text('<testsuites><testsuite><testcase classname="tests.test_a" name="x"/><testcase '
                                  'classname="tests.test_a" name="y"><failure message="no"/></testcase>'
                                  '<testcase classname="tests.test_b" name="z"><skipped '
                                  'message="why"/></testcase></testsuite></testsuites>')
    assert versions.count(tmp_path/'t.xml') == dict(passed=1, failed=1, skipped=1, failures=['test_a::y'],
                                                    skips={'test_b::z': 'why'})
