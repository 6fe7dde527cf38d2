// Live refresh and keys. Everything works without this file, too.
"use strict";
const byId = (id) => document.getElementById(id);
const filter = byId("filter");
let wait = 0;

// Parsed as a document of its own: nothing in it runs.
function load(url, done) {
  const request = new XMLHttpRequest();
  request.responseType = "document";
  request.timeout = 10000;
  request.onload = () => done(request.status === 200 ? request.response : null, request.status);
  request.onerror = request.ontimeout = () => done(null, 0);
  request.open("GET", url);
  request.send();
}

// Rows that are the same stay, so what is focused or selected stays as well, and little is laid out.
function patch(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.tagName !== "TBODY" && old.querySelector("tbody[id]") && fresh.querySelector("tbody[id]")) {
    const [a, b] = [[...old.children], [...fresh.children]];
    if (a.length === b.length && a.every((each, at) => each.tagName === b[at].tagName)) {
      a.forEach((each, at) => patch(each, b[at]));
      return;
    }
  }
  if (old.tagName !== "TBODY") { old.replaceWith(fresh); return; }
  const rows = new Map([...old.rows].map((row) => [row.dataset.key, row]));
  let at = old.firstElementChild;
  for (const row of [...fresh.rows]) {
    let mine = rows.get(row.dataset.key);
    rows.delete(row.dataset.key);
    if (!mine) mine = row;
    else if (!mine.isEqualNode(row)) {
      const cells = [...row.cells];
      [...mine.cells].forEach((cell, n) => { if (!cell.isEqualNode(cells[n])) cell.replaceWith(cells[n]); });
    }
    if (mine === at) at = at.nextElementSibling;
    else old.insertBefore(mine, at);
  }
  rows.forEach((row) => row.remove());
}

function refresh() {
  clearTimeout(wait);
  const main = byId("live");
  if (document.hidden) return;
  const asked = location.href;
  const url = new URL(asked);
  url.searchParams.set("live", main.dataset.sample);
  load(url, (fresh, status) => {
    clearTimeout(wait);
    wait = setTimeout(refresh, 2000);
    document.body.classList.toggle("stale", status !== 200 && status !== 204);
    if (fresh && asked === location.href) {
      const from = fresh.getElementById("live");
      if (!from) return;
      main.dataset.sample = from.dataset.sample;
      const [a, b] = [[...main.children], [...from.children]];
      if (a.length === b.length) a.forEach((each, at) => patch(each, b[at]));
      else main.replaceChildren(...from.childNodes);
    }
  });
}

if (byId("live")) {
  wait = setTimeout(refresh, 2000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
}

function go(parameters) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(parameters)) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  history.replaceState(null, "", url);
  byId("live").dataset.sample = "";
  refresh();
}

let typing = 0;
if (filter) {
  filter.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => go({ q: filter.value }), 150); });
  filter.form.addEventListener("submit", (event) => { event.preventDefault(); go({ q: filter.value }); filter.blur(); step(1); });
}

function step(by) {
  const links = [...document.querySelectorAll("tbody td:first-child a")];
  const now = links.indexOf(document.activeElement);
  const next = links[now < 0 ? 0 : Math.min(Math.max(now + by, 0), links.length - 1)];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}

function sort(by) {
  const heads = [...document.querySelectorAll("th a[href]")];
  const now = heads.findIndex((each) => each.parentNode.hasAttribute("aria-sort"));
  const next = heads[by ? (now + by) % heads.length : now];
  if (next) go(Object.fromEntries([["down", ""], ...new URL(next.href).searchParams]));
}

function follow(id) {
  const link = byId(id);
  if (link) link.click();
}

const keys = {
  "/": () => filter && filter.focus(), j: () => step(1), k: () => step(-1), s: () => filter && sort(1),
  r: () => filter && sort(0), u: () => follow("up"), n: () => follow("next"),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.activeElement.blur();
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, textarea, select")) return;
  if (Object.hasOwn(keys, event.key)) { event.preventDefault(); keys[event.key](); }
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("th a[href]");
  if (!link || !filter || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(Object.fromEntries([["down", ""], ...new URL(link.href).searchParams]));
});
