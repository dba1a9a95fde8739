"use strict";
// Tables are sorted by a click on a heading: up, down, then as they were. In a table of results a heading is a quantity,
// and sorts the settings beside it, the best first. Numbers stand in data-value; a cell without one comes last.
for (const table of document.querySelectorAll("table[data-sorted]")) {
  const across = table.dataset.sorted === "across";
  const body = table.tBodies[0];
  const rows = [...(across ? table.rows : body.rows)];
  const columns = rows.map((row) => [...row.cells]);
  const headings = across ? columns.slice(1).map((cells) => cells[0]) : [...table.tHead.rows[0].cells];
  const count = across ? columns[0].length - 1 : rows.length;

  const show = (order) => {
    if (!across) body.append(...order.map((place) => rows[place]));
    else rows.forEach((row, line) => row.append(...order.map((place) => columns[line][place + 1])));
  };
  const key = (heading, place) => {
    const cell = across ? columns[heading + 1][place + 1] : columns[place][heading];
    const value = cell.dataset.value;
    return value === undefined ? cell.textContent.trim() : value === "" ? NaN : Number(value);
  };
  const order = (heading, sign) => {
    const keys = Array.from({ length: count }, (_, place) => key(heading, place));
    const compare = (a, b) =>
      typeof a === "string" ? sign * a.localeCompare(b) : isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b);
    return [...keys.keys()].sort((one, other) => compare(keys[one], keys[other]) || one - other);
  };
  headings.forEach((heading, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    const first = heading.dataset.first || "ascending";
    const ways = [first, first === "ascending" ? "descending" : "ascending", null];
    button.addEventListener("click", () => {
      const way = ways[(ways.indexOf(heading.getAttribute("aria-sort")) + 1) % ways.length];
      for (const other of headings) other.removeAttribute("aria-sort");
      if (way) heading.setAttribute("aria-sort", way);
      show(way ? order(place, way === "ascending" ? 1 : -1) : [...Array(count).keys()]);
    });
  });
}
