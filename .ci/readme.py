"""README.md from the book's first page, `nbs/index.ipynb`: its prose and its commands, without outputs.

`python .ci/readme.py` writes it, `--check` only says whether it is up to date. Cells tagged `book`
stay in the book; the cell tagged `first` opens the README."""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def page(cell):
    "One cell as Markdown"
    text = ''.join(cell['source']).strip()
    if cell['cell_type'] == 'code': return f'```python\n{text}\n```'
    return re.sub(r'\]\((?!https?:|#|\.\./)([^)]+)\)', r'](nbs/\1)', text).replace('](../', '](')


def readme():
    "The text of README.md"
    cells = json.loads((ROOT/'nbs/index.ipynb').read_text())['cells']
    tagged = lambda tag: [c for c in cells if tag in c['metadata'].get('tags', [])]
    rest = [c for c in cells if c not in tagged('book') + tagged('first')]
    return '\n\n'.join(page(c) for c in tagged('first') + rest) + '\n'


if __name__ == '__main__':
    path, text = ROOT/'README.md', readme()
    if '--check' not in sys.argv: path.write_text(text)
    elif path.read_text() != text: sys.exit('README.md is not what nbs/index.ipynb says: run `make export`')
