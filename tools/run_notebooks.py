"""Runs every notebook in a copy of the project, two at a time, and compares fresh text outputs with the stored ones.

    python tools/run_notebooks.py [--save] [--jobs 2] [nbs/07_losses.ipynb ...]

Compared: printed text, displayed values and tables. Whole numbers must be equal, others agree within 5 % or 0.02,
since another processor rounds differently. Tables in HTML are turned into markdown first. Not compared: durations,
rates, file sizes, dates, paths, addresses, versions, digests, stderr, and every output of a cell marked `#| timing`.
Of pictures only the presence is. Cells marked `#| eval: false`, `#| slow` or `#| real` are not run and keep what they
store. `--save` stores the fresh outputs instead. Real data is hidden from the notebooks (EKD_DATA is unset), so that
they show the same everywhere.
"""
import argparse, json, os, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cells import without_html
from check_notebooks import ROOT, cleaned, name_of, notebooks, source

NOT_RUN = re.compile(r'^\s*#\|\s*(eval:\s*false|slow|real)\b|nbdev_export\(\)', re.M)
TIMING = re.compile(r'^\s*#\|\s*timing\b', re.M)
NUMBER = re.compile(r'(?<![\w.])[-+]?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?|(?<=[a-z_=(\[])\d+\.\d+')
CHANGING = [re.compile(p) for p in (
    # styles, progress bars
    r'\x1b\[[\d;]*[A-Za-z]', r'(?s)<style.*?</style>', r'(?s)<progress.*?</progress>', r'[^\n]*\r',
    r'\bT_[0-9a-f]{5}\w*',
    # dates, clocks
    r'\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?', r'\b\d{1,2}:\d\d(?::\d\d)?\b',
    # rates, sizes, durations
    r'\b\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?\s*'
    r'(?:(?:[kMG]?\w{1,8}/s)|(?:[kKMG]i?B|ns|[µu]s|ms|sec|seconds?|s|min|minutes?)(?![\w]))',
    # addresses, digests
    r'\b0x[0-9a-fA-F]+', r'\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{12,64}\b',
    # versions, paths
    r'\b\d+\.\d+\.\d+[\w.+-]*', r'(?<![\w.<])(?:/[\w.+~-]+){2,}/?')]


def texts(cell):
    "What a cell shows: `(text, number of pictures)`, the text of the richest kind"
    text, pics = '', 0
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        pics += any(k.startswith('image/') for k in data)
        if o['output_type'] == 'stream' and o.get('name') != 'stderr': text += ''.join(o['text'])
        elif not any(k.startswith('image/') for k in data):
            kinds = 'text/markdown', 'text/html', 'text/plain'
            text += ''.join(next((data[k] for k in kinds if k in data), '')) + '\n'
    return text, pics


def normal(text):
    "`text` without what changes from run to run, as words and numbers"
    for p in CHANGING: text = p.sub(' ', text)
    text = re.sub(r'-{2,}|[─━═]+', '-', text)
    out, at = [], 0
    for m in NUMBER.finditer(text):
        digits = m[0].replace(',', '')
        number = float(digits.rstrip('.')) if re.search(r'[.e]', digits) else int(digits)
        out += text[at:m.start()].split() + [number]
        at = m.end()
    return out + text[at:].split()


def same(a, b, rel=.05, tol=.02):
    if isinstance(a, str) or isinstance(b, str) or (isinstance(a, int) and isinstance(b, int)): return a == b
    return a == b or abs(a-b) <= max(tol, rel*abs(a))   # equal first: a commit such as 8e738707 reads as infinity


def difference(stored, fresh):
    "A sentence saying how the outputs of two runs of a cell differ, or None"
    (a, n), (b, m) = texts(stored), texts(fresh)
    if n != m: return f'stores {n} pictures, a fresh run gives {m}'
    a, b = normal(a), normal(b)
    for i in range(max(len(a), len(b))):
        if i >= len(a) or i >= len(b) or not same(a[i], b[i]):
            show = lambda t: repr(' '.join(map(str, t[max(0, i-4):i+4]))) if t else 'nothing'
            return f'stores {show(a)}, a fresh run gives {show(b)}'


def run_cells(nb, cwd, tries=3):
    """Run the cells of `nb` in `cwd`. A kernel that dies before the first cell is started again: two that start at
    once can be given the same port."""
    from nbclient import NotebookClient
    for i in range(tries):
        client = NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(cwd)}},
                                extra_arguments=['--log-level=CRITICAL'], coalesce_streams=True)
        try: return client.execute()
        except RuntimeError as e:
            if i==tries-1 or not str(e).startswith(('Kernel died before', "Kernel didn't respond")): raise


def execute(nb, cwd, slow=False):
    """Run `nb` in `cwd`, the cells marked `#| slow` too if asked; the cells that ran hold fresh outputs.
    Returns `(nb, None or (cell number, error))`."""
    import nbformat
    fresh = nbformat.reads(json.dumps(nb), as_version=4)
    for c in fresh.cells:
        found = NOT_RUN.search(source(c)) if c.cell_type == 'code' else None
        if found and not (slow and found[1] == 'slow'): c.metadata['tags'] = ['skip-execution']
    error = None
    try: run_cells(fresh, cwd)
    except Exception as e:  # nbclient's own, and what it raises when a kernel dies
        at = [i for i, c in enumerate(fresh.cells) if any(o.output_type == 'error' for o in c.get('outputs', []))]
        said = f'{getattr(e, "ename", type(e).__name__)}: {getattr(e, "evalue", e)}'
        error = (at[0], said) if at else (None, f'{type(e).__name__}: {e}')
    for c in fresh.cells: c.metadata.pop('tags', None)
    nb = json.loads(nbformat.writes(fresh, version=nbformat.NO_CONVERT))
    for c in nb['cells']:
        if c['cell_type'] == 'code': c['outputs'] = without_html(c['outputs'])
    return nb, error


def run_one(path, copy, save, slow=False):
    "Run the notebook at `path` (in `copy`) and compare or store; `(path, seconds, complaints)`"
    start, bad = time.time(), []
    at = copy/name_of(path)
    nb = json.loads(Path(path).read_text(encoding='utf-8'))
    fresh, error = execute(nb, at.parent, slow)
    if error: bad.append((error[0], f'fails: {error[1]}'))
    elif save:
        from fastcore.nbio import write_nb, dict2nb
        tmp = Path(path).with_suffix('.part')
        write_nb(dict2nb(cleaned(fresh)), tmp)
        os.replace(tmp, path)
    else:
        for i, (a, b) in enumerate(zip(nb['cells'], fresh['cells'])):
            compared = a['cell_type'] == 'code' and not TIMING.search(source(a))
            if compared and (d := difference(a, b)): bad.append((i, d))
    return path, time.time()-start, bad


def copy_project(to):
    "Everything git knows or would add, without the environment and build products"
    list_files = ['git', 'ls-files', '-co', '--exclude-standard', '-z']
    ls = subprocess.run(list_files, cwd=ROOT, capture_output=True, check=True).stdout
    for f in filter(None, ls.decode().split('\0')):
        if not (ROOT/f).exists(): continue
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, to/f)


def main(args):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('paths', nargs='*', type=Path)
    p.add_argument('--save', action='store_true', help='store the fresh outputs')
    p.add_argument('--slow', action='store_true', help='run the cells marked `#| slow` too')
    p.add_argument('--jobs', type=int, default=2, help='notebooks at a time')
    a = p.parse_args(args)
    paths = [q.resolve() for q in a.paths] or notebooks()
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'project'
        copy_project(copy)
        os.environ.pop('EKD_DATA', None)
        os.environ.update(EKD_CACHE=f'{tmp}/cache', IPYTHONDIR=f'{tmp}/ipython', PYTHONPATH=str(copy),
                          MPLBACKEND='module://matplotlib_inline.backend_inline',
                          MATPLOTLIBRC=f'{ROOT}/tools/matplotlibrc',
                          PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
        bad = []
        with ProcessPoolExecutor(a.jobs) as pool:
            for f in [pool.submit(run_one, q, copy, a.save, a.slow) for q in paths]:
                path, secs, complaints = f.result()
                print(f'{name_of(path)}  {secs:.0f} s{"" if complaints else "  ok"}', flush=True)
                said = [f'  {name_of(path)}{"" if i is None else f", cell {i}"} {text}' for i, text in complaints]
                for line in said: print(line, flush=True)
                bad += said
    good = 'stored again' if a.save else 'run, outputs as stored'
    print(f'{len(paths)} notebooks: ' + (f'{len(bad)} complaints' if bad else good))
    for line in bad: print(line)   # again, at the end of a long log
    return bool(bad)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
