"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 24; // browsers limit how many players there may be at a time
const $ = (id) => document.getElementById(id);
const two = (value) => (value === null ? "–" : value.toFixed(2));
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// --- sortable tables

function sortTable(head, place) {
  const body = head.closest("table").tBodies[0];
  const descending = head.getAttribute("aria-sort") !== "descending" && place > 0;
  const key = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = place === 0 ? x.localeCompare(y) : x - y;
    return descending ? -order : order;
  };
  const again = place === 0 && head.getAttribute("aria-sort") === "ascending";
  const rows = [...body.rows].sort(compare);
  body.append(...(again ? rows.reverse() : rows));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending || again ? "descending" : "ascending");
}

for (const head of document.querySelectorAll(".sortable thead th")) {
  head.querySelector("button").addEventListener("click", () => sortTable(head, head.cellIndex));
}

// --- gallery

function sounds(uri) {
  const [head, text] = uri.split(",", 2);
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: head.slice(5).split(";")[0] }));
}

const gain = (clip, place) => (clip.runs[place].ciou ?? 0) - (clip.runs[0].ciou ?? 0);

function overlay(clip, peak) {
  const svg = drawn("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const kind of ["under", "over"]) {
    for (const [left, top, right, bottom] of clip.boxes) {
      const place = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
      svg.append(drawn("rect", { ...place, class: kind }));
    }
    if (peak) {
      const [x, y] = peak;
      const [wide, high] = [0.03, (0.03 * clip.size[0]) / clip.size[1]];
      const path = `M${x - wide} ${y}H${x + wide}M${x} ${y - high}V${y + high}`;
      svg.append(drawn("path", { d: path, class: kind }));
    }
  }
  return svg;
}

function view(clip, place) {
  const run = clip.runs[place];
  const words = `${clip.id}, ${clip.label ?? "no class"}, cIoU ${two(run.ciou)} by ${data.runs[place]}`;
  const frame = element("img", { className: "frame", src: clip.frame, alt: `frame of ${words}` });
  [frame.width, frame.height] = clip.size;
  const box = element("div", { className: "view" }, frame);
  if (run.map) {
    const map = element("img", { className: "map", src: run.map, alt: `heat map of ${words}` });
    const [left, top, width, height] = clip.seen.map((share) => `${100 * share}%`);
    Object.assign(map.style, { left, top, width, height });
    box.append(map);
  }
  box.append(overlay(clip, run.peak));
  const name = element("span", { className: `run-${place}` }, element("span", { ariaHidden: "true" }, `${"●■▲◆▼✚"[place]} `));
  name.append(data.runs[place]);
  const change = place ? ` (${signed(gain(clip, place))})` : "";
  const score = element("span", { className: "score" }, `cIoU ${two(run.ciou)}${change}`);
  return element("figure", {}, box, element("figcaption", {}, name, " · ", score));
}

function card(clip) {
  const views = element("div", { className: "views" }, ...data.runs.map((_, place) => view(clip, place)));
  const groups = clip.groups.map((place) => data.groups[place]).join(" · ");
  const made = element("article", { className: "card" });
  made.dataset.clip = clip.id;
  made.append(element("h3", {}, clip.label ?? "no class"), element("p", {}, clip.id), views);
  if (clip.sound) {
    clip.url ??= sounds(clip.sound);
    const player = element("audio", { controls: true, preload: "metadata", src: clip.url });
    player.setAttribute("aria-label", `sound of ${clip.id}, ${clip.label ?? "no class"}`);
    made.append(player);
  }
  made.append(element("p", { className: "groups" }, groups));
  return made;
}



function orders() {
  const made = [["clip", "Clip", (a, b) => (a.id < b.id ? -1 : 1)]];
  data.runs.forEach((name, place) => {
    const value = (clip) => clip.runs[place].ciou ?? -1;
    made.push([`best-${place}`, `cIoU of ${name}, best first`, (a, b) => value(b) - value(a)]);
    made.push([`worst-${place}`, `cIoU of ${name}, worst first`, (a, b) => value(a) - value(b)]);
  });
  data.runs.slice(1).forEach((name, before) => {
    const place = before + 1;
    made.push([`gain-${place}`, `${name} most improved first`, (a, b) => gain(b, place) - gain(a, place)]);
    made.push([`loss-${place}`, `${name} most worsened first`, (a, b) => gain(a, place) - gain(b, place)]);
  });
  return made;
}

let shown = PAGE;
const known = orders();

function fitting() {
  const [group, label, text] = [$("group").value, $("class").value, $("search").value.trim().toLowerCase()];
  const found = data.clips.filter(
    (clip) =>
      (group === "" || clip.groups.includes(Number(group))) &&
      (label === "" || clip.label === label.slice(1)) &&
      `${clip.id} ${clip.label ?? ""}`.toLowerCase().includes(text),
  );
  return found.sort(known.find(([name]) => name === $("sort").value)[2]);
}

function render() {
  const found = fitting();
  const some = found.slice(0, shown);
  $("cards").replaceChildren(...some.map(card));
  const others = found.length < data.clips.length ? `; ${data.clips.length} without filters` : "";
  $("count").textContent = `${some.length} of ${found.length} clips shown${others}`;
  $("empty").hidden = found.length > 0;
  $("hint").hidden = found.length === 0;
  $("more").hidden = some.length === found.length;
  $("more").textContent = `Show ${Math.min(PAGE, found.length - some.length)} more`;
}

function restyle() {
  $("cards").classList.toggle("no-maps", !$("maps").checked);
  $("cards").classList.toggle("no-boxes", !$("boxes").checked);
  $("cards").classList.toggle("grey", $("grey").checked);
  $("cards").style.setProperty("--opacity", $("opacity").value / 100);
}

function startAgain() {
  shown = PAGE;
  render();
}

function reset() {
  $("controls").reset();
  restyle();
  startAgain();
}

function showMore() {
  const before = shown;
  shown += PAGE;
  render();
  const next = $("cards").children[before];
  next.tabIndex = -1;
  next.focus();
}

function begin() {
  const labels = [...new Set(data.clips.map((clip) => clip.label).filter((label) => label !== null))].sort();
  $("group").append(new Option("All groups", ""), ...data.groups.map((name, place) => new Option(name, place)));
  // A class may be named by nothing at all; the sign before it keeps it apart from "all".
  $("class").append(new Option("All classes", ""), ...labels.map((label) => new Option(label, `=${label}`)));
  $("sort").append(...known.map(([value, name]) => new Option(name, value)));
  $("sort").value = "best-0";
  [...$("sort").options].forEach((option) => (option.defaultSelected = option.value === "best-0"));
  $("cards").style.setProperty("--card", `${Math.min(data.runs.length, 3) * 11 + 6}rem`);
  for (const id of ["group", "class", "sort"]) $(id).addEventListener("change", startAgain);
  $("search").addEventListener("input", startAgain);
  for (const id of ["maps", "boxes", "grey", "opacity"]) $(id).addEventListener("input", restyle);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("undo").addEventListener("click", reset);
  $("clear").addEventListener("click", () => (reset(), $("group").focus()));
  $("more").addEventListener("click", showMore);
  document.addEventListener("play", stopOthers, true);
  $("controls").hidden = false;
  restyle();
  render();
}

function stopOthers(event) {
  for (const player of document.querySelectorAll("audio")) if (player !== event.target) player.pause();
}

if (data.clips.length) begin();
else $("count").textContent = "This report was written without single clips.";
