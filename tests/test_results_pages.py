"Every page of results answers in a box at its top, and without records says what is missing."
import ast, json, shutil, sys
from pathlib import Path
from types import SimpleNamespace
import matplotlib
import pytest
from ekd_nb.study import claims, records, tables, verdicts
from ekd_nb.study.summary import hints_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob('nbs/results/*.ipynb'))


def code(path):
    cells = json.loads(path.read_text())['cells']
    return [''.join(c['source']) for c in cells if c['cell_type']=='code']


def values(path):
    "What the cells of a page show, one after the other, in a folder of their own"
    space = {'__name__': '__main__'}
    for src in code(path):
        tree = ast.parse('\n'.join('' if l.startswith(('%', '!')) else l for l in src.splitlines()))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, path.name, 'exec'), space)
        yield eval(compile(ast.Expression(last.value), path.name, 'eval'), space) if last else None


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_a_page_opens_with_a_box(path):
    shown = [''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in c.get('outputs', []))
             for c in json.loads(path.read_text())['cells'] if c['cell_type']=='code']
    first = next(t for t in shown if t)
    assert all(f'**{w}**' in first for w in ('Asked', 'Found', 'Means')), first


@pytest.mark.parametrize('name', 'cifar10 generalisation scale'.split())
def test_a_box_explains_its_terms(name):
    cells = json.loads((ROOT/f'nbs/results/{name}.ipynb').read_text())['cells']
    shown = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for c in cells for o in c.get('outputs', []))
    box = shown[:shown.index(':::', 4)]
    assert tables.words_text(box.split('**Words**')[0]) in box and box.index('**Means**') < box.index('*EKD*: ')


def test_terms_in_words():
    def terms(text): return [t.split('*')[1] for t in tables.words_text(text).split('. ') if t]
    assert terms('EKD (heads) is behind EKD with hints.')==['EKD (heads)', 'EKD', 'Hints']
    assert terms('`EKDLoss()`, hinted at')==terms('')==[]
    assert terms('The plain student, KD: NLL and ECE')==['Plain', 'KD', 'NLL', 'ECE']


HINTED = 'ablation cifar10 cifar100 efficiency fidelity generalisation heterogeneity limited_data scale speed variance'


@pytest.mark.parametrize('name', HINTED.split())
def test_the_box_says_which_hints_the_records_are_about(name):
    "Computed from the protocols in the records; Imagenette has no record yet"
    path = ROOT/f'nbs/results/{name}.ipynb'
    shown = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for c in json.loads(path.read_text())['cells']
                    if c['cell_type']=='code' for o in c['outputs'])
    box = shown[:shown.index(':::', 4)]
    assert '**Hints** · ' in box and '[defaults](defaults.ipynb) of `EKDLoss()`' in box


def test_hints_in_words():
    def r(method='ekd', **p): return dict(method=method, protocol=dict(dict(gamma=60.), **p))
    usual = r(gamma=5., hint_error='standard', hint_schedule='cosine')
    assert hints_text([usual, r('kd_wide'), r('plain')])=='those of the [defaults](defaults.ipynb) of `EKDLoss()`'
    assert hints_text([r(), r(gamma=4., hint_error='cosine')]).startswith('those of the older protocol (γ = 4 to 60, '
                                                                       'cosine and squared error), not the')
    end = ' in 1 run and those of the [defaults](defaults.ipynb) of `EKDLoss()` in 2 runs'
    assert hints_text([r(), usual, usual]).endswith(end)
    first = r(gamma=10., hint_error='standard', hint_schedule='cosine')
    was = 'those of the first defaults of `EKDLoss()` (γ = 10)'
    assert hints_text([first])==f'{was}, not the [defaults](defaults.ipynb) of `EKDLoss()`'
    older = 'those of the older protocol (γ = 60, squared error) in 1 run'
    none = 'none has the [defaults](defaults.ipynb) of `EKDLoss()`'
    assert hints_text([first, r()])==f'{older} and {was} in 1 run; {none}'
    assert hints_text([usual, first, r()]).startswith(f'{older}, {was} in 1 run and those of the [defaults]')
    assert hints_text([])==hints_text([r('ekd_no_hint'), r('fitnet'), r(gamma=0.)])==''


def empty_results(tmp_path, monkeypatch):
    "A folder of results that holds the plans only, which are no records; the present folder is that of the pages"
    folder = tmp_path/'results'
    kinds = ('runs', 'choices', 'repeats', 'benchmarks', 'gpu', 'faults', 'distributed', 'versions', 'suite', 'fuzz',
             'students')
    for d in kinds: (folder/d).mkdir(parents=True)
    shutil.copytree(ROOT/'results'/'plans', folder/'plans')
    (tmp_path/'nbs/results').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'nbs/results')
    def where(f=None): return Path(f) if f else folder
    for m in (records, tables, claims, verdicts): monkeypatch.setattr(m, 'results_dir', where)
    matplotlib.use('agg')
    return folder


def without_training(monkeypatch):
    "The tools that one page runs, here with two rows each"
    def tool(rows): return SimpleNamespace(table=lambda: rows, tmp=lambda: '/tmp')
    rows = dict(compat=[('data', 'a', 'ok', ''), ('data', 'b', 'ok', '')], wrong_calls=[('data', 'a', 'no')]*2,
                peers=[('losses', 'a', 'yes', 'yes', 'yes')]*2)
    for name,r in rows.items(): monkeypatch.setitem(sys.modules, name, tool(r))
    monkeypatch.setitem(sys.modules, 'fuzz', SimpleNamespace(outcome=lambda case: ('trained',)))


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_without_records_the_box_says_what_is_missing(path, tmp_path, monkeypatch):
    empty_results(tmp_path, monkeypatch)
    without_training(monkeypatch)
    box = next(v.data for v in values(path) if '**Asked**' in getattr(v, 'data', ''))
    assert ('ithout a record' in box or 'not measured yet' in box) and 'nan' not in box, box
    assert '**Means** · Open until' in box or path.stem in ('speed', 'reliability', 'imagenette', 'scale'), box


WHOLE = dict(plain=.6, branched=.62, wide=.62, kd_wide=.64, kd_wide_hint=.66, fitnet=.63, ekd_light=.68)


@pytest.mark.parametrize('seeds', (1, 3, 6))
@pytest.mark.parametrize('ekd,word', ((.7, 'ahead of'), (.62, 'behind'), (.66, 'too close to call against')))
def test_records_of_all_of_cifar_fill_the_box(ekd, word, seeds, tmp_path, monkeypatch):
    folder = empty_results(tmp_path, monkeypatch)
    made = records.example_records(WHOLE | dict(ekd=ekd), seeds, data='cifar100', preset='full')
    for r in made: records.save_record(dict(r, seed=10+r['seed'], device='a GPU', engine='graph'), folder/'runs')
    shown = [v.data for v in values(ROOT/'nbs/results/scale.ipynb') if isinstance(getattr(v, 'data', None), str)]
    box,text = next(t for t in shown if '**Asked**' in t),'\n'.join(shown)
    assert 'On all of CIFAR-10 EKD is not measured yet' in box
    assert 'a GPU, bfloat16, each training step as one CUDA graph' in text
    assert ('settles nothing' in box)==(seeds==1) and (seeds==1 or f'{word} one wide network' in box), box
