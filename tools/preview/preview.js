// Light or dark: what was chosen last, or what the system says.
addEventListener('DOMContentLoaded', () => {
  const set = dark => document.body.className = dark ? 'quarto-dark' : 'quarto-light'
  const saved = localStorage.getItem('theme')
  set(saved ? saved == 'dark' : matchMedia('(prefers-color-scheme: dark)').matches)
  document.getElementById('theme').onclick = () => {
    const dark = !document.body.classList.contains('quarto-dark')
    localStorage.setItem('theme', dark ? 'dark' : 'light')
    set(dark)
  }
})
