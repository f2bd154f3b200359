"use strict";
// The index of several layers: a name such as inception4a:17 leads to the page of its layer.

const pages = JSON.parse(document.getElementById("data").textContent);

const target = (name) => {
  const cut = name.lastIndexOf(":");
  const layer = cut < 0 ? name : name.slice(0, cut);
  if (!Object.hasOwn(pages, layer)) return null;
  return cut < 0 ? pages[layer] : `${pages[layer]}#${encodeURIComponent(name).replaceAll("%3A", ":")}`;
};

const go = (name, more = "") => {
  const page = target(name.trim());
  const message = document.getElementById("message");
  message.textContent = page === null ? `No layer of this atlas contains ${name}.` : "";
  if (page !== null) location.assign(page.includes("#") ? page + more : page);
};

document.getElementById("find").addEventListener("submit", (event) => {
  event.preventDefault();
  go(document.getElementById("search").value);
});

// A link such as #inception4a:17&map=photographs also chooses the map of the page that it leads to.
const follow = () => {
  if (location.hash.length <= 1) return;
  const [text, stimuli] = location.hash.slice(1).split("&map=");
  let name = text;
  try {
    name = decodeURIComponent(name);
  } catch {
    // not a link made by an atlas: the name is shown as it is
  }
  go(name, stimuli === undefined ? "" : `&map=${stimuli}`);
};
window.addEventListener("hashchange", follow);
follow();
