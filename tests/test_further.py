"The problems that the choice of the defaults did not see: their images, and what their records say"
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ekd_nb.compare import COMPARED, Comparison
from ekd_nb.core import EKDError, add_digest
from ekd_nb.intervals import paired_difference
from ekd_nb.study.further import FURTHER, further_arrays, load_further
from ekd_nb.study.problems import TASKS

RECORDS = Path(__file__).parents[1]/'results'/'further'


def test_they_differ_from_those_of_the_choice():
    assert not set(FURTHER) & set(TASKS)
    assert not {t.n_classes for t in FURTHER.values()} <= {10, 100}
    assert all(t.size not in (8, 32, 64) or t.n_classes not in (10, 100) for t in FURTHER.values())
    assert {len(t.archs) for t in FURTHER.values()} == {2, 4}   # there were three teachers in each


def test_images_are_apart_and_of_the_size_named():
    task = FURTHER['digits-20']
    data, few, many = further_arrays(task)
    assert data.size == (20, 20) and data.n_classes == task.n_classes and not len(data.shared_pictures())
    assert set(few) < set(many) and list(np.bincount(data.y_train[few])) == [task.per_class]*10
    assert len(many) == task.n_classes*task.teacher_per_class and len(data.x_test) == task.n_valid
    again = further_arrays(task)
    assert data.fingerprint == again[0].fingerprint and (few == again[1]).all()


def test_records_are_of_the_defaults_and_complete():
    assert load_further(RECORDS)
    for name, r in load_further(RECORDS).items():
        assert r['task'] == json.loads(json.dumps(asdict(FURTHER[name]))) and not r['dirty']
        runs = {(o['method'], o['seed']) for o in r['runs']}
        assert runs == {(m, s) for m in COMPARED for s in range(3)} and len(r['teachers']) == len(FURTHER[name].archs)
        assert 'EKD is' in Comparison(r['runs']).sentence()


def test_a_changed_record_is_an_error(tmp_path):
    (tmp_path/'turns.json').write_text(json.dumps(dict(further=1, digest='0')))
    with pytest.raises(EKDError, match='turns: edited after it was written'): load_further(tmp_path)
    assert load_further(tmp_path/'nothing') == {}


def test_the_page_fills_itself_in_when_records_come(tmp_path, monkeypatch):
    "Made-up records of two problems"
    import matplotlib
    from test_results_pages import ROOT, values
    matplotlib.use('agg')
    results = ROOT/'results'
    (tmp_path/'nbs'/'results').mkdir(parents=True)
    (tmp_path/'results'/'further').mkdir(parents=True)
    for d in ('suite', 'plans', 'benchmarks'): (tmp_path/'results'/d).symlink_to(results/d)
    known = load_further(results/'further')
    for name, task in FURTHER.items():
        made_up = dict(known['digits-20'], task=asdict(task), teachers=[.5, .6])
        r = made_up if name in ('turns', 'thirty-24') else known[name]
        body = {k: v for k, v in r.items() if k != 'digest'}
        (tmp_path/'results'/'further'/f'{name}.json').write_text(json.dumps(add_digest(json.loads(json.dumps(body)))))
    monkeypatch.chdir(tmp_path/'nbs'/'results')
    text = '\n'.join(getattr(v, 'data', '') for v in values(ROOT/'nbs/results/defaults.ipynb') if hasattr(v, 'data'))
    part = text[text.index('EKD gains over the same student'):]
    gained = {n: 100*paired_difference(known[n]['runs'], 'ekd', 'labels').mean for n in ('animals-48', 'digits-20')}
    mean = (gained['animals-48']+3*gained['digits-20'])/4
    assert 'Not measured' not in part.split('\n')[0] and f'The mean over these 4 problems is +{mean:.1f} points' in part
    rows = [l for l in part.splitlines() if l.startswith(('| `turns`', '| `thirty-24`'))]
    assert len(rows) == 2 and all('not measured' not in l and f"+{gained['digits-20']:.1f} ± " in l for l in rows)
    assert 'teachers of 50 to 60 %' in part
