"""The site without Quarto: processed notebooks through pandoc into _preview/, with the navigation of _quarto.yml.

    python tools/preview/build.py

Fails, naming notebook and cell, on an unexecuted cell, an unknown citation, cross-reference or record, a picture without
alternative text or over 200 KB, and TeX that cannot be drawn.
"""
import html, json, os, posixpath, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
from cells import EXT, PageError, code_markdown, joined
from check_notebooks import check_executed, name_of, notebooks
from refs import Refs, bib_keys

OUT, PROC = ROOT/'_preview', ROOT/'_proc'
MAX_FIGURE = 200_000
READS = 'markdown-markdown_in_html_blocks+tex_math_single_backslash-yaml_metadata_block'


def process():
    "`nbdev-proc-nbs` without its wish to install Quarto; returns nbdev's settings"
    from nbdev.config import get_config
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    os.chdir(ROOT)
    refresh_quarto_yml()
    lib = max((p.stat().st_mtime for p in (ROOT/'ekd_nb').glob('*.py')), default=0)
    stale = PROC.exists() and any(p.stat().st_mtime < lib for p in PROC.rglob('*.ipynb'))
    proc_nbs(n_workers=2, force=stale)
    return get_config()


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
        self.html = posixpath.join(posixpath.dirname(self.rel), self.front.get('output-file', Path(self.rel).with_suffix('.html').name))
        self.title = self.front.get('title', Path(self.rel).stem)

    @property
    def base(self): return '../'*self.html.count('/')

    def markdown(self, out, fail):
        "The page as pandoc's markdown, pictures written below `out`; `fail(cell, text)` hears of problems"
        parts, cell_no = [], None
        for c in self.nb['cells']:
            cell_no = self.number.get(c.get('id'), cell_no)
            parts.append(f'<!--cell {"-" if cell_no is None else cell_no}-->')
            if c['cell_type'] == 'markdown': parts.append(joined(c['source']))
            if c['cell_type'] != 'code': continue
            self.check_records(joined(c['source']), cell_no, fail)
            image = lambda kind, data, opts, k: self.image(out, cell_no, fail, kind, data, opts, k)
            md = code_markdown(c, image, output='{.output}', html_block='```{{=html}}\n<div class="cell-output">{}</div>\n```')
            opts = dict(re.findall(r'^#\|\s*(label|tbl-cap):\s*["\']?(.*?)["\']?\s*$', joined(c['source']), re.M))
            if opts.get('label', '').startswith('tbl-'): md = f'::: {{#{opts["label"]}}}\n{md}\n\n{opts.get("tbl-cap", "")}\n:::'
            parts.append(md)
        return '\n\n'.join(p for p in parts if p)

    def image(self, out, cell_no, fail, kind, data, opts, k):
        alt = opts.get('fig-alt') or opts.get('fig-cap')
        if isinstance(alt, list): alt = alt[k] if k < len(alt) else None
        if not alt: fail(cell_no, 'shows a picture without alternative text: give it `#| fig-alt:` or `#| fig-cap:`')
        if len(data) > MAX_FIGURE: fail(cell_no, f'shows a picture of {len(data)//1000} KB; {MAX_FIGURE//1000} KB are allowed')
        file = Path(f'{self.html[:-5]}_files')/f'cell-{cell_no}-{k}.{EXT[kind]}'
        (out/file).parent.mkdir(parents=True, exist_ok=True)
        (out/file).write_bytes(data)
        tag = f'```{{=html}}\n<p class="cell-output"><img src="{self.base}{file.as_posix()}" alt="{html.escape(" ".join(str(alt or "").split()))}"></p>\n```'
        label, cap = opts.get('label', ''), opts.get('fig-cap')
        if isinstance(cap, list): cap = cap[k]
        if cap and label.startswith('fig-') and not k: return f'::: {{#{label}}}\n{tag}\n\n{cap}\n:::'
        return f'{tag}\n\n::: caption\n{cap}\n:::' if cap else tag

    def check_records(self, src, cell_no, fail):
        for p in re.findall(r'results/[\w./-]+\.json', src):
            if not (ROOT/p).exists(): fail(cell_no, f'reads the record {p}, which does not exist')


class Site:
    def __init__(self, cfg, out=OUT):
        self.cfg, self.out, self.problems = cfg, out, []
        self.yml = yaml.safe_load((ROOT/'_quarto.yml').read_text())
        self.pages = {p.rel: p for p in map(Page, sorted(PROC.rglob('*.ipynb')))}
        self.keys = bib_keys((ROOT/'nbs'/self.yml['bibliography']).read_text())
        self.order = self.sidebar_order()

    def sidebar_order(self):
        walk = lambda items: [r for i in items for r in (walk(i['contents']) if isinstance(i, dict) else [i])]
        order = walk(self.yml['website']['sidebar']['contents'])
        self.problems += [f'_quarto.yml: the sidebar names {r}, which does not exist' for r in order if r not in self.pages]
        self.problems += [f'{p.name}: is not in the sidebar of _quarto.yml' for p in self.pages.values() if p.rel not in order]
        return [r for r in order if r in self.pages]

    def anchor(self, rel, page, text=None, cls=''):
        if rel not in self.pages: return html.escape(text or rel)
        to = self.pages[rel]
        here = ' aria-current="page"' if to is page else ''
        return f'<a href="{page.base}{to.html}"{cls}{here}>{html.escape(text or to.title)}</a>'

    def navigation(self, page):
        "Values of the template that come from _quarto.yml and the place of the page in it"
        web, repo = self.yml['website'], self.cfg.git_url
        links = [self.anchor(i['href'], page, i['text']) for i in web['navbar']['left']]
        side = ''.join(f'<p>{html.escape(s["section"])}</p><ul>' + ''.join(f'<li>{self.anchor(r, page)}</li>' for r in s['contents'] if r in self.pages)
                       + '</ul>' for s in web['sidebar']['contents'])
        at = self.order.index(page.rel) if page.rel in self.order else None
        turn = [] if at is None else [f'<span>← {self.anchor(self.order[at-1], page)}</span>' if at else '<span></span>',
                                      f'<span>{self.anchor(self.order[at+1], page)} →</span>' if at+1 < len(self.order) else '']
        source = f'{repo}/blob/{self.cfg.branch}/{page.name}'
        return dict(navbar=f'<a class="brand" href="{page.base}index.html">{self.cfg.title}</a>' + ''.join(links) + f'<a class="repo" href="{repo}">Repository</a>',
                    sidebar=side, turn=''.join(turn), base=page.base, source=source, favicon=web['favicon'], card=web['open-graph']['image'],
                    colab=source.replace('https://github.com/', 'https://colab.research.google.com/github/'))

    def link(self, page, target):
        "Where a link of a notebook leads in the preview"
        own = (self.cfg.doc_url or '').rstrip('/') + '/'
        if target.startswith(own): return page.base + (target[len(own):] or 'index.html')
        path, hash_, anchor = target.partition('#')
        if ':' in path or not path.endswith('.ipynb'): return target
        to = self.pages.get(posixpath.normpath(posixpath.join(posixpath.dirname(page.rel), path)))
        return page.base + to.html + hash_ + anchor if to else target

    def build(self, page):
        "Write one page; problems found on the way are returned"
        bad = [f'{page.name}{"" if i is None else f", cell {i}"}: {text}' for i, text in page.executed]
        fail = lambda cell, text: bad.append(str(PageError(page.name, cell, text)))
        doc = json.loads(pandoc(['-f', READS, '-t', 'json'], page.markdown(self.out, fail))[0])
        doc = Refs(self.keys, fail, lambda target, cell: self.link(page, target))(doc)
        plain = dict(pagetitle=page.title, subtitle=page.front.get('description', ''))
        args = ['-f', 'json', '-t', 'html5', '--standalone', '--mathml', '--toc', '--toc-depth=3', '--citeproc', f'--template={HERE/"page.html"}',
                f'--bibliography={ROOT/"nbs"/self.yml["bibliography"]}', '-M', 'link-citations=true']
        for k, v in self.navigation(page).items(): args += ['-V', f'{k}={v}']
        for k, v in plain.items(): args += ['-V', f'{k}={html.escape(" ".join(v.split()))}']
        text, warnings = pandoc(args, json.dumps(doc))
        bad += [f'{page.name}: {w}' for w in warnings.splitlines() if 'TeX' in w or 'citeproc' in w.lower()]
        (self.out/page.html).parent.mkdir(parents=True, exist_ok=True)
        (self.out/page.html).write_text(text, encoding='utf-8')
        return bad

    def copy_assets(self):
        for f in PROC.rglob('*'):
            if f.is_file() and f.suffix in ('.css', '.png', '.svg', '.jpg'):
                (self.out/f.relative_to(PROC)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(f, self.out/f.relative_to(PROC))
        for f in ('preview.css', 'preview.js'): shutil.copy(HERE/f, self.out/f)


def pandoc(args, text):
    "pandoc's output and warnings"
    import pypandoc
    r = subprocess.run([pypandoc.get_pandoc_path(), *args], input=text, capture_output=True, text=True, encoding='utf-8')
    if r.returncode: raise RuntimeError(f'pandoc: {r.stderr.strip()}')
    return r.stdout, r.stderr


def main():
    start = time.time()
    cfg = process()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    site = Site(cfg)
    site.copy_assets()
    with ThreadPoolExecutor(2) as pool: site.problems += [p for found in pool.map(site.build, site.pages.values()) for p in found]
    for p in site.problems: print(p)
    print(f'{len(site.pages)} pages in _preview/, {time.time()-start:.0f} s' + (f', {len(site.problems)} complaints' if site.problems else ''))
    return bool(site.problems)


if __name__ == '__main__': sys.exit(main())
