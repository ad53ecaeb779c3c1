"""Looks at every page of _preview/ in headless Chromium: wide and narrow, light and dark.

    python tools/preview/check.py [--shots FOLDER]

Complains of console errors, failed requests, requests to another host, dead links and anchors, pictures that did not
load or have no alternative text, raw markup, equations not drawn, tables wider than a 390-pixel page, contrast below
4.5 and pages over 2 MB. `--shots` writes a picture of every page. Without a Chromium it says so and passes.
"""
import argparse, functools, http.server, shutil, sys, threading, time
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1]/'_preview'
BROWSERS = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-renderer-backgrounding',
         '--disable-backgrounding-occluded-windows']
MAX_PAGE = 2_000_000
TOO_WIDE = """() => [...document.querySelectorAll('main table, main pre, main img, main figure, main math')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.parentElement.closest('table, pre, math'))
  .map(e => `<${e.tagName.toLowerCase()}> reaches ${Math.round(e.getBoundingClientRect().right)} px ` +
            `on a page of ${innerWidth}: ${e.textContent.trim().slice(0, 40)}`)
  .concat([document.documentElement.scrollWidth].filter(w => w > innerWidth)
          .map(w => `the page is ${w} px wide at ${innerWidth}`))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def serve(folder):
    "A server of `folder` on a free port of this machine"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f'http://127.0.0.1:{server.server_address[1]}/'


def look(tab, base, rel, shots=None):
    "Open one page in every guise; returns complaints, anchors and links"
    bad, size = [], [0]
    def answered(r):
        if r.status >= 400: bad.append(f'{r.url} answers {r.status}')
        elif r.url.startswith(base): size[0] += int(r.headers.get('content-length', 0))
    def asked(r):
        if not r.url.startswith((base, 'data:')): bad.append(f'asks another host: {r.url}')
    heard = {'console': lambda m: m.type == 'error' and bad.append(f'console: {m.text}'),
             'pageerror': lambda e: bad.append(f'script error: {e}'),
             'requestfailed': lambda r: bad.append(f'request failed: {r.url}'),
             'response': answered, 'request': asked}
    for k, f in heard.items(): tab.on(k, f)
    tab.set_viewport_size({'width': 1280, 'height': 900})
    tab.goto(base+rel, wait_until='load')
    found = tab.evaluate((HERE/'audit.js').read_text())
    bad += found['bad']
    name = rel[:-5].replace('/', '-')
    for mode in ('light', 'dark'):
        tab.evaluate("mode => document.body.className = 'quarto-' + mode", mode)
        bad += [f'{mode}: {t}' for t in tab.evaluate((HERE/'contrast.js').read_text())]
        if shots: tab.screenshot(path=shots/f'{name}-{mode}.png', full_page=True)
    tab.set_viewport_size({'width': 390, 'height': 844})
    bad += tab.evaluate(TOO_WIDE)
    if shots: tab.screenshot(path=shots/f'{name}-narrow.png', full_page=True)
    if size[0] > MAX_PAGE: bad.append(f'weighs {size[0]/1e6:.1f} MB with what it loads')
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


def check(folder=OUT, shots=None):
    "Every complaint, `(page, text)`; None where no Chromium is found"
    from playwright.sync_api import sync_playwright
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser: return None
    server, base = serve(folder)
    rels = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.html'))
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=browser, args=FLAGS)
        tab = chrome.new_page()
        tab.set_default_timeout(120_000)
        pages = {rel: look(tab, base, rel, shots) for rel in rels}
        chrome.close()
    server.shutdown()
    return [*((rel, t) for rel in rels for t in pages[rel][0]), *dead(pages, base, folder)]


def main(args):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--shots', type=Path)
    a = p.parse_args(args)
    if a.shots: a.shots.mkdir(parents=True, exist_ok=True)
    start, found = time.time(), check(shots=a.shots)
    if found is None: return print(f'the preview was not looked at: none of {", ".join(BROWSERS)} is installed')
    for rel, text in found: print(f'{rel}: {text}')
    verdict = f'{len(found)} complaints' if found else 'nothing to complain of'
    print(f'looked at every page, {time.time()-start:.0f} s: {verdict}')
    return bool(found)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
