// Runs inside a page of results; returns how it departs from: a box (Asked, Found, Means), one figure, one table of at most eight rows sorted by value, all else folded.
() => {
  const bad = [], main = document.querySelector('main'), most = 8
  const folded = e => e.parentElement.closest('details:not([open]), .callout-collapse:not(.show)')
  const shown = what => [...main.querySelectorAll(what)].filter(e => !folded(e) && !e.closest('.ask'))
  const before = (a, b) => a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING
  const box = main.querySelector('.callout'), words = ['Asked', 'Found', 'Means']
  const figures = shown('img'), tables = shown('table')
  const name = t => `the table of ${t.querySelector('th')?.closest('tr').textContent.trim().replace(/\s+/g, ' ').slice(0, 40)}`
  const rows = t => [...t.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.textContent.trim()))
  if (!box || !words.every(w => box.textContent.includes(w))) return ['opens with no box that says Asked, Found, Means']
  for (const e of main.querySelectorAll('h2, img, table, p')) if (before(e, box) && !e.closest('header, .description, .actions')) bad.push(`${e.tagName.toLowerCase()} stands before the box`)
  if (figures.length != 1) bad.push(`shows ${figures.length} figures; expected one, all others folded`)
  if (tables.length != 1) bad.push(`shows ${tables.length} tables; expected one, all others folded: ${tables.slice(1).map(name).join('; ')}`)
  if (figures[0] && tables[0] && !before(figures[0], tables[0])) bad.push('its table stands before its figure')
  for (const t of tables) {
    const values = rows(t).map(r => parseFloat((r[1] || '').replace('−', '-').replace(/,/g, '')))
    const known = values.filter(v => !isNaN(v)), falls = known.every((v, i) => !i || v <= known[i-1]), grows = known.every((v, i) => !i || v >= known[i-1])
    if (values.length > most) bad.push(`${name(t)} has ${values.length} rows; expected at most ${most}`)
    if (!falls && !grows) bad.push(`${name(t)} is not sorted by the value in its second column`)
  }
  for (const p of shown('p')) if (/^Not measured( yet)?\.?$/.test(p.textContent.trim())) bad.push('says “Not measured.” and nothing else')
  return bad
}
