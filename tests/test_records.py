"Every stored record says where it came from, nothing was chosen on test images, and the pages show what records give"
import json, os, re, subprocess, sys
from pathlib import Path
import pytest
from safetensors.torch import load_file
from ekd_nb.arrays import load_images
from ekd_nb.core import tensor_digest
from ekd_nb.study.tables import is_current, is_stale, page_records
from ekd_nb.study.full import LIMITED, LONG
from ekd_nb.study.methods import METHODS, relevant_fields, method
from ekd_nb.study.protocols import protocol
from ekd_nb.study.records import read_record, record_name
from ekd_nb.study.stats import format_difference, paired_difference

ROOT = Path(__file__).resolve().parents[1]
LENT = sorted((ROOT/'results/gpu').glob('*.json'))
REPEATS = sorted((ROOT/'results/repeats').glob('*.json'))
FILES = sorted((ROOT/'results/runs').glob('*.json')) + sorted((ROOT/'results/choices').glob('*.json'))
RECORDS = {f: json.loads(f.read_text()) for f in FILES}

def test_there_are_records(): assert {'runs', 'choices'} <= {f.parent.name for f in FILES}

@pytest.mark.parametrize('f', FILES, ids=lambda f: f'{f.parent.name}/{f.stem}')
def test_a_record_says_where_it_came_from(f):
    r = read_record(f)   # sealed, whole, of a known schema
    assert re.fullmatch('[0-9a-f]{40}', r['commit']) and r['dirty'] is False
    assert re.fullmatch('[0-9a-f]{16,}', r['fingerprint'])
    assert r['versions']['torch'] and r['device'] and r['started'] and isinstance(r['seed'], int)
    assert r['method'] in METHODS and f.stem.endswith(f"s{r['seed']}") and r['preset'] in f.stem

def test_the_data_are_those():
    prints = {r['data']: {o['fingerprint'] for o in RECORDS.values() if o['data']==r['data']} for r in RECORDS.values()}
    assert all(len(v)==1 for v in prints.values())
    if 'digits' in prints: assert prints['digits']=={load_images('digits').fingerprint}
    if 'cifar10' in prints and os.environ.get('EKD_DATA'):
        assert prints['cifar10']=={load_images('cifar10').fingerprint}

def test_commits_are_of_this_repository():
    git = lambda *a: subprocess.run(['git', '-C', ROOT, *a], capture_output=True, text=True)
    if git('rev-parse', '--is-shallow-repository').stdout.strip()!='false': pytest.skip('no full git history here')
    commits = {r['commit'] for r in [*RECORDS.values(), *map(read_record, LENT+REPEATS)]}
    lost = {c for c in commits if git('cat-file', '-e', c+'^{commit}').returncode}
    assert not lost

def test_failed_runs_say_why_and_count_nowhere():
    failed = [read_record(f) for f in sorted((ROOT/'results/failed').glob('*.json'))]
    assert failed and all('not finite' in r['error'] and 'test_accuracy' not in r for r in failed)
    new = [r for r in failed if 'own_weight' in r['protocol']]
    assert all('commit' in r and 'started' in r for r in new)
    assert not {record_name(r) for r in failed} & {f.stem for f in FILES}

@pytest.mark.parametrize('f', LENT, ids=lambda f: f.stem)
def test_a_record_of_a_lent_gpu(f):
    "Kept apart: where it was made, git knew an earlier commit and called its tree changed"
    r = read_record(f)
    assert f.stem==record_name(r) and 'NVIDIA' in r['device'] and r['evaluated_on']=='test'
    assert r['fingerprint'] in {o['fingerprint'] for o in RECORDS.values() if o['data']==r['data']}
    as_named,today = (relevant_fields(p, method(r['method'])) for p in (r['protocol'], protocol(r['data'], 'standard')))
    assert {k for k,v in as_named.items() if v!=today[k]}<={'epochs'}

@pytest.mark.parametrize('f', REPEATS, ids=lambda f: f.stem)
def test_a_repeat_is_the_same_run_once_more(f):
    "The run that ended first counts; how far the two are apart is shown"
    r, first = read_record(f), read_record(ROOT/'results/runs'/f.name)
    assert f.stem==record_name(r) and r['dirty'] is False and r['started']>first['started']
    assert all(r[k]==first[k] for k in ('protocol', 'method', 'seed', 'device', 'commit', 'fingerprint', 'n_train'))

def test_stored_logits_are_those_of_their_records():
    kept = {r['logits']['file']: r['logits'] for r in RECORDS.values() if 'logits' in r}
    files = {f.name: f for f in (ROOT/'results/logits').glob('*.safetensors')}
    assert kept and set(kept)==set(files)
    for name,about in kept.items():
        tensors = load_file(files[name])
        assert tensor_digest(tensors)==about['sha256'] and tensors['logits'].shape[1]==about['n_images']

def test_nothing_was_chosen_on_test_images():
    for f,r in RECORDS.items():
        assert r['evaluated_on']==('test' if f.parent.name=='runs' else 'valid'), f.name
        if f.parent.name!='runs': continue
        why = 'measured on test images under a protocol that is not the one of its name'
        if r.get('variant') in (LONG, LIMITED): continue   # named in the plan, see test_full
        assert not r.get('variant') and is_current(r), f'{f.name}: {why}'

def test_readme_shows_what_the_records_give():
    text,records = (ROOT/'README.md').read_text(),page_records('cifar10', 'small', 'full', folder=ROOT/'results')
    for m,word in (('kd_wide', 'above'), ('kd_wide_hint', 'below')):
        gain = format_difference(paired_difference(records, 'ekd', m)).lstrip('+-−')
        assert f'{gain} points {word}' in text, m

def test_every_folder_of_results_is_known():
    "A new kind of record needs a test that reads it; `suite`, `further`, `plans` and `teachers` belong to other tests"
    known = set('benchmarks choices distributed failed faults further fuzz gpu logits plans repeats runs stale'.split())
    known |= {'students', 'suite', 'teachers', 'versions'}
    assert {p.name for p in (ROOT/'results').iterdir() if p.is_dir()} <= known

def test_stale_records_are_those_before_hints_were_computed_together():
    git = lambda *a: subprocess.run(['git', '-C', ROOT, *a], capture_output=True, text=True)
    if git('rev-parse', '--is-shallow-repository').stdout.strip()!='false': pytest.skip('no full git history here')
    commits = {r['commit'] for r in RECORDS.values()}
    new = {c: not git('merge-base', '--is-ancestor', '8204c32', c).returncode for c in commits}
    hinted = {f: r for f,r in RECORDS.items()
              if f.parent.name=='runs' and r['data']!='digits' and r['method'] in ('ekd', 'ekd_avg')}
    assert {f.stem for f,r in hinted.items() if is_stale(r)}=={f.stem for f,r in hinted.items() if not new[r['commit']]}
    assert not any(is_stale(r) for r in RECORDS.values() if r['method'] not in ('ekd', 'ekd_avg'))
