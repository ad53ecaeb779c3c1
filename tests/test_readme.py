"The code of README's \"Use it\", word by word, on a folder of pictures; only shorter"
import os, re, subprocess, sys
from pathlib import Path
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def blocks():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    return re.findall(r'```python\n(.*?)```', text[text.index('## Use it'):text.index('## Where to go')], re.S)


def test_few_words_come_before_the_commands():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    text = re.sub(r'(?s)<!--.*?-->|!\[.*?\]\(.*?\)', '', text[:text.index('## Run it')])
    paragraphs = [re.sub(r'\]\([^)]*\)', '', l) for l in text.splitlines() if l[:1] not in '#>[']   # no title, no doors
    assert 50 <= len(' '.join(paragraphs).split()) <= 120


def test_every_text_says_alike_how_long_the_demonstration_takes():
    from ekd_nb.study.reproduce import presets_text
    row = next(l for l in presets_text().splitlines() if l.split()[:2] == ['digits', 'demo'])
    minutes = row.split()[4]
    assert re.fullmatch(r'\d+(-\d+)?', minutes)
    assert f'the demonstration takes {minutes} minutes' in (ROOT/'README.md').read_text(encoding='utf-8')
    assert f'the demonstration on the embedded digits ({minutes} minutes' in (ROOT/'Makefile').read_text()


def test_use_it(tmp_path):
    rng = np.random.default_rng(0)
    for c in range(3):
        (tmp_path/'images'/'abc'[c]).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 90, (20+i, 24, 3), dtype=np.uint8) + np.uint8(60*c)
            Image.fromarray(pixels).save(tmp_path/'images'/'abc'[c]/f'{i}.png')
    code = '\n'.join(blocks())
    assert 'teacher_learner' in code and 'ekd_learner' in code and 'compare(' in code
    short = {'Resize(64), bs=16': 'Resize(16), bs=8, num_workers=0',
             "'resnet20', 'wrn_16_2', 'densenet_40_12'": "'resnet8-w6', 'wrn_10_1'", "'resnet8',": "'resnet8-w4',",
             'fit_one_cycle(20,': 'fit_one_cycle(1,', 'epochs=20': 'epochs=1, seeds=1'}
    for old, new in short.items():
        assert old in code, old
        code = code.replace(old, new)
    code = re.sub(r'^compare\(', 'result = compare(', code, flags=re.M)
    (tmp_path/'use.py').write_text(code+'\nprint(result)\n')
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    run = [sys.executable, '-W', 'ignore', 'use.py']
    r = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr[-2000:]
    assert '| **EKD** |' in r.stdout and 'EKD is' in r.stdout
