"The preview resolves what Quarto would, and its checker sees what a reader would stumble over."
import json, shutil, sys
from pathlib import Path
import pytest

TOOLS = Path(__file__).resolve().parents[1]/'tools'
sys.path[:0] = [str(TOOLS), str(TOOLS/'preview')]
import build, check
from refs import Refs, bib_keys


def render(md, keys=('hinton2015kd',)):
    "HTML of a page of one cell, number 3, and the complaints about it"
    said = []
    doc = json.loads(build.pandoc(['-f', build.READS, '-t', 'json'], f'<!--cell 3-->\n\n{md}')[0])
    doc = Refs(set(keys), lambda cell, text: said.append((cell, text)), lambda target, cell: target.replace('.ipynb', '.html'))(doc)
    return build.pandoc(['-f', 'json', '-t', 'html5', '--mathml'], json.dumps(doc))[0], said


def test_references_are_numbered_in_reading_order():
    html, said = render('See @fig-b, @tbl-t and @eq-e.\n\n![one](a.png){#fig-a}\n\n![two](b.png){#fig-b}\n\n'
                        '| a |\n|---|\n| 1 |\n\n: rows {#tbl-t}\n\n$$x=1$$ {#eq-e}')
    assert not said
    for link in ('<a href="#fig-b" class="ref">Figure 2</a>', '<a href="#tbl-t" class="ref">Table 1</a>', '<a href="#eq-e" class="ref">Equation 1</a>'):
        assert link in html.replace('\n', ' ')
    for shown in ('id="fig-b"', 'Figure 2: two', 'id="tbl-t"', 'Table 1: rows', 'id="eq-e"', '(1)', '<math'): assert shown in html.replace('\n', ' ')
    assert '{#' not in html


@pytest.mark.parametrize('md, says', [('As @fig-none shows', 'cross-reference @fig-none'), ('By @nobody1999', 'citation @nobody1999'),
                                      ('![a](a.png){#fig-a}\n\n![b](b.png){#fig-a}', 'twice')])
def test_what_leads_nowhere_is_named_with_its_cell(md, says):
    (cell, text), = render(md)[1]
    assert cell == 3 and says in text


def test_callouts_and_links():
    html, said = render('::: {.callout-warning title="Mind"}\nThe [gap](x.ipynb#a).\n:::\n\n::: {.callout-note collapse="true"}\n## More\nText\n:::')
    assert not said and ':::' not in html
    assert '<div class="callout callout-warning"><p class="callout-title">Mind</p>' in html and 'href="x.html#a"' in html
    assert '<details class="callout callout-note"><summary class="callout-title">More</summary>' in html


def test_bibliography_has_the_works_that_pages_lean_on():
    keys = bib_keys((TOOLS.parent/'nbs/references.bib').read_text())
    assert {'asif2020ekd', 'hinton2015kd', 'romero2015fitnets', 'lan2018one', 'zhang2018dml', 'tian2020crd', 'zhao2022dkd'} <= keys


GOOD = '<!doctype html><html lang="en"><title>t</title><link rel="icon" href="data:,"><main><h2 id="a">A</h2>{}</main></html>'
SPOILED = {
    'no alternative text': '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">',
    'did not load': '<img src="nowhere.png" alt="x">', 'answers 404': '<img src="nowhere.png" alt="x">',
    'raw markup :::': '<p>::: {.callout-note}</p>', 'raw markup @fig-': '<p>see @fig-x</p>', 'raw markup \\(': '<p>\\(x\\)</p>', 'raw markup #|': '<p>#| echo: false</p>',
    'left as TeX': '<span class="math inline">x^2</span>', 'not drawn': '<math style="display:none"><mi>x</mi></math>',
    'dead link to gone.html': '<a href="gone.html">x</a>', 'dead anchor page.html#b': '<a href="#b">x</a>',
    'reaches': '<table style="width:800px"><tr><td>x</td></tr></table>', 'contrast': '<p style="color:#aaa;background:#fff">pale</p>',
    'script error': '<script>nothing()</script>', 'console': '<script>console.error("oh")</script>',
    'another host': '<img src="http://other.invalid/x.png" alt="x">'}


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    "Complaints about a sound page and about one page per fault, looked at in one go"
    found = {}
    folder = tmp_path_factory.mktemp('site')
    (folder/'sound.html').write_text(GOOD.format('<p>fine <a href="#a">up</a></p>'))
    for i, body in enumerate(SPOILED.values()): (folder/f'page{i}.html').write_text(GOOD.format(body.replace('href="#b"', f'href="page{i}.html#b"')))
    complaints = check.check(folder)
    if complaints is None: pytest.skip('no Chromium on this machine')
    for rel, text in complaints: found.setdefault(rel, []).append(text)
    return found


def test_sound_page_passes(seen): assert 'sound.html' not in seen


@pytest.mark.parametrize('i, says', list(enumerate(SPOILED)))
def test_fault_is_seen(seen, i, says):
    assert any(says.replace('page.html', f'page{i}.html') in t for t in seen.get(f'page{i}.html', [])), seen.get(f'page{i}.html')
