"Every page of results answers in a box at its top, and without records says what is missing."
import ast, json, os, shutil
from pathlib import Path
import matplotlib
import pytest
from ekd_nb.study import claims, records, tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob('nbs/results/*.ipynb'))
RECORDED = [p for p in PAGES if p.stem not in ('compat', 'defaults')]   # those that train, and of a suite of its own


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


@pytest.mark.parametrize('path', RECORDED, ids=lambda p: p.stem)
def test_without_records_the_box_says_what_is_missing(path, tmp_path, monkeypatch):
    matplotlib.use('agg')
    folder = tmp_path/'results'
    kinds = 'runs', 'choices', 'repeats', 'benchmarks', 'gpu', 'faults', 'distributed', 'versions'
    for d in kinds: (folder/d).mkdir(parents=True)
    shutil.copytree(path.parents[2]/'results'/'plans', folder/'plans')   # plans are no records
    (tmp_path/'nbs/results').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'nbs/results')
    for m in (records, tables, claims): monkeypatch.setattr(m, 'results_dir', lambda f=None: Path(f) if f else folder)
    box = next(v.data for v in values(path) if '**Asked**' in getattr(v, 'data', ''))
    assert ('ithout a record' in box or 'not measured yet' in box) and 'nan' not in box, box
    assert '**Means** · Open until' in box or path.stem in ('speed', 'reliability', 'imagenette', 'scale'), box
