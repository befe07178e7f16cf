"use strict";

// Sort by the data-value of the cells. Each tbody is sorted separately, so rows of means keep their position.
function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  const [aMissing, bMissing] = [a === "" || a === "–", b === "" || b === "–"];
  if (aMissing || bMissing) return aMissing - bMissing;  // missing values are last in both directions
  return Number.isNaN(x) || Number.isNaN(y) ? null : x - y;
}

function sort(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const column = [...head.parentElement.children].indexOf(head);
  const ascending = head.getAttribute("aria-sort") === "descending" ||
    (head.getAttribute("aria-sort") === "none" && column === 0);
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const value = (row) => row.children[column].dataset.value;
  for (const body of table.tBodies) {
    const rows = [...body.rows].map((row, index) => ({ row, index, value: value(row) }));
    rows.sort((a, b) => {
      const missing = [a, b].some((cell) => cell.value === "" || cell.value === "–");
      const order = compare(a.value, b.value) ?? a.value.localeCompare(b.value);
      return (missing || ascending ? order : -order) || a.index - b.index;
    });
    body.append(...rows.map((pair) => pair.row));
  }
}

// Show the rows that contain every word and have the selected values in their columns.
function filter(block) {
  const words = block.querySelector(".filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const selections = [...block.querySelectorAll(".select")].filter((select) => select.value);
  const rows = [...block.querySelectorAll("tbody tr")];
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const matches = words.every((word) => text.includes(word)) &&
      selections.every((select) => row.children[select.dataset.column].dataset.value === select.value);
    row.hidden = !matches;
    shown += matches;
  }
  block.querySelector(".count").textContent = `${shown} of ${rows.length}`;
}

function filterExamples(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const method of document.querySelectorAll(".method")) {
    let shown = 0;
    for (const example of method.querySelectorAll(".example")) {
      const { method: name, category, benchmark } = example.dataset;
      const label = `${name} ${category} ${benchmark}`.toLowerCase();
      example.hidden = !words.every((word) => label.includes(word));
      shown += !example.hidden;
    }
    method.hidden = shown === 0;
  }
}

// Open an element and everything that contains it, and scroll to it.
function reveal(target) {
  if (!target) return;
  for (const marked of document.querySelectorAll("details.target")) marked.classList.remove("target");
  for (let element = target; element; element = element.parentElement) {
    if (element.tagName === "DETAILS") element.open = true;
    element.hidden = false;
  }
  target.classList.add("target");
  target.scrollIntoView({ block: "start" });
}

function openExample(row) {
  const [benchmark, method, category] = [...row.children].map((cell) => cell.dataset.value);
  reveal([...document.querySelectorAll(".example")].find((example) =>
    example.dataset.benchmark === benchmark && example.dataset.method === method &&
    example.dataset.category === category));
}

function zoom(button) {
  const dialog = document.getElementById("zoom");
  const [image, enlarged] = [button.querySelector("img"), dialog.querySelector("img")];
  enlarged.src = image.src;
  enlarged.alt = image.alt;
  dialog.showModal();
}

async function copy(button) {
  const code = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  } catch {  // no permission for the clipboard: select the text instead
    getSelection().selectAllChildren(code);
  }
}

document.addEventListener("click", (event) => {
  const at = (selector) => event.target.closest(selector);
  if (at(".sort")) sort(at(".sort"));
  else if (at(".zoom")) zoom(at(".zoom"));
  else if (at(".copy")) copy(at(".copy"));
  else if (at("#zoom")) document.getElementById("zoom").close();
  else if (at("#close-all")) for (const example of document.querySelectorAll(".example[open]")) example.open = false;
  else if (at("#results tbody tr") && !at("sup")) openExample(at("#results tbody tr"));
});
document.addEventListener("keydown", (event) => {
  const row = event.target.closest("#results tbody tr");
  if (row && event.key === "Enter") openExample(row);
});
document.addEventListener("input", (event) => {
  const block = event.target.closest(".table-block");
  if (block) filter(block);
  else if (event.target.id === "example-filter") filterExamples(event.target.value);
});
function revealHash() {
  if (location.hash.length > 1 && !location.hash.startsWith("#case=")) reveal(document.getElementById(location.hash.slice(1)));
}
addEventListener("hashchange", revealHash);
for (const row of document.querySelectorAll("#results tbody tr")) row.tabIndex = 0;
for (const block of document.querySelectorAll(".table-block:has(.filter)")) filter(block);
revealHash();
