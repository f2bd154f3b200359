"use strict";
// The page: the selection shared by map, graph, clusters and card; links, keys, tabs.

FM.selected = null;
FM.pinned = null;
FM.path = [];

FM.side = () => Math.max(300, Math.min(document.getElementById("views").clientWidth - 90, window.innerHeight - 215, 900));

FM.hash = (name) => `#${encodeURIComponent(name).replaceAll("%3A", ":")}`;

// `step`: continue the path (arrow keys); otherwise a new path begins here.
FM.select = (k, step = false) => {
  if (k === FM.selected) return;
  FM.selected = k;
  if (!step) FM.path = [k];
  const hash = FM.hash(FM.names[k]);
  if (location.hash !== hash) location.hash = hash;
  FM.card(k);
  FM.map.mark();
  FM.graph.threshold();
  for (const link of document.querySelectorAll("#clusters a")) {
    if (link.getAttribute("href") === hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
};

FM.fromHash = () => {
  let name = "";
  try {
    name = decodeURIComponent(location.hash.slice(1));
  } catch {
    name = location.hash.slice(1); // not a link made by this page
  }
  const message = document.getElementById("message");
  if (FM.at.has(name)) {
    message.textContent = "";
    FM.select(FM.at.get(name));
  } else if (name !== "") {
    message.textContent = `This page has no feature ${name}.`;
  }
};

FM.pinPair = (pair) => {
  FM.pinned = pair;
  const place = document.getElementById("pinned");
  if (pair === null) {
    place.replaceChildren();
  } else {
    const remove = FM.element("button", { type: "button", onclick: () => FM.pinPair(null) }, "unpin");
    place.replaceChildren(FM.element("h2", {}, "Pinned pair ", remove), FM.pair(...pair, true));
  }
  FM.map.mark();
};

// Show content beside the pointer; null hides it.
FM.tip = (content, pointer) => {
  const tip = document.getElementById("tip");
  tip.hidden = content === null;
  if (content === null) return;
  tip.replaceChildren(content);
  const { width, height } = tip.getBoundingClientRect();
  const left = pointer.x + 18 + width > window.innerWidth ? pointer.x - 18 - width : pointer.x + 18;
  const top = Math.min(pointer.y + 18, window.innerHeight - height - 8);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
};

// Show content for what `find` finds under the pointer, and act on a click; `find` returns null for nothing.
FM.listen = (figure, place, find, content, act) => {
  const pointer = { x: 0, y: 0 };
  place.addEventListener("pointermove", (event) => {
    pointer.x = event.clientX;
    pointer.y = event.clientY;
  }, true);
  figure.on_event("mousemove", (event) => {
    const target = find(event);
    FM.tip(target === null ? null : content(target), pointer);
  });
  figure.on_event("mouseleave", () => FM.tip(null));
  figure.on_event("tap", (event) => {
    const target = find(event);
    if (target !== null) act(target);
  });
};

FM.setMeasure = (name) => {
  FM.measure = name;
  document.getElementById("measure").value = name;
  FM.map.show();
};

FM.open = (name) => {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.dataset.view === name;
    tab.setAttribute("aria-selected", String(chosen));
    document.getElementById(`view-${tab.dataset.view}`).hidden = !chosen;
  }
  FM.tip(null);
  if (name === "graph") FM.graph.build();
};

FM.tabs = () => [...document.querySelectorAll("[role=tab]")].filter((tab) => !tab.hidden);

// Right: to the most similar feature that the path has not visited; left: back; up and down: in the order of the map.
FM.step = (key) => {
  const k = FM.selected ?? 0;
  if (FM.path.length === 0) FM.path = [k];
  if (key === "ArrowRight") {
    const next = FM.ranked(k).find(([j]) => !FM.path.includes(j));
    if (next === undefined) return;
    FM.path.push(next[0]);
    FM.select(next[0], true);
  } else if (key === "ArrowLeft") {
    if (FM.path.length < 2) return;
    FM.path.pop();
    FM.select(FM.path.at(-1), true);
  } else {
    const by = key === "ArrowDown" ? 1 : -1;
    FM.select((k + by + FM.count) % FM.count);
  }
};

FM.keys = (event) => {
  const help = document.getElementById("help");
  const field = event.target instanceof HTMLElement && event.target.matches("input[type=search], select, input[type=range]");
  if (field || help.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const measures = Object.keys(FM.measures);
  const actions = {
    "?": () => help.showModal(),
    "/": () => document.getElementById("search").focus(),
    m: () => FM.live && FM.setMeasure(measures[(measures.indexOf(FM.measure) + 1) % measures.length]),
    Escape: () => FM.pinPair(null),
  };
  for (const [at, tab] of FM.tabs().entries()) actions[String(at + 1)] = () => FM.open(tab.dataset.view);
  const act = event.key.startsWith("Arrow") ? () => FM.step(event.key) : actions[event.key];
  if (act === undefined) return;
  event.preventDefault();
  act();
};

FM.controls = () => {
  const choice = document.getElementById("measure");
  for (const name of Object.keys(FM.measures)) choice.append(FM.element("option", { value: name }, name === "raw" ? "raw (A itself)" : name));
  choice.addEventListener("change", () => FM.setMeasure(choice.value));
  const slider = document.getElementById("threshold");
  const weights = FM.data.graph ? FM.data.graph.weight : [];
  const least = weights.reduce((low, w) => Math.min(low, w), 1);
  slider.min = String(Math.floor(least * 100) / 100);
  slider.value = slider.min;
  slider.addEventListener("input", FM.graph.threshold);
  for (const tab of document.querySelectorAll("[role=tab]")) tab.addEventListener("click", () => FM.open(tab.dataset.view));
  document.getElementById("keys").addEventListener("click", () => document.getElementById("help").showModal());
  document.addEventListener("keydown", FM.keys);
  window.addEventListener("hashchange", FM.fromHash);
  if (FM.live === 0) {
    // images without a map: a run of `featmap maximise`, or all features are dead
    for (const view of ["map", "graph"]) document.querySelector(`[data-view=${view}]`).hidden = true;
  }
  if (FM.data.layer === "") document.querySelector("[data-view=clusters]").textContent = "Images";
  document.querySelector("[data-view=reports]").hidden = document.getElementById("view-reports").childElementCount === 0;
};

FM.start = async () => {
  FM.load();
  FM.controls();
  FM.search();
  if (FM.live > 0) {
    FM.measure = FM.data.measure;
    document.getElementById("measure").value = FM.measure;
    await FM.map.build();
  } else {
    FM.open("clusters");
  }
  await FM.afterPaint();
  performance.mark("first-paint-of-map");
};

// After two frames the drawing is on the screen; a page in the background paints no frames and waits for a timeout.
FM.afterPaint = () =>
  new Promise((resolve) => {
    requestAnimationFrame(() => requestAnimationFrame(resolve));
    setTimeout(resolve, 500);
  });

FM.finish = () => {
  FM.readImages();
  FM.clusters();
  FM.fromHash();
  if (FM.selected === null && location.hash === "") FM.card(0);
};

// The map needs only elements above this script; the images are below it and are read once they have loaded.
FM.started = FM.start();
document.addEventListener("DOMContentLoaded", async () => {
  await FM.started;
  setTimeout(FM.finish, 0);
});
