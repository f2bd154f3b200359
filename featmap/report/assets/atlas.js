"use strict";
// The page: the selection and the kind of stimuli, shared by map, graph, clusters and card; links, keys, tabs.

FM.selected = null;
FM.pinned = null;
FM.path = [];

FM.side = () => Math.max(300, Math.min(document.getElementById("views").clientWidth - 90, window.innerHeight - 215, 900));

// Where a page has two maps, its address also names that of photographs: #inception4a:17&map=photographs.
FM.hash = (name) => `#${encodeURIComponent(name).replaceAll("%3A", ":")}${FM.hasBoth && FM.stimuli !== "images" ? `&map=${FM.stimuli}` : ""}`;

FM.readHash = () => {
  const decode = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // not a link made by this page
    }
  };
  const text = location.hash.slice(1);
  const cut = text.lastIndexOf("&map="); // names are encoded: they hold no &
  return cut < 0 ? { name: decode(text), stimuli: null } : { name: decode(text.slice(0, cut)), stimuli: decode(text.slice(cut + 5)) };
};

// `step`: continue the path (arrow keys); otherwise a new path begins here.
FM.select = (k, step = false) => {
  if (k === FM.selected) return;
  FM.selected = k;
  if (!step) FM.path = [k];
  FM.writeHash();
  FM.card(k);
  FM.map.mark();
  FM.graph.threshold();
  FM.scatter.mark();
  FM.markLinks();
};

FM.writeHash = () => {
  const hash = FM.hash(FM.selected === null ? "" : FM.names[FM.selected]);
  if (location.hash !== hash && !(hash === "#" && location.hash === "")) location.hash = hash;
};

FM.markLinks = () => {
  const hash = FM.selected === null ? null : FM.hash(FM.names[FM.selected]);
  for (const link of document.querySelectorAll("#clusters a")) {
    if (link.getAttribute("href") === hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
};

// Show the map of one kind of stimuli everywhere on the page.
FM.show = (stimuli) => {
  if (stimuli === FM.stimuli) return;
  FM.use(stimuli);
  FM.path = FM.selected === null ? [] : [FM.selected];
  FM.tip(null);
  FM.offer();
  FM.map.arrange();
  FM.graph.arrange();
  FM.clusters();
  FM.markLinks();
  FM.pinPair(FM.pinned);
  if (FM.shownOnCard !== undefined) FM.card(FM.shownOnCard);
};

FM.switch = (stimuli) => {
  FM.show(stimuli);
  FM.writeHash();
};

// Views, measures and the switch as the map on display allows.
FM.offer = () => {
  for (const view of ["map", "graph"]) document.querySelector(`[data-view=${view}]`).hidden = FM.live === 0;
  const chosen = document.querySelector("[role=tab][aria-selected=true]");
  if (chosen.hidden) FM.open("clusters");
  else if (FM.images !== null) FM.open(chosen.dataset.view);
  const choice = document.getElementById("measure");
  choice.replaceChildren(...FM.choices().map((name) => FM.element("option", { value: name }, name === "raw" ? "raw (A itself)" : name)));
  choice.disabled = FM.choices().length < 2;
  if (FM.stimuli === "images") FM.measure = FM.measureOfImages;
  else FM.measure = "profile";
  choice.value = FM.measure;
  for (const button of document.querySelectorAll("#stimuli input")) button.checked = button.value === FM.stimuli;
};

FM.fromHash = () => {
  const { name, stimuli } = FM.readHash();
  const message = document.getElementById("message");
  message.textContent = "";
  if (stimuli !== null && !Object.hasOwn(FM.maps, stimuli)) {
    message.textContent = `This page has no map of ${stimuli}.`;
  } else if (FM.hasBoth) {
    FM.show(stimuli ?? "images");
  }
  if (FM.at.has(name)) {
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
  FM.scatter.mark();
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
  if (FM.stimuli === "images") FM.measureOfImages = name;
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
  if (name === "map" && FM.live > 0) FM.map.build();
  if (name === "graph" && FM.live > 0) FM.graph.build();
  if (name === "scatter") FM.scatter.build();
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
    const { walk } = FM.shown; // features in the order of the map, then the others
    FM.select(walk[(walk.indexOf(k) + by + FM.count) % FM.count]);
  }
};

FM.keys = (event) => {
  const help = document.getElementById("help");
  const within = (fields) => event.target instanceof HTMLElement && event.target.matches(fields);
  const field = within("input[type=search], select, input[type=range]") || (within("input[type=radio]") && event.key.startsWith("Arrow"));
  if (field || help.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const measures = FM.choices();
  const other = FM.stimuli === "images" ? "photographs" : "images";
  const actions = {
    "?": () => help.showModal(),
    "/": () => document.getElementById("search").focus(),
    m: () => FM.live && FM.setMeasure(measures[(measures.indexOf(FM.measure) + 1) % measures.length]),
    p: () => FM.hasBoth && FM.switch(other),
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
  choice.addEventListener("change", () => FM.setMeasure(choice.value));
  FM.measureOfImages = FM.data.measure;
  document.getElementById("threshold").addEventListener("input", FM.graph.threshold);
  document.getElementById("stimuli").hidden = !FM.hasBoth;
  for (const button of document.querySelectorAll("#stimuli input")) {
    button.addEventListener("change", () => FM.switch(button.value));
    // after a click, arrow keys walk through features again; whoever uses the keyboard keeps the focus
    button.addEventListener("click", (event) => event.detail > 0 && button.blur());
  }
  for (const tab of document.querySelectorAll("[role=tab]")) tab.addEventListener("click", () => FM.open(tab.dataset.view));
  document.getElementById("keys").addEventListener("click", () => document.getElementById("help").showModal());
  document.addEventListener("keydown", FM.keys);
  window.addEventListener("hashchange", FM.fromHash);
  if (FM.data.layer === "") document.querySelector("[data-view=clusters]").textContent = "Images";
  document.querySelector("[data-view=scatter]").hidden = !FM.hasBoth;
  document.querySelector("[data-view=reports]").hidden = document.getElementById("view-reports").childElementCount === 0;
};

FM.start = async () => {
  FM.load();
  FM.controls();
  FM.search();
  const { stimuli } = FM.readHash();
  if (stimuli !== null && Object.hasOwn(FM.maps, stimuli)) FM.use(stimuli);
  FM.offer();
  if (FM.live > 0) {
    FM.graph.arrange();
    await FM.map.build();
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
  if (FM.selected === null && FM.readHash().name === "") FM.card(FM.shown.walk[0]);
};

// The map needs only elements above this script; the images are below it and are read once they have loaded.
FM.started = FM.start();
document.addEventListener("DOMContentLoaded", async () => {
  await FM.started;
  setTimeout(FM.finish, 0);
});
