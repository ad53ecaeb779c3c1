"The page on which students run: right numbers in Chromium, by keyboard, on a phone, and a sentence where it cannot"
import base64, json, re, shutil, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image

from ekd_nb.browser import load_graph, run_graph
from ekd_nb.core import digest_matches, sha256_file
from ekd_nb.pretrained import pretrained_teachers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT/'tools'), str(ROOT/'tools/preview')]
import browser_students as made
import check

ASK = ROOT/'nbs/ask'
FILES = sorted(p for p in ASK.iterdir() if p.is_file())
STUDENTS = 'branches', 'heads'
PICTURES = json.loads((ASK/'pictures.json').read_text())
PACKED = (ASK/'pictures.bin').read_bytes()
VOTES = [len(PICTURES[k]) for k in ('pictures', 'noise', 'teachers', 'classes')]
LEVELS = (0, 4, len(PICTURES['noise'])-1)   # no noise, some, and most


def unpacked(text, dtype, *shape): return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)

def pixels(): return np.frombuffer(PACKED, np.uint8, 3072*VOTES[0]).reshape(-1, 32, 32, 3)

def votes(): return np.frombuffer(PACKED, '<f2', offset=3072*VOTES[0]).reshape(VOTES).astype(float)

def expected(student):
    "PyTorch's logits [picture,noise,branch,class] of the student as it was trained"
    stored = json.loads((ROOT/'tests/browser_logits.json').read_text())
    assert digest_matches(stored)
    return unpacked(stored['logits'][student], '<f4', *stored['shape'])

def inputs(level, about):
    "Normalised images of all pictures"
    mean, std = (torch.tensor(about[k]).view(1, -1, 1, 1) for k in ('mean', 'std'))
    noisy = made.with_noise(pixels(), PICTURES['noise'][level])
    return ((torch.from_numpy(noisy).permute(0, 3, 1, 2)/255-mean)/std).float()

def graph_logits(student, level):
    "PyTorch's logits [picture,branch,class] with the page's 16-bit weights"
    about = json.loads((ASK/f'{student}.json').read_text())
    return run_graph(load_graph(ASK/f'{student}.json'), inputs(level, about)).numpy().transpose(1, 0, 2)


def raw_block():
    "The page's own HTML"
    cells = json.loads((ROOT/'nbs/ask.ipynb').read_text())['cells']
    sources = [''.join(c['source']) for c in cells]
    found, = filter(None, (re.search(r'```\{=html\}\n(.*?)\n```', s, re.S) for s in sources))
    return found[1]

PAGE = '''<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Ask</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="styles.css">
<link rel="stylesheet" href="preview.css"></head><body class="quarto-light"><div class="columns">
<nav class="side"></nav>
<main><h1>Ask the student</h1>{}</main></div></body></html>'''

def make_site(folder, without=()):
    "The page as the preview lays it out, some of its files missing"
    (folder/'ask').mkdir(parents=True)
    for f in FILES:
        if f.name not in without: shutil.copy(f, folder/'ask')
    for f in ('nbs/styles.css', 'tools/preview/preview.css'): shutil.copy(ROOT/f, folder)
    (folder/'ask.html').write_text(PAGE.format(raw_block()))
    return folder


@pytest.fixture(scope='module')
def chrome():
    sync = pytest.importorskip('playwright.sync_api')
    browser = next(filter(None, map(shutil.which, check.BROWSERS)), None)
    if not browser: pytest.skip('no Chromium on this machine')
    with sync.sync_playwright() as p:
        found = p.chromium.launch(executable_path=browser, args=check.FLAGS)
        yield found
        found.close()

@pytest.fixture(scope='module')
def whole(tmp_path_factory): return make_site(tmp_path_factory.mktemp('ask')/'site')

@pytest.fixture
def visit(chrome, request):
    "Open the page of a folder; what went wrong and which hosts were asked are kept"
    def opened(folder, **context):
        server, base = check.serve(folder)
        request.addfinalizer(server.shutdown)
        tab = chrome.new_page(**context)
        request.addfinalizer(tab.close)
        tab.set_default_timeout(120_000)
        tab.errors, tab.asked = [], []
        tab.on('pageerror', lambda e: tab.errors.append(str(e)))
        tab.on('request', lambda r: tab.asked.append(r.url))
        tab.goto(base+'ask.html')
        if context.get('java_script_enabled', True): tab.evaluate('askStudent.ready')
        tab.base = base
        return tab
    return opened

@pytest.fixture
def tab(visit, whole):
    found = visit(whole, viewport=dict(width=1280, height=900))
    yield found
    assert not found.errors
    assert all(u.startswith((found.base, 'data:', 'blob:')) for u in found.asked)


def test_the_page_weighs_less_than_a_megabyte():
    assert sum(f.stat().st_size for f in FILES)+(ROOT/'nbs/ask.ipynb').stat().st_size<1_000_000
    assert {f.suffix for f in FILES}=={'.js', '.css', '.json', '.bin'}


def test_the_site_carries_every_file_of_the_page():
    import yaml
    listed = yaml.safe_load((ROOT/'_quarto.yml').read_text())['project']['resources']
    carried = {p for pattern in listed for p in (ROOT/'nbs').glob(pattern)}
    assert set(FILES)<=carried


@pytest.mark.parametrize('student', STUDENTS)
@pytest.mark.parametrize('level', LEVELS)
def test_the_files_compute_what_the_trained_student_did(student, level):
    z, trained = graph_logits(student, level), expected(student)[:, level]
    far = np.abs(z-trained)
    assert far.max()<.02 and far.mean()<.003 and (z.argmax(-1)==trained.argmax(-1)).all()   # 16 bits instead of 32


@pytest.mark.parametrize('level', LEVELS)
def test_votes_are_those_of_the_teachers(level):
    assert digest_matches(PICTURES)
    assert PICTURES['sha256']==sha256_file(ASK/'pictures.bin')
    teachers = pretrained_teachers('cifar10', PICTURES['teachers'])
    about = json.loads((ASK/'branches.json').read_text())
    with torch.no_grad(): z = teachers(inputs(level, about)).logits.numpy()
    assert np.abs(z-votes()[:, level].transpose(1, 0, 2)).max()<.02
    assert np.abs(z).max()>1


def test_about_the_students():
    "What the page says of a student is in its file, and a student is better than chance"
    for s in STUDENTS:
        about = json.loads((ASK/f'{s}.json').read_text())
        assert about['test']['accuracy']>.5 and about['valid']['accuracy']>.5
        assert len(about['test']['branch_accuracy'])==len(about['branches'])==len(PICTURES['teachers'])
        for q in about['quantiles'].values(): assert len(q)==101 and q==sorted(q)
        assert about['target_spread']['0']==0<about['target_spread']['0.25']<about['target_spread']['1']


@pytest.mark.parametrize('student', STUDENTS)
def test_logits_in_the_browser_are_those_of_pytorch(tab, student):
    for level in LEVELS:
        z = tab.evaluate('''async ([s, n, level]) =>
            Promise.all([...Array(n).keys()].map(i => askStudent.logits(s, i, level)))''',
                         [student, len(PICTURES['pictures']), level])
        z,trained = np.array(z), expected(student)[:, level]
        saved = np.abs(z-graph_logits(student, level)).max()
        answer = np.abs(z.mean(1)-trained.mean(1)).max()   # of the student; a branch alone is rounded less well
        assert saved<.001 and answer<.01 and np.abs(z-trained).max()<.02, f'{student}, noise {level}'


def caption(tab): return tab.locator('.ask-caption').inner_text()
def verdict(tab): return tab.locator('.ask-verdict').inner_text()
def said(tab): return tab.locator('.ask-say [role=group]').get_attribute('aria-label')


def test_it_works_by_keyboard(tab):
    first, answer = caption(tab), said(tab)
    tab.locator('input[name=picture]').first.focus()
    tab.keyboard.press('ArrowRight')
    assert caption(tab)!=first and said(tab)!=answer
    tab.keyboard.press('ArrowLeft')
    assert caption(tab)==first and said(tab)==answer
    reached = []
    for _ in range(9):
        tab.keyboard.press('Tab')
        reached.append(tab.evaluate('''(e => (e.name || e.getAttribute('aria-label') || e.textContent).trim())
            (document.activeElement)'''))
    assert {'student', 'Noise', 'Temperature τ', 'Own teacher λ', 'As trained'} <= set(reached), reached
    tab.get_by_role('slider', name='Noise').focus()
    for _ in range(4): tab.keyboard.press('ArrowRight')
    assert said(tab)!=answer and f"σ = {PICTURES['noise'][4]} of 255" in tab.locator('.ask-look .ask-now').inner_text()
    tab.locator('input[name=student]').first.focus()
    tab.keyboard.press('ArrowRight')
    tab.wait_for_function("document.querySelector('.ask-one').textContent == 'head'")
    assert tab.locator('input[name=student]:checked').get_attribute('value')=='heads'


def test_sliders_change_the_target_only(tab):
    answer, near = said(tab), tab.locator('.ask-near')
    lam = tab.get_by_role('slider', name='Own teacher λ')
    lam.fill('0')
    assert 'taught the same' in near.inner_text()
    apart = []
    for v in ('0.25', '1'):
        lam.fill(v)
        apart.append(float(re.search(r'at most ([\d.]+) points', near.inner_text())[1]))
    assert 0<apart[0]<apart[1] and said(tab)==answer
    tab.get_by_role('button', name='As trained').click()
    assert tab.locator('.ask-sliders .ask-now').first.inner_text().endswith('as trained')


def needle(tab): return tab.locator('.ask-needle').first.evaluate('e => parseFloat(e.style.transform.slice(7))')

def test_the_needle_follows_the_branches(tab):
    "Its angle is that of the mutual information of the branches, for every picture and amount of noise"
    most = np.log(VOTES[2])
    def angle(picture, level):
        p = torch.from_numpy(graph_logits('branches', level)[picture]).double().softmax(-1)
        def entropy(p): return -(p*p.clamp(min=1e-30).log()).sum(-1)
        return 180*np.sqrt(max(0., (entropy(p.mean(0))-entropy(p).mean()).item())/most)
    seen = []
    for picture,level in ((0, 0), (3, 0), (3, 8), (len(PICTURES['pictures'])-1, 0)):
        tab.locator(f'input[name=picture][value="{picture}"]').check(force=True)
        tab.get_by_role('slider', name='Noise').fill(str(level))
        seen.append(needle(tab))
        assert abs(seen[-1]-angle(picture, level))<1, (picture, level)
    assert len(set(seen))==len(seen)
    before = needle(tab)
    tab.get_by_role('slider', name='Own teacher λ').fill('1')
    assert needle(tab)==before   # sliders of the target teach nobody here


def test_the_temperature_softens_target_and_comparison(tab):
    def top(): return tab.locator('.ask-lane').nth(1).locator('.ask-top').first.inner_text()
    shown = []
    for v in ('1', '4', '10'):
        tab.get_by_role('slider', name='Temperature τ').fill(v)
        shown.append(int(re.search(r'(\d+) %', top())[1]))
    assert shown[0]>shown[1]>shown[2]


def test_targets_are_the_loss_s(tab):
    "u_i = λ t_i + (1−λ) mean, softened by τ"
    t = votes()[0, 0]
    tab.get_by_role('slider', name='Own teacher λ').fill('0.75')
    tab.get_by_role('slider', name='Temperature τ').fill('2')
    u = torch.from_numpy((.75*t+.25*t.mean(0))/2).softmax(-1)
    for i, p in enumerate(u):
        label = tab.locator('.ask-lane').nth(1).locator('[role=group]').nth(i).get_attribute('aria-label')
        assert f"{PICTURES['classes'][int(p.argmax())]} {round(100*float(p.max()))} %" in label or p.max()>.99


def test_a_class_it_never_saw_is_named_as_such(tab):
    new = next(i for i, p in enumerate(PICTURES['pictures']) if not p['seen'])
    tab.locator(f'input[name=picture][value="{new}"]').check(force=True)
    assert 'never saw' in caption(tab) and 'no answer can be right' in verdict(tab)


def png(folder, name, size):
    Image.fromarray(pixels()[0]).resize(size, Image.NEAREST).save(folder/name)
    return folder/name


def test_a_picture_of_ones_own(tab, tmp_path):
    before, note = said(tab), tab.locator('.ask-note')
    def give(path):
        tab.locator('#ask-file').set_input_files(path)
        tab.wait_for_function('''document.querySelector('.ask-caption').textContent == 'Your picture' ||
            document.querySelector('.ask-note').textContent''')
    give(png(tmp_path, 'same.png', (32, 32)))
    assert caption(tab)=='Your picture' and said(tab)==before and note.inner_text()==''   # the first picture again
    assert 'no votes' in tab.locator('.ask-lane').first.inner_text()
    give(png(tmp_path, 'large.png', (640, 480)))
    tab.wait_for_function("document.querySelector('.ask-note').textContent")
    assert note.inner_text()=='Your picture has 640×480 pixels; the student sees its middle square at 32×32.'
    (tmp_path/'x.txt').write_text('no picture')
    give(tmp_path/'x.txt')
    tab.wait_for_function("document.querySelector('.ask-note').textContent.startsWith('x.txt')")
    assert note.inner_text()=='x.txt is no picture that this browser can read; expected PNG, JPEG, WebP or GIF.'


@pytest.mark.parametrize('mode', ['light', 'dark'])
def test_it_fits_a_phone_and_can_be_read(visit, whole, mode):
    tab = visit(whole, viewport=dict(width=390, height=844))
    tab.evaluate("mode => document.body.className = 'quarto-' + mode", mode)
    assert tab.evaluate('document.documentElement.scrollWidth')==390 and not tab.evaluate(check.TOO_WIDE)
    assert not tab.evaluate((ROOT/'tools/preview/contrast.js').read_text())
    small = tab.evaluate('''[...document.querySelectorAll('.ask *')].filter(e => e.childElementCount == 0 &&
        e.textContent.trim() && !e.closest('svg') && e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 11)
        .map(e => e.textContent)''')
    assert not small


@pytest.mark.parametrize('gone', ['branches.bin', 'branches.json', 'pictures.json', 'pictures.bin'])
def test_without_its_files_it_says_so_in_a_sentence(visit, tmp_path, gone):
    tab = visit(make_site(tmp_path/'site', [gone]))
    assert tab.locator('#ask-status').inner_text()==f'The student cannot answer here: ask/{gone} could not be loaded.'
    assert tab.locator('#ask').is_hidden() and not tab.errors


def test_damaged_weights_are_refused(visit, tmp_path):
    site = make_site(tmp_path/'site')
    (site/'ask/branches.bin').write_bytes(bytes(100))
    assert 'ask/branches.bin holds 50 weights instead of' in visit(site).locator('#ask-status').inner_text()


def test_without_the_other_student_the_first_goes_on(visit, tmp_path):
    tab = visit(make_site(tmp_path/'site', ['heads.bin']))
    answer = said(tab)
    tab.locator('input[name=student][value=heads]').check(force=True)
    tab.wait_for_function("document.querySelector('.ask-note').textContent")
    assert tab.locator('.ask-note').inner_text()=='The student cannot answer here: ask/heads.bin could not be loaded.'
    assert tab.locator('input[name=student]:checked').get_attribute('value')=='branches' and said(tab)==answer


def test_without_javascript_it_says_so(visit, whole):
    tab = visit(whole, java_script_enabled=False)
    assert 'JavaScript must be switched on' in tab.locator('main').inner_text()
