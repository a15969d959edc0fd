for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "descending";
      const value = row => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const compare = (first, second) => {
        const [a, b] = [value(first), value(second)];
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
        return falling ? order : -order;
      };
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "ascending" : "descending");
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
