"""Checks every notebook without running it: clean, executed, free of stored errors, and in sync with the library.

    python tools/check_notebooks.py [nbs/07_losses.ipynb ...]
    python tools/check_notebooks.py --style [nbs/07_losses.ipynb ...]

Each complaint is one line naming the notebook and the cell. Nothing in the tree is changed.
`--style` reads how the code is written (tools/code_style.py) instead, and counts per notebook.
"""
import ast, builtins, copy, filecmp, importlib, json, os, re, shutil, subprocess, sys, tempfile
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent))
import code_style

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = ('__init__.py', '__main__.py')   # the only modules that come from no notebook
IGNORED = shutil.ignore_patterns('.ipynb_checkpoints', '_*')   # of `nbs/`, when it is exported
MACHINE = re.compile(r'site-packages/|(?<![\w.])/(home|root|Users|tmp)/')   # folders of the machine that ran a cell
UNSTORED = re.compile(r'^\s*#\|\s*(hide|export\w*|default_exp|slow|real|eval:\s*false)\b', re.M)


def notebooks(root=ROOT):
    "Every notebook under `nbs/`, leaving out hidden and generated folders"
    nbs = Path(root)/'nbs'
    return sorted(p for p in nbs.rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(nbs).parts))


def name_of(path, root=ROOT):
    try: return str(Path(path).resolve().relative_to(root))
    except ValueError: return str(path)


def source(cell): return ''.join(cell['source'])


def must_show(src):
    "Does this code certainly display something? Calls may return None, so of those only a bare `print` counts."
    code = '\n'.join('' if l.lstrip().startswith(('%', '!')) else l for l in src.splitlines())
    try: body = ast.parse(code).body
    except SyntaxError: return False
    calls = [s.value for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    prints = any(getattr(c.func, 'id', '') == 'print' for c in calls)
    last = body[-1] if body else None
    silent = src.rstrip().endswith(';') or not isinstance(last, ast.Expr)
    value = not silent and not isinstance(last.value, (ast.Call, ast.Await, ast.Yield))
    return prints or (value and not (isinstance(last.value, ast.Constant) and last.value.value in (None, ...)))


def cleaned(nb):
    "`nb` as `nbdev-clean` would leave it"
    from nbdev.clean import clean_nb
    nb = copy.deepcopy(nb)
    clean_nb(nb, allowed_metadata_keys=[], allowed_cell_metadata_keys=[], repair=False)
    return nb


def check_clean(nb):
    want = cleaned(nb)
    for i, (a, b) in enumerate(zip(nb['cells'], want['cells'])):
        if a != b: yield i, 'is not clean: run nbdev-clean'
    if {k: v for k, v in nb.items() if k != 'cells'} != {k: v for k, v in want.items() if k != 'cells'}:
        yield None, 'carries metadata that nbdev-clean removes'


def stored_text(output):
    "All text that an output holds"
    parts = [output.get('text', ''), *(v for k, v in output.get('data', {}).items() if k.startswith('text/'))]
    return '\n'.join(p if isinstance(p, str) else ''.join(p) for p in parts)


def check_executed(nb):
    code = [(i, c) for i, c in enumerate(nb['cells']) if c['cell_type'] == 'code' and source(c).strip()]
    for i, c in code:
        for o in c.get('outputs', []):
            if o['output_type'] == 'error': yield i, f'has a stored error: {o.get("ename")}: {o.get("evalue")}'
        if any('text/html' in o.get('data', {}) for o in c.get('outputs', [])):
            yield i, ('stores HTML, for which Quarto loads scripts from another host: '
                      'store it with tools/run_notebooks.py --save')
        folders = [m.group() for o in c.get('outputs', []) for m in [MACHINE.search(stored_text(o))] if m]
        if folders: yield i, f'stores a folder of the machine that ran it ({folders[0]}…)'
        if not c.get('outputs') and not UNSTORED.search(source(c)) and must_show(source(c)):
            yield i, 'shows something but nothing is stored: it was not executed'
    shown = [c for _, c in code if not UNSTORED.search(source(c))]
    if shown and not any(c.get('outputs') for c in shown): yield None, 'stores no output at all: it was not executed'


def check_source(nb):
    "Building the site executes exported cells, in a place where `__name__` is `__main__`"
    for i, c in enumerate(nb['cells']):
        s = source(c)
        if c['cell_type'] != 'code' or 'eval: false' in s: continue
        if re.search(r'^if __name__', s, re.M) and re.search(r'^#\|\s*export', s, re.M):
            yield i, "exports `if __name__ == '__main__'` without `#| eval: false`: building the site would run it"


def bound(tree):
    "Names that running this code binds outside of functions, and modules of which it imports everything"
    names, stars = set(), set()
    for n in at_once(tree):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): names.add(n.id)
        if isinstance(n, (*code_style.FUNCTIONS, ast.ClassDef)): names.add(n.name)
        if isinstance(n, ast.ExceptHandler) and n.name: names.add(n.name)
        if not isinstance(n, (ast.Import, ast.ImportFrom)): continue
        names |= {a.asname or a.name.split('.')[0] for a in n.names}
        if n.names[0].name == '*': stars.add(n.module)
    return names, stars


def at_once(node):
    "Every node of some code that runs at once: bodies of functions run later, if at all"
    yield node
    function = isinstance(node, (*code_style.FUNCTIONS, ast.Lambda))
    body = node.body if function else []
    later = body if isinstance(body, list) else [body]
    for child in ast.iter_child_nodes(node):
        if child not in later: yield from at_once(child)


def everything(module):
    "What `from module import *` brings"
    names = vars(importlib.import_module(module))
    return set(names.get('__all__', [n for n in names if not n.startswith('_')]))


def check_site(nb):
    "Building the site runs exported cells and those with an import only: they must not need what others define"
    cells = [(i, source(c)) for i, c in enumerate(nb['cells']) if c['cell_type'] == 'code']
    if not any(re.search(r'^#\|\s*default_exp', s, re.M) for _, s in cells): return
    known, stars = {*dir(builtins), '__name__', '__file__', 'display', 'get_ipython', 'show_doc'}, set()
    for i, s in cells:
        tree = code_style.parsed(s)
        if tree is None or re.search(r'^#\|\s*eval:\s*false', s, re.M): continue
        imports = any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree))
        if not imports and not re.search(r'^#\|\s*exports?\b|^show_doc', s, re.M): continue
        names, more = bound(tree)
        known, stars = known | names, stars | more
        needed = {n.id for n in at_once(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - known
        if needed: needed -= set().union(*map(everything, stars))
        missing = ', '.join(sorted(needed))
        if needed: yield i, f'imports something, so that building the site runs it, where {missing} is not defined'


def check_notebook(path):
    "Complaints about one notebook, each `(cell number or None, text)`"
    try: nb = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as e: return [(None, f'is not JSON: {e}')]
    return [*check_clean(nb), *check_executed(nb), *check_source(nb), *check_site(nb)]


def check_export(root=ROOT):
    "Export the notebooks in a copy of the project; every file that differs from the library is a complaint"
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        shutil.copytree(root/'nbs', tmp/'nbs', symlinks=True, ignore=IGNORED)
        for f in ('pyproject.toml', 'settings.ini'): shutil.copy(root/f, tmp/f)
        (tmp/'ekd_nb').mkdir()
        for f in BY_HAND: shutil.copy(root/'ekd_nb'/f, tmp/'ekd_nb')
        export = 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'
        r = subprocess.run([sys.executable, '-c', export], cwd=tmp, capture_output=True, text=True,
                           env={**os.environ, 'PYTHONPATH': str(tmp)})
        if r.returncode: return [f'nbdev-export failed: {r.stderr.strip().splitlines()[-1]}']
        here, fresh = ({str(p.relative_to(d)) for p in (d/'ekd_nb').rglob('*.py')} for d in (root, tmp))
        return [*(f'{f} comes from no notebook' for f in sorted(here-fresh)),
                *(f'{f} is missing: run nbdev-export' for f in sorted(fresh-here)),
                *(f'{f} differs from its notebook: run nbdev-export' for f in sorted(here & fresh)
                  if not filecmp.cmp(root/f, tmp/f, shallow=False))]


def style_complaints(path):
    "Complaints about how code is written, each `(where, rule, text)`"
    text = Path(path).read_text(encoding='utf-8')
    if Path(path).suffix=='.py': return [(f'line {line}', rule, says) for line,rule,says in code_style.check_file(text)]
    return [(f'cell {i}, line {line}', rule, says) for i,line,rule,says in code_style.check_cells(json.loads(text))]


def style_paths(root=ROOT):
    "Notebooks, and the files in which only the width of lines is checked"
    return [*notebooks(root), *sorted(p for d in ('tools', 'tests') for p in (Path(root)/d).rglob('*.py'))]


def report_style(paths):
    "Print every complaint about style, then a table with a line for each file; the number of complaints"
    found = {p: style_complaints(p) for p in paths}
    for p,bad in found.items():
        for where,_,text in bad: print(f'{name_of(p)}, {where}: {text}')
    counts = {p: Counter(rule for _,rule,_ in bad) for p,bad in found.items() if bad}
    width = max((len(name_of(p)) for p in counts), default=0)
    rows = [('', {r: r for r in code_style.RULES}), *((name_of(p), n) for p,n in counts.items())]
    for name,n in rows if counts else []: print(f'{name:{width}}'+''.join(f'{n[r] or "":>9}' for r in code_style.RULES))
    n = sum(map(len, found.values()))
    print(f'{len(paths)} files: ' + (f'{n} complaints about style' if n else 'in style'))
    return n


def main(args):
    if '--style' in args: return bool(report_style([Path(a) for a in args if a!='--style'] or style_paths()))
    paths = [Path(a) for a in args] or notebooks()
    bad = [f'{name_of(p)}{"" if i is None else f", cell {i}"} {text}' for p in paths for i, text in check_notebook(p)]
    if not args: bad += check_export()
    styled = paths if args else style_paths()
    bad += [f'{name_of(p)}, {where}: {text}' for p in styled for where,_,text in style_complaints(p)]
    for b in bad: print(b)
    verdict = f'{len(bad)} complaints' if bad else 'clean, executed and in sync with the library'
    print(f'{len(paths)} notebooks: {verdict}')
    return bool(bad)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
