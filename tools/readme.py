"""Writes README.md from nbs/index.ipynb, without Quarto.

    python tools/readme.py [--check]

Links to notebooks lead to the notebooks in the repository, pictures are written beside it as nbs/images/readme-*.png,
callouts become GitHub's. `--check` writes nothing and fails when README.md or a picture is out of date.
"""
import json, os, re, sys
from pathlib import Path

from cells import EXT, PageError, code_markdown, joined, options, prose

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = re.compile(r'^\s*#\|\s*(hide|export\w*|default_exp)\b', re.M)
NOTICE = '<!-- Written by tools/readme.py from nbs/index.ipynb: edit that, then `make readme`. -->'
LINK = re.compile(r'(\]\()(?!\w+:|#|/)([^)\s]+)(?=[)\s])')
CALLOUT = re.compile(r'^:{3,}\s*\{?\s*\.?callout-(\w+)[^\n]*\n(.*?)^:{3,}\s*$', re.M | re.S)
DIV = re.compile(r'^:{3,}.*\n?', re.M)


def github(text):
    "Markdown of the site as GitHub reads it"
    quote = lambda m: f'> [!{m[1].upper()}]\n' + '\n'.join(f'> {l}'.rstrip() for l in m[2].strip().splitlines()) + '\n'
    text = DIV.sub('', CALLOUT.sub(quote, text))
    text = re.sub(r'\{(?:[#.][\w-]+\s*|[\w-]+="?[^"}\s]*"?\s*)+\}', '', text)
    return LINK.sub(lambda m: m[1] + os.path.normpath(f'nbs/{m[2]}').replace('%20', ' '), text)


def outside_code(text): return re.sub(r'(?s)```.*?```|`[^`\n]*`', '', text)


def readme(nb, name='nbs/index.ipynb'):
    "The text of README.md and its pictures, `{path: bytes}`"
    parts, pictures = [], {}
    for i, cell in enumerate(nb['cells']):
        src = joined(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(github(prose(src)))
            if m := re.search(r'(?<![\w`\[])\[?@(?!\w+\.)[\w-]+', outside_code(src)):
                why = 'is a citation or cross-reference; README.md cannot resolve it, write a link'
                raise PageError(name, i, f'{m[0]!r} {why}')
        if cell['cell_type'] != 'code' or HIDDEN.search(src): continue

        def image(kind, data, opts, k):
            path = f'nbs/images/readme-{len(pictures)+1}.{EXT[kind]}'
            pictures[path] = data
            alt = opts.get('fig-alt') or opts.get('fig-cap')
            if not alt: raise PageError(name, i, 'shows a picture without `#| fig-alt:`')
            return f'![{" ".join(str(alt).split())}]({path})'
        parts.append(code_markdown(cell, image))
        if 'asis' == options(src)[0].get('output'): parts[-1] = github(parts[-1])
    text = '\n\n'.join(p.strip('\n') for p in parts if p.strip())
    head, _, rest = text.partition('\n')
    return f'{head}\n\n{NOTICE}\n{rest}\n', pictures


def main(args):
    text, pictures = readme(json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8')))
    want = {'README.md': text.encode(), **pictures}
    stale = [p for p, data in want.items() if not (ROOT/p).exists() or (ROOT/p).read_bytes() != data]
    here = [str(p.relative_to(ROOT)) for p in (ROOT/'nbs/images').glob('readme-*')]
    gone = [p for p in here if p not in want]
    if '--check' in args:
        for p in stale+gone: print(f'{p} is out of date: run `make readme`')
        if not stale+gone: print('README.md is up to date')
        return bool(stale or gone)
    for p in stale:
        (ROOT/p).parent.mkdir(parents=True, exist_ok=True)
        part = (ROOT/p).with_name((ROOT/p).name+'.part')
        part.write_bytes(want[p])
        os.replace(part, ROOT/p)
    for p in gone: (ROOT/p).unlink()
    print('README.md:', ', '.join(f'wrote {p}' for p in stale) or 'nothing to do')


if __name__ == '__main__':
    try: sys.exit(main(sys.argv[1:]))
    except PageError as e: sys.exit(str(e))
