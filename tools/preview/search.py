"""The index that the preview's search box looks through: a row for each section of each page, written as a script."""
import json
from refs import text_of

LONGEST = 1500  # characters of a section that are looked through


def words_of(blocks):
    "Text of blocks, without raw markup and without what cells show"
    shown = [b for b in blocks if b['t'] != 'RawBlock' and not (b['t'] == 'CodeBlock' and 'output' in b['c'][0][1])]
    return ' '.join(' '.join(spaced(b) for b in shown).split())[:LONGEST]


def spaced(node):
    "Like `text_of`, with room between blocks, cells and items"
    if isinstance(node, dict) and node.get('t') == 'CodeBlock': return node['c'][1] + ' '
    if isinstance(node, dict) and node.get('t') in ('Para', 'Plain', 'Header'): return text_of(node) + ' '
    if isinstance(node, dict): return '' if node.get('t') in ('RawBlock', 'Str') else spaced(node.get('c'))
    return ''.join(map(spaced, node)) if isinstance(node, list) else ''


def terms(block):
    "`(term, its anchor, text)` of every item of a list that begins with a term that has an anchor"
    for item in block['c'] if block['t'] == 'BulletList' else ():
        first = item[0]['c'][0] if item and item[0]['t'] in ('Plain', 'Para') and item[0]['c'] else {}
        if first.get('t') == 'Span' and first['c'][0][0]: yield text_of(first), first['c'][0][0], words_of(item)


def sections(page, doc):
    "Rows of one page: `[page title, section title, address, text]`; a term that a list explains has a row of its own"
    rows, title, anchor, blocks = [], page.front.get('description', ''), '', []
    def close(): rows.append([page.title, title, page.html + anchor, words_of(blocks)])
    for b in doc['blocks']:
        if b['t'] == 'Header' and b['c'][0] <= 3:
            close()
            title, anchor, blocks = text_of(b['c'][2]).strip(), f'#{b["c"][1][0]}', []
        else: blocks.append(b)
    close()
    explained = [row for b in doc['blocks'] for row in terms(b)]
    rows += [[page.title, term, f'{page.html}#{anchor}', text] for term, anchor, text in explained]
    return [r for i, r in enumerate(rows) if r[1] or r[3] or not i]


def script(rows): return f'window.SECTIONS = {json.dumps(rows, ensure_ascii=False, separators=(",", ":"))}\n'
