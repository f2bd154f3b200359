"use strict";
// The index of several layers: a name such as inception4a:17 leads to the page of its layer.

const places = JSON.parse(document.getElementById("data").textContent);

const target = (name) => {
  const cut = name.lastIndexOf(":");
  const layer = cut < 0 ? name : name.slice(0, cut);
  if (!Object.hasOwn(places, layer)) return null;
  return cut < 0 ? places[layer] : `${places[layer]}#${encodeURIComponent(name).replaceAll("%3A", ":")}`;
};

const go = (name) => {
  const found = target(name.trim());
  const said = document.getElementById("said");
  said.textContent = found === null ? `No layer of this atlas contains ${name}.` : "";
  if (found !== null) location.assign(found);
};

document.getElementById("find").addEventListener("submit", (event) => {
  event.preventDefault();
  go(document.getElementById("search").value);
});

const follow = () => {
  if (location.hash.length > 1) go(decodeURIComponent(location.hash.slice(1)));
};
window.addEventListener("hashchange", follow);
follow();
