"""The site without Quarto: processed notebooks through pandoc into _preview/, with the navigation of _quarto.yml.

    python tools/preview/build.py

Fails, naming notebook and cell, on an unexecuted cell, an unknown citation, cross-reference or record, a picture
without alternative text or over 200 KB, and TeX that cannot be drawn.
"""
import html, json, posixpath, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import yaml

from pages import HERE, PROC, ROOT, Page, PageError, process
from refs import Refs, bib_keys
from search import script, sections

OUT = ROOT/'_preview'
READS = 'markdown-markdown_in_html_blocks+tex_math_single_backslash-yaml_metadata_block'


def leaves(item):
    "Pages of a part of a sidebar, in order: `(notebook, title or None)`"
    if isinstance(item, str): return [(item, None)]
    if isinstance(item, list): return [page for i in item for page in leaves(i)]
    return leaves(item['contents']) if 'contents' in item else [(item['href'], item.get('text'))]


def rels(item): return [rel for rel, _ in leaves(item)]


class Site:
    def __init__(self, cfg, out):
        self.cfg, self.out, self.problems, self.rows = cfg, out, [], {}
        self.yml = yaml.safe_load((ROOT/'_quarto.yml').read_text())
        self.pages = {p.rel: p for p in map(Page, sorted(PROC.rglob('*.ipynb')))}
        self.keys = bib_keys((ROOT/'nbs'/self.yml['bibliography']).read_text())
        self.order = self.sidebar_order()

    def sidebar_order(self):
        sidebars = self.yml['website']['sidebar']
        self.sidebars = sidebars if isinstance(sidebars, list) else [sidebars]
        self.names = dict(leaves(self.sidebars))
        order = list(self.names)
        missing = [r for r in order if r not in self.pages]
        hidden = [p for p in self.pages.values() if p.rel not in order]
        self.problems += [f'_quarto.yml: the sidebar names {r}, which does not exist' for r in missing]
        self.problems += [f'{p.name}: is not in the sidebar of _quarto.yml' for p in hidden]
        return [r for r in order if r in self.pages]

    def anchor(self, rel, page, text=None, cls=''):
        text = text or self.names.get(rel)
        if rel not in self.pages: return html.escape(text or rel)
        to = self.pages[rel]
        here = ' aria-current="page"' if to is page else ''
        return f'<a href="{page.base}{to.html}"{cls}{here}>{html.escape(text or to.title)}</a>'

    def items(self, contents, page, depth=1):
        "A part of the sidebar as a list; a section two levels deep is closed unless it holds the page"
        def one(item):
            if not isinstance(item, dict) or 'contents' not in item:
                rel = rels(item)[0]
                return f'<li>{self.anchor(rel, page)}</li>' if rel in self.pages else ''
            title, inner = html.escape(item['section']), self.items(item['contents'], page, depth+1)
            if depth < 2: return f'<li><p>{title}</p>{inner}</li>'
            shown = ' open' if page.rel in rels(item) else ''
            return f'<li><details{shown}><summary>{title}</summary>{inner}</details></li>'
        return f'<ul>{"".join(map(one, contents))}</ul>'

    def navigation(self, page):
        "Values of the template that come from _quarto.yml and the place of the page in it"
        web, repo = self.yml['website'], self.cfg.git_url
        mine = next((s['contents'] for s in self.sidebars if page.rel in rels(s)), [])
        order = [r for r in rels(mine) if r in self.pages]
        marked = lambda rel: ' class="here"' if rel in order else ''
        links = [self.anchor(i['href'], page, i['text'], marked(i['href'])) for i in web['navbar']['left']]
        side = self.items(mine, page)
        at = order.index(page.rel) if page.rel in order else None
        before = order[at-1] if at else None
        after = order[at+1] if at is not None and at+1 < len(order) else None
        turn = f'<span>← {self.anchor(before, page)}</span>' if before else '<span></span>' if after else ''
        turn += f'<span>{self.anchor(after, page)} →</span>' if after else ''
        source = f'{repo}/blob/{self.cfg.branch}/{page.name}'
        brand = f'<a class="brand" href="{page.base}index.html">{self.cfg.title}</a>'
        return dict(navbar=brand + ''.join(links), sidebar=side, turn=turn, base=page.base, repo=repo,
                    search='yes' if web['navbar'].get('search') else '', source=source,
                    favicon=web['favicon'], card=web['open-graph']['image'],
                    colab=source.replace('https://github.com/', 'https://colab.research.google.com/github/'))

    def link(self, page, target, cell, fail):
        "Where a link of a notebook leads in the preview"
        own = (self.cfg.doc_url or '').rstrip('/') + '/'
        if target.startswith(own): return page.base + (target[len(own):] or 'index.html')
        path, hash_, anchor = target.partition('#')
        if ':' in path or not path.endswith('.ipynb'): return target
        to = self.pages.get(posixpath.normpath(posixpath.join(posixpath.dirname(page.rel), path)))
        if not to: fail(cell, f'links to {target}, which does not exist')
        return page.base + to.html + hash_ + anchor if to else target

    def build(self):
        "Write every page; problems found on the way are kept"
        told = {p: [f'{p.name}{"" if i is None else f", cell {i}"}: {text}' for i, text in p.executed]
                for p in self.pages.values()}
        def failing(page): return lambda cell, text: told[page].append(str(PageError(page.name, cell, text)))
        docs = read([p.markdown(self.out, failing(p)) for p in told])
        jobs = [self.job(p, doc, failing(p)) for p, doc in zip(told, docs)]
        shared = dict(template=str(HERE/'page.html'), bibliography=str(ROOT/'nbs'/self.yml['bibliography']))
        for page, (text, warnings) in zip(told, write(jobs, **shared)):
            told[page] += [f'{page.name}: {w}' for w in warnings if 'TeX' in w or 'citeproc' in w.lower()]
            (self.out/page.html).parent.mkdir(parents=True, exist_ok=True)
            (self.out/page.html).write_text(text, encoding='utf-8')
        self.problems += [text for texts in told.values() for text in texts]

    def job(self, page, doc, fail):
        "What pandoc needs to write one page"
        refs = Refs(self.keys, fail, lambda target, cell: self.link(page, target, cell, fail))
        doc = refs(doc)
        self.rows[page.rel] = sections(page, doc)
        about = ' '.join(page.front.get('description', '').split())
        shown = dict(pagetitle=html.escape(page.title), about=html.escape(about.replace('`', '')),
                     subtitle=re.sub('`(.+?)`', r'<code>\1</code>', html.escape(about)))
        after = self.yml['format']['html'].get('include-after-body')
        if after: shown['include-after'] = (ROOT/'nbs'/after).read_text(encoding='utf-8')
        return dict(doc=json.dumps(doc), cites=refs.cited, variables={**self.navigation(page), **shown})

    def copy_assets(self):
        for f in PROC.rglob('*'):
            if f.is_file() and f.suffix in ('.css', '.png', '.svg', '.jpg'):
                (self.out/f.relative_to(PROC)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(f, self.out/f.relative_to(PROC))
        for f in (f for pattern in self.yml['project']['resources'] for f in PROC.glob(pattern)):
            (self.out/f.relative_to(PROC)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f, self.out/f.relative_to(PROC))
        for f in ('preview.css', 'preview.js'): shutil.copy(HERE/f, self.out/f)


def convert(kind, items, **shared):
    "What convert.lua makes of each item, `(result, lines of warning)`: two processes, each with half of the items"
    import pypandoc
    def half(k):
        job = out/f'{k}.json'
        job.write_text(json.dumps({kind: items[k::2], **shared}), encoding='utf-8')
        r = subprocess.run([pypandoc.get_pandoc_path(), 'lua', str(HERE/'convert.lua'), str(job)],
                           capture_output=True, text=True, encoding='utf-8')
        if r.returncode: raise RuntimeError(f'pandoc: {r.stderr.strip()}')
        said = re.split(r'^page \d+\n', r.stderr, flags=re.M)[1:]
        return zip(json.loads(r.stdout), [t.splitlines() for t in said])
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        out, done = Path(folder), [None]*len(items)
        for k, found in enumerate(pool.map(half, range(2))): done[k::2] = found
    return done


def read(texts):
    "pandoc's syntax tree of each text of a page"
    return [json.loads(doc) for doc, _ in convert('read', texts, format=READS)]


def write(jobs, **shared):
    "HTML of each page, and what pandoc says of it"
    return convert('write', jobs, **shared)


def main():
    start = time.time()
    cfg = process()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    site = Site(cfg, OUT)
    site.copy_assets()
    site.build()
    (OUT/'sections.js').write_text(script([r for rel in site.order for r in site.rows.get(rel, [])]), encoding='utf-8')
    for p in site.problems: print(p)
    bad = f', {len(site.problems)} complaints' if site.problems else ''
    print(f'{len(site.pages)} pages in _preview/, {time.time()-start:.0f} s{bad}')
    return bool(site.problems)


if __name__ == '__main__': sys.exit(main())
