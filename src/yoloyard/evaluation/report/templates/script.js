document.addEventListener("click", (event) => {
  const button = event.target.closest(".sortable button");
  if (!button) return;
  const head = button.closest("th"), body = button.closest("table").tBodies[0];
  const column = head.cellIndex, down = column > 0 && head.getAttribute("aria-sort") !== "descending"
    || column === 0 && head.getAttribute("aria-sort") === "ascending";
  const text = (row) => row.cells[column].textContent, number = (row) => parseFloat(text(row).replaceAll(",", ""));
  const compare = column === 0 ? (a, b) => text(a).localeCompare(text(b))
    : (a, b) => (isNaN(number(a)) ? -1 : number(a)) - (isNaN(number(b)) ? -1 : number(b));
  const rows = [...body.rows].sort(compare);
  body.append(...(down ? rows.reverse() : rows));
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
});
