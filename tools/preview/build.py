"""The site without Quarto: processed notebooks through pandoc into _preview/, with the navigation of _quarto.yml.

    python tools/preview/build.py

Fails, naming notebook and cell, on an unexecuted cell, an unknown citation, cross-reference or record, a picture without
alternative text or over 200 KB, and TeX that cannot be drawn.
"""
import html, json, posixpath, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import yaml

from pages import HERE, PROC, ROOT, Page, PageError, process
from refs import Refs, bib_keys
from search import script, sections

OUT = ROOT/'_preview'
READS = 'markdown-markdown_in_html_blocks+tex_math_single_backslash-yaml_metadata_block'


def entry(item): return (item['href'], item.get('text')) if isinstance(item, dict) else (item, None)


class Site:
    def __init__(self, cfg, out):
        self.cfg, self.out, self.problems, self.rows = cfg, out, [], {}
        self.yml = yaml.safe_load((ROOT/'_quarto.yml').read_text())
        self.pages = {p.rel: p for p in map(Page, sorted(PROC.rglob('*.ipynb')))}
        self.keys = bib_keys((ROOT/'nbs'/self.yml['bibliography']).read_text())
        self.order = self.sidebar_order()

    def sidebar_order(self):
        self.names = dict(entry(i) for s in self.yml['website']['sidebar']['contents'] for i in s['contents'])
        order = list(self.names)
        self.problems += [f'_quarto.yml: the sidebar names {r}, which does not exist' for r in order if r not in self.pages]
        self.problems += [f'{p.name}: is not in the sidebar of _quarto.yml' for p in self.pages.values() if p.rel not in order]
        return [r for r in order if r in self.pages]

    def anchor(self, rel, page, text=None, cls=''):
        text = text or self.names.get(rel)
        if rel not in self.pages: return html.escape(text or rel)
        to = self.pages[rel]
        here = ' aria-current="page"' if to is page else ''
        return f'<a href="{page.base}{to.html}"{cls}{here}>{html.escape(text or to.title)}</a>'

    def navigation(self, page):
        "Values of the template that come from _quarto.yml and the place of the page in it"
        web, repo = self.yml['website'], self.cfg.git_url
        here = next((s['section'] for s in web['sidebar']['contents'] if page.rel in [entry(i)[0] for i in s['contents']]), None)
        links = [self.anchor(i['href'], page, i['text'], ' class="here"' if i['text'] == here else '') for i in web['navbar']['left']]
        side = ''.join(f'<p>{html.escape(s["section"])}</p><ul>' + ''.join(f'<li>{self.anchor(entry(i)[0], page)}</li>' for i in s['contents'] if entry(i)[0] in self.pages)
                       + '</ul>' for s in web['sidebar']['contents'])
        at = self.order.index(page.rel) if page.rel in self.order else None
        turn = [] if at is None else [f'<span>← {self.anchor(self.order[at-1], page)}</span>' if at else '<span></span>',
                                      f'<span>{self.anchor(self.order[at+1], page)} →</span>' if at+1 < len(self.order) else '']
        source = f'{repo}/blob/{self.cfg.branch}/{page.name}'
        return dict(navbar=f'<a class="brand" href="{page.base}index.html">{self.cfg.title}</a>' + ''.join(links), repo=repo,
                    search='yes' if web['navbar'].get('search') else '', sidebar=side, turn=''.join(turn), base=page.base, source=source, favicon=web['favicon'], card=web['open-graph']['image'],
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

    def build(self, page):
        "Write one page; problems found on the way are returned"
        bad = [f'{page.name}{"" if i is None else f", cell {i}"}: {text}' for i, text in page.executed]
        fail = lambda cell, text: bad.append(str(PageError(page.name, cell, text)))
        doc = json.loads(pandoc(['-f', READS, '-t', 'json', '--columns=1000'], page.markdown(self.out, fail))[0])
        doc = Refs(self.keys, fail, lambda target, cell: self.link(page, target, cell, fail))(doc)
        self.rows[page.rel] = sections(page, doc)
        args = ['-f', 'json', '-t', 'html5', '--standalone', '--mathml', '--toc', '--toc-depth=3', '--citeproc', f'--template={HERE/"page.html"}',
                f'--bibliography={ROOT/"nbs"/self.yml["bibliography"]}', '-M', 'link-citations=true']
        if after := self.yml['format']['html'].get('include-after-body'): args += ['-A', str(ROOT/'nbs'/after)]
        for k, v in self.navigation(page).items(): args += ['-V', f'{k}={v}']
        about = ' '.join(page.front.get('description', '').split())
        for k, v in dict(pagetitle=page.title, about=about.replace('`', '')).items(): args += ['-V', f'{k}={html.escape(v)}']
        args += ['-V', 'subtitle=' + re.sub('`(.+?)`', r'<code>\1</code>', html.escape(about))]
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
    site = Site(cfg, OUT)
    site.copy_assets()
    with ThreadPoolExecutor(2) as pool: site.problems += [p for found in pool.map(site.build, site.pages.values()) for p in found]
    (OUT/'sections.js').write_text(script([r for rel in site.order for r in site.rows.get(rel, [])]), encoding='utf-8')
    for p in site.problems: print(p)
    print(f'{len(site.pages)} pages in _preview/, {time.time()-start:.0f} s' + (f', {len(site.problems)} complaints' if site.problems else ''))
    return bool(site.problems)


if __name__ == '__main__': sys.exit(main())
