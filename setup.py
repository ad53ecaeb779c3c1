"Hands version, requirements, console scripts and README to setuptools; everything else is in pyproject.toml."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
_ini = ConfigParser(delimiters=['='])
_ini.read(here/'settings.ini', encoding='utf-8')
_cfg = _ini['DEFAULT']


def absolute(text, repository):
    "The README with links to files of the repository as addresses: a package index has no files beside it"
    def address(m): return f"{m[1]}{repository}/{'raw' if m[1][0]=='!' else 'blob'}/main/{m[2]}"
    return re.sub(r'(!?\[[^\]]*\]\()(?!\w+:|#|/)([^)\s]+)', address, text)


repository = re.search(r'^Repository = "(.*)"', (here/'pyproject.toml').read_text(encoding='utf-8'), re.M)[1]
setup(version=_cfg['version'],
      install_requires=_cfg['requirements'].split(),
      extras_require={k.removesuffix('_requirements'): v.split() for k,v in _cfg.items() if k.endswith('_requirements')},
      long_description=absolute((here/'README.md').read_text(encoding='utf-8'), repository),
      long_description_content_type='text/markdown',
      entry_points={'console_scripts': _cfg['console_scripts'].split(), 'nbdev': ['ekd_nb=ekd_nb._modidx:d']})
