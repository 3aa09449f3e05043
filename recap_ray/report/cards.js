"use strict";
/* Sorts, hides and shows the cards of the page; shared by all pages, which describe their content in attributes:
   a card its kinds and numbers (data-kinds, data-aligned="0.5", ...), a button what it sorts by, a bar or a caption what
   it shows alone (data-only="aligned 0.5 0.6" or "caption a dog"), a dot which card it leads to. The view is kept in the
   address, as in #sort=clip&order=down&text=dog&kind=error, so that it survives a reload and can be passed on. */

const tools = document.getElementById("tools");
const text = document.getElementById("text");
const kind = document.getElementById("kind");
const only = document.getElementById("only");
const shown = document.getElementById("shown");
const list = document.getElementById("cards");
const buttons = new Map([...tools.querySelectorAll("[data-sort]")].map((button) => [button.dataset.sort, button]));
const picks = new Map([...document.querySelectorAll("[data-only]")].map((pick) => [pick.dataset.only, pick]));

// The page is sorted by key, so a card's position is its rank by key.
const cards = [...list.children].map((element, rank) => ({
  element,
  rank,
  kinds: JSON.parse(element.dataset.kinds),
  caption: element.querySelector(".caption").textContent,
  words: [...element.querySelectorAll(".caption, .key")].map((part) => part.textContent).join("\n").toLowerCase(),
}));

let view = {};
let placed = "key up";

/* The number a card is sorted or selected by, or null if it has none. */
function number(card, field) {
  if (field === "key") return card.rank;
  const value = card.element.dataset[field];
  return value === undefined ? null : Number(value);
}

/* Cards without the number come last in both orders; equal ones stay in the order of keys. */
function compare(a, b) {
  const [x, y] = [number(a, view.sort), number(b, view.sort)];
  if (x === null || y === null) return (x === null) - (y === null) || a.rank - b.rank;
  return (view.order === "up" ? x - y : y - x) || a.rank - b.rank;
}

function place() {
  if (placed === `${view.sort} ${view.order}`) return;
  placed = `${view.sort} ${view.order}`;
  list.replaceChildren(...[...cards].sort(compare).map((card) => card.element));
}

/* Whether a card matches the pressed bar or caption. */
function picked(card) {
  if (!view.only) return true;
  const [field, low, high] = view.only.split(" ");
  if (field === "caption") return card.kinds.includes("captioned") && `caption ${card.caption}` === view.only;
  const value = number(card, field);
  return value !== null && Number(low) <= value && value < Number(high);
}

function filter() {
  const wanted = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const card of cards) {
    const right = (!kind.value || card.kinds.includes(kind.value)) && picked(card);
    const visible = right && wanted.every((word) => card.words.includes(word));
    card.element.hidden = !visible;
    count += visible;
  }
  return count;
}

function show() {
  place();
  const count = filter();
  for (const [sort, button] of buttons) {
    const active = sort === view.sort;
    button.setAttribute("aria-pressed", active);
    button.dataset.order = active ? view.order : "";
    button.title = active ? `${button.dataset[view.order]}; press to turn round` : "";
  }
  for (const [name, pick] of picks) pick.setAttribute("aria-pressed", name === view.only);
  only.hidden = !view.only;
  only.textContent = view.only ? `Only ${picks.get(view.only).dataset.label}` : "";
  const by = buttons.get(view.sort);
  const all = cards.length.toLocaleString("en");
  shown.textContent = `${count.toLocaleString("en")} of ${all} shown, by ${by.dataset.name}, ${by.dataset[view.order]}`;
  document.getElementById("nothing").hidden = count > 0;
  makeRoom();
}

/* Scroll targets must not be hidden by the toolbar, whose height depends on the window. */
function makeRoom() {
  const covered = getComputedStyle(tools).position === "sticky" ? tools.offsetHeight : 0;
  document.documentElement.style.scrollPaddingTop = `${covered + 16}px`;
}

function remember() {
  const state = new URLSearchParams({ sort: view.sort, order: view.order });
  for (const [name, value] of [["text", text.value], ["kind", kind.value], ["only", view.only]]) {
    if (value) state.set(name, value);
  }
  history.replaceState(null, "", `#${state}`);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  const { by, order } = tools.dataset;
  view = {
    sort: buttons.has(state.get("sort")) ? state.get("sort") : by,
    order: ["up", "down"].includes(state.get("order")) ? state.get("order") : order,
    only: picks.has(state.get("only")) ? state.get("only") : "",
  };
  text.value = state.get("text") ?? "";
  kind.value = state.get("kind") ?? "";
  if (kind.selectedIndex < 0) kind.value = "";
  show();
}

/* Scrolls to an element, and again two frames later: cards get their real height only when they become visible, and
   the browser then scrolls to keep another element in place. */
function lookAt(element, block = "start") {
  element.scrollIntoView({ block });
  requestAnimationFrame(() => requestAnimationFrame(() => element.scrollIntoView({ block })));
}

/* After a change the view goes back to the first card. */
function change() {
  show();
  remember();
  if (list.getBoundingClientRect().top < tools.getBoundingClientRect().bottom) lookAt(list);
}

function sortBy(sort) {
  const turned = view.order === "up" ? "down" : "up";
  view = { ...view, sort, order: sort === view.sort ? turned : buttons.get(sort).dataset.first };
  change();
}

/* Filters by a bar or a caption, or clears the filter; scrolls to the cards, which are out of sight on a phone. */
function pick(name) {
  view.only = name === view.only ? "" : name;
  change();
  if (view.only && list.getBoundingClientRect().top > innerHeight - 100) lookAt(tools);
}

/* Scrolls to a card, even if a filter hides it. */
function goTo(rank) {
  const { element } = cards[rank];
  if (element.hidden) {
    text.value = kind.value = view.only = "";
    change();
  }
  lookAt(element, "center");
  element.focus({ preventScroll: true });
}

function act(target) {
  const mark = target.closest("[data-only], [data-card]");
  if (mark?.dataset.only) pick(mark.dataset.only);
  else if (mark) goTo(Number(mark.dataset.card));
}

/* The marks of a plot are one tab stop: arrow keys move between them. */
function rove(group, from, step) {
  const marks = [...group.querySelectorAll("[tabindex]")];
  const to = marks[Math.min(Math.max(marks.indexOf(from) + step, 0), marks.length - 1)];
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

for (const group of document.querySelectorAll("[data-roving]")) {
  group.addEventListener("keydown", (event) => {
    const mark = event.target.closest("[tabindex]");
    if (event.key in STEPS) rove(group, mark, STEPS[event.key]);
    else if (event.key === "Enter" || event.key === " ") act(mark);
    else return;
    event.preventDefault();
  });
}
for (const [sort, button] of buttons) {
  button.dataset.name = sort === "key" ? "key" : button.textContent;
  button.addEventListener("click", () => sortBy(sort));
}
document.addEventListener("click", (event) => act(event.target));
text.addEventListener("input", change);
kind.addEventListener("change", change);
only.addEventListener("click", () => {
  pick(view.only);
  buttons.get(view.sort).focus();
});
tools.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", recall);
window.addEventListener("resize", makeRoom);

tools.hidden = false;
recall();
