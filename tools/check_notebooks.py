"""Checks every notebook without running it: clean, executed, free of stored errors, and in sync with the library.

    python tools/check_notebooks.py [nbs/07_losses.ipynb ...]

Each complaint is one line naming the notebook and the cell. Nothing in the tree is changed.
"""
import ast, copy, filecmp, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
    prints = any(isinstance(s, ast.Expr) and isinstance(s.value, ast.Call) and getattr(s.value.func, 'id', '') == 'print' for s in body)
    last = body[-1] if body else None
    value = isinstance(last, ast.Expr) and not isinstance(last.value, (ast.Call, ast.Await, ast.Yield)) and not src.rstrip().endswith(';')
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


def check_executed(nb):
    code = [(i, c) for i, c in enumerate(nb['cells']) if c['cell_type'] == 'code' and source(c).strip()]
    for i, c in code:
        for o in c.get('outputs', []):
            if o['output_type'] == 'error': yield i, f'has a stored error: {o.get("ename")}: {o.get("evalue")}'
        if not c.get('outputs') and not UNSTORED.search(source(c)) and must_show(source(c)):
            yield i, 'shows something but nothing is stored: it was not executed'
    shown = [c for _, c in code if not UNSTORED.search(source(c))]
    if shown and not any(c.get('outputs') for c in shown): yield None, 'stores no output at all: it was not executed'


def check_source(nb):
    "Building the site executes exported cells, in a place where `__name__` is `__main__`"
    for i, c in enumerate(nb['cells']):
        s = source(c)
        if c['cell_type'] == 'code' and re.search(r'^if __name__', s, re.M) and re.search(r'^#\|\s*export', s, re.M) and 'eval: false' not in s:
            yield i, "exports `if __name__ == '__main__'` without `#| eval: false`: building the site would run it"


def check_notebook(path):
    "Complaints about one notebook, each `(cell number or None, text)`"
    try: nb = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as e: return [(None, f'is not JSON: {e}')]
    return [*check_clean(nb), *check_executed(nb), *check_source(nb)]


def check_export(root=ROOT):
    "Export the notebooks in a copy of the project; every file that differs from the library is a complaint"
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        shutil.copytree(root/'nbs', tmp/'nbs', symlinks=True, ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_*'))
        for f in ('pyproject.toml', 'settings.ini'): shutil.copy(root/f, tmp/f)
        (tmp/'ekd_nb').mkdir()
        shutil.copy(root/'ekd_nb/__init__.py', tmp/'ekd_nb')
        r = subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'],
                           cwd=tmp, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(tmp)})
        if r.returncode: return [f'nbdev-export failed: {r.stderr.strip().splitlines()[-1]}']
        here, fresh = ({str(p.relative_to(d)) for p in (d/'ekd_nb').rglob('*.py')} for d in (root, tmp))
        return [*(f'{f} comes from no notebook' for f in sorted(here-fresh)),
                *(f'{f} is missing: run nbdev-export' for f in sorted(fresh-here)),
                *(f'{f} differs from its notebook: run nbdev-export' for f in sorted(here & fresh)
                  if not filecmp.cmp(root/f, tmp/f, shallow=False))]


def main(args):
    paths = [Path(a) for a in args] or notebooks()
    bad = [f'{name_of(p)}{"" if i is None else f", cell {i}"} {text}' for p in paths for i, text in check_notebook(p)]
    if not args: bad += check_export()
    for b in bad: print(b)
    print(f'{len(paths)} notebooks: ' + (f'{len(bad)} complaints' if bad else 'clean, executed and in sync with the library'))
    return bool(bad)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
