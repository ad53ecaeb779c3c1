"""Notebook cells as markdown: what README.md and the preview have in common."""
import base64, html, re
from itertools import groupby
import yaml

DIRECTIVE = re.compile(r'^\s*#\|\s?(.*)$')
ANSI = re.compile(r'\x1b\[[\d;]*[A-Za-z]')
EXT = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg'}


class PageError(Exception):
    "Something on a page is wrong; says where"
    def __init__(self, notebook, cell, text):
        super().__init__(f'{notebook}{"" if cell is None else f", cell {cell}"}: {text}')


def joined(s): return ''.join(s) if isinstance(s, list) else s or ''


def options(source):
    "Quarto's `#| key: value` lines of a code cell, and the code below them"
    lines, opts = source.splitlines(), []
    while lines and (m := DIRECTIVE.match(lines[0])):
        opts.append(m[1])
        lines.pop(0)
    try: d = yaml.safe_load('\n'.join(o for o in opts if ':' in o or o.startswith((' ', '-')))) or {}
    except yaml.YAMLError: d = {}
    return (d if isinstance(d, dict) else {}), '\n'.join(lines).strip('\n')


def prose(source):
    "A markdown cell without the directives above it, as Quarto reads it"
    return re.sub(r'\A(?:#\|.*(?:\n|\Z))+', '', joined(source))


def fenced(text, lang=''):
    fence = '`'*max(3, 1+max((len(m) for m in re.findall(r'`+', text)), default=0))
    return f'{fence}{lang}\n{text}\n{fence}'


def outputs(cell):
    """What a code cell shows, in order: `(kind, value)` with kind text, markdown, html or an image type.
    Of an output in several forms it is the one that Quarto takes."""
    for printed, group in groupby(cell.get('outputs', []), lambda o: o['output_type'] == 'stream'):
        if printed:
            text = ''.join(joined(o['text']) for o in group if o.get('name') != 'stderr')
            yield 'text', ANSI.sub('', text).strip('\n')
            continue
        for data in (o.get('data', {}) for o in group):
            if 'text/html' in data:
                if text := plain_html(joined(data['text/html'])): yield 'html', text
            elif 'text/markdown' in data: yield 'markdown', joined(data['text/markdown'])
            elif image := next((k for k in EXT if k in data), None):
                raw = joined(data[image])
                yield image, raw.encode() if image.endswith('xml') else base64.b64decode(raw)
            elif 'text/plain' in data: yield 'text', ANSI.sub('', joined(data['text/plain']))


def plain_html(s):
    "HTML of an output without style sheets, scripts, borders and empty lines"
    s = re.sub(r'(?s)<(style|script)\b.*?</\1>', '', s)
    s = re.sub(r'\s(border|style)="[^"]*"', '', s)
    return '\n'.join(l for l in s.splitlines() if l.strip())


def code_markdown(cell, image, code='python', output='', html_block='{}', raw='{}'):
    """A code cell as markdown.
    `image(kind, data, opts, k)` writes its k-th picture and returns the markdown for it.
    `raw` is how a tag is written."""
    opts, src = options(joined(cell['source']))
    if opts.get('include') is False: return ''
    parts = [fenced(src, code)] if src and opts.get('echo') is not False else []
    if opts.get('code-fold') and parts:
        summary = html.escape(str(opts.get('code-summary', 'Code')))
        parts = [raw.format(f'<details><summary>{summary}</summary>'), *parts, raw.format('</details>')]
    k = 0
    for kind, value in outputs(cell) if opts.get('output') is not False else ():
        if kind in EXT:
            parts.append(image(kind, value, opts, k))
            k += 1
        elif kind == 'markdown' or opts.get('output') == 'asis': parts.append(value)
        elif kind == 'html': parts.append(html_block.format(value))
        elif value.strip(): parts.append(fenced(value, output))
    return '\n\n'.join(parts)
