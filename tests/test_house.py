"The house: three wings whose arrows go down only, rooms of a readable size, each on the site"
import ast, importlib, inspect, json, re, sys
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
from check_notebooks import notebooks
from ekd_nb.study.reference import arguments

BY_HAND = {'__init__', '__main__', '_modidx'}
MODULES = {p.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.'): p
           for p in sorted((ROOT/'ekd_nb').rglob('*.py')) if p.stem not in BY_HAND}
WINGS = 'library', 'baselines', 'study'   # each imports only those before it
LINES = 330   # of a module that are neither blank nor the mark of a cell
EARLY,APART = 70,5   # lines before a room's first example; exported cells between two examples
NO_CONTRACT = set()


def wing(module): return module.split('.')[1] if module.count('.')>1 else 'library'

def place(module):
    "The name of the notebook that a module comes from; rooms are read in the order of these names"
    return re.search(r'File to edit: \S*?(\d+_\w+)\.ipynb', MODULES[module].read_text())[1]

def imported(module):
    "The modules of this package that a module imports anywhere, also inside its functions"
    parts, found = module.split('.')[:-1], set()
    for n in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(n, ast.Import): found |= {a.name for a in n.names}
        if not isinstance(n, ast.ImportFrom): continue
        base = '.'.join([*(parts[:len(parts)-n.level+1] if n.level else []), *([n.module] if n.module else [])])
        found |= {base} | {f'{base}.{a.name}' for a in n.names}
    return {m for m in found if m in MODULES}


def test_imports_are_seen():
    assert {'ekd_nb.core', 'ekd_nb.losses', 'ekd_nb.student'} <= imported('ekd_nb.learner')
    assert 'ekd_nb.learner' in imported('ekd_nb.study.runs')


@pytest.mark.parametrize('module', MODULES)
def test_arrows_go_down_only(module):
    for other in imported(module):
        assert WINGS.index(wing(other))<=WINGS.index(wing(module)), f'{module} imports {other} of another wing'
        below = wing(other)!=wing(module) or place(other)<place(module)
        assert below, f'{module} ({place(module)}) imports {other} ({place(other)}), expected a room before it'


def defined(module):
    "Names that a module itself defines"
    names = set()
    for n in ast.parse(MODULES[module].read_text()).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): names.add(n.name)
        elif not isinstance(n, (ast.Import, ast.ImportFrom)):
            names |= {o.id for o in ast.walk(n) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
    return names

@pytest.mark.parametrize('module', MODULES)
def test_a_name_is_imported_from_its_own_room(module):
    "Some rooms hand on names of others, for notebooks; modules say where a name lives"
    for n in ast.walk(ast.parse(MODULES[module].read_text())):
        if not isinstance(n, ast.ImportFrom) or not n.level: continue
        room = '.'.join([*module.split('.')[:-n.level], *([n.module] if n.module else [])])
        if room not in MODULES: continue
        wrong = [a.name for a in n.names if a.name not in defined(room)]
        assert not wrong, f'{module} imports {wrong} from {room}, which does not define them'


@pytest.mark.parametrize('module', MODULES)
def test_a_room_is_not_too_large(module):
    n = sum(l.strip()!='' and not l.startswith('# %%') for l in MODULES[module].read_text().splitlines())
    assert n<=LINES, f'{module} has {n} lines, expected at most {LINES}'


def test_every_notebook_is_in_a_sidebar():
    def pages(o):
        if isinstance(o, str): return {o}
        return set().union(*map(pages, o if isinstance(o, list) else [o.get('contents', []), o.get('href', [])]))
    nbs = ROOT/'nbs'
    here = {p.relative_to(nbs).as_posix() for p in notebooks(ROOT)}
    assert pages(yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']) == here


def test_every_room_of_library_and_study_is_in_contributing():
    text = (ROOT/'CONTRIBUTING.md').read_text()
    assert [m for m in MODULES if wing(m)=='library' and f'`{place(m)}`' not in text]==[]
    names = {c.strip() for l in text.splitlines() if l.startswith('| ') for c in l.split('|')[1:3]}
    assert [m for m in MODULES if wing(m)=='study' and m.split('.')[-1] not in names]==[]


@pytest.mark.parametrize('module', [m for m in MODULES if m!='ekd_nb.losses'])
def test_losses_are_read_by_their_contract(module):
    "`DistillLoss` documents what others read: nobody looks whether a loss has an attribute"
    found = re.findall(r"(?:get|has)attr\((?:self\.|learn\.)*loss(?:_func)?, (?!'__).*", MODULES[module].read_text())
    if found and module in NO_CONTRACT: pytest.xfail(found[0])
    assert not found, f'{module}: {found[0]}'


def steps(path):
    "What a reader meets on a page, in order: 'definition', 'example' or 'text', and how many lines it has"
    for c in json.loads(path.read_text())['cells']:
        src = ''.join(c['source'])
        n = sum(bool(l.strip()) for l in src.splitlines())
        if c['cell_type']!='code': yield 'text',n
        elif re.match(r'#\| *export\n(from|import) ', src): continue
        elif re.search(r'^#\| *export', src, re.M): yield 'definition',n
        elif not re.search(r'^#\| *(hide|default_exp)\b', src, re.M): yield 'example',n


@pytest.mark.parametrize('path', sorted((ROOT/'nbs').glob('[0-9]*.ipynb')), ids=lambda p: p.stem)
def test_a_room_of_the_library_shows_what_it_defines(path):
    "An example comes early, and again after a few definitions"
    found = list(steps(path))
    before = sum(n for _,n in found[:[k for k,_ in found].index('example')])
    assert before<=EARLY, f'{before} lines before the first example, expected at most {EARLY}'
    kinds = ''.join(k[0] for k,_ in found if k!='text')
    run = max(map(len, re.findall('d+', kinds)))
    assert run<=APART, f'{run} exported cells in a row, expected an example after at most {APART}'


@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.stem)
def test_lines_are_named_where_they_are(path):
    "No figure of ours has a legend; fastai's own (`lr_find`, `plot_loss`) have"
    for c in json.loads(path.read_text())['cells']:
        assert c['cell_type']!='code' or 'legend(' not in ''.join(c['source']), c['id']


ROOMS = [m for m in MODULES if wing(m)=='library' and m!='ekd_nb.all']

def documented(room):
    "Functions and classes that a room offers, and the methods that these classes add"
    for o in (getattr(room, n) for n in getattr(room, '__all__', ())):
        if not callable(o) or getattr(o, '__module__', '')!=room.__name__: continue
        yield o
        if not inspect.isclass(o): continue
        for n,f in vars(o).items():
            f = getattr(f, '__func__', f)
            if not n.startswith('_') and inspect.isfunction(f) and f.__module__.startswith('ekd_nb.'): yield f

@pytest.mark.parametrize('module', ROOMS)
def test_every_argument_has_a_meaning(module):
    "In the tables of a page; one of names alone is not shown"
    for f in documented(importlib.import_module(module)):
        rows = arguments(f)
        if any(a.meaning or a.type for a in rows):
            lack = [a.name for a in rows if not a.meaning and a.name!='ctx']
            assert not lack, f'{f.__qualname__}: {lack}'
