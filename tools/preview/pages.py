"""Notebooks as nbdev processes them for the site, each turned into one page of pandoc's markdown."""
import html, json, os, posixpath, re, sys
from pathlib import Path
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROC = ROOT/'_proc'
MAX_FIGURE = 200_000
RAW = '```{{{{=html}}}}\n{}\n```'   # of which `format` makes a template of raw HTML
sys.path.insert(0, str(HERE.parent))
from cells import EXT, PageError, code_markdown, joined, prose
from check_notebooks import check_executed, check_source, name_of, notebooks


def process():
    "`nbdev-proc-nbs` without its wish to install Quarto; returns nbdev's settings"
    from nbdev.config import get_config
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    for p in notebooks():
        for i, text in check_source(json.loads(p.read_text(encoding='utf-8'))):
            sys.exit(str(PageError(name_of(p), i, text)))
    os.chdir(ROOT)
    refresh_quarto_yml()
    share_what_is_loaded()
    lib = max((p.stat().st_mtime for p in (ROOT/'ekd_nb').glob('*.py')), default=0)
    stale = PROC.exists() and any(p.stat().st_mtime < lib for p in PROC.rglob('*.ipynb'))
    proc_nbs(n_workers=2, force=stale)
    return get_config()


def share_what_is_loaded():
    """Make nbdev's processes copies of this one, which has loaded the library (on Linux); read settings once

    Each process would load PyTorch and the library anew, and read pyproject.toml for every cell."""
    from functools import lru_cache
    from fastcore.parallel import parallel
    from nbdev import config, serve
    config._load_toml = lru_cache(config._load_toml)
    if not sys.platform.startswith('linux'): return
    import ekd_nb.all, ekd_nb.study.reproduce   # noqa: F401: what nearly every page imports
    serve.parallel = lambda f, items, **kw: parallel(f, items, **{**kw, 'method': 'fork'})


class Page:
    "One processed notebook"
    def __init__(self, path):
        self.path, self.rel = path, path.relative_to(PROC).as_posix()
        self.name = f'nbs/{self.rel}'
        self.nb = json.loads(path.read_text(encoding='utf-8'))
        source = json.loads((ROOT/self.name).read_text(encoding='utf-8'))
        self.executed = list(check_executed(source))
        self.number = {c.get('id'): i for i, c in enumerate(source['cells'])}
        front = next((joined(c['source']) for c in self.nb['cells'] if c['cell_type'] == 'raw'), '')
        self.front = yaml.safe_load(front.strip().strip('-')) or {} if front else {}
        file = self.front.get('output-file', Path(self.rel).with_suffix('.html').name)
        self.html = posixpath.join(posixpath.dirname(self.rel), file)
        self.title = self.front.get('title', Path(self.rel).stem)

    @property
    def base(self): return '../'*self.html.count('/')

    def markdown(self, out, fail):
        "The page as pandoc's markdown, pictures written below `out`; `fail(cell, text)` hears of problems"
        parts, cell_no = [], None
        for c in self.nb['cells']:
            cell_no = self.number.get(c.get('id'), cell_no)
            parts.append(f'<!--cell {"-" if cell_no is None else cell_no}-->')
            if c['cell_type'] == 'markdown': parts.append(prose(c['source']))
            if c['cell_type'] != 'code': continue
            self.check_records(joined(c['source']), cell_no, fail)
            self.check_html(c, cell_no, fail)
            image = lambda kind, data, opts, k: self.image(out, cell_no, fail, kind, data, opts, k)
            md = code_markdown(c, image, output='{.output}', html_block=RAW.format('<div class="cell-output">{}</div>'),
                               raw=RAW.format('{}'))
            opts = dict(re.findall(r'^#\|\s*(label|tbl-cap):\s*["\']?(.*?)["\']?\s*$', joined(c['source']), re.M))
            if opts.get('label', '').startswith('tbl-'):
                md = f'::: {{#{opts["label"]}}}\n{md}\n\n{opts.get("tbl-cap", "")}\n:::'
            parts.append(md)
        return '\n\n'.join(p for p in parts if p)

    def image(self, out, cell_no, fail, kind, data, opts, k):
        alt = opts.get('fig-alt') or opts.get('fig-cap')
        if isinstance(alt, list): alt = alt[k] if k < len(alt) else None
        if not alt: fail(cell_no, 'shows a picture without alternative text: give it `#| fig-alt:` or `#| fig-cap:`')
        if len(data) > MAX_FIGURE:
            fail(cell_no, f'shows a picture of {len(data)//1000} KB; {MAX_FIGURE//1000} KB are allowed')
        file = Path(f'{self.html[:-5]}_files')/f'cell-{cell_no}-{k}.{EXT[kind]}'
        (out/file).parent.mkdir(parents=True, exist_ok=True)
        (out/file).write_bytes(data)
        alt = html.escape(' '.join(str(alt or '').split()))
        src = self.base+file.as_posix()
        tag = f'```{{=html}}\n<p class="cell-output"><img src="{src}" alt="{alt}"></p>\n```'
        label, cap = opts.get('label', ''), opts.get('fig-cap')
        if isinstance(cap, list): cap = cap[k]
        if cap and label.startswith('fig-') and not k: return f'::: {{#{label}}}\n{tag}\n\n{cap}\n:::'
        return f'{tag}\n\n::: caption\n{cap}\n:::' if cap else tag

    def check_html(self, cell, cell_no, fail):
        "nbdev runs a cell with an import again and shows HTML then, for which Quarto loads scripts of another host"
        if any('text/html' in o.get('data', {}) for o in cell.get('outputs', ())):
            fail(cell_no, 'shows HTML, for which Quarto asks another host: give its imports a cell of their own')

    def check_records(self, src, cell_no, fail):
        for p in re.findall(r'results/[\w./-]+\.json', src):
            if not (ROOT/p).exists(): fail(cell_no, f'reads the record {p}, which does not exist')
