-- Runs inside pandoc, once for many pages: what pandoc loads at its start (the grammars that colour code) is loaded once.
-- `pandoc lua convert.lua JOB`: JOB is JSON with `read` (markdown texts) or `write` (syntax trees with their `variables`);
-- the answer is a JSON list of trees or of HTML. On stderr a line `page N` stands before what pandoc says of that page.
local function file(path) local f = assert(io.open(path)); local text = f:read('a'); f:close(); return text end
local job = pandoc.json.decode(file(arg[1]), false)
local answers = {}

local function each(items, convert)
  for i, item in ipairs(items) do
    io.stderr:write('page ' .. i - 1 .. '\n')
    answers[i] = convert(item)
  end
end

if job.read then
  local options = pandoc.ReaderOptions{columns = 1000, abbreviations = {['al.'] = true, ['cf.'] = true, ['e.g.'] = true, ['i.e.'] = true}}
  each(job.read, function(text) return pandoc.write(pandoc.read(text, job.format, options), 'json') end)
else
  local template = job.template and pandoc.template.compile(file(job.template))
  each(job.write, function(page)
    local doc = pandoc.read(page.doc, 'json')
    doc.meta['link-citations'] = true
    if page.cites then
      doc.meta.bibliography = job.bibliography
      doc = pandoc.utils.citeproc(doc)
    end
    return pandoc.write(doc, 'html5', pandoc.WriterOptions{template = template, variables = page.variables,
      html_math_method = 'mathml', table_of_contents = true, toc_depth = 3})
  end)
end
print(pandoc.json.encode(answers))
