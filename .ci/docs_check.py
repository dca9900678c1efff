"""What can be known about the site without Quarto: sidebar, front matter, schema, outputs, links.

The pages are made by nbdev's own processors, then rendered to HTML by nbconvert into `_docs_check/`."""
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import yaml
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT/'_docs_check'
CELL_KEYS = {'cell_type', 'id', 'metadata', 'source', 'outputs', 'execution_count', 'attachments'}
PLOTLY = 'application/vnd.plotly.v1+json'


def named(entry):
    "Every page that a part of the sidebar names"
    if isinstance(entry, str): return [entry]
    if isinstance(entry, list): return [page for e in entry for page in named(e)]
    return [page for key in ('contents', 'href', 'file') if key in entry for page in named(entry[key])]


def sidebar_faults(pages):
    "Entries without a page, pages without an entry"
    entries = named(yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar'])
    yield from (f'_quarto.yml: the sidebar names {e}, which is no page' for e in entries if e not in pages)
    yield from (f'_quarto.yml: {p} is missing in the sidebar' for p in pages if p not in entries)
    yield from (f'_quarto.yml: the sidebar names {e} twice' for e in set(entries) if entries.count(e) > 1)


def read(path):
    "A processed notebook without the keys that nbdev leaves in its cells and the schema forbids"
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        for key in set(cell) - CELL_KEYS: del cell[key]
        if isinstance(cell.source, list): cell.source = ''.join(cell.source)
        if cell.cell_type == 'code': cell.setdefault('execution_count', None)
    return nb


def front_matter(nb):
    "The YAML at the head of a processed page"
    head = nb.cells[0] if nb.cells else None
    text = head.source.strip() if head and head.cell_type == 'raw' else ''
    return yaml.safe_load(text.strip('-')) if text.startswith('---') else {}


def page_faults(nb, front):
    "Faults of one page alone"
    try: nbformat.validate(nb)
    except nbformat.ValidationError as error: yield f'not a valid notebook: {str(error).splitlines()[0]}'
    if not front.get('title'): yield 'no title in the front matter'
    if not front.get('description'): yield 'no subtitle in the front matter'
    for cell in nb.cells:
        for output in cell.get('outputs', []):
            if output.output_type == 'error': yield f'cell {cell.id}: an error as output, {output.ename}'
            kinds = output.get('data', {})
            if PLOTLY in kinds and 'text/html' not in kinds: yield f'cell {cell.id}: Plotly without HTML'


def link_faults(path, html, site):
    "Links of a rendered page that lead nowhere; links to the own site count as relative ones"
    for href in sorted(set(re.findall(r'<a\b[^>]*\bhref="([^"#?]+)', html))):
        own = href.startswith(site)
        if re.match(r'[a-z]+:|//', href) and not own: continue
        target = OUT/href[len(site):].lstrip('/') if own else path.parent/href
        page = ROOT/'nbs'/target.name if target.suffix == '.ipynb' else target  # Quarto finds its page
        if not page.exists() and not page.with_suffix('.html').exists(): yield f'broken link {href}'


def main():
    os.chdir(ROOT)
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    processed = proc_nbs(force=True, n_workers=2)
    shutil.rmtree(OUT, ignore_errors=True); OUT.mkdir()
    sources = sorted(p.name for p in (ROOT/'nbs').glob('*.ipynb') if not p.name.startswith(('_', '.')))
    faults, html = list(sidebar_faults(sources)), {}
    if (ROOT/'nbs/_quarto.yml').resolve() != ROOT/'_quarto.yml':
        faults.append('nbs/_quarto.yml is not a link to _quarto.yml')
    exporter = HTMLExporter(template_name='lab')
    for name in sources:
        if not (processed/name).exists(): faults.append(f'{name}: nbdev did not process it'); continue
        nb = read(processed/name); front = front_matter(nb)
        faults += [f'{name}: {fault}' for fault in page_faults(nb, front)]
        path = OUT/front.get('output-file', name.replace('.ipynb', '.html'))
        html[path] = exporter.from_notebook_node(nb)[0]
        path.write_text(html[path])
    site = get_config().doc_host + get_config().doc_baseurl
    for path, text in html.items():
        faults += [f'{path.name}: {fault}' for fault in link_faults(path, text, site)]
    for fault in faults: print('-', fault)
    print(f'{len(html)} pages, {len(faults)} faults')
    sys.exit(bool(faults))


if __name__ == '__main__': main()
