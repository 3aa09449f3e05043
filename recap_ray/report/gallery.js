"use strict";
/* Orders, hides and shows the cards that are in the page. The view is kept in the address, as in
   #sort=clip&order=down&text=dog&errors=1, so that it survives a reload and can be passed on. */

const LABELS = { key: "key", clip: "CLIP-S", aligned: "aCLIP-S" };
const DIRECTIONS = { key: { up: "A to Z", down: "Z to A" } };
const SCORE_DIRECTIONS = { up: "lowest first", down: "highest first" };

const tools = document.getElementById("tools");
const text = document.getElementById("text");
const errors = document.getElementById("errors");
const shown = document.getElementById("shown");
const list = document.getElementById("cards");
const buttons = [...tools.querySelectorAll("[data-sort]")];

// The page comes ordered by key, so a card's place in it is its rank by key.
const cards = [...list.children].map((element, rank) => ({
  element,
  key: rank,
  clip: number(element.dataset.clip),
  aligned: number(element.dataset.aligned),
  failed: element.classList.contains("failed"),
  words: [".caption", ".key"].map((name) => element.querySelector(name).textContent).join("\n").toLowerCase(),
}));

let view = { sort: "key", order: "up" };
let placed = "key up";

function number(value) {
  return value === undefined ? null : Number(value);
}

/* Rows without a score come last whichever way the list is turned; equal scores stay in the order of keys. */
function compare(a, b) {
  const [x, y] = [a[view.sort], b[view.sort]];
  if (x === null || y === null) return (x === null) - (y === null) || a.key - b.key;
  return (view.order === "up" ? x - y : y - x) || a.key - b.key;
}

function place() {
  if (placed === `${view.sort} ${view.order}`) return;
  placed = `${view.sort} ${view.order}`;
  list.replaceChildren(...[...cards].sort(compare).map((card) => card.element));
}

function filter() {
  const wanted = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const card of cards) {
    const visible = (!errors.checked || card.failed) && wanted.every((word) => card.words.includes(word));
    card.element.hidden = !visible;
    count += visible;
  }
  return count;
}

function direction() {
  return (DIRECTIONS[view.sort] ?? SCORE_DIRECTIONS)[view.order];
}

function show() {
  place();
  const count = filter();
  for (const button of buttons) {
    const active = button.dataset.sort === view.sort;
    button.setAttribute("aria-pressed", active);
    button.dataset.order = active ? view.order : "";
    button.title = active ? `${direction()}; press to turn round` : "";
  }
  const all = cards.length.toLocaleString("en");
  shown.textContent = `${count.toLocaleString("en")} of ${all} shown, by ${LABELS[view.sort]}, ${direction()}`;
  document.getElementById("nothing").hidden = count > 0;
}

function remember() {
  const state = new URLSearchParams(view);
  if (text.value) state.set("text", text.value);
  if (errors.checked) state.set("errors", "1");
  history.replaceState(null, "", `#${state}`);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  view = {
    sort: Object.hasOwn(LABELS, state.get("sort")) ? state.get("sort") : "key",
    order: state.get("order") === "down" ? "down" : "up",
  };
  text.value = state.get("text") ?? "";
  errors.checked = state.get("errors") === "1";
  show();
}

/* After a change the first card is what one wants to see, not the place the reader had scrolled to. */
function change() {
  show();
  remember();
  if (list.getBoundingClientRect().top < tools.getBoundingClientRect().bottom) list.scrollIntoView();
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    const sort = button.dataset.sort;
    const first = sort === "key" ? "up" : "down";
    const turned = view.order === "up" ? "down" : "up";
    view = { sort, order: sort === view.sort ? turned : first };
    change();
  });
}
text.addEventListener("input", change);
errors.addEventListener("change", change);
tools.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", recall);

tools.hidden = false;
recall();
