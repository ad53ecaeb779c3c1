-- For Quarto: a cell that shows a function is opened, so that the function's heading is in the table of contents.
local function heading(block) return block.t == 'Header' end

function Div(div)
  if div.classes:includes('cell') and div.content:find_if(heading) then return div.content end
end
