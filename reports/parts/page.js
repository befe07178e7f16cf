"use strict";

// Sort: by the values that the page gives, each part between two lines on its own, so that means stay at their place.
function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  const [odd, even] = [a === "" || a === "–", b === "" || b === "–"];
  if (odd || even) return odd - even;  // what is missing stands last, whichever way
  return Number.isNaN(x) || Number.isNaN(y) ? null : x - y;
}

function sort(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const column = [...head.parentElement.children].indexOf(head);
  const up = head.getAttribute("aria-sort") === "descending" ||
    (head.getAttribute("aria-sort") === "none" && column === 0);
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.children[column].dataset.value;
  for (const body of table.tBodies) {
    const rows = [...body.rows].map((row, place) => ({ row, place, value: value(row) }));
    rows.sort((a, b) => {
      const missing = [a, b].some((each) => each.value === "" || each.value === "–");
      const found = compare(a.value, b.value) ?? a.value.localeCompare(b.value);
      return (missing || up ? found : -found) || a.place - b.place;
    });
    body.append(...rows.map((each) => each.row));
  }
}

// Filter: rows that hold every word, and the chosen values in their columns.
function filter(tabled) {
  const words = tabled.querySelector(".filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = [...tabled.querySelectorAll(".select")].filter((select) => select.value);
  const rows = [...tabled.querySelectorAll("tbody tr")];
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const fits = words.every((word) => text.includes(word)) &&
      chosen.every((select) => row.children[select.dataset.column].dataset.value === select.value);
    row.hidden = !fits;
    shown += fits;
  }
  tabled.querySelector(".count").textContent = `${shown} of ${rows.length}`;
}

function filterCases(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const method of document.querySelectorAll(".method")) {
    let shown = 0;
    for (const each of method.querySelectorAll(".case")) {
      const { method: name, category, topic } = each.dataset;
      const own = `${name} ${category} ${topic}`.toLowerCase();
      each.hidden = !words.every((word) => own.includes(word));
      shown += !each.hidden;
    }
    method.hidden = shown === 0;
  }
}

// Drill down: open what an address or a row points to, and everything around it.
function open(target) {
  if (!target) return;
  for (const marked of document.querySelectorAll("details.target")) marked.classList.remove("target");
  for (let each = target; each; each = each.parentElement) {
    if (each.tagName === "DETAILS") each.open = true;
    each.hidden = false;
  }
  target.classList.add("target");
  target.scrollIntoView({ block: "start" });
}

function drill(row) {
  const [topic, method, category] = [...row.children].map((cell) => cell.dataset.value);
  open([...document.querySelectorAll(".case")].find((each) =>
    each.dataset.topic === topic && each.dataset.method === method && each.dataset.category === category));
}

function zoom(button) {
  const dialog = document.getElementById("zoom");
  const [from, to] = [button.querySelector("img"), dialog.querySelector("img")];
  to.src = from.src;
  to.alt = from.alt;
  dialog.showModal();
}

async function copy(button) {
  const code = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  } catch {  // no leave to write: mark it, so that one key copies it
    getSelection().selectAllChildren(code);
  }
}

document.addEventListener("click", (event) => {
  const at = (selector) => event.target.closest(selector);
  if (at(".sort")) sort(at(".sort"));
  else if (at(".zoom")) zoom(at(".zoom"));
  else if (at(".copy")) copy(at(".copy"));
  else if (at("#zoom")) document.getElementById("zoom").close();
  else if (at("#close-all")) for (const each of document.querySelectorAll(".case[open]")) each.open = false;
  else if (at("#results tbody tr") && !at("sup")) drill(at("#results tbody tr"));
});
document.addEventListener("keydown", (event) => {
  const row = event.target.closest("#results tbody tr");
  if (row && event.key === "Enter") drill(row);
});
document.addEventListener("input", (event) => {
  const tabled = event.target.closest(".tabled");
  if (tabled) filter(tabled);
  else if (event.target.id === "case-filter") filterCases(event.target.value);
});
addEventListener("hashchange", () => open(document.getElementById(decodeURIComponent(location.hash.slice(1)))));
for (const row of document.querySelectorAll("#results tbody tr")) row.tabIndex = 0;
for (const tabled of document.querySelectorAll(".tabled:has(.filter)")) filter(tabled);
if (location.hash) open(document.getElementById(decodeURIComponent(location.hash.slice(1))));
