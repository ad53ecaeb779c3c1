"""Looks at every page of a built site in headless Chromium: wide and narrow, light and dark.

    python tools/preview/check.py [FOLDER] [--shots FOLDER]

The folder is _preview/, or _docs/ where Quarto wrote one. Complains of console errors, failed requests, requests to
another host, dead links and anchors, pictures that did not load or have no alternative text, raw markup, equations not
drawn, tables wider than a 390-pixel page, text with a contrast below 4.5, figures that are a white slab on a dark page
or whose ink is faint on either (below 4; no ink has more than 4.2 on both), writing in figures that a phone shows
too small (letters below 9 pixels, measured in letters.py), navigation without a name, pages over 600 kB (with what all
pages share: over 2 MB), a start page of more than 120 words before its commands or without its sentence, its two
pictures, its verdict and its doors on the first screen, and pages of results that do not answer on theirs, show more
than a box, a figure and a small table unfolded, or begin with a table whose second column a phone does not show, and of
Quarto's search where a term of the glossary does not come first.
`--shots` writes a picture of every page. Without a Chromium it says so and passes.
"""
import argparse, functools, http.server, shutil, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit
from letters import smallest

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1]/'_preview'
BROWSERS = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-renderer-backgrounding',
         '--disable-backgrounding-occluded-windows']
FIRST_SCREEN = """height => [...document.querySelectorAll('main .callout p')]
  .filter(p => p.textContent.trim().startsWith('Found')).slice(0, 1)
  .map(p => Math.round(p.getBoundingClientRect().bottom + scrollY)).filter(y => y > height)
  .map(y => `what was found ends at ${y} px; a first screen has ${height}`)"""
HOME_SCREEN = """height => {
  const all = what => [...document.querySelectorAll('main ' + what)], [idea, result] = all('img')
  const said = all('p').filter(p => !p.closest('header, .doors, .cell-output, .caption, .description, .actions'))
    .filter(p => p.textContent.trim())
  const verdict = said.find(p => p.querySelector('strong') && result?.compareDocumentPosition(p) & 4)
  const doors = all('.doors a')
  const parts = {sentence: said[0], 'picture of the idea': idea, 'figure of the result': result, verdict,
                 'third door': doors[2], 'last door': doors.at(-1)}
  return Object.entries(parts).map(([name, e]) => [name, e && Math.round(e.getBoundingClientRect().bottom + scrollY)])
    .filter(([, y]) => !(y <= height))
    .map(([name, y]) => y ? `its ${name} ends at ${y} px; a first screen has ${height}` : `has no ${name}`)
}"""
PHONE_TABLE = """() => [...document.querySelectorAll('main table')]
  .filter(t => t.clientWidth && t.rows[0]?.cells.length > 1).slice(0, 1)
  .flatMap(t => {
    const [name, value] = [...(t.tBodies[0]?.rows[0] || t.rows[0]).cells]
    const right = Math.round(value.getBoundingClientRect().right)
    const of = `the table of ${t.rows[0].textContent.trim().replace(/\\s+/g, ' ').slice(0, 40)}`
    return [getComputedStyle(name).position != 'sticky' && `the first column of ${of} does not stay`,
            right > innerWidth && `the second column of ${of} ends at ${right} px of ${innerWidth}`].filter(Boolean)
  })"""
MIN_LETTERS = 9-.6   # pixels; letters are drawn, and measured, in whole ones
MAX_WORDS = 120   # of the start page before its commands
MAX_PAGE, MAX_SHARED = 600_000, 2_200_000   # bytes: a page with its pictures; with what Quarto's pages share, 1.6 MB
HEAVY = 'ask.html',   # a page that brings a network with it
TERMS = 'trunk', 'heads', 'cache', 'temperature'   # typed into Quarto's search, which has to list the glossary first
LISTED = """word => [...document.querySelectorAll('a.search-result-link')].map(a => a.getAttribute('href'))
  .filter(href => href.includes(`q=${word}#`) || href.endsWith(`q=${word}`))[0]"""
SET_THEME = """dark => {
  if (document.body.classList.contains('quarto-dark') == dark) return
  if (window.quartoToggleColorScheme) return window.quartoToggleColorScheme()
  document.body.classList.toggle('quarto-dark', dark)
  document.body.classList.toggle('quarto-light', !dark)
}"""
STYLED = "() => [...document.querySelectorAll('link[rel=stylesheet]')].every(l => l.disabled || l.sheet)"
TOO_WIDE = """() => [...document.querySelectorAll('main table, main pre, main img, main figure, main math')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.parentElement.closest('table, pre, math'))
  .filter(e => e.tagName != 'IMG' || getComputedStyle(e.parentElement).overflowX != 'auto')
  .map(e => `<${e.tagName.toLowerCase()}> reaches ${Math.round(e.getBoundingClientRect().right)} px ` +
            `on a page of ${innerWidth}: ${e.textContent.trim().slice(0, 40)}`)
  .concat([document.documentElement.scrollWidth].filter(w => w > innerWidth)
          .map(w => `the page is ${w} px wide at ${innerWidth}`))"""

SHOWN = """() => [...document.querySelectorAll('main img')].filter(i => i.clientWidth && i.naturalWidth)
  .map(i => [i.getAttribute('src'), new URL(i.src).pathname, i.clientWidth/i.naturalWidth])"""
MOST_SHRUNK = 1.5   # times
measured = lru_cache(None)(smallest)


def too_small(tab, folder):
    "Pictures that this window shows so small that their letters cannot be read"
    for name, path, scale in tab.evaluate(SHOWN):
        file = folder/unquote(path).lstrip('/')
        letters = measured(file) if file.suffix == '.png' and file.is_file() else None
        if letters and letters*scale < MIN_LETTERS: yield f'letters in picture {name} are {letters*scale:.1f} px high'
        elif scale*MOST_SHRUNK < 1: yield f'picture {name} is shown at {scale:.2f} of its size: too small'


def searched(tab, base, folder):
    "Terms of the glossary for which Quarto's search lists another page first"
    if not all((folder/f).is_file() for f in ('search.json', 'glossary.html')): return
    tab.goto(base+'index.html')
    tab.locator('#quarto-search button').first.click()
    for word in TERMS:
        tab.locator('.aa-Input').first.fill(word)
        first = tab.wait_for_function(LISTED, arg=word).json_value()
        if 'glossary.html?term=' not in first: yield f'a search for {word} lists {first} first, not the glossary'


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def serve(folder):
    "A server of `folder` on a free port of this machine"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f'http://127.0.0.1:{server.server_address[1]}/'


def look(tab, base, rel, folder, shots=None):
    "Open one page in every guise; returns complaints, anchors and links"
    bad, own, shared = [], [0], [0]
    def answered(r):
        if r.status >= 400: bad.append(f'{r.url} answers {r.status}')
        elif r.url.startswith(base):
            size = own if r.request.resource_type in ('document', 'image') else shared
            size[0] += int(r.headers.get('content-length', 0))
    def asked(r):
        if not r.url.startswith((base, 'data:')): bad.append(f'asks another host: {r.url}')
    heard = {'console': lambda m: m.type == 'error' and bad.append(f'console: {m.text}'),
             'pageerror': lambda e: bad.append(f'script error: {e}'),
             'requestfailed': lambda r: bad.append(f'request failed: {r.url}'),
             'response': answered, 'request': asked}
    for k, f in heard.items(): tab.on(k, f)
    tab.set_viewport_size({'width': 1280, 'height': 900})
    tab.goto(base+rel, wait_until='networkidle' if rel in HEAVY else 'load')
    found = tab.evaluate((HERE/'audit.js').read_text())
    bad += found['bad']
    if rel.startswith('results/'):
        bad += tab.evaluate((HERE/'answers.js').read_text()) + tab.evaluate(FIRST_SCREEN, 800)
    if rel == 'index.html' and found['words'] > MAX_WORDS:
        bad.append(f'says {found["words"]} words before its commands; at most {MAX_WORDS}')
    if rel == 'index.html': bad += tab.evaluate(HOME_SCREEN, 800)
    bad += too_small(tab, folder)
    name = rel[:-5].replace('/', '-')
    for mode in ('light', 'dark'):
        tab.evaluate(SET_THEME, mode == 'dark')
        tab.wait_for_function(STYLED)   # Quarto loads the other theme only now
        for script in ('contrast.js', 'figures.js'):
            bad += [f'{mode}: {t}' for t in tab.evaluate((HERE/script).read_text())]
        if shots: tab.screenshot(path=shots/f'{name}-{mode}.png', full_page=True)
    tab.set_viewport_size({'width': 390, 'height': 844})
    if rel.startswith('results/'):
        bad += [f'on a phone: {t}' for t in tab.evaluate(FIRST_SCREEN, 844)+tab.evaluate(PHONE_TABLE)]
    bad += tab.evaluate(TOO_WIDE) + [f'on a phone: {t}' for t in too_small(tab, folder)]
    if shots: tab.screenshot(path=shots/f'{name}-narrow.png', full_page=True)
    for size, most, what in ((own[0], MAX_PAGE, 'its pictures'), (own[0]+shared[0], MAX_SHARED, 'all that it loads')):
        if size > most and rel not in HEAVY: bad.append(f'weighs {size/1e6:.2f} MB with {what}')
    if rel == 'index.html': bad += searched(tab, base, folder)
    for k, f in heard.items(): tab.remove_listener(k, f)
    return bad, set(found['ids']), set(found['links'])


def dead(pages, base, folder):
    "Links inside the site that lead nowhere, each `(page, text)`"
    for rel, (_, _, links) in pages.items():
        for href in sorted(links):
            if not href.startswith(base): continue
            url, anchor = urldefrag(href)
            to = unquote(urlsplit(url).path).lstrip('/') or 'index.html'
            if to not in pages and not (folder/to).is_file(): yield rel, f'dead link to {to}'
            elif anchor and to in pages and unquote(anchor) not in pages[to][1]: yield rel, f'dead anchor {to}#{anchor}'


def look_at(rels, base, browser, folder, shots):
    "Open pages one after the other in a browser of their own; what `look` found of each"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=browser, args=FLAGS)
        tab = chrome.new_page(reduced_motion='reduce')   # colours are measured, not what lies between two of them
        tab.set_default_timeout(120_000)
        found = {rel: look(tab, base, rel, folder, shots) for rel in rels}
        chrome.close()
    return found


def check(folder=OUT, shots=None):
    "Every complaint, `(page, text)`; None where no Chromium is found. Two browsers share the pages"
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser: return None
    server, base = serve(folder)
    rels = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.html') if 'site_libs' not in p.parts)
    with ThreadPoolExecutor(2) as pool:
        halves = [pool.submit(look_at, part, base, browser, folder, shots) for part in (rels[::2], rels[1::2]) if part]
        pages = {rel: found for half in halves for rel, found in half.result().items()}
    server.shutdown()
    return [*((rel, t) for rel in rels for t in pages[rel][0]), *dead(pages, base, folder)]


def main(args):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', nargs='?', type=Path, default=OUT, help='a built site; the preview where none is named')
    p.add_argument('--shots', type=Path, help='where to write a picture of every page')
    a = p.parse_args(args)
    if not list(a.folder.rglob('*.html')):
        return print(f'folder: {a.folder} holds no page, expected a built site') or True
    if a.shots: a.shots.mkdir(parents=True, exist_ok=True)
    start, found = time.time(), check(a.folder, a.shots)
    if found is None: return print(f'the preview was not looked at: none of {", ".join(BROWSERS)} is installed')
    for rel, text in found: print(f'{rel}: {text}')
    verdict = f'{len(found)} complaints' if found else 'nothing to complain of'
    print(f'looked at every page, {time.time()-start:.0f} s: {verdict}')
    return bool(found)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
