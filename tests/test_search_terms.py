"What tools/search_terms.py writes into the index of Quarto's search."
import json, re, shutil, subprocess, sys
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT/'tools'), str(ROOT/'tools/preview')]
import check
import search_terms

PAGE = """<h2 id="networks">Networks</h2><ul>
<li><span id="head"><strong>Head</strong></span>: what follows the trunk, a 1×1 convolution &amp; a classifier.</li>
<li><span id="branched-student"><strong>Branched student</strong></span>: a student whose last stages exist several
times, for short <strong>branched</strong>.</li>
<li><span id="softmax"><strong>Softmax</strong></span>:
<math><mi>σ</mi><annotation>\\sigma</annotation></math> &lt; 1.</li>
<li>An item without a term.</li></ul>"""
OTHERS = [dict(objectID='student.html#heads', href='student.html#heads', title='student', section='Heads',
               crumbs=['Library'], text='Two heads share a trunk; softmaxes of branched students are compared.')]


@pytest.fixture
def site(tmp_path):
    (tmp_path/'glossary.html').write_text(PAGE)
    (tmp_path/'search.json').write_text(json.dumps(OTHERS))
    return tmp_path

def index(site): return json.loads((site/'search.json').read_text())

def test_terms_come_first_with_their_other_names(site):
    search_terms.main(site)
    rows = index(site)
    assert [(r['title'], r['section'], r['href']) for r in rows] == [
        ('Head', 'Heads', 'glossary.html?term=head#head'),
        ('Softmax', 'Softmaxes', 'glossary.html?term=softmax#softmax'),
        ('Branched student', 'Branched students', 'glossary.html?term=branched-student#branched-student'),
        ('student', 'Heads', 'student.html#heads')]
    whole = 'Head, heads: what follows the trunk, a 1×1 convolution &amp; a classifier.'
    assert rows[0]['text'].replace('\n', ' ') == whole
    assert rows[1]['text'] == 'Softmax, softmaxes:\nσ\n&lt;\n1.'
    assert rows[2]['text'].startswith('Branched student, branched students, branched:\na\nstudent')
    assert all(r.keys() == OTHERS[0].keys() for r in rows)

def test_twice_is_once(site):
    search_terms.main(site)
    once = index(site)
    search_terms.main(site)
    assert index(site) == once

@pytest.mark.parametrize('gone', ['search.json', 'glossary.html'])
def test_one_page_alone_has_no_index(site, gone):
    (site/gone).unlink()
    search_terms.main(site)
    assert gone == 'search.json' or index(site) == OTHERS

def test_quarto_calls_it_with_any_python(site, tmp_path):
    "As Quarto does: in the folder of the notebooks, the site's folder in the environment, no packages of this project"
    step = yaml.safe_load((ROOT/'_quarto.yml').read_text())['project']['post-render']
    said = subprocess.run([sys.executable, '-S', '-I', ROOT/'nbs'/step], cwd=ROOT/'nbs', capture_output=True,
                          text=True, env={'QUARTO_PROJECT_OUTPUT_DIR': str(site)})
    assert said.returncode == 0 and said.stdout.startswith('3 terms'), said.stderr
    assert index(site)[0]['title'] == 'Head'

def test_every_term_of_the_glossary_is_read():
    cells = json.loads((ROOT/'nbs/glossary.ipynb').read_text())['cells']
    text = '\n'.join(''.join(c['source']) for c in cells)
    items = re.findall(r'^- \[\*\*(.+?)\*\*\]\{#(.+?)\}(.*)$', text, re.M)
    page = ''.join(f'<li><span id="{a}"><strong>{t}</strong></span>{x}</li>' for t,a,x in items)
    got = search_terms.rows(page, 'heads, caches and views')
    assert {(r['title'], r['href'].split('#')[1]) for r in got} == {(t, a) for t,a,_ in items} and len(items) > 50

def score(row, typed):
    "Fuse's, with the weights and options of quarto-search.js: of two the smaller is listed first"
    product = 1.
    for key,weight in dict(title=20, section=20, text=10).items():
        text = row[key].lower()
        if typed not in text: continue
        product *= (sys.float_info.epsilon if text == typed else .001)**(weight/len(re.findall('[^ ]+', text))**.5)
    return product

@pytest.mark.parametrize('typed', ['head', 'heads', 'branched student', 'branched students', 'softmax'])
def test_a_typed_term_is_listed_first(site, typed):
    "Before a page of this name, which is one word, whose sections hold it, too"
    others = [dict(OTHERS[0], title=typed.split()[0], section=s, href=f'{typed}.html#{i}')
              for i,s in enumerate(['', typed, f'All {typed}'])]
    (site/'search.json').write_text(json.dumps(OTHERS + others))
    search_terms.main(site)
    assert min(index(site), key=lambda r: score(r, typed))['href'].startswith('glossary.html')

# As Quarto's search behaves: a button, a field, and links that repeat what was typed
SEARCH = """<!doctype html><div id="quarto-search"><button>search</button></div><div id="found"></div><script>
document.querySelector('button').onclick = e => {
  const field = document.createElement('input')
  field.className = 'aa-Input'
  field.oninput = () => setTimeout(() => document.getElementById('found').innerHTML =
    `<a class="search-result-link" href="%s">first</a>`.replace('WORD', field.value), 20)
  e.target.after(field)
}</script>"""

@pytest.mark.parametrize('href, n', [('glossary.html?term=head&q=WORD#head', 0), ('student.html?q=WORD#heads', 4)])
def test_the_check_types_terms_into_quartos_search(site, href, n):
    sync = pytest.importorskip('playwright.sync_api')
    browser = next(filter(None, map(shutil.which, check.BROWSERS)), None)
    if not browser: pytest.skip('no Chromium on this machine')
    (site/'index.html').write_text(SEARCH % href)
    server, base = check.serve(site)
    with sync.sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=browser, args=check.FLAGS)
        said = list(check.searched(chrome.new_page(), base, site))
        (site/'search.json').unlink()
        assert not list(check.searched(None, base, site))   # the preview has a search of its own
        chrome.close()
    server.shutdown()
    assert len(said) == n and all('not the glossary' in s for s in said), said
