// Light or dark, a button that copies code, and the search box. No request leaves the folder, so it works from disk as well.
const base = document.currentScript.dataset.base

function theme() {
  const set = dark => document.body.className = dark ? 'quarto-dark' : 'quarto-light'
  const saved = localStorage.getItem('theme')
  set(saved ? saved == 'dark' : matchMedia('(prefers-color-scheme: dark)').matches)
  document.getElementById('theme').onclick = () => {
    const dark = !document.body.classList.contains('quarto-dark')
    localStorage.setItem('theme', dark ? 'dark' : 'light')
    set(dark)
  }
}

function copying() {
  for (const pre of document.querySelectorAll('div.sourceCode')) {
    const b = document.createElement('button')
    b.className = 'copy'
    b.title = 'copy'
    b.setAttribute('aria-label', 'copy this code')
    b.onclick = () => navigator.clipboard.writeText(pre.querySelector('code').innerText).then(() => { b.classList.add('done'); setTimeout(() => b.classList.remove('done'), 1200) })
    pre.append(b)
  }
}

// Sections that hold every word: terms of the glossary first, then those with the words in a heading, then pages about them, then mentions.
function find(query, most = 12) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean).map(w => w.length > 3 ? w.replace(/(?<=ch|sh)es$|s$/, '') : w)
  if (!words.length) return []
  const score = ([page, title, , text]) => {
    const where = [title, page, text].map(s => s.toLowerCase())
    const at = words.map(w => where.findIndex(s => s.includes(w)))
    return at.includes(-1) ? null : at.reduce((a, b) => a + [0, 1, 4][b], 0) - (where[0] == words.join(' ')) - 9*(page == 'Glossary' && where[0].startsWith(words.join(' ')))
  }
  return SECTIONS.map((row, i) => ({row, i, score: score(row)})).filter(r => r.score !== null).sort((a, b) => a.score - b.score || a.i - b.i).slice(0, most).map(r => r.row)
}

function excerpt(text, query) {
  const at = text.toLowerCase().indexOf(query.toLowerCase().trim().split(/\s+/)[0])
  const from = Math.max(0, at - 40)
  return (from ? '…' : '') + text.slice(from, from + 110) + (from + 110 < text.length ? '…' : '')
}

function searching() {
  const box = document.getElementById('search'), list = document.getElementById('found')
  if (!box) return
  const entry = ([page, title, href, text]) => {
    const item = document.createElement('li'), a = document.createElement('a'), small = document.createElement('small')
    a.href = base + href
    a.textContent = href.includes('#') ? `${page} › ${title}` : page
    small.textContent = excerpt(text || title, box.value)
    a.append(small)
    item.append(a)
    return item
  }
  const show = () => {
    const rows = find(box.value)
    list.replaceChildren(...rows.map(entry))
    if (box.value.trim() && !rows.length) list.innerHTML = '<li>nothing found</li>'
    list.hidden = !box.value.trim()
  }
  const load = () => new Promise(done => {
    if (window.SECTIONS) return done()
    const s = document.createElement('script')
    s.src = base + 'sections.js'
    s.onload = done
    document.head.append(s)
  })
  box.oninput = () => load().then(show)
  box.onkeydown = e => {
    if (e.key == 'Escape') { box.value = ''; list.hidden = true }
    if (e.key == 'Enter') list.querySelector('a')?.click()
    if (e.key == 'ArrowDown') { list.querySelector('a')?.focus(); e.preventDefault() }
  }
  list.onkeydown = e => {
    const step = {ArrowDown: 1, ArrowUp: -1}[e.key], all = [...list.querySelectorAll('a')], at = all.indexOf(document.activeElement)
    if (!step) return
    e.preventDefault()
    at + step < 0 ? box.focus() : all[at + step]?.focus()
  }
  addEventListener('click', e => { if (!e.target.closest('.search')) list.hidden = true })
  addEventListener('keydown', e => { if (e.key == '/' && !e.target.closest('input, textarea')) { box.focus(); e.preventDefault() } })
}

addEventListener('DOMContentLoaded', () => { theme(); copying(); searching() })
