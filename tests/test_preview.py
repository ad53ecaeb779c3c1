"The preview resolves what Quarto would, and its checker sees what a reader would stumble over."
import base64, json, re, shutil, sys
from pathlib import Path
from types import SimpleNamespace
import pytest
from matplotlib.figure import Figure

TOOLS = Path(__file__).resolve().parents[1]/'tools'
sys.path[:0] = [str(TOOLS), str(TOOLS/'preview')]
import build, check, pages
from letters import smallest
from search import sections
from refs import Refs, bib_keys


def render(md, keys=('hinton2015kd',)):
    "HTML of a page of one cell, number 3, and the complaints about it"
    said = []
    doc = build.read([f'<!--cell 3-->\n\n{md}'])[0]
    doc = Refs(set(keys), lambda cell, text: said.append((cell, text)),
               lambda target, cell: target.replace('.ipynb', '.html'))(doc)
    return build.write([dict(doc=json.dumps(doc), cites=False)])[0][0], said


def test_references_are_numbered_in_reading_order():
    html, said = render('See @fig-b, @tbl-t and @eq-e.\n\n![one](a.png){#fig-a}\n\n![two](b.png){#fig-b}\n\n'
                        '| a |\n|---|\n| 1 |\n\n: rows {#tbl-t}\n\n$$x=1$$ {#eq-e}')
    assert not said
    for link in ('<a href="#fig-b" class="ref">Figure 2</a>', '<a href="#tbl-t" class="ref">Table 1</a>',
                 '<a href="#eq-e" class="ref">Equation 1</a>'):
        assert link in html.replace('\n', ' ')
    for shown in ('id="fig-b"', 'Figure 2: two', 'id="tbl-t"', 'Table 1: rows', 'id="eq-e"', '(1)', '<math'):
        assert shown in html.replace('\n', ' ')
    assert '{#' not in html


@pytest.mark.parametrize('md, says', [('As @fig-none shows', 'cross-reference @fig-none'),
                                      ('By @nobody1999', 'citation @nobody1999'),
                                      ('![a](a.png){#fig-a}\n\n![b](b.png){#fig-a}', 'twice')])
def test_what_leads_nowhere_is_named_with_its_cell(md, says):
    (cell, text), = render(md)[1]
    assert cell == 3 and says in text


def test_callouts_and_links():
    html, said = render('::: {.callout-warning title="Mind"}\nThe [gap](x.ipynb#a).\n:::\n\n::: {.callout-note '
                        'collapse="true"}\n## More\nText\n:::')
    assert not said and ':::' not in html
    assert ('<div class="callout callout-warning"><p class="callout-title">Mind</p>' in html and
            'href="x.html#a"' in html)
    assert '<details class="callout callout-note"><summary class="callout-title">More</summary>' in html


def test_bibliography_has_the_works_that_pages_lean_on():
    keys = bib_keys((TOOLS.parent/'nbs/references.bib').read_text())
    assert {'asif2020ekd', 'hinton2015kd', 'romero2015fitnets', 'zagoruyko2017at', 'park2019rkd', 'tung2019sp',
            'tian2020crd', 'zhao2022dkd', 'huang2022dist', 'sun2024ls', 'lan2018one',
            'song2018clilr', 'zhang2018dml', 'chen2020okddip', 'gou2021survey', 'he2016resnet', 'zagoruyko2016wrn',
            'huang2017densenet', 'guo2017calibration', 'kornblith2019cka',
            'krizhevsky2009cifar', 'howard2020fastai', 'nbdev'} <= keys




def md(src): return {'cell_type': 'markdown', 'id': 'm', 'metadata': {}, 'source': src}
def code(src, *outputs):
    return {'cell_type': 'code', 'id': 'c', 'metadata': {}, 'execution_count': None, 'source': src,
            'outputs': list(outputs)}
def shown(**data):
    return {'output_type': 'execute_result', 'metadata': {}, 'execution_count': None,
            'data': {k.replace('_', '/'): v for k, v in data.items()}}
def said(text, name='stdout'): return {'output_type': 'stream', 'name': name, 'text': text}
def picture(n=100): return shown(image_png=base64.b64encode(b'\x89PNG'+bytes(n)).decode())


class Project:
    "A project of a few pages in a folder of its own, as far as the preview looks at one"
    def __init__(self, root, monkeypatch):
        self.root = root
        for m in (build, pages): monkeypatch.setattr(m, 'ROOT', root), monkeypatch.setattr(m, 'PROC', root/'_proc')
        monkeypatch.setattr(build, 'OUT', root/'_preview')
        page = SimpleNamespace(git_url='https://github.com/me/it', branch='main', title='it',
                               doc_url='https://me.github.io/it')
        monkeypatch.setattr(build, 'process', lambda: page)
        for f in ('references.bib', 'styles.css', 'scripts.html'): self.put(f, (TOOLS.parent/'nbs'/f).read_text())
        (root/'_proc/images').mkdir()
        for f in ('card.png', 'favicon.png'): shutil.copy(TOOLS.parent/'nbs/images'/f, root/'_proc/images')
        self.page('index.ipynb', 'Home', md('First [the other](more.ipynb#deep).'))
        self.page('more.ipynb', 'More', md('Words about `code` [@hinton2015kd].'), md('## Deep'),
                  md('Here the *aardvark* lives.'))
        self.sidebar('index.ipynb', 'more.ipynb', 'x.ipynb')

    def put(self, name, text):
        for d in ('nbs', '_proc'):
            (self.root/d).mkdir(exist_ok=True)
            (self.root/d/name).write_text(text)

    def page(self, name, title, *cells, description='about `it`'):
        front = {'cell_type': 'raw', 'id': 'raw', 'metadata': {},
                 'source': f'---\ntitle: {title}\ndescription: {description!r}\n---'}
        cells = [dict(c, id=f'{c["id"]}{i}') for i, c in enumerate(cells)]
        self.put(name, json.dumps({'cells': [front, *cells], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}))

    def sidebar(self, *names):
        nav = '\n'.join(f'          - {n}' for n in names)
        yml = (TOOLS.parent/'_quarto.yml').read_text()
        at, end = yml.index('  sidebar:\n'), yml.index('\nmetadata-files')
        top = re.sub(r'left:\n(?:(?:      ).*\n)+', 'left:\n      - text: Start\n        href: index.ipynb\n', yml[:at])
        sidebar = '  sidebar:\n    - id: start\n      contents:\n      - section: Start\n        contents:\n'
        (self.root/'_quarto.yml').write_text(f'{top}{sidebar}{nav}\n{yml[end:]}')

    def build(self, *cells):
        "Is anything wrong with these cells on a page of their own?"
        self.page('x.ipynb', 'X', *cells)
        return build.main()


@pytest.fixture
def project(tmp_path, monkeypatch): return Project(tmp_path, monkeypatch)


def test_a_sound_page_is_built(project, capsys):
    assert not project.build(md('Text, $x^2$.'), code('1+1', shown(text_plain='2'))), capsys.readouterr().out
    text = (project.root/'_preview/x.html').read_text()
    for part in ('<math', '<title>X</title>', 'about <code>it</code>', 'content="about it"', 'blob/main/nbs/x.ipynb',
                 'colab.research.google.com/github/me/it/blob/main/nbs/x.ipynb',
                 'property="og:image" content="images/card.png"', 'aria-current="page"',
                 'id="search"'): assert part in text, part


@pytest.mark.parametrize('cell, says', [
    (code("json.load(open('../results/runs/gone.json'))", said('{}')),
     'reads the record results/runs/gone.json, which does not exist'),
    (md('As @nobody2020 says'), 'unknown citation @nobody2020'),
    (md('See @fig-none'), 'unknown cross-reference @fig-none'),
    (md('See [it](gone.ipynb)'), 'links to gone.ipynb, which does not exist'),
    (code('print(1)'), 'it was not executed'), (code('1/0', {'output_type': 'error', 'ename': 'ZeroDivisionError',
                                                             'evalue': 'division by zero', 'traceback': []}),
                                                             'has a stored error'),
    (code('import t\nt', shown(text_html='<table></table>')), 'shows HTML, for which Quarto asks another host'),
    (code('plot()', picture()), 'without alternative text'),
    (code('#| fig-alt: "a curve"\nplot()', picture(200_001)), 'picture of 200 KB; 200 KB are allowed')])
def test_bad_input_fails_with_notebook_and_cell(project, capsys, cell, says):
    assert project.build(md('Text.'), code('1', shown(text_plain='1')), cell)
    said = [l for l in capsys.readouterr().out.splitlines() if says in l]
    assert said and all(l.startswith('nbs/x.ipynb, cell 3') for l in said)


def test_tex_that_cannot_be_drawn_fails(project, capsys):
    assert project.build(md(r'$$\frac{1}{$$')) and 'nbs/x.ipynb' in capsys.readouterr().out


def test_a_page_outside_the_sidebar_and_a_name_without_a_page_fail(project, capsys):
    project.sidebar('index.ipynb', 'x.ipynb', 'gone.ipynb')
    assert project.build(md('Text.'))
    out = capsys.readouterr().out
    assert ('nbs/more.ipynb: is not in the sidebar' in out and
            'the sidebar names gone.ipynb, which does not exist' in out)


def test_an_output_in_several_forms_is_shown_as_quarto_would(project):
    project.build(code('t', shown(text_markdown='```html\n<table>\n```',
                                  text_html='<table class="t"><tr><td>7</td></tr></table>', text_plain='t')),
                  code('s', shown(text_html='<style>x {}</style>', text_plain='<HTML object>')),
                  code('p', said('one\n'), said('hush', 'stderr'), said('two\n')))
    text = (project.root/'_preview/x.html').read_text()
    assert '<table class="t">' in text and '&lt;table' not in text and 'HTML object' not in text
    assert 'one\ntwo' in text and 'hush' not in text


def test_folded_code_and_directives_of_markdown(project):
    project.build(md('#| export\nA paragraph.'), code('#| code-fold: true\n#| code-summary: "Much ado"\nx = 1'))
    text = (project.root/'_preview/x.html').read_text()
    assert ('#|' not in text and '```' not in text and '<details><summary>Much ado</summary>' in text and
            'class="sourceCode' in text)


def test_sections_of_a_page_can_be_searched():
    doc, = build.read(['Before.\n\n## One {#one}\n\nText $x$ and `code`.\n\n```{.output}\nnoise\n```\n\n| a '
                       '| b |\n|---|---|\n| c | d |\n\n### Two {#two}\n\n- e\n- f'])
    rows = sections(SimpleNamespace(title='T', html='t.html', front={'description': 'about'}), doc)
    assert rows == [['T', 'about', 't.html', 'Before.'], ['T', 'One', 't.html#one', 'Text x and code. a b c d'],
                    ['T', 'Two', 't.html#two', 'e f']]


def test_the_search_box_finds_a_section_and_goes_there(project):
    from playwright.sync_api import sync_playwright
    browser = next(filter(None, map(shutil.which, check.BROWSERS)), None)
    if not browser: pytest.skip('no Chromium on this machine')
    project.build(md('Nothing.'))
    server, base = check.serve(project.root/'_preview')
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=browser, args=check.FLAGS)
        tab = chrome.new_page()
        asked = []
        tab.on('request', lambda r: asked.append(r.url))
        for start in (base+'x.html', (project.root/'_preview/x.html').as_uri()):
            tab.goto(start)
            tab.keyboard.press('/')
            tab.keyboard.type('AARDvark lives')
            tab.wait_for_selector('#found a')
            assert tab.locator('#found a').count() == 1 and 'More › Deep' in tab.locator('#found').inner_text()
            tab.keyboard.press('Enter')
            tab.wait_for_url('**/more.html#deep')
        tab.fill('#search', 'zebra')
        tab.get_by_text('nothing found').wait_for()
        chrome.close()
    server.shutdown()
    assert all(u.startswith((base, 'file:', 'data:')) for u in asked)


def chromium(p):
    "A browser, if there is one"
    browser = next(filter(None, map(shutil.which, check.BROWSERS)), None)
    if not browser: pytest.skip('no Chromium on this machine')
    return p.chromium.launch(executable_path=browser, args=check.FLAGS)


def test_a_term_of_the_glossary_is_found_first(project):
    from playwright.sync_api import sync_playwright
    project.page('glossary.ipynb', 'Glossary', md('- [**Hint**]{#hint}: compares features.'))
    project.page('more.ipynb', 'Hint', md('## Hint\n\nA hint.'), md('## Deep\n\nOf hints.'))
    project.sidebar('index.ipynb', 'more.ipynb', 'x.ipynb', 'glossary.ipynb')
    project.build(md('A hint.'))
    with sync_playwright() as p:
        tab = chromium(p).new_page()
        tab.goto((project.root/'_preview/x.html').as_uri())
        for query in ('hint', 'Hints', 'hin'):
            tab.fill('#search', query)
            first = tab.locator('#found a').first
            first.wait_for()
            assert first.inner_text().startswith('Glossary › Hint'), query


def test_the_first_tab_reaches_a_link_over_the_navigation(project):
    from playwright.sync_api import sync_playwright
    project.build(md('Read [me](more.ipynb).'))
    with sync_playwright() as p:
        tab = chromium(p).new_page()
        tab.goto((project.root/'_preview/x.html').as_uri())
        def focus(what): return tab.evaluate(f'document.activeElement.{what}')
        tab.keyboard.press('Tab')
        assert focus('className')=='skip' and focus('getBoundingClientRect().left')>=0
        tab.keyboard.press('Enter')
        assert focus('id')=='content'
        tab.keyboard.press('Tab')
        assert focus('closest("main")') is not None   # not in the navigation


RESULTS = [p.stem for p in sorted((TOOLS.parent/'nbs/results').glob('*.ipynb'))]

def first_table(page):
    "The first table that a page of results shows, as markdown"
    cells = json.loads((TOOLS.parent/f'nbs/results/{page}.ipynb').read_text())['cells']
    shown = (''.join(o.get('data', {}).get('text/markdown', '')) for c in cells for o in c.get('outputs', []))
    return next(re.search(r'(?:^\|.*\n?)+', t, re.M)[0] for t in shown if re.search(r'^\|', t, re.M))


def test_a_phone_shows_name_and_value_of_every_table_of_results(project):
    "The first column stays while a table is scrolled; the second is there without scrolling"
    from playwright.sync_api import sync_playwright
    assert not project.build(*(md(first_table(page)) for page in RESULTS))
    with sync_playwright() as p:
        tab = chromium(p).new_page(viewport=dict(width=390, height=844))
        tab.goto((project.root/'_preview/x.html').as_uri())
        assert not tab.evaluate(check.PHONE_TABLE.replace('.slice(0, 1)', ''))
        moved = tab.evaluate("""() => [...document.querySelectorAll('main table')].map(t => {
            const left = () => t.tBodies[0].rows[0].cells[0].getBoundingClientRect().left, before = left()
            t.scrollLeft = 200
            return [t.scrollLeft, left() - before]
        })""")
        heads = tab.locator('main table').evaluate_all('ts => ts.map(t => t.tHead.rows[0].cells[1].textContent)')
    assert len(moved)==len(RESULTS) and any(scrolled for scrolled,_ in moved) and not any(step for _,step in moved)
    assert any('accuracy' in h for h in heads)


def test_terms_of_the_glossary_have_rows_of_their_own_in_the_search():
    text = '## Networks {#networks}\n\n- [**Hint**]{#hint}: compares *features*.\n- plain'
    doc = build.read([text])[0]
    rows = sections(SimpleNamespace(title='Glossary', html='glossary.html', front={}), doc)
    assert rows[-1] == ['Glossary', 'Hint', 'glossary.html#hint', 'Hint: compares features.']


def linked_terms():
    text = (TOOLS.parent/'nbs/scripts.html').read_text()
    return set(re.findall(r"': '([\w-]+)'", text.split('const terms')[1].split('}')[0]))


def test_the_words_that_pages_link_are_in_the_glossary():
    text = (TOOLS.parent/'nbs/glossary.ipynb').read_text()
    assert linked_terms() <= set(re.findall(r'\]\{#([\w-]+)\}', text)) and len(linked_terms()) > 30


def test_the_first_use_of_a_term_leads_to_the_glossary(tmp_path):
    from playwright.sync_api import sync_playwright
    browser = next(filter(None, map(shutil.which, check.BROWSERS)), None)
    if not browser: pytest.skip('no Chromium on this machine')
    body = ('<p>Two <b>branches</b>, a branch, <code>hint</code>, a hint and EKD (heads) beside EKD.</p>'
            '<p>The next hint.</p><table><tr><th>a</th></tr></table>')
    scripts = (TOOLS.parent/'nbs/scripts.html').read_text()
    page = f'<nav><a href="glossary.html">G</a></nav><main>{body}</main>{scripts}'
    (tmp_path/'page.html').write_text(page)
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=browser, args=check.FLAGS)
        tab = chrome.new_page()
        tab.goto((tmp_path/'page.html').as_uri())
        terms = "[...document.querySelectorAll('a.term')].map(a => [a.textContent, a.getAttribute('href')])"
        found = tab.evaluate(terms)
        scope = tab.evaluate("document.querySelector('th').scope")
        chrome.close()
    assert found == [['branches', 'glossary.html#branch'], ['hint', 'glossary.html#hint'],
                     ['EKD (heads)', 'glossary.html#ekd-heads'], ['EKD', 'glossary.html#ekd']] and scope == 'row'


def test_from_home_the_idea_the_evidence_and_a_run_are_a_click_away():
    nb = json.loads((TOOLS.parent/'nbs/index.ipynb').read_text())
    text = '\n'.join(''.join(c['source']) for c in nb['cells'])
    links = set(re.findall(r'\]\(([\w/]+\.ipynb)', text))
    assert {'tutorials/from_scratch.ipynb', 'tutorials/fastai_users.ipynb', 'results/cifar10.ipynb',
            'results/fidelity.ipynb', 'glossary.ipynb'} <= links
    assert 'make reproduce' in text and 'make test' in text and 'What it is not' in text


# What Quarto 1.7 writes around a page, and the rules of its themes that the site's own must outweigh
QUARTO = """<!doctype html><html lang="en"><head><title>t</title><link rel="icon" href="data:,">
<link id="quarto-bootstrap" href="data:text/css,"><link id="quarto-bootstrap" href="data:text/css,"><style>
.table {{width: 100%; border-top: 1px solid red}} code span.kw {{font-weight: bold; color: orange}}
div.callout-note.callout-style-default > .callout-header {{background: #e6f1fb; opacity: .85}}
#quarto-content section:first-of-type h2:first-of-type {{margin-top: 1rem}}
</style><style>{styles}</style></head><body class="quarto-light"><nav class="navbar"></nav><div id="quarto-content">
<main class="content" id="quarto-document-content"><p>First.</p><section class="level2"><h2>A</h2><p>Words.</p>
<div class="callout callout-note callout-style-default"><div class="callout-header">More</div></div>
<table class="table"><tbody><tr><td>1</td></tr></tbody></table>
<pre><code class="sourceCode"><span><span class="kw">def</span></span></code></pre></section></main></div>
{scripts}<nav class="page-navigation">next</nav></body></html>"""
STYLE = "([where, name]) => getComputedStyle(document.querySelector(where))[name]"


def test_what_quarto_writes_has_the_look_and_the_names_of_the_site(tmp_path):
    from playwright.sync_api import sync_playwright
    browser = next(filter(None, map(shutil.which, check.BROWSERS)), None)
    if not browser: pytest.skip('no Chromium on this machine')
    styles, scripts = ((TOOLS.parent/'nbs'/f).read_text() for f in ('styles.css', 'scripts.html'))
    (tmp_path/'page.html').write_text(QUARTO.format(styles=styles, scripts=scripts))
    server, base = check.serve(tmp_path)
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=browser, args=check.FLAGS)
        tab = chrome.new_page()
        bad = check.look(tab, base, 'page.html', tmp_path)[0]
        assert not bad, bad   # among others: the last navigation has its name
        tab.set_viewport_size({'width': 1280, 'height': 900})
        tab.evaluate(check.SET_THEME, False)
        def style(where, name): return tab.evaluate(STYLE, [where, name])
        assert style('section p', 'maxWidth') == style('main > p', 'maxWidth') == '736px'
        assert float(style('table', 'width')[:-2]) < 100 and style('table', 'borderTopWidth') == '0px'
        assert style('.callout-header', 'backgroundColor') == style('.callout', 'backgroundColor')
        assert style('.kw', 'color') == 'rgb(139, 34, 82)' and style('h2', 'marginTop') == '32px'
        chrome.close()
    server.shutdown()


WIDE = '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="90"><rect width="900" height="90"/></svg>'
GOOD = ('<!doctype html><html lang="en"><title>t</title><link rel="icon" href="data:,">'
        '<main><h2 id="a">A</h2>{}</main></html>')
SPOILED = {
    'no alternative text': '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">',
    'did not load': '<img src="nowhere.png" alt="x">', 'answers 404': '<img src="nowhere.png" alt="x">',
    'raw markup :::': '<p>::: {.callout-note}</p>', 'raw markup @fig-': '<p>see @fig-x</p>',
    'raw markup \\(': '<p>\\(x\\)</p>', 'raw markup #|': '<p>#| echo: false</p>',
    'HTML source': '<pre class="sourceCode html"><code class="sourceCode html">&lt;table&gt;</code></pre>',
    'raw markup `': '<p>the `code` here</p>',
    'raw markup in an output': '<pre class="output">::: x</pre>',
    'too small': '<img alt="x" width="300" '
                 f'src="data:image/svg+xml;base64,{base64.b64encode(WIDE.encode()).decode()}">',
    'left as TeX': '<span class="math inline">x^2</span>', 'not drawn': '<math style="display:none"><mi>x</mi></math>',
    'dead link to gone.html': '<a href="gone.html">x</a>', 'dead anchor page.html#b': '<a href="#b">x</a>',
    'anchor #a is there twice': '<p id="a">x</p>',
    'reaches': '<table style="width:800px"><tr><td>x</td></tr></table>',
    'px wide at 390': '<div style="width:800px">x</div>',
    'light: contrast': '<p style="color:#aaa;background:#fff">pale</p>',
    'dark: contrast': '<style>.quarto-dark p {background: #111; color: #555}</style><p>pale</p>',
    'request failed': '<script>fetch("http://127.0.0.1:9/").catch(() => 0)</script>',
    'weighs': '<img alt="x" src="heavy.png">',
    'dark: picture slab.png is a white slab':
        '<style>.quarto-dark {background: #111}</style><img alt="x" src="slab.png">',
    'light: ink of picture faint.png has a contrast of 2': '<img alt="x" src="faint.png">',
    'on a phone: picture broad.png': '<img alt="x" src="broad.png" style="max-width:100%">',
    'dark: contrast 1':
        '<style>.quarto-dark {background: #111; color: #eee} code {background: #eee}</style><p><code>x</code></p>',
    'dark: contrast 1.0': '<style>.quarto-dark {background: #111; color: #fff} td {background: #fff}</style>'
                         '<table><tr><td>1</td></tr></table>',
    'is linked twice': '<p><a class="term" href="#a">x</a> <a class="term" href="#a">x</a></p>',
    'navigation without a name': '<nav><a href="#a">x</a></nav>',
    'without scope': '<table><tr><th>x</th></tr></table>',
    'letters in picture small.png are': '<img alt="x" src="small.png" width="160">',
    'script error': '<script>nothing()</script>', 'console': '<script>console.error("oh")</script>',
    'another host': '<img src="http://other.invalid/x.png" alt="x">'}

BOX = '<div class="callout"><p>Asked</p><p>Found</p><p>Means</p></div>'
DOT = '<img alt="x" src="data:image/svg+xml;base64,' + base64.b64encode(
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>').decode() + '">'
def table(*values): return f'<table>{"".join(f"<tr><td>m</td><td>{v}</td></tr>" for v in values)}</table>'
ANSWER = BOX+DOT+table(3, 2, 1)
UNANSWERED = {   # what is said of a page of results -> its content
    'opens with no box': DOT+table(1), 'p stands before the box': f'<p>x</p>{ANSWER}',
    'shows 2 figures': BOX+DOT+DOT+table(1), 'shows 0 figures': BOX+table(1),
    'shows 2 tables': ANSWER+table(1), 'its table stands before its figure': BOX+table(1)+DOT,
    'has 9 rows': BOX+DOT+table(*range(9)), 'not sorted by the value': BOX+DOT+table(2, 3, 1),
    'says “Not measured.”': f'{ANSWER}<p>Not measured.</p>',
    'the second column of the table of m3 ends at': BOX+DOT+'<style>td {min-width: 300px}</style>'+table(3),
    'the first column of the table of m3 does not stay': ANSWER,
    'what was found ends at': ANSWER.replace('<p>Found', '<p style="padding-top:900px">Found'),
    '': f'<style>td {{position: sticky}}</style>{ANSWER}'
        f'<details><summary>more</summary>{DOT}{table(1, 3, 2)}</details>'}


def drawing(path, size, paper, ink=None):
    "A picture of one colour, with a bar of ink"
    from PIL import Image
    image = Image.new('RGBA', size, paper)
    if ink: image.paste(ink, (5, 5, size[0]-5, 9))
    image.save(path)


def writing(path, size, words='several teachers'):
    "A picture of words in letters of this size, points of 1/100 inch"
    fig = Figure((3, .5), dpi=100)
    fig.text(.02, .3, words, fontsize=size, color='#7a7a7a')
    fig.savefig(path, transparent=True)


@pytest.mark.parametrize('size', (7, 8, 9, 10, 12, 16))
def test_the_size_of_letters_is_measured(size, tmp_path):
    writing(tmp_path/'x.png', size)
    assert abs(smallest(tmp_path/'x.png')-size*100/72)<2   # hinting rounds a letter to whole pixels


def test_letters_that_do_not_tell_are_not_measured(tmp_path):
    for words in ('0.25 0.50', 'runs', ''):
        writing(tmp_path/'x.png', 9, words)
        assert smallest(tmp_path/'x.png') is None, words


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    "Complaints about a sound page and about one page per fault, looked at in one go"
    found = {}
    folder = tmp_path_factory.mktemp('site')
    (folder/'heavy.png').write_bytes((TOOLS.parent/'nbs/images/card.png').read_bytes()+bytes(check.MAX_PAGE))
    pictures = (('slab', 60, '#ffffffff'), ('faint', 60, '#00000000 #aaaaaaff'), ('broad', 700, '#7a7a7aff'))
    for name, width, colors in pictures:
        drawing(folder/f'{name}.png', (width, 40), *colors.split())
    writing(folder/'small.png', 10)
    (folder/'results').mkdir()
    for i, body in enumerate(UNANSWERED.values()): (folder/f'results/{i}.html').write_text(GOOD.format(body))
    (folder/'index.html').write_text(GOOD.format(f'<p>{"word "*121}</p><pre>make</pre>'))
    (folder/'sound.html').write_text(GOOD.format('<p>fine <a href="#a">up</a></p>'))
    for i, body in enumerate(SPOILED.values()):
        (folder/f'page{i}.html').write_text(GOOD.format(body.replace('href="#b"', f'href="page{i}.html#b"')))
    complaints = check.check(folder)
    if complaints is None: pytest.skip('no Chromium on this machine')
    for rel, text in complaints: found.setdefault(rel, []).append(text)
    return found


def test_sound_page_passes(seen): assert 'sound.html' not in seen


@pytest.mark.parametrize('i, says', list(enumerate(UNANSWERED)))
def test_a_page_of_results_answers_first(seen, i, says):
    found = [t for t in seen.get(f'results/{i}.html', []) if 'h2 stands' not in t and 'scope' not in t]
    assert any(says in t for t in found) if says else not found, found


def test_words_of_the_start_page_are_counted(seen):
    assert any('words before its commands' in t for t in seen['index.html']), seen.get('index.html')


def test_what_the_start_page_lacks_on_its_first_screen_is_named(seen):
    for lacks in ('picture of the idea', 'figure of the result', 'verdict', 'third door'):
        assert any(f'has no {lacks}' in t for t in seen['index.html']), lacks


def test_any_folder_of_pages_can_be_looked_at(tmp_path, capsys):
    assert check.main([str(tmp_path)]) and 'holds no page' in capsys.readouterr().out
    (tmp_path/'_docs').mkdir()
    (tmp_path/'_docs/index.html').write_text(GOOD.format('<p style="color:#aaa">pale</p>'))
    if check.check(tmp_path/'_docs') is None: pytest.skip('no Chromium on this machine')
    assert check.main([str(tmp_path/'_docs')]) and 'index.html: light: contrast' in capsys.readouterr().out


@pytest.mark.parametrize('i, says', list(enumerate(SPOILED)))
def test_fault_is_seen(seen, i, says):
    assert any(says.replace('page.html', f'page{i}.html') in t
               for t in seen.get(f'page{i}.html', [])), seen.get(f'page{i}.html')
