"The tools that guard the notebooks must refuse what they are there to refuse."
import copy, json, re, subprocess, sys
from pathlib import Path
import nbformat
import pytest

TOOLS = Path(__file__).resolve().parents[1]/'tools'
sys.path.insert(0, str(TOOLS))
import cells, code_style, readme
import check_notebooks as check
import run_notebooks as run


def out(text): return {'output_type': 'stream', 'name': 'stdout', 'text': [text]}
def result(**data):
    return {'output_type': 'execute_result', 'metadata': {}, 'execution_count': None,
            'data': {k.replace('_', '/'): v for k, v in data.items()}}
def picture():
    return {'output_type': 'display_data', 'metadata': {},
            'data': {'image/png': 'iVBORw==', 'text/plain': ['<Figure size 640x480 with 1 Axes>']}}
def code(src, *outputs):
    return {'cell_type': 'code', 'id': f'c{abs(hash(src)) % 10**6}', 'metadata': {}, 'execution_count': None,
            'source': src.splitlines(True), 'outputs': list(outputs)}
def notebook(*cells):
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    return {'cells': list(cells), 'nbformat': 4, 'nbformat_minor': 5, 'metadata': {'kernelspec': kernel}}


ERROR = {'output_type': 'error', 'ename': 'ValueError', 'evalue': 'no', 'traceback': []}
def complaints(nb): return [*check.check_clean(nb), *check.check_executed(nb)]


def test_clean_executed_notebook_passes():
    assert complaints(notebook(code('x = 1'), code('print(x)', out('1\n')), code('x+1', out('2')))) == []


@pytest.mark.parametrize('spoil, says', [
    (lambda nb: nb['cells'][1].update(execution_count=7), 'not clean'),
    (lambda nb: nb['cells'][1]['metadata'].update(collapsed=True), 'not clean'),
    (lambda nb: nb['metadata'].update(language_info={'name': 'python'}), 'metadata'),
    (lambda nb: nb['cells'][1].update(outputs=[]), 'not executed'),
    (lambda nb: nb['cells'][0].update(outputs=[ERROR]), 'stored error')])
def test_spoiled_notebook_is_refused(spoil, says):
    nb = notebook(code('x = 1'), code('print(x)', out('1\n')))
    spoil(nb)
    assert any(says in text for _, text in complaints(nb))


def test_notebook_without_any_output_is_refused():
    assert 'no output at all' in complaints(notebook(code('f()'), code('g()')))[0][1]


def test_only_certain_displays_are_demanded():
    assert check.must_show('x') and check.must_show('x.shape, y') and check.must_show('print(1)\ny = 2')
    assert not any(map(check.must_show, ('x = 1', 'test_eq(1, 1)', 'x;', 'assert x', 'def f(): print(1)')))


def test_an_exported_main_must_not_run_when_the_site_is_built():
    main = "if __name__ == '__main__': main()"
    nb = notebook(code(f'#| export\n{main}'), code(f'#| export\n#| eval: false\n{main}'))
    assert [i for i, _ in check.check_source(nb)] == [0]


def needed(*cells): return [i for i, _ in check.check_site(notebook(code('#| default_exp x'), *cells))]


@pytest.mark.parametrize('src', [
    'import os\nos.listdir(folder)', 'from os import path\nx = [path.join(folder, f) for f in "ab"]',
    '#| export\ndef f(x=folder): pass', 'def f():\n    import os\nf(folder)', 'show_doc(folder)'])
def test_a_cell_that_builds_the_site_must_not_need_one_that_does_not(src):
    assert needed(code('folder = "."'), code(src)) == [2]
    assert needed(code('#| export\nfolder = "."'), code(src)) == []
    assert list(check.check_site(notebook(code('folder = "."'), code(src)))) == []   # a page without a module


@pytest.mark.parametrize('src', [
    'import os\nfor f in os.listdir("."): print(f)', 'from os.path import *\njoin("a", "b")', 'print(folder)',
    'import os\ndef f(a, *b): return folder(a, b, os)', 'import os\nkey = lambda a: folder[a]',
    'import os\nwith open(os.devnull) as f: print(f, [x for x in f])', '%matplotlib inline\nimport os',
    '#| eval: false\nimport os\nfolder',
    'import os\ntry: os.x\nexcept AttributeError as e: print(e)',
    'import os\nclass A:\n    def f(self): return folder'])
def test_other_cells_may(src): assert needed(code(src)) == []


LONG = "'" + 'x'*119 + "'"   # 121 characters
def rules(src): return [rule for _, rule, _ in code_style.check_code(src)]
def exported(*lines): return '\n'.join(('#| export', *lines))


@pytest.mark.parametrize('src, rule', [
    (LONG, 'width'),
    (f'def f():\n    return {LONG}', 'width'),
    (f'def f(\n    x, # {LONG}{LONG}\n): return x', 'width'),
    (f"raise ValueError({LONG}'and twenty more')", 'width'),
    (exported(*['f()']*31), 'cell'),
    (exported('a,b,c,d = t'), 'targets'),
    ('f = lambda x: x', 'lambda'),
    ('f = (lambda x: x) if a else (lambda x: 2*x)', 'lambda'),
    ('def f():\n    import os', 'import'),
    ('class A:\n    def f(self):\n        from a import b', 'import'),
    ('a if b else c if d else e', 'if-else'),
    ('f(1 if b else 2) if d else e', 'if-else'),
    ("['x']*(a>0)", 'times'),
    ("(not a)*' text'", 'times'),
    ("f'{a}'*bool(b)", 'times'),
    ("' text'*isinstance(a, str)", 'times')])
def test_code_out_of_style_is_reported(src, rule): assert rules(src)==[rule]


ROWS = [f'    k{i}=f({i}),' for i in range(40)]
@pytest.mark.parametrize('src', [
    f'#| fig-alt: {LONG}\nplot()',
    f'def f(\n    x, # an argument {"and so on "*10}\n): return x',
    f'class A:\n    x:int # {LONG}',
    f'raise ValueError({LONG})',
    f"expect(a>0, 'a', a,\n       {LONG})",
    exported(*['f()', '']*30),
    exported('T = dict(', *ROWS, ')'),
    exported('T = {r.k: r for r in (', *[r.partition('=')[2] for r in ROWS], ')}'),
    exported('class A:', *[f'    a{i}:int=0 # what it is' for i in range(40)]),
    '\n'.join(['f()']*40),
    'a,b,c,d = t',
    exported('a,b,c = t', 'for a,b,c,d in t: f()', 'key = sorted(t, key=lambda x: x)'),
    'import os',
    'def f():\n    import onnx   # optional',
    'a if b else c\nd if e else f',
    "[0]*n, 'x'*3, ' '*len(a)",
    '%matplotlib inline\n!ls',
    '%%bash\nls if'])
def test_code_in_style_passes(src): assert rules(src)==[]


def test_style_is_counted_per_notebook(tmp_path, capsys):
    path = tmp_path/'x.ipynb'
    path.write_text(json.dumps(notebook(code(exported('f = lambda x: x', 'a,b,c,d = t')), code(LONG))))
    assert check.main(['--style', str(path)])
    said = capsys.readouterr().out
    assert 'x.ipynb, cell 0, line 2: gives a lambda a name' in said and 'cell 1, line 1: has 121 characters' in said
    assert '3 complaints about style' in said
    table = [l.split() for l in said.splitlines() if l.startswith(str(path)) and 'cell' not in l]
    assert table == [[str(path), '1', '1', '1']]


def test_notebooks_tools_and_tests_are_in_style():
    assert [(check.name_of(p), *c) for p in check.style_paths() for c in check.style_complaints(p)]==[]


def test_style_of_tools_and_tests_is_their_width(tmp_path):
    path = tmp_path/'x.py'
    path.write_text(f'f = lambda x: x\n\nx = {LONG}')
    assert [(where, rule) for where, rule, _ in check.style_complaints(path)] == [('line 3', 'width')]


def test_exceptions_from_style_are_few_explained_and_needed():
    cells = {c.get('id'): ''.join(c['source']) for p in check.notebooks() for c in json.loads(p.read_text())['cells']}
    assert len(code_style.EXCEPTIONS)<=10 and all(code_style.EXCEPTIONS.values())
    for cell in code_style.EXCEPTIONS: assert rules(cells[cell]), f'{cell} needs no exception'


def differ(a, b): return run.difference(code('x', *a), code('x', *b))


@pytest.mark.parametrize('a, b', [
    ('12.3 s', '15 s'), ('took 1.2 ms ± 3 µs', 'took 9.8 ms ± 4 µs'), ('2,304 images/s', '1810 images/s'),
    ('0.912', '0.905'), ('a   1.50 b', 'a 1.51  b'), ('commit 8e738707ef', 'commit 8e738707ef'),
    ('<A object at 0x7f01>', '<A object at 0x7f02>'), ('/tmp/ab/c.json', '/home/me/c.json'), ('0:01', '00:07'),
    ('2026-11-22T13:00:01', '2027-01-01'), ('990 KiB', '1012 KiB'), ('torch 2.15.0+cu130', 'torch 2.11.1')])
def test_what_changes_between_runs_is_not_compared(a, b): assert differ([out(a)], [out(b)]) is None


@pytest.mark.parametrize('a, b', [
    ('272474', '272475'), ('0.912', '0.80'), ('plain 1', 'branched 1'), ('x', ''), ('(3, 32)', '(3, 64)')])
def test_what_must_not_change_is(a, b): assert differ([out(a)], [out(b)])


def test_pictures_are_counted():
    assert differ([picture()], [picture()]) is None
    assert '1 pictures' in differ([picture()], [])


def test_a_run_names_the_failing_cell_and_skips_what_is_marked(tmp_path):
    nb = notebook(code('#| eval: false\nraise SystemError', out('kept')), code('1+1'), code('1/0'))
    fresh, error = run.execute(copy.deepcopy(nb), tmp_path)
    assert error[0] == 2 and error[1].startswith('ZeroDivisionError')
    assert fresh['cells'][0]['outputs'][0]['text'] == ['kept'] and fresh['cells'][1]['outputs']
    nbformat.validate(nbformat.from_dict(fresh))


def index(*cells): return notebook(md('# t\n\n> d'), *cells)
def md(src): return {'cell_type': 'markdown', 'id': 'm', 'metadata': {}, 'source': src.splitlines(True)}


def test_readme_shows_pictures_links_and_callouts():
    text, pictures = readme.readme(index(
        md('See [this](tutorials/from_scratch.ipynb) and [that](https://example.org/x).\n\n'
           '::: {.callout-note}\nMind.\n:::'),
        code('#| hide\nsecret = 1'), code('#| echo: false\n#| fig-alt: a curve\nplot()', picture())))
    assert '[this](nbs/tutorials/from_scratch.ipynb)' in text and '(https://example.org/x)' in text
    assert '> [!NOTE]\n> Mind.' in text and ':::' not in text
    assert '![a curve](nbs/images/readme-1.png)' in text and list(pictures) == ['nbs/images/readme-1.png']
    assert 'plot()' not in text and 'secret' not in text


@pytest.mark.parametrize('cell, says', [
    (code('plot()', picture()), 'fig-alt'), (md('As @fig-x shows'), 'cross-reference')])
def test_readme_refuses_and_names_the_cell(cell, says):
    with pytest.raises(cells.PageError, match=f'cell 1: .*{says}'): readme.readme(index(cell))


def test_readme_says_when_it_is_out_of_date(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readme, 'ROOT', tmp_path)
    (tmp_path/'nbs').mkdir()
    def write(src):
        home = index(md(src), code('#| fig-alt: a curve\nplot()', picture()))
        (tmp_path/'nbs/index.ipynb').write_text(json.dumps(home))
    write('One.')
    assert readme.main(['--check']) and 'README.md is out of date' in capsys.readouterr().out
    assert not readme.main([]) and not readme.main(['--check']) and (tmp_path/'nbs/images/readme-1.png').exists()
    write('Two.')
    assert readme.main(['--check'])


def test_readme_shows_no_directive_and_no_div():
    table = result(text_markdown='| a |\n|---|\n| [1](results/x.ipynb) |', text_plain='<M>')
    text, _ = readme.readme(index(md('#| export\nIn short.'), md('::::: {.pair}'),
                                  code('#| echo: false\n#| output: asis\nMarkdown(t)', table), md(':::::')))
    assert '#|' not in text and ':::' not in text and 'In short.' in text and '| [1](nbs/results/x.ipynb) |' in text


def test_the_first_screen_of_readme_has_pictures_verdict_and_commands():
    lines = (TOOLS.parent/'README.md').read_text().splitlines()
    at = lambda s: next(i for i, l in enumerate(lines) if s in l)
    assert at('teacher') < at('](nbs/images/readme-1') < at('](nbs/images/readme-2') < at('points above')
    assert at('points above') < at('make reproduce') < at('make test') < 40


def test_llms_txt_is_what_nbdev_makes_of_the_home_page():
    from nbdev.config import pkg_llms
    text = (TOOLS.parent/'nbs/llms.txt').read_text()
    assert text == pkg_llms(TOOLS.parent/'ekd_nb') and 'teacher' in text


def test_a_changed_output_is_reported_with_notebook_and_cell(tmp_path):
    path = tmp_path/'x.ipynb'
    path.write_text(json.dumps(notebook(code('x = 1'), code('x+1', result(text_plain=['3'])),
                                        code('print("as ever")', out('as ever\n')),
                                        code('#| timing\nprint(2)', out('1\n')))))
    command = [sys.executable, TOOLS/'run_notebooks.py', '--jobs', '1', path]
    r = subprocess.run(command, capture_output=True, text=True)
    said = [l for l in r.stdout.splitlines() if 'cell' in l]
    assert r.returncode and len(said) == 2 and said[0] == said[1], r.stdout+r.stderr   # at once, and at the end again
    assert f"{path}, cell 1 stores '3', a fresh run gives '2'" in said[0]


def test_a_kernel_that_dies_before_the_first_cell_is_started_again(monkeypatch, tmp_path):
    import nbclient
    said, nb = ["Kernel died before replying", "Kernel didn't respond in 60 seconds"], nbformat.v4.new_notebook()
    def execute(self):
        if said: raise RuntimeError(said.pop())
        return 'ran'
    monkeypatch.setattr(nbclient.NotebookClient, 'execute', execute)
    assert run.run_cells(nb, tmp_path) == 'ran' and not said
    said[:] = ['Kernel died before replying']*3
    with pytest.raises(RuntimeError, match='died before'): run.run_cells(nb, tmp_path)
    said[:] = ['Kernel died']   # at a cell: it is not tried again
    with pytest.raises(RuntimeError, match='died'): run.run_cells(nb, tmp_path)


FRAME = ('<style>td {background: #fff}</style><table border="1"><thead><tr><th></th><th>a_b</th></tr><tr><th>seed</th>'
         '<th></th></tr></thead><tbody><tr><th>0</th><td>1.5</td></tr><tr><th>1|2</th><td>-3</td></tr></tbody></table>')


def test_tables_are_stored_as_markdown():
    (o,) = cells.without_html([result(text_html=FRAME, text_plain='   a_b')])
    table = '| seed | a\\_b |\n|---|--:|\n| 0 | 1.5 |\n| 1\\|2 | -3 |'
    assert o['data'] == {'text/markdown': table, 'text/plain': '   a_b'}
    bar = '<div><progress max="4" value="2"></progress> 50.00% [2/4 00:00&lt;00:00]</div>'
    assert cells.without_html([result(text_html='<style>x</style>', text_plain='<HTML>'), result(text_html=bar)]) == []
    assert cells.without_html([result(text_html='<b>so</b>')])[0]['data'] == {'text/plain': 'so'}
    assert cells.without_html([out('1'), result(text_plain='2')]) == [out('1'), result(text_plain='2')]


def test_stderr_is_stored_without_folders_and_without_warnings_of_others():
    said = ('/x/lib/site-packages/torch/a.py:1: FutureWarning: old.\n  warn(\n'
            '/tmp/y/ekd_nb/losses.py:4: UserWarning: gamma\n  warn(w)\n'
            '/tmp/ipykernel_1/22.py:3: UserWarning: memo\nteacher a: 90%\n')
    kept = 'losses.py:4: UserWarning: gamma\n  warn(w)\nUserWarning: memo\nteacher a: 90%\n'
    assert cells.without_paths(said) == kept
    o = {'output_type': 'stream', 'name': 'stderr', 'text': said.split('/tmp')[0]}
    assert cells.without_html([o]) == []


def test_stored_html_is_refused():
    """For it Quarto loads scripts from another host."""
    said = [text for _, text in check.check_executed(notebook(code('x', result(text_html='<table></table>'))))]
    assert any('stores HTML' in t for t in said)


def test_folders_of_a_machine_are_found_in_what_is_stored():
    def said(text): return [t for _, t in check.check_executed(notebook(code('x', result(text_plain=text))))]
    assert any('a folder of the machine' in t for t in said('/home/me/data/cifar10.npz'))
    assert any('a folder of the machine' in t for t in said('File "/opt/site-packages/torch/serialization.py"'))
    assert not said('results/runs/cifar10.json, ~/data')


@pytest.mark.parametrize('path', check.notebooks(), ids=check.name_of)
def test_no_notebook_stores_html(path):
    kinds = {k for c in json.loads(path.read_text())['cells'] for o in c.get('outputs', []) for k in o.get('data', {})}
    assert not kinds & {'text/html', 'application/javascript'}


def test_sizes_of_files_have_their_unit_beside_them():
    "So they are not compared: a file of the same contents may differ by a few bytes from run to run"
    for path in check.notebooks():
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if c['cell_type'] != 'code' or 'st_size' not in check.source(c): continue
            if run.TIMING.search(check.source(c)): continue
            assert not re.search(r'\|[^|\d\n]*[kKMG]i?B *\|', run.texts(c)[0]), (path.name, check.source(c))


def test_figures_of_notebooks_are_drawn_on_nothing():
    import matplotlib
    from ekd_nb.study.style import STYLE
    rc = matplotlib.rc_params_from_file(TOOLS/'matplotlibrc', use_default_template=False)
    same = lambda k: str(rc[k]).strip('#').lower() == str(STYLE[k]).strip('#').lower()
    assert len(rc) == 10 and all(map(same, rc)), {k: (rc[k], STYLE.get(k)) for k in rc if not same(k)}
